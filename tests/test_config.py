"""Which model is this? The three dialects, the releases told apart, and values that no model has."""

import math
from typing import Any

import numpy as np
import pytest

from bise.config import Config
from bise.errors import BiseError, FormatError, UnsupportedError

SEVEN_B = {
    "general.architecture": "llama", "llama.block_count": 32, "llama.embedding_length": 4096, "llama.context_length": 32768,
    "llama.feed_forward_length": 14336, "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 128, "llama.rope.freq_base": 1e4,
}  # fmt: skip
HF = {
    "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": 4096,
    "max_position_embeddings": 32768, "hidden_act": "silu",
}  # fmt: skip
PARAMS = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-5, "sliding_window": 4096, "vocab_size": 32000,
}  # fmt: skip


def gguf(vocab: int = 32_000, **changes: Any) -> Config:
    return Config.from_gguf({**SEVEN_B, **changes}, {"token_embd": (vocab, 4096)})


@pytest.mark.parametrize(
    ("theta", "vocab", "version", "window"),
    [
        (1e4, 32_000, "Mistral 7B v0.1", 4096),
        (1e4, 32_002, "Mistral 7B v0.1", 4096),  # a fine-tune that added two tokens
        (1e6, 32_000, "Mistral 7B v0.2", None),
        (1e6, 32_768, "Mistral 7B v0.3", None),
    ],
)
def test_releases_are_told_apart_without_a_window_key(
    theta: float, vocab: int, version: str, window: int | None
) -> None:
    config = gguf(vocab, **{"llama.rope.freq_base": theta})
    assert (config.version, config.sliding_window) == (version, window)
    assert version in config.window_reason


def test_llama_shapes_have_no_window() -> None:
    llama = {"llama.attention.head_count_kv": 32, "llama.feed_forward_length": 11008, "llama.context_length": 4096}
    config = gguf(**llama)
    assert (config.version, config.sliding_window, config.context) == ("Llama 1/2 7B", None, 4096)


def test_a_window_key_is_believed_and_the_user_more() -> None:
    config = gguf(**{"llama.attention.sliding_window": 128})
    assert config.sliding_window == 128
    assert config.with_window(None).sliding_window is None


def test_three_dialects_say_the_same() -> None:
    shapes = {"token_embd": (32_000, 4096)}
    configs = [gguf(), Config.from_hf(HF, shapes), Config.from_params(PARAMS, shapes)]
    assert (
        len({(c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_dim, c.vocab_size) for c in configs})
        == 1
    )
    assert {(c.norm_eps, c.rope_theta, c.sliding_window, c.context) for c in configs} == {(1e-5, 1e4, 4096, 32_768)}
    assert configs[0].parameters == 7_241_732_096  # what the weights of v0.1 count up to


def test_theta_as_transformers_5_writes_it() -> None:
    config = {k: v for k, v in HF.items() if k != "rope_theta"} | {
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}
    }
    assert Config.from_hf(config, {}).rope_theta == 1e6


def test_linear_scaling_divides_positions() -> None:
    plain, stretched = gguf(), gguf(**{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    np.testing.assert_allclose(stretched.frequencies * 4, plain.frequencies)
    assert plain.frequencies[0] == 1 and len(plain.frequencies) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"general.architecture": "qwen2"}, {"general.architecture": None}, {"llama.expert_count": 8},
        {"llama.rope.scaling.type": "yarn"}, {"llama.rope.dimension_count": 64},
    ],
)  # fmt: skip
def test_other_architectures_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as error:
        gguf(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**9, 1.5, True, "32", None, [32]])
@pytest.mark.parametrize(
    "field",
    ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "feed_forward_length"],
)
def test_impossible_numbers_are_refused(field: str, value: object) -> None:
    if value is None and field == "attention.head_count_kv":
        return  # absent means one key head a query head
    with pytest.raises(FormatError, match=field.split(".")[-1] + "|n_layers|dim|n_heads|n_kv_heads|hidden_dim|head"):
        gguf(**{f"llama.{field}": value})


@pytest.mark.parametrize("theta", [0.0, -1.0, math.nan, math.inf, "x"])
def test_impossible_theta_is_refused(theta: object) -> None:
    with pytest.raises(BiseError, match="rope"):
        gguf(**{"llama.rope.freq_base": theta})


def test_heads_must_divide_and_vocabularies_agree() -> None:
    with pytest.raises(FormatError, match="divisor"):
        gguf(**{"llama.attention.head_count_kv": 5})
    with pytest.raises(FormatError, match="32,768.*32,000"):
        gguf(**{"llama.vocab_size": 32768})
