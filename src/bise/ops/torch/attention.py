"""Attention over sequences that begin and end in one step: no ring, nothing is kept."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 512  # queries at a time where the window binds


def attend_whole(q: Tensor, k: Tensor, v: Tensor, spans: np.ndarray, window: int | None, head_dim: int) -> Tensor:
    """q (T, H*D), k and v (T, G*D), sequence after sequence -> (T, H*D). i sees j iff i - window < j <= i."""
    lengths = spans[:, 2].tolist()
    each = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)  # type: ignore[no-untyped-call]
    ys = [_sequence(*(x.view(1, len(x), -1, head_dim).transpose(1, 2) for x in three), window=window) for three in each]
    return ys[0] if len(ys) == 1 else torch.cat(ys)


def _sequence(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> Tensor:
    """(1, H, n, D), (1, G, n, D) twice -> (n, H*D)."""
    n = q.shape[2]
    if window is None or n <= window:
        ys = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)]
    else:
        ys = [_band(q, k, v, start, window) for start in range(0, n, BAND)]
    flat = [y.transpose(1, 2).reshape(y.shape[2], -1) for y in ys]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _band(q: Tensor, k: Tensor, v: Tensor, start: int, window: int) -> Tensor:
    """The queries from `start` on against all that they see: at most window + BAND - 1 keys."""
    end, first = min(q.shape[2], start + BAND), max(0, start - window + 1)
    mask = _mask(end - start, end - first, window, q.dtype, q.device)
    return F.scaled_dot_product_attention(
        q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], attn_mask=mask, enable_gqa=True
    )


@lru_cache(maxsize=4)
def _mask(queries: int, keys: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(queries, keys): 0 where one is seen, else -inf; the last query stands where the last key does."""
    i = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)
    seen = (j <= i) & (j > i - window)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
