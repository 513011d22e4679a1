"""Adapters (LoRA, Hu et al. 2021): to a frozen weight W (out, in) they add scale * B A."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Delta:
    """What an adapter adds to one weight: y = W x + scale * B A x, rows and columns in bise's own order.

    a          (rank, in) float32
    b          (out, rank) float32
    scale      alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)
    magnitude  (out,) for DoRA (Liu et al. 2024): each row of W + scale * B A is given this length; else None
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Adapter:
    """Deltas by canonical weight name ("blk.0.attn_q", ..., "output"), and what they were trained on.

    base   the `Weights.fingerprint` of the model that it belongs to; "" if the file does not say
    facts  what else its file says, as it stands there
    """

    deltas: Mapping[str, Delta]
    alpha: float
    base: str = ""
    name: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
