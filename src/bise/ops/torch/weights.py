"""What a matrix may be, for the torch backend: a Tensor (out, in), or one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class Adapted:
    """A frozen weight W and what is learnt beside it: y = W x + scale * B (A x)   (LoRA, Hu et al. 2021, section 4.1).

    base       what `linear` takes: W (out, in)
    a, b       (rank, in), (out, rank)
    magnitude  (out,): rows of W + scale * B A are given this length (DoRA, Liu et al. 2024, equation 5), else None.
               Their own length counts as a constant on the way back (section 4.3 there).
    """

    base: Any
    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]
