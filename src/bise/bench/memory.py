"""What memory has to give for one token, what it gives at most, and how near decoding comes to that."""

from __future__ import annotations

import threading
import time

import numpy as np

from ..config import Config
from ..machine import cores
from ..weights import Weights

ARENA = 1 << 30  # bytes that the bandwidth test reads: more than any cache holds
CACHED = 1 << 28  # bytes per token below which a processor's caches may hold much of a model


def bandwidth(threads: int | None = None, nbytes: int = ARENA, repeats: int = 5) -> float:
    """Bytes per second that `threads` threads read from memory together: best of several runs over a large array."""
    threads = threads or cores()
    parts = np.array_split(np.ones(nbytes // 8, np.int64), threads)
    best = 0.0
    for _ in range(repeats + 1):
        workers = [threading.Thread(target=np.max, args=(part,)) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, nbytes / (time.perf_counter() - start))
    return best


def bytes_per_token(weights: Weights, config: Config, kv: str, depth: int) -> int:
    """What one decode step at `depth` has to read at least: all weights, of the embedding only one row, and the keys
    and values that it may see with the window of `config`."""
    c, table = config, weights.entries["token_embd"].nbytes
    read = weights.nbytes - (0 if weights.tied else table - table // c.vocab_size)
    seen = min(depth + 1, c.sliding_window or depth + 1)
    of_32 = {"f32": 128, "f16": 64, "q8_0": 34}[kv]
    return read + 2 * c.n_layers * c.n_kv_heads * seen * c.head_dim * of_32 // 32


def share(tokens_per_second: float, token_bytes: int, bytes_per_second: float) -> float | None:
    """Bytes that decoding read per second, over what the memory gives: 1 would be perfect. None for models so small
    that a processor's caches may hold them."""
    return None if token_bytes < CACHED else round(tokens_per_second * token_bytes / bytes_per_second, 3)
