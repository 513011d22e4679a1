"""The verbs over the C++ kernels: thin, because 32 layers make some 350 calls a token. The extension checks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _kernels
from ..errors import FormatError
from ..quant import QTensor, nbytes
from . import Pair, Ring, numpy_ring

F32 = np.float32


class Cpu:
    """Weights are repacked for the machine, activations meet quantised weights as 8-bit integers.

    threads  how many, by default as many as this process may use
    isa      one of `_kernels.isas()`, by default the best that runs here
    """

    name = "cpu"
    exact = True

    def __init__(self, threads: int | None = None, isa: str = "") -> None:
        self.verbs = _kernels.Verbs(threads or default_threads(), isa)

    def __repr__(self) -> str:
        return f"Cpu(threads={self.verbs.threads}, isa={self.verbs.isa!r})"

    def weight(self, tensor: QTensor) -> Any:
        """A matrix becomes panels (ARCHITECTURE.md), a vector float32. FormatError on a NaN or infinite scale."""
        if len(tensor.shape) == 1:
            return np.ascontiguousarray(tensor.dequantise(), F32)
        try:
            return self.verbs.pack(tensor.type, tensor.data, *tensor.shape)
        except ValueError as error:
            raise FormatError(str(error)) from None

    def quantise(self, values: np.ndarray, type: str, importance: np.ndarray | None = None) -> QTensor:
        """float32 (rows, cols) -> the blocks that `rounding.rounded` gives, byte for byte. importance (cols,) float32,
        positive. FormatError on a NaN, or a value beyond float16, in which scales are stored."""
        out = np.empty(nbytes(type, values.shape), np.uint8)
        row = self.verbs.quantise(type, np.ascontiguousarray(values, F32), importance, out)
        if row >= 0:
            bad = values[row][~(np.abs(values[row]) <= 65504)][0]
            raise FormatError(f"row {row:,} holds {bad:.6g}, expected numbers up to float16's 65,504")
        return QTensor(type, values.shape, out)

    def table(self, tensor: QTensor) -> QTensor:
        return tensor

    def ring(self, sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
        return numpy_ring(sequences, kv_heads, size, head_dim, kv)

    def array(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values)

    def numpy(self, values: np.ndarray) -> np.ndarray:
        return values

    def embed(self, table: QTensor, tokens: np.ndarray) -> np.ndarray:
        out = np.empty((len(tokens), table.shape[1]), F32)
        rows, cols = table.shape
        self.verbs.embed(table.type, table.data, rows, cols, np.ascontiguousarray(tokens, np.int32), out)
        return out

    def linear(self, x: np.ndarray, *ws: Any) -> Any:
        ys = tuple(np.empty((len(x), w.rows), F32) for w in ws)
        self.verbs.linear(x, ws, ys)
        return ys if len(ys) > 1 else ys[0]

    def adapt(
        self, x: np.ndarray, ys: tuple[np.ndarray, ...], rows: np.ndarray, pairs: tuple[tuple[Pair | None, ...], ...]
    ) -> None:
        self.verbs.adapt(x, ys, rows, pairs)

    def rms_norm(self, x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
        out = np.empty_like(x)
        self.verbs.rms_norm(x, w, eps, out)
        return out

    def rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        self.verbs.rope(x, cos, sin)
        return x

    def swiglu(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        self.verbs.swiglu(gate, up, gate)
        return gate

    def store(self, ring: Ring, spans: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        self.verbs.store(ring.k, ring.v, ring.k_scale, ring.v_scale, spans, k, v)

    def attend(self, q: np.ndarray, ring: Ring, spans: np.ndarray, window: int | None) -> np.ndarray:
        out = np.empty_like(q)
        self.verbs.attend(q, ring.k, ring.v, ring.k_scale, ring.v_scale, spans, window, out)
        return out


def default_threads() -> int:
    """One thread for each physical core that this process may run on, within the cgroup's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    return max(1, min([len(cores), *_quotas()]))


def _quotas() -> Iterator[int]:
    """Whole processors that this process's cgroup and those around it may use, where they are limited."""
    root = Path("/sys/fs/cgroup")
    own = _read("/proc/self/cgroup").rpartition("0::/")[2]  # "" inside a container, whose root is its own
    limits = [_read(f"{group}/cpu.max") for group in (root / own, *(root / own).parents) if group.is_relative_to(root)]
    limits.append(" ".join(_read(f"{root}/cpu/cpu.cfs_{what}_us") for what in ("quota", "period")))  # version 1
    for limit in limits:
        quota, _, period = limit.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) // int(period)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
