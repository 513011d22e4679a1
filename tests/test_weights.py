"""One model in four layouts, and what `Weights` says about each."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bise import gguf
from bise.errors import BiseError, FormatError, UnsupportedError
from bise.ops import load_ops
from bise.quant import Planned, QTensor, quantise
from bise.weights import Weights, expected_shapes
from tiny import tiny_config, tiny_keys, tiny_tensors, tiny_weights, write_tiny_gguf, write_tiny_hf, write_tiny_mistral

CONFIG = tiny_config(sliding_window=64)
ARRAYS = tiny_weights(CONFIG)


def same_everywhere(weights: Weights, type: str) -> None:
    assert list(weights) == list(expected_shapes(weights.config))
    for name, tensor in weights.items():
        stored = quantise(ARRAYS[name], tensor.type).dequantise()
        assert tensor.type in (type, "F32"), name
        assert np.array_equal(tensor.dequantise(), stored), name
    assert weights.config.sliding_window == 64
    assert weights.nbytes == sum(tensor.nbytes for tensor in weights.values())


def test_gguf(tmp_path: Path) -> None:
    weights = Weights.open(write_tiny_gguf(tmp_path / "tiny.gguf", CONFIG, ARRAYS, "F16"))
    same_everywhere(weights, "F16")
    assert weights.layout == "gguf" and weights.metadata["general.name"] == "tiny" and not weights.tied
    same_everywhere(Weights.open(tmp_path), "F16")  # a folder with one GGUF


@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
def test_huggingface_rows_come_out_interleaved_and_bf16_stays_bf16(tmp_path: Path, shard_bytes: int) -> None:
    weights = Weights.open(write_tiny_hf(tmp_path / "hf", CONFIG, ARRAYS, "BF16", shard_bytes))
    assert weights.layout == "huggingface" and {tensor.type for tensor in weights.values()} == {"BF16"}
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shard_bytes == 50_000)
    for name, tensor in weights.items():
        assert np.array_equal(tensor.data, quantise(ARRAYS[name], "BF16").data), name


def test_huggingface_q_is_only_read_when_asked_for(tmp_path: Path) -> None:
    weights = Weights.open(write_tiny_hf(tmp_path, CONFIG, ARRAYS))
    assert isinstance(weights.entries["blk.0.attn_q"], Planned)
    assert isinstance(weights.entries["blk.0.attn_v"], QTensor)
    same_everywhere(weights, "F32")


def test_a_single_safetensors_file_stands_for_its_folder(tmp_path: Path) -> None:
    write_tiny_hf(tmp_path, CONFIG, ARRAYS)
    same_everywhere(Weights.open(tmp_path / "model.safetensors"), "F32")


def test_mistral_layout(tmp_path: Path) -> None:
    weights = Weights.open(write_tiny_mistral(tmp_path, CONFIG, ARRAYS, "F16"))
    assert weights.layout == "mistral"
    same_everywhere(weights, "F16")


def test_both_layouts_in_one_folder_are_read_once(tmp_path: Path) -> None:
    write_tiny_mistral(tmp_path, CONFIG, ARRAYS)
    write_tiny_hf(tmp_path, CONFIG, ARRAYS)
    assert Weights.open(tmp_path).layout == "huggingface"
    (tmp_path / "config.json").unlink()
    assert Weights.open(tmp_path).layout == "mistral"


@pytest.mark.parametrize("write", [write_tiny_gguf, write_tiny_hf, write_tiny_mistral])
def test_tied_output_is_the_embedding(tmp_path: Path, write: Any) -> None:
    arrays = tiny_weights(CONFIG, tied=True)
    weights = Weights.open(write(tmp_path / "model.gguf", CONFIG, arrays))
    assert weights.tied and "output" not in weights
    placed = weights.place(load_ops("reference"))
    assert np.array_equal(placed.output, placed.token_embd)


def test_huggingface_s_tie_wins_over_a_stray_head(tmp_path: Path) -> None:
    weights = Weights.open(write_tiny_hf(tmp_path, CONFIG, ARRAYS, tie_word_embeddings=True))
    assert weights.tied


def test_place_hands_over_every_tensor_and_reports_progress(tmp_path: Path) -> None:
    weights = Weights.open(write_tiny_gguf(tmp_path / "tiny.gguf", CONFIG, ARRAYS))
    seen: list[tuple[int, int]] = []
    placed = weights.place(load_ops("reference"), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (weights.nbytes, weights.nbytes) and len(seen) == len(weights)
    assert np.array_equal(placed.blk[1].ffn_down, ARRAYS["blk.1.ffn_down"])
    assert np.array_equal(placed.output_norm, ARRAYS["output_norm"])


def test_place_drops_the_pages_it_has_used(tmp_path: Path) -> None:
    def mapped_kib() -> int:
        status = Path("/proc/self/status")
        if not status.exists():
            pytest.skip("no /proc here")
        return int(status.read_text().split("RssFile:")[1].split()[0])

    config = tiny_config(dim=512, hidden_dim=4096, n_heads=8, head_dim=64, n_layers=4, vocab_size=2000)
    path = write_tiny_gguf(tmp_path / "larger.gguf", config, tiny_weights(config))
    weights, before = Weights.open(path), mapped_kib()
    for tensor in weights.values():
        tensor.data.max()
    touched = mapped_kib() - before
    for name in weights:
        weights.forget(name)
    assert touched > 0.9 * weights.nbytes / 1024
    assert mapped_kib() - before < 0.05 * touched


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0"])
def test_a_bad_scale_is_refused_with_the_tensor_s_name(tmp_path: Path, type: str, bad: float) -> None:
    tensors = tiny_tensors(ARRAYS, type)
    data = tensors["blk.1.ffn_up.weight"].data
    data[:4] = np.array([bad], np.float32 if type == "F32" else np.float16).view(np.uint8)[[0, 1, -2, -1]]
    gguf.write(tmp_path / "bad.gguf", tiny_keys(CONFIG), tensors)
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_up.*NaN or infinite values, first in row 0"):
        Weights.open(tmp_path / "bad.gguf").place(load_ops("reference"))


def test_all_zeros_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_gguf(tmp_path / "t.gguf", CONFIG, ARRAYS | {"blk.0.attn_v": np.zeros_like(ARRAYS["blk.0.attn_v"])})
    Weights.open(tmp_path / "t.gguf").place(load_ops("reference"))
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path}/t.gguf: tensor 'blk.0.attn_v' is all zeros"]


def test_fingerprint_follows_the_model_not_the_file_name(tmp_path: Path) -> None:
    a = Weights.open(write_tiny_gguf(tmp_path / "a.gguf", CONFIG, ARRAYS)).fingerprint
    assert a == Weights.open(write_tiny_gguf(tmp_path / "b.gguf", CONFIG, ARRAYS, **{"general.name": "b"})).fingerprint
    changed = {**ARRAYS, "output_norm": ARRAYS["output_norm"] + 1}
    assert a != Weights.open(write_tiny_gguf(tmp_path / "c.gguf", CONFIG, changed)).fingerprint
    assert a != Weights.open(write_tiny_gguf(tmp_path / "d.gguf", tiny_config(), ARRAYS)).fingerprint


def test_types_and_their_shares(tmp_path: Path) -> None:
    types = {"output": "Q8_0", "token_embd": "Q4_0"}
    weights = Weights.open(write_tiny_gguf(tmp_path / "t.gguf", CONFIG, ARRAYS, types))
    found = weights.types()
    assert found["Q8_0"] == (1, 288 * 64 // 32 * 34) and found["Q4_0"] == (1, 288 * 64 // 32 * 18)
    assert sum(count for count, _ in found.values()) == len(weights) and next(iter(found)) == "F32"


def test_missing_tensors_are_named_up_to_three(tmp_path: Path) -> None:
    arrays = {name: array for name, array in ARRAYS.items() if not name.startswith("blk.1.ffn")}
    with pytest.raises(
        FormatError, match=r"4 of 21 tensors are missing: blk.1.ffn_norm, blk.1.ffn_gate, blk.1.ffn_up and 1 more"
    ):
        Weights.open(write_tiny_gguf(tmp_path / "t.gguf", CONFIG, arrays))


def with_tensor(path: Path, name: str, **keys: Any) -> Path:
    tensors = tiny_tensors(ARRAYS) | {name: QTensor.of(np.ones(64, np.float32))}
    gguf.write(path, tiny_keys(CONFIG) | keys, tensors)
    return path


def test_an_extra_tensor_is_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Weights.open(with_tensor(tmp_path / "t.gguf", "blk.0.attn_rot_embd"))
    assert "ignored, not part of the model: blk.0.attn_rot_embd" in caplog.text


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight", "rope_freqs.weight"]
)
def test_tensors_of_other_architectures_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        Weights.open(with_tensor(tmp_path / "t.gguf", name))


def test_a_layer_too_many_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", CONFIG, ARRAYS, **{"llama.block_count": 1})
    with pytest.raises(FormatError, match="beyond the last of n_layers = 1"):
        Weights.open(path)


def test_a_wrong_shape_is_refused_with_both(tmp_path: Path) -> None:
    arrays = ARRAYS | {"blk.0.ffn_up": np.zeros((95, 64), np.float32)}
    with pytest.raises(FormatError, match=r"'blk.0.ffn_up' has shape \(95, 64\), the configuration needs \(96, 64\)"):
        Weights.open(write_tiny_gguf(tmp_path / "t.gguf", CONFIG, arrays))


def test_a_folder_with_several_models_asks_which(tmp_path: Path) -> None:
    for name in "abcd":
        write_tiny_gguf(tmp_path / f"{name}.gguf", CONFIG, ARRAYS)
    with pytest.raises(FormatError, match=r"holds 4 models, name one of them: a\.gguf, b\.gguf, c\.gguf and 1 more"):
        Weights.open(tmp_path)


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with 'gptq'"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"num_attention_heads": "four"}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "divisor"),
        ({"hidden_size": 0}, "hidden_size"),
    ],
)
def test_a_config_json_that_cannot_be_run(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(BiseError, match=message):
        Weights.open(write_tiny_hf(tmp_path, CONFIG, ARRAYS, **extra))


def test_foreign_code_is_ignored_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Weights.open(write_tiny_hf(tmp_path, CONFIG, ARRAYS, auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True))
    assert "auto_map and trust_remote_code ignored" in caplog.text


def test_packed_safetensors_of_other_engines_are_refused(tmp_path: Path) -> None:
    from bise import safetensors

    write_tiny_hf(tmp_path, CONFIG, ARRAYS)
    name = "model.layers.0.self_attn.q_proj.qweight"
    safetensors.write(tmp_path / "model.safetensors", {name: QTensor.of(np.zeros((4, 4), np.float32))})
    with pytest.raises(UnsupportedError, match="GPTQ, AWQ"):
        Weights.open(tmp_path)


def test_config_json_with_a_number_that_json_does_not_have(tmp_path: Path) -> None:
    write_tiny_hf(tmp_path, CONFIG, ARRAYS)
    text = json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"rope_theta": float("nan")})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError, match="holds NaN"):
        Weights.open(tmp_path)
