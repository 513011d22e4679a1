"""A model small enough for every test: random weights, and the same weights in each layout that bise reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bise import gguf, names, safetensors
from bise.config import Config
from bise.quant import TYPES, QTensor, quantise
from bise.weights import expected_shapes

Arrays = dict[str, np.ndarray]  # canonical name -> float32


def tiny_config(**changes: Any) -> Config:
    """2 layers, 4 heads over 2 key/value heads, no window; `tiny_config(dim=256, sliding_window=16)` and so on."""
    shape: dict[str, Any] = dict(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, vocab_size=288, context=512
    )
    return Config(**{**shape, **changes})


def tiny_weights(config: Config, seed: int = 0, tied: bool = False) -> Arrays:
    """Matrices of standard deviation 1/sqrt(columns), norms around 1: logits differ by about 1 from token to token."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in expected_shapes(config).items():
        values = rng.standard_normal(shape).astype(np.float32)
        arrays[name] = 1 + values / 10 if len(shape) == 1 else values / np.float32(np.sqrt(shape[1]))
    if tied:
        del arrays["output"]
    return arrays


def tiny_vocabulary(size: int) -> dict[str, Any]:
    """tokenizer.ggml.* keys of a SentencePiece vocabulary: 3 control pieces, 256 bytes, letters and fillers."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"etaoinshrdlucmfwypvbgkqjxz"]
    pieces = [*pieces, *(f"▁w{i}" for i in range(size))][:size]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0 if i < 259 else float(258 - i) for i in range(size)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * size][:size],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def tiny_v3_vocabulary(size: int) -> dict[str, Any]:
    """The same with the control pieces of Mistral's format v3 in place of the last fillers."""
    keys = tiny_vocabulary(size)
    for at, name in enumerate(
        ("INST", "/INST", "TOOL_CALLS", "AVAILABLE_TOOLS", "/AVAILABLE_TOOLS", "TOOL_RESULTS", "/TOOL_RESULTS")
    ):
        keys["tokenizer.ggml.tokens"][size - 1 - at] = f"[{name}]"
        keys["tokenizer.ggml.token_type"][size - 1 - at] = 3
    return keys


def tiny_keys(config: Config, vocabulary: bool | None = None) -> dict[str, Any]:
    """GGUF keys of a llama-architecture file; with a vocabulary where there is room for its 259 fixed pieces."""
    c = config
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": c.context,
        "llama.embedding_length": c.dim,
        "llama.block_count": c.n_layers,
        "llama.feed_forward_length": c.hidden_dim,
        "llama.rope.dimension_count": c.head_dim,
        "llama.rope.freq_base": float(c.rope_theta),
        "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads,
        "llama.attention.key_length": c.head_dim,
        "llama.attention.value_length": c.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(c.norm_eps),
    }
    if c.sliding_window:
        keys["llama.attention.sliding_window"] = c.sliding_window
    if c.rope_factor != 1:
        keys |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": float(c.rope_factor)}
    if vocabulary or (vocabulary is None and c.vocab_size >= 259):
        keys |= tiny_vocabulary(c.vocab_size)
    return keys


def tiny_tensors(arrays: Arrays, type: str | Mapping[str, str] | Callable[[str], str] = "F32") -> dict[str, QTensor]:
    """GGUF name -> QTensor: matrices in `type` (or by canonical name, F32 where the mapping lacks it), norms in F32."""

    def of(name: str) -> str:
        if isinstance(type, str):
            return type
        return type.get(name, "F32") if isinstance(type, Mapping) else type(name)

    return {
        names.spelled(name, "gguf"): quantise(array, "F32" if array.ndim == 1 else of(name))
        for name, array in arrays.items()
    }


def write_tiny_gguf(path: Path, config: Config, arrays: Arrays, type: Any = "F32", **keys: Any) -> Path:
    """Extra keys go in as given: write_tiny_gguf(p, c, a, **{"general.name": "other"})."""
    assert isinstance(type, (Mapping, Callable)) or type in TYPES  # type: ignore[arg-type]
    gguf.write(path, {**tiny_keys(config), **keys}, tiny_tensors(arrays, type))
    return path


def write_tiny_hf(
    folder: Path, config: Config, arrays: Arrays, type: str = "F32", shard_bytes: int = 10**9, **extra: Any
) -> Path:
    """model.safetensors (or shards and their index) and config.json, as transformers 4 writes it."""
    c = config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        names.spelled(name, "huggingface"): quantise(
            names.half_split(array, c.head_dim) if names.turned(name) else array, type
        )
        for name, array in arrays.items()
    }
    safetensors.write_shards(folder, tensors, shard_bytes, {"format": "pt"})
    description = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.hidden_dim,
        "vocab_size": c.vocab_size,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "sliding_window": c.sliding_window,
        "max_position_embeddings": c.context,
        "tie_word_embeddings": "output" not in arrays,
        "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[type],
    }
    (folder / "config.json").write_text(json.dumps({**description, **extra}, indent=2))
    return folder


def write_tiny_mistral(folder: Path, config: Config, arrays: Arrays, type: str = "BF16", **extra: Any) -> Path:
    """consolidated.safetensors and params.json, as Mistral's own releases have them."""
    c = config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {names.spelled(name, "mistral"): quantise(array, type) for name, array in arrays.items()}
    safetensors.write(folder / "consolidated.safetensors", tensors)
    params = {
        "dim": c.dim,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_dim": c.hidden_dim,
        "vocab_size": c.vocab_size,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        **({"sliding_window": c.sliding_window} if c.sliding_window else {}),
    }
    (folder / "params.json").write_text(json.dumps({**params, **extra}))
    return folder
