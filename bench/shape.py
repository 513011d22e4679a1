#!/usr/bin/env python3
"""A GGUF file of Mistral 7B's shape with random weights, to measure speed and memory with.

    python bench/shape.py OUT.gguf [--type Q4_K_M] [--layers 32]

Its blocks are random bytes whose scales are set so that the weights have a standard deviation of 0.02: size, types and
speed are those of a real file, and what it says is noise. It carries Mistral 7B v0.1's window and context, and its
vocabulary where mistral-common is installed (otherwise one of the same size).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bise import gguf
from bise.config import Config
from bise.names import spelled
from bise.quant import DECODE, TYPES, Planned, QTensor, nbytes, quantise
from bise.vocab import Vocab
from bise.weights import expected_shapes

MIXES = {"Q4_K_M": ("Q4_K", "Q6_K")}  # type of most matrices, and of output and half of attn_v and ffn_down
CHOICES = [*MIXES, *(type for type in TYPES if type != "F32")]
STD = 0.02
POOL = 1 << 23  # values that are made; what a matrix has is these, over and over, from another place on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=CHOICES, default="Q4_K_M")
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    write(arguments.out, arguments.type, arguments.layers)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e9:.2f} GB")


def write(out: Path, type: str = "Q4_K_M", layers: int = 32) -> None:
    """The file, one tensor in memory at a time."""
    config = Config(
        dim=4096, n_layers=layers, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14_336, vocab_size=32_000,
        sliding_window=4096, context=32_768,
    )  # fmt: skip
    plans: dict[str, Planned] = {}
    for number, (name, shape) in enumerate(expected_shapes(config).items()):
        kind = "F32" if len(shape) == 1 else type_of(name, type, layers)
        plans[spelled(name, "gguf")] = Planned(
            kind, shape, lambda kind=kind, shape=shape, at=number: random_tensor(kind, shape, at)
        )
    gguf.write(out, keys(config, f"Mistral 7B's shape, {layers} layers, {type}, random") | vocabulary(), plans)


def type_of(name: str, type: str, layers: int) -> str:
    """Q4_K_M keeps six bits for the output and, in half of the layers (the first and last eighth, and every third in
    between), for attn_v and ffn_down."""
    if type not in MIXES:
        return type
    most, some = MIXES[type]
    layer, eighth = int(name.split(".")[1]) if name.startswith("blk.") else 0, layers // 8
    fine = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return some if name == "output" or (fine and name.endswith(("attn_v", "ffn_down"))) else most


def random_tensor(type: str, shape: tuple[int, ...], number: int) -> QTensor:
    if len(shape) == 1:
        return quantise(np.ones(shape, np.float32), "F32")
    pool, kind = random_blocks(type), TYPES[type]
    start = number * 7919 % (len(pool) // kind.nbytes) * kind.nbytes
    return QTensor(type, shape, np.resize(np.roll(pool, -start), nbytes(type, shape)))


@cache
def random_blocks(type: str) -> np.ndarray:
    """POOL values in blocks of `type`, as bytes, with mean 0 and standard deviation STD."""
    rng, kind = np.random.default_rng(0), TYPES[type]
    if not kind.scales:
        return quantise(rng.standard_normal(POOL, np.float32) * np.float32(STD), type).data
    blocks = rng.integers(0, 256, (POOL // kind.block, kind.nbytes), np.uint8)
    scale, offset = 1.0, 0.0
    if len(kind.scales) > 1:  # the second one is that of the offsets: it takes the mean away
        offset = -mean_and_std(type, blocks, 1, 0)[0] / mean_and_std(type, blocks, 0, 1)[0]
    std = mean_and_std(type, blocks, scale, offset)[1]
    return with_scales(type, blocks, STD / std, offset * STD / std).reshape(-1)


def mean_and_std(type: str, blocks: np.ndarray, scale: float, offset: float) -> tuple[float, float]:
    values = DECODE[type](with_scales(type, blocks[:4096], scale, offset))
    return float(values.mean()), float(values.std())


def with_scales(type: str, blocks: np.ndarray, *scales: float) -> np.ndarray:
    blocks = blocks.copy()
    for at, value in zip(TYPES[type].scales, scales, strict=False):
        blocks[:, at : at + 2] = np.array([value], np.float16).view(np.uint8)
    return blocks


def keys(c: Config, name: str) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": name,
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": c.context,
        "llama.embedding_length": c.dim,
        "llama.block_count": c.n_layers,
        "llama.feed_forward_length": c.hidden_dim,
        "llama.rope.dimension_count": c.head_dim,
        "llama.rope.freq_base": c.rope_theta,
        "llama.attention.head_count": c.n_heads,
        "llama.attention.head_count_kv": c.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": c.norm_eps,
        "llama.attention.sliding_window": c.sliding_window,
    }


def vocabulary() -> Mapping[str, Any]:
    """Mistral's own 32,000 pieces, or as many made up."""
    if found := find_spec("mistral_common"):
        assert found.origin
        return Vocab.from_proto((Path(found.origin).parent / "data" / "tokenizer.model.v1").read_bytes()).to_gguf()
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += [f"\u2581w{i}" for i in range(32_000 - len(pieces))]
    types = [2, 3, 3, *[6] * 256, *[1] * 32_000][:32_000]
    return Vocab(pieces, [-float(i) for i in range(32_000)], types, 0, 1, 2).to_gguf()


if __name__ == "__main__":
    main()
