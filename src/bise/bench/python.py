"""What Python itself costs in one decode step: the engine around a backend that computes nothing."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from ..cache import Cache
from ..config import Config
from ..engine import Engine
from ..ops import Ring
from ..request import Request
from ..sampler import Sampler, Sampling
from ..weights import Layer, Parameters


def python_seconds(config: Config, steps: int = 50) -> float:
    """Median seconds of a step without any arithmetic."""
    idle: Any = _Idle(config)
    cache = Cache(idle, config.with_window(None), 1, steps + 8)
    weights = Parameters(None, [Layer(*[None] * 9) for _ in range(config.n_layers)], None, None)
    engine = Engine(idle, config, weights, cache)
    engine.submit(Request([1], Sampler(Sampling(), config.vocab_size), steps + 4))
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


class _Idle:
    """The verbs with the right shapes and no work."""

    name = "idle"

    def __init__(self, config: Config) -> None:
        c = config
        self.x = np.zeros((1, c.dim), np.float32)
        self.logits = np.zeros((1, c.vocab_size), np.float32)
        heads = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim)
        self.qkv = tuple(np.zeros((1, n), np.float32) for n in heads)
        self.gates = (np.zeros((1, c.hidden_dim), np.float32),) * 2
        self.last = c.n_layers * 2
        self.calls = 0

    def ring(self, sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
        empty = np.zeros((sequences, 1, size, 1), np.float16)
        return Ring(empty, empty)

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def numpy(self, values: np.ndarray) -> np.ndarray:
        return values

    def embed(self, table: Any, tokens: np.ndarray) -> np.ndarray:
        self.calls = 0
        return self.x

    def linear(self, x: np.ndarray, *ws: Any) -> Any:
        if len(ws) > 1:
            return self.qkv if len(ws) == 3 else self.gates
        self.calls += 1  # attention's and feed-forward's outputs, then the logits
        return self.logits if self.calls > self.last else self.x

    def rms_norm(self, x: np.ndarray, w: Any, eps: float) -> np.ndarray:
        return x

    def rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        return x

    def swiglu(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return gate

    def store(self, ring: Ring, spans: np.ndarray, k: np.ndarray, v: np.ndarray) -> None: ...

    def attend(self, q: np.ndarray, ring: Ring, spans: np.ndarray, window: int | None) -> np.ndarray:
        return q
