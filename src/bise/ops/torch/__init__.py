"""The verbs over PyTorch: autograd works through the whole forward pass, and `device` may be a GPU."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...quant import QTensor
from .. import Pair, Ring, Weight, adapt_floats
from .attention import attend_whole
from .entropy import logprobs
from .pointwise import rms_norm, rope, swiglu
from .product import Products, linear
from .weights import Adapted, Frozen, Nf4, rounded_to

_KEPT = {"F16": torch.float16, "BF16": torch.bfloat16}  # these stay what the file stores; the rest becomes float32


class Torch:
    """Activations are float32; a product with a 16-bit weight is made in that weight's type.

    keep  what matrices are kept as: "floats" (16 bits where the file has them, else 32), "file" (as the file has them,
          decoded when they are used), "nf4" (4-bit NormalFloats, those that the file has as floats), "q8_0" (those
          in blocks of 8 bits)
    """

    name = "torch"
    exact = False

    def __init__(self, device: str = "cpu", keep: str = "floats") -> None:
        self.device, self.keep = torch.device(device), keep
        self._products = Products()

    def weight(self, tensor: QTensor) -> Any:
        if len(tensor.shape) == 2 and tensor.type in ("F32", "F16", "BF16"):
            if self.keep == "nf4":
                return Nf4(torch.from_numpy(np.array(tensor.dequantise())).to(self.device))
            if self.keep == "q8_0":
                return Frozen(rounded_to(tensor, "Q8_0"), self.device)
        if len(tensor.shape) == 2 and self.keep != "floats" and tensor.type != "F32":
            return Frozen(tensor, self.device)
        return self._floats(tensor)

    def table(self, tensor: QTensor) -> Any:
        return self._floats(tensor) if self.keep == "floats" else Frozen(tensor, self.device)

    def _floats(self, tensor: QTensor) -> Tensor:
        if len(tensor.shape) == 2 and tensor.type in _KEPT:
            raw = torch.from_numpy(np.array(tensor.data)).view(_KEPT[tensor.type])
            return raw.reshape(tensor.shape).to(self.device)
        return torch.from_numpy(np.array(tensor.dequantise())).to(self.device)

    def ring(self, sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
        shape = (sequences, kv_heads, size, head_dim)
        dtype = {"f32": torch.float32, "f16": torch.float16, "q8_0": torch.int8}[kv]
        k, v = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in "kv")
        if kv != "q8_0":
            return Ring(k, v)
        scales = (sequences, kv_heads, size, head_dim // 32)
        return Ring(k, v, *(torch.zeros(scales, dtype=torch.float16, device=self.device) for _ in "kv"))

    def array(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, device=self.device)

    def numpy(self, values: Tensor) -> np.ndarray:
        return np.asarray(values.detach().cpu().numpy())

    def embed(self, table: Tensor | Frozen, tokens: Any) -> Tensor:
        ids = torch.as_tensor(tokens, dtype=torch.long, device=self.device)
        return table.rows(ids) if isinstance(table, Frozen) else F.embedding(ids, table).float()

    def linear(self, x: Tensor, *ws: Weight) -> Any:
        ys = linear(self._products, x, ws)
        return ys if len(ys) > 1 else ys[0]

    def adapt(
        self, x: Tensor, ys: tuple[Tensor, ...], rows: np.ndarray, pairs: tuple[tuple[Pair | None, ...], ...]
    ) -> None:
        adapt_floats(x, ys, rows, pairs)

    def rms_norm(self, x: Tensor, w: Tensor, eps: float) -> Tensor:
        return rms_norm(x, w, eps)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rope(x, cos, sin)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return swiglu(gate, up)

    def store(self, ring: Ring, spans: np.ndarray, k: Tensor, v: Tensor) -> None:
        for sequences, rows, positions in _alike(spans, self.device):
            slots = positions % ring.size
            for x, (_, values, scales) in zip((k, v), ring.halves, strict=True):
                vectors = x[rows].reshape(*rows.shape, values.shape[1], values.shape[3])  # (B, n, G, D)
                if scales is not None:
                    vectors, factor = _to_q8(vectors)
                    scales[sequences[:, None], :, slots] = factor
                values[sequences[:, None], :, slots] = vectors.to(values.dtype)

    def attend(self, q: Tensor, ring: Ring, spans: np.ndarray, window: int | None) -> Tensor:
        out = torch.empty_like(q)
        size, head_dim = ring.k.shape[2:]
        for sequences, rows, i in _alike(spans, self.device):  # i: (n,) positions of the queries
            first = 0 if window is None else max(0, int(i[0]) - window + 1)
            j = torch.arange(first, int(i[-1]) + 1, device=self.device)
            keys = _from_ring(ring.k, ring.k_scale, sequences, j % size)  # (B, G, J, D)
            values = _from_ring(ring.v, ring.v_scale, sequences, j % size)
            heads = q[rows].reshape(*rows.shape, -1, head_dim).transpose(1, 2)  # (B, H, n, D)
            visible = j <= i[:, None]
            if window is not None:
                visible &= j > i[:, None] - window
            y = F.scaled_dot_product_attention(heads, keys, values, attn_mask=visible, enable_gqa=True)
            out[rows] = y.transpose(1, 2).flatten(2)
        return out

    def lengths(self, w: Adapted) -> Tensor:
        """(out,): the length of each row of the adapted weight."""
        return self._products.lengths(w)

    def attend_whole(
        self, q: Tensor, k: Tensor, v: Tensor, spans: np.ndarray, window: int | None, head_dim: int
    ) -> Tensor:
        """`attend` where every sequence begins and ends in this step: q (T, H*D), k and v (T, G*D) -> (T, H*D)."""
        return attend_whole(q, k, v, spans, window, head_dim)

    def logprobs(self, states: Tensor, output: Any, targets: Any) -> Tensor:
        """states (R, dim), targets (R,) ids -> (R,) log p(target), the logits never all there at once."""
        return logprobs(self._products, states, output, torch.as_tensor(targets, dtype=torch.long, device=self.device))


def _alike(spans: np.ndarray, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Spans of the same length and position, together: (sequences (B,), rows (B, n), positions (n,))."""
    groups = defaultdict(list)
    for sequence, row, n, position in spans.tolist():
        groups[n, position].append((sequence, row))
    found = []
    for (n, position), members in groups.items():
        sequences, first = torch.tensor(members, device=device).unbind(1)
        step = torch.arange(n, device=device)
        found.append((sequences, first[:, None] + step, position + step))
    return found


def _to_q8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) -> rounded values (..., D) in [-127, 127] and float16 scales (..., D/32)."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = (blocks.abs().amax(-1) / 127).half()
    divisor = scale.float()[..., None]
    q = torch.where(divisor > 0, blocks / divisor.clamp_min(1e-30), 0.0)
    return q.round().clamp(-127, 127).flatten(-2), scale


def _from_ring(values: Tensor, scales: Tensor | None, sequences: Tensor, slots: Tensor) -> Tensor:
    x = values[sequences[:, None], :, slots].transpose(1, 2).float()  # (B, J, G, D) -> (B, G, J, D)
    if scales is None:
        return x
    factor = scales[sequences[:, None], :, slots].transpose(1, 2).float()[..., None]
    return (x.reshape(*x.shape[:-1], -1, 32) * factor).flatten(-2)
