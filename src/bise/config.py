"""Config: the hyper-parameters in the words of Mistral's params.json, read from any of the three dialects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .errors import FormatError, UnsupportedError

Shapes = Mapping[str, tuple[int, ...]]  # canonical tensor name -> shape, as the file really has them


@dataclass(frozen=True)
class Config:
    """What the forward pass needs to know, and nothing about any file.

    sliding_window counts the token itself: position i sees key j iff i - sliding_window < j <= i. None: all j <= i.
    context is the longest sequence the model was made for; window_reason says why the window is what it is.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0  # linear scaling: positions are divided by it
    sliding_window: int | None = None
    context: int = 32_768
    window_reason: str = ""

    def __post_init__(self) -> None:
        for name, most in _LIMITS.items():
            _expect(name, getattr(self, name), 1, most)
        if self.n_heads % self.n_kv_heads:
            raise FormatError(f"n_kv_heads = {self.n_kv_heads}, expected a divisor of n_heads = {self.n_heads}")
        if self.head_dim % 2:
            raise FormatError(f"head_dim = {self.head_dim}, expected an even number (RoPE turns pairs)")
        for name in ("norm_eps", "rope_theta", "rope_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise FormatError(f"{name} = {value}, expected a finite number above 0")
        if self.sliding_window is not None:
            _expect("sliding_window", self.sliding_window, 1, _LIMITS["context"])

    @property
    def version(self) -> str:
        """Which release's shape this is; fine-tunes share the shape of their base."""
        if _is_7b(self):
            if self.rope_theta == 10_000.0:
                return "Mistral 7B v0.1"
            if self.rope_theta == 1_000_000.0:
                return "Mistral 7B v0.3" if self.vocab_size >= 32_768 else "Mistral 7B v0.2"
        shape = (self.dim, self.n_layers, self.n_heads, self.n_kv_heads, self.hidden_dim)
        return _LLAMAS.get(shape, "Mistral's shape, in another size")

    @property
    def parameters(self) -> int:
        """How many weights a model of this shape has (output not tied)."""
        heads = 2 * self.n_heads + 2 * self.n_kv_heads
        layer = self.dim * (heads * self.head_dim + 3 * self.hidden_dim + 2)
        return self.n_layers * layer + self.dim * (2 * self.vocab_size + 1)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """(head_dim/2,) float64: the angle by which one position turns each pair (Su et al. 2021, section 3.2.2)."""
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        return np.asarray(self.rope_theta**-exponent / self.rope_factor)

    def with_window(self, window: int | None) -> Config:
        """The same model with another window, on the user's word."""
        return replace(self, sliding_window=window, window_reason="as asked")

    @classmethod
    def from_gguf(cls, keys: Mapping[str, Any], shapes: Shapes) -> Config:
        """From a GGUF file's keys. Raises UnsupportedError for architectures that bise does not run."""
        arch = keys.get("general.architecture")
        if arch not in ("llama", "mistral"):
            raise UnsupportedError(
                f"general.architecture = {arch!r:.40}: bise runs Mistral 7B and dense Llama shapes (llama)"
            )
        if experts := keys.get(f"{arch}.expert_count", 0):
            raise UnsupportedError(
                f"{arch}.expert_count = {experts!r:.40}: a mixture of experts (Mixtral); bise runs dense models"
            )
        read = _Fields(keys, f"{arch}.", key=f"{arch}.")
        dim, heads = read.count("embedding_length"), read.count("attention.head_count")
        if "rope_freqs" in shapes:
            raise UnsupportedError("tensor rope_freqs: Llama 3.1's stretched RoPE is not run here")
        config = cls(
            dim=dim,
            n_layers=read.count("block_count"),
            n_heads=heads,
            n_kv_heads=read.count("attention.head_count_kv", heads),
            head_dim=read.count("attention.key_length", dim // heads),
            hidden_dim=read.count("feed_forward_length"),
            vocab_size=_vocabulary(shapes, read.count("vocab_size", 0, least=0)),
            norm_eps=read.number("attention.layer_norm_rms_epsilon", 1e-5),
            rope_theta=read.number("rope.freq_base", 10_000.0),
            rope_factor=_rope_factor(keys.get(f"{arch}.rope.scaling.type"), read.number("rope.scaling.factor", 1.0)),
            context=read.count("context_length", 32_768),
        )
        if (turned := read.count("rope.dimension_count", config.head_dim)) != config.head_dim:
            raise UnsupportedError(f"{arch}.rope.dimension_count = {turned}, head size {config.head_dim}: "
                                   "partial RoPE is not run here")  # fmt: skip
        window = keys.get(f"{arch}.attention.sliding_window")
        if window is not None:  # 0: none, whatever the dimensions say
            return replace(
                config, sliding_window=window or None, window_reason=f"{arch}.attention.sliding_window says so"
            )
        return _recognise(config)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], shapes: Shapes) -> Config:
        """From Hugging Face's config.json (transformers 4 and 5 spell RoPE differently)."""
        kind = config.get("model_type")
        if kind not in ("mistral", "llama"):
            raise UnsupportedError(f"config.json: model_type = {kind!r:.40}, bise runs mistral and dense llama models")
        if config.get("hidden_act", "silu") != "silu":
            raise UnsupportedError(f"config.json: hidden_act = {config['hidden_act']!r:.40}, bise runs silu")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise FormatError(f"config.json: rope_parameters = {rope!r:.40}, expected an object")
        read = _Fields(config, "config.json: ")
        dim, heads = read.count("hidden_size"), read.count("num_attention_heads")
        theta = _Fields({**config, **rope}, "config.json: ").number("rope_theta", 10_000.0)
        window = config.get("sliding_window") if kind == "mistral" else None
        return cls(
            dim=dim,
            n_layers=read.count("num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=read.count("num_key_value_heads", heads),
            head_dim=read.count("head_dim", dim // heads),
            hidden_dim=read.count("intermediate_size"),
            vocab_size=_vocabulary(shapes, read.count("vocab_size", 0, least=0)),
            norm_eps=read.number("rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_factor=_rope_factor(
                rope.get("rope_type", rope.get("type")),
                _Fields(rope, "config.json: rope_scaling.").number("factor", 1.0),
            ),
            sliding_window=window,
            context=read.count("max_position_embeddings", 32_768),
            window_reason="config.json says so" if kind == "mistral" else "Llama models attend to everything",
        )

    @classmethod
    def from_params(cls, params: Mapping[str, Any], shapes: Shapes) -> Config:
        """From Mistral's own params.json."""
        if params.get("moe"):
            raise UnsupportedError("params.json: moe: a mixture of experts (Mixtral); bise runs dense models")
        read = _Fields(params, "params.json: ")
        heads = read.count("n_heads")
        return cls(
            dim=read.count("dim"),
            n_layers=read.count("n_layers"),
            n_heads=heads,
            n_kv_heads=read.count("n_kv_heads", heads),
            head_dim=read.count("head_dim", read.count("dim") // heads),
            hidden_dim=read.count("hidden_dim"),
            vocab_size=_vocabulary(shapes, read.count("vocab_size", 0, least=0)),
            norm_eps=read.number("norm_eps", 1e-5),
            rope_theta=read.number("rope_theta", 10_000.0),
            sliding_window=params.get("sliding_window"),
            context=read.count("max_seq_len", 32_768),
            window_reason="params.json says so",
        )

    def to_gguf(self) -> dict[str, Any]:
        """The llama.* keys of a GGUF. The window has a key: 0 where the dimensions suggest one."""
        keys: dict[str, Any] = {
            "block_count": self.n_layers,
            "context_length": self.context,
            "embedding_length": self.dim,
            "feed_forward_length": self.hidden_dim,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads,
            "rope.freq_base": float(self.rope_theta),
            "attention.layer_norm_rms_epsilon": float(self.norm_eps),
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "vocab_size": self.vocab_size,
            "rope.dimension_count": self.head_dim,
        }
        if self.rope_factor != 1:
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(self.rope_factor)}
        if self.sliding_window or _recognise(self).sliding_window:
            keys["attention.sliding_window"] = self.sliding_window or 0
        return {f"llama.{key}": value for key, value in keys.items()}

    def to_hf(self) -> dict[str, Any]:
        """A config.json of this shape. Theta stands there twice: transformers 4 reads rope_theta, 5 the other."""
        plain_llama = self.sliding_window is None and (self.rope_factor != 1 or not self.version.startswith("Mistral"))
        theta, factor = _shortest(self.rope_theta), _shortest(self.rope_factor)
        linear = {"type": "linear", "rope_type": "linear", "factor": factor}
        return {
            "architectures": ["LlamaForCausalLM" if plain_llama else "MistralForCausalLM"],
            "model_type": "llama" if plain_llama else "mistral",
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.hidden_dim,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": _shortest(self.norm_eps),
            "rope_theta": theta,
            "rope_parameters": {"rope_theta": theta, **(linear if factor != 1 else {"rope_type": "default"})},
            **({"rope_scaling": linear} if factor != 1 else {}),
            **({} if plain_llama else {"sliding_window": self.sliding_window}),
            "max_position_embeddings": self.context,
        }

    def to_params(self) -> dict[str, Any]:
        """Mistral's params.json. UnsupportedError for stretched positions, which it cannot say."""
        if self.rope_factor != 1:
            raise UnsupportedError(
                f"RoPE positions stretched {self.rope_factor:g} times: params.json cannot say it, use another layout"
            )
        return {
            "dim": self.dim,
            "n_layers": self.n_layers,
            "head_dim": self.head_dim,
            "hidden_dim": self.hidden_dim,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "norm_eps": _shortest(self.norm_eps),
            "vocab_size": self.vocab_size,
            "rope_theta": _shortest(self.rope_theta),
            **({"sliding_window": self.sliding_window} if self.sliding_window else {}),
            "max_seq_len": self.context,
        }


_LIMITS = dict(
    dim=65_536, n_layers=512, n_heads=1024, n_kv_heads=1024, head_dim=1024, hidden_dim=524_288,
    vocab_size=1_048_576, context=16_777_216,
)  # fmt: skip
_LLAMAS = {
    (4096, 32, 32, 32, 11_008): "Llama 1/2 7B",
    (5120, 40, 40, 40, 13_824): "Llama 1/2 13B",
    (8192, 80, 64, 8, 28_672): "Llama 2 70B",
}


def _shortest(value: float) -> float:
    """A number that came out of a float32 as people wrote it: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value))) if value == np.float32(value) else value


def _is_7b(c: Config) -> bool:
    shape = (c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.hidden_dim)
    return shape == (4096, 32, 32, 8, 128, 14_336) and 32_000 <= c.vocab_size <= 33_024


def _recognise(c: Config) -> Config:
    """A llama-architecture GGUF carries no window: v0.1 is known by its dimensions, vocabulary and theta."""
    if c.version == "Mistral 7B v0.1":
        return replace(
            c, sliding_window=4096, window_reason="Mistral 7B v0.1 by its dimensions, vocabulary and rope theta 1e4"
        )
    if c.version.startswith("Mistral"):
        return replace(c, window_reason=f"{c.version} by its rope theta 1e6: no window")
    return replace(c, window_reason=f"{c.version}: no window in the file")


def _vocabulary(shapes: Shapes, declared: int) -> int:
    """The rows of the embedding are the truth; the header's number has to agree where there is one."""
    rows = shapes["token_embd"][0] if "token_embd" in shapes else declared
    if declared and rows != declared:
        raise FormatError(
            f"vocab_size = {declared:,}, but the embedding has {rows:,} rows: the files do not belong together"
        )
    return rows


def _rope_factor(kind: Any, factor: float) -> float:
    if kind in (None, "none", "default"):
        return 1.0
    if kind == "linear":
        return factor
    raise UnsupportedError(f"RoPE scaling {kind!r:.40} is not run here: bise knows none and linear")


def _expect(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FormatError(f"{name} = {value!r:.40}, expected a whole number from {least:,} to {most:,}")
    return value


@dataclass(frozen=True)
class _Fields:
    """Typed look-ups that name the field in their refusal: `shown` stands before its name, `key` before its key."""

    source: Mapping[str, Any]
    shown: str
    key: str = ""

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.source.get(self.key + name)
        return _expect(self.shown + name, default if value is None else value, least, _LIMITS["context"])

    def number(self, name: str, default: float) -> float:
        value = self.source.get(self.key + name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise FormatError(f"{self.shown}{name} = {value!r:.40}, expected a finite number")
        return float(value)
