"""The specification: every verb in plain NumPy, slow and obviously right. The other backends are tested against it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..quant import QTensor
from . import Pair, Ring, adapt_floats, numpy_ring

F32 = np.float32


class Reference:
    """Weights are dequantised to float32, keys and values pass through the ring's type, sums are NumPy's."""

    name = "reference"
    exact = False

    def weight(self, tensor: QTensor) -> np.ndarray:
        return tensor.dequantise()

    table = weight

    def ring(self, sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
        return numpy_ring(sequences, kv_heads, size, head_dim, kv)

    def array(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values)

    numpy = array

    def embed(self, table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(table[np.asarray(tokens)])

    def linear(self, x: np.ndarray, *ws: np.ndarray) -> Any:
        ys = tuple(x @ w.T for w in ws)
        return ys if len(ys) > 1 else ys[0]

    def adapt(
        self, x: np.ndarray, ys: tuple[np.ndarray, ...], rows: np.ndarray, pairs: tuple[tuple[Pair | None, ...], ...]
    ) -> None:
        adapt_floats(x, ys, rows, pairs)

    def rms_norm(self, x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
        return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + F32(eps)) * w)

    def rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        pairs = x.reshape(len(x), -1, cos.shape[1], 2)  # (T, H, D/2, 2)
        a, b, c, s = pairs[..., 0], pairs[..., 1], cos[:, None], sin[:, None]
        return np.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(x.shape)

    def swiglu(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # exp(100) = inf, and 1/inf = 0 is right
            return np.asarray(gate / (1 + np.exp(-gate)) * up)

    def store(self, ring: Ring, spans: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        for sequence, row, n, position in spans.tolist():
            slots = np.arange(position, position + n) % ring.size
            for x, (_, values, scales) in zip((k, v), ring.halves, strict=True):
                vectors = x[row : row + n].reshape(n, values.shape[1], values.shape[3]).transpose(1, 0, 2)  # (G, n, D)
                if scales is None:
                    values[sequence][:, slots] = vectors
                else:
                    values[sequence][:, slots], scales[sequence][:, slots] = _to_q8(vectors)

    def attend(self, q: np.ndarray, ring: Ring, spans: np.ndarray, window: int | None) -> np.ndarray:
        out = np.empty_like(q)
        _, kv_heads, size, head_dim = ring.k.shape
        for sequence, row, n, position in spans.tolist():
            last = position + n - 1
            first = 0 if window is None else max(0, position - window + 1)
            slots = np.arange(first, last + 1) % size
            keys = _from_ring(ring.k, ring.k_scale, sequence, slots)  # (G, J, D)
            values = _from_ring(ring.v, ring.v_scale, sequence, slots)
            heads = q[row : row + n].reshape(n, kv_heads, -1, head_dim)  # (n, G, H/G, D)
            scores = np.einsum("ngrd,gjd->grnj", heads, keys) / F32(np.sqrt(head_dim))
            i, j = np.arange(position, last + 1)[:, None], np.arange(first, last + 1)
            visible = (j <= i) if window is None else (j <= i) & (j > i - window)
            scores = np.where(visible, scores, F32(-np.inf))
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            out[row : row + n] = np.einsum("grnj,gjd->ngrd", p, values).reshape(n, -1)
        return out


def _to_q8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., D) -> int8 (..., D) and float16 scales (..., D/32); values are divided by the scale as it is stored."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = (np.abs(blocks).max(axis=-1) / F32(127)).astype(np.float16)
    divisor = scale.astype(F32)[..., None]
    q = np.divide(blocks, divisor, out=np.zeros_like(blocks), where=divisor > 0)
    return np.clip(np.rint(q), -127, 127).astype(np.int8).reshape(x.shape), scale


def _from_ring(values: np.ndarray, scales: np.ndarray | None, sequence: int, slots: np.ndarray) -> np.ndarray:
    x = values[sequence][:, slots].astype(F32)
    if scales is None:
        return np.asarray(x)
    factor = scales[sequence][:, slots].astype(F32)[..., None]
    return np.asarray((x.reshape(*x.shape[:-1], -1, 32) * factor).reshape(x.shape))
