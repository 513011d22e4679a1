"""What the pictures of the README and of docs/quantising.md show, computed by bise itself, and measured where it can be
measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import bise.cache
from bise.api import BUILT_IN
from bise.cache import Cache, cache_bytes, whole
from bise.config import Config
from bise.model import forward
from bise.ops.reference import Reference
from bise.quantize.lattice import grid, nearest
from bise.rounding import rounded
from bise.weights import Layer, Parameters, Weights

MISTRAL = Config(
    dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14_336, vocab_size=32_000,
    sliding_window=4096, context=32_768,
)  # fmt: skip
OPS = Reference()


def heads() -> list[dict[str, Any]]:
    """For Mistral 7B v0.1 and puff: which key/value head each query head reads, found by marking one after another."""
    found = []
    for name, config in (("Mistral 7B", MISTRAL), ("puff", Weights.open(BUILT_IN).config)):
        every = replace(config, n_kv_heads=config.n_heads)
        found.append({
            "name": name,
            "reads": [int(g) for g in _reads(config.n_heads, config.n_kv_heads)],
            "kv_heads": config.n_kv_heads,
            "token_bytes": cache_bytes(config.with_window(None), 32) // 32,
            "multi_head_token_bytes": cache_bytes(every.with_window(None), 32) // 32,
        })  # fmt: skip
    return found


def _reads(n_heads: int, n_kv_heads: int, head_dim: int = 32) -> np.ndarray:
    """(n_heads,): the values of key/value head g are all g, so what a query head brings back is its number."""
    ring, spans = OPS.ring(1, n_kv_heads, 32, head_dim, "f32"), np.array([[0, 0, 1, 0]], np.int32)
    mark = np.repeat(np.arange(n_kv_heads, dtype=np.float32), head_dim)[None]
    OPS.store(ring, spans, mark, mark)
    return OPS.attend(np.zeros((1, n_heads * head_dim), np.float32), ring, spans, None).reshape(n_heads, head_dim)[:, 0]


def window(tokens: int = 16, size: int = 5, layers: int = 4, length: int = 20) -> dict[str, Any]:
    """sees: who sees whom in one layer; reach: what changes at each layer when the first token is another one."""
    return {"size": size, "sees": _sees(tokens, size), "reach": _reach(size, layers, length)}


def _sees(tokens: int, size: int) -> list[list[int]]:
    """(tokens, tokens) of 0 and 1: value j has a 1 in place j alone, so what query i brings back says whom it saw."""
    ring, spans = OPS.ring(1, 1, 32, 32, "f32"), np.array([[0, 0, tokens, 0]], np.int32)
    OPS.store(ring, spans, np.zeros((tokens, 32), np.float32), np.eye(tokens, 32, dtype=np.float32))
    seen = OPS.attend(np.zeros((tokens, 32), np.float32), ring, spans, size)
    return (seen[:, :tokens] > 0).astype(int).tolist()


def _reach(size: int, layers: int, length: int) -> list[list[int]]:
    """(layers, length) of 0 and 1, through `tap`, in a model of random weights."""
    config = Config(
        dim=32, n_layers=layers, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=64, vocab_size=16,
        sliding_window=size, context=length,
    )  # fmt: skip
    weights = _random_parameters(config)

    def states(first: int) -> list[np.ndarray]:
        kept: list[np.ndarray] = []
        tokens = np.array([first, *(np.arange(1, length) % 13)], np.int32)
        forward(OPS, config, weights, tokens, whole(OPS, config, [length]), lambda _, x: (kept.append(x.copy()), x)[1])
        return kept

    return [(one != other).any(axis=1).astype(int).tolist() for one, other in zip(states(14), states(15), strict=True)]


def _random_parameters(c: Config) -> Parameters:
    rng = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    one, q, kv = np.ones(c.dim, np.float32), c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    blk = [
        Layer(one, matrix(q, c.dim), matrix(kv, c.dim), matrix(kv, c.dim), matrix(c.dim, q), one,
              matrix(c.hidden_dim, c.dim), matrix(c.hidden_dim, c.dim), matrix(c.dim, c.hidden_dim))
        for _ in range(c.n_layers)
    ]  # fmt: skip
    return Parameters(matrix(c.vocab_size, c.dim), blk, one, matrix(c.vocab_size, c.dim))


def buffer(size: int = 20, chunk: int = 13, chunks: int = 5, decoded: int = 2) -> dict[str, Any]:
    """A prompt in chunks, then single tokens: what lies in each slot of a real Cache (a key is its own position)."""
    config = replace(MISTRAL, n_layers=1, n_kv_heads=1, head_dim=2, sliding_window=size)
    usual, bise.cache.CHUNK = bise.cache.CHUNK, chunk  # small enough to be looked at
    try:
        cache, steps = Cache(OPS, config, kv="f32"), []
        cache.rings[0].k.fill(-1)
        for n in [chunk] * chunks + [1] * decoded:
            start = cache.lengths[0]
            batch = cache.batch([(0, n)])
            position = np.repeat(np.arange(start, start + n, dtype=np.float32)[:, None], 2, axis=1)
            OPS.store(cache.rings[0], batch.spans, position, position)
            steps.append({
                "first": start,
                "last": start + n - 1,
                "oldest_seen": cache.first_visible(start),
                "slots": cache.rings[0].k[0, 0, :, 0].astype(int).tolist(),
            })  # fmt: skip
            cache.advance(batch)
    finally:
        bise.cache.CHUNK = usual
    return {"size": size, "chunk": chunk, "steps": steps}


def memory() -> dict[str, Any]:
    """Bytes of keys and values against the context: Mistral 7B v0.1 with its window and without."""
    contexts = [0, *range(1024, 32_769, 1024)]

    def line(window: int | None, kv: str) -> list[int]:
        return [cache_bytes(MISTRAL.with_window(window), n, kv) if n else 0 for n in contexts]

    lines = {
        "full attention, f16": line(None, "f16"),
        "window 4096, f16": line(4096, "f16"),
        "window 4096, q8_0": line(4096, "q8_0"),
    }
    return {"contexts": contexts, "lines": lines}


def block(name: str = "blk.2.ffn_up", at: int = 3) -> dict[str, Any]:
    """The first 256 weights of a matrix of puff as a block of Q4_K, read from its bytes: what it holds, and sub-block
    `at` weight by weight."""
    values = Weights.open(BUILT_IN)[name].rows([0])[:, :256]
    data = rounded(values, "Q4_K").data.reshape(1, -1)
    d, least = data[0, :4].copy().view(np.float16).astype(float)
    zero, step = (part.reshape(8, 32) for part in grid("Q4_K", data))
    levels = nearest("Q4_K", values.reshape(8, 32), zero, step)[0]
    return {
        "name": name,
        "nbytes": {"d": 2, "m": 2, "scales and minima": 12, "levels": data.size - 16},
        "scales": np.rint(step[:, 0] / d).astype(int).tolist(),
        "minima": np.rint(-zero[:, 0] / least).astype(int).tolist(),
        "levels": levels.tolist(),
        "at": at,
        "values": values.reshape(8, 32)[at].round(6).tolist(),
        "grid": (zero[at, 0] + step[at, 0] * np.arange(16)).round(6).tolist(),
    }


CONTENT = {"heads": heads, "window": window, "buffer": buffer, "memory": memory, "block": block}
