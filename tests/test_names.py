"""Names in three dialects, and the order of rows that RoPE needs."""

from __future__ import annotations

import numpy as np
import pytest

from bise import names
from bise.quant import quantise


@pytest.mark.parametrize("layout", names.LAYOUTS)
def test_there_and_back(layout: str) -> None:
    for general in names.TABLE:
        for layer in (0, 7, 31):
            name = general.replace("N", str(layer))
            assert names.canonical(names.spelled(name, layout), layout) == name


@pytest.mark.parametrize(
    "ours, huggingface, mistral",
    [
        ("token_embd", "model.embed_tokens.weight", "tok_embeddings.weight"),
        ("blk.3.attn_norm", "model.layers.3.input_layernorm.weight", "layers.3.attention_norm.weight"),
        ("blk.3.ffn_gate", "model.layers.3.mlp.gate_proj.weight", "layers.3.feed_forward.w1.weight"),
        ("blk.3.ffn_down", "model.layers.3.mlp.down_proj.weight", "layers.3.feed_forward.w2.weight"),
        ("blk.3.ffn_up", "model.layers.3.mlp.up_proj.weight", "layers.3.feed_forward.w3.weight"),
        ("output", "lm_head.weight", "output.weight"),
    ],
)
def test_some_names_by_hand(ours: str, huggingface: str, mistral: str) -> None:
    assert (names.spelled(ours, "huggingface"), names.spelled(ours, "mistral")) == (huggingface, mistral)
    assert names.spelled(ours, "gguf") == f"{ours}.weight"


def test_the_gguf_package_agrees() -> None:
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 32)
    for general in names.TABLE:
        name = general.replace("N", "5")
        for layout in ("huggingface", "mistral"):
            assert table.get_name(names.spelled(name, layout), try_suffixes=(".weight",)) == names.spelled(name, "gguf")


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=64,
    )
    state = transformers.MistralForCausalLM(config).state_dict()
    assert None not in {names.canonical(name, "huggingface") for name in state}


@pytest.mark.parametrize(
    "name",
    ["", "output", "blk.0.attn_q.bias", "blk.N.attn_q.weight", "blk.01.attn_q.weight", "blk.-1.attn_q.weight",
     "blk.0.0.attn_q.weight", "blk.٣.attn_q.weight", "blk.9999999.attn_q.weight", "token_embd.0.weight", "norm.weight"],
)  # fmt: skip
def test_what_is_not_a_name(name: str) -> None:
    assert names.canonical(name, "gguf") is None


def test_turned_is_q_and_k() -> None:
    assert [part for part in names.LAYER if names.turned(f"blk.0.{part}")] == ["attn_q", "attn_k"]


def test_interleaved_rows_turn_as_half_split_ones_do() -> None:
    """RoPE both ways over the same projection: the same numbers, in the other order."""
    heads, head_dim, dim = 3, 8, 16
    rng = np.random.default_rng(0)
    w, x, angle = (
        rng.standard_normal((heads * head_dim, dim)),
        rng.standard_normal(dim),
        rng.standard_normal(head_dim // 2),
    )
    cos, sin = np.cos(angle), np.sin(angle)

    half = (w @ x).reshape(heads, 2, head_dim // 2)  # (head, s, i): pairs (i, i + D/2)
    turned = np.stack([half[:, 0] * cos - half[:, 1] * sin, half[:, 0] * sin + half[:, 1] * cos], axis=1)
    pairs = (names.interleaved(w, head_dim) @ x).reshape(heads, head_dim // 2, 2)  # (head, i, s): pairs (2i, 2i + 1)
    mine = np.stack([pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 0] * sin + pairs[..., 1] * cos], axis=2)
    assert np.allclose(turned.swapaxes(1, 2), mine, atol=1e-12)


@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_quantised_rows_move_as_bytes(type: str) -> None:
    w = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    tensor = quantise(w, type)
    moved = names.interleaved(tensor, 16)
    assert np.array_equal(moved.data, quantise(names.interleaved(w, 16), type).data)
    assert not np.array_equal(moved.data, tensor.data)
    assert np.array_equal(names.half_split(moved, 16).data, tensor.data)


def test_lora_b_rows_move_with_the_weight() -> None:
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((32, 4)), rng.standard_normal((4, 8))
    assert np.allclose(names.interleaved(b, 16) @ a, names.interleaved(b @ a, 16))
