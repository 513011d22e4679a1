"""Attention over sequences that begin and end in one step: no ring, nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def attend_whole(q: Tensor, k: Tensor, v: Tensor, spans: np.ndarray, window: int | None, head_dim: int) -> Tensor:
    """q (T, H*D), k and v (T, G*D), rows of one sequence together -> (T, H*D). i sees j iff i - window < j <= i."""
    ys = []
    for _, row, n, _ in spans.tolist():
        part = [x[row : row + n].view(1, n, -1, head_dim).transpose(1, 2) for x in (q, k, v)]  # (1, H or G, n, D)
        ys += [y.transpose(1, 2).reshape(-1, q.shape[1]) for y in _sequence(*part, window)]
    return ys[0] if len(ys) == 1 else torch.cat(ys)


def _sequence(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Iterator[Tensor]:
    """One sequence, (1, H, n, D) and (1, G, n, D) -> its (1, H, m, D) in bands of m queries; one band where no query
    is further than the window from the beginning."""
    n = q.shape[2]
    if window is None or n <= window:
        yield F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return
    for start in range(0, n, window):  # a band of W queries sees at most 2 W - 1 keys
        end, first = min(n, start + window), max(0, start - window + 1)
        i = torch.arange(start, end, device=q.device)[:, None]
        j = torch.arange(first, end, device=q.device)
        keys, values = k[:, :, first:end], v[:, :, first:end]
        seen = (j <= i) & (j > i - window)
        yield F.scaled_dot_product_attention(q[:, :, start:end], keys, values, attn_mask=seen, enable_gqa=True)
