"""Muon (Jordan et al. 2024): momentum whose singular values are all made about one before the step is taken.

For the matrices between the streams; embeddings, output and norms stay with AdamW. In float32, because that is what a
CPU multiplies fastest.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from .flat import Flat


def orthogonal(g: Tensor, rounds: int = 5) -> Tensor:
    """(..., m, n) -> about U V^T of its singular value decomposition, by the quintic Newton-Schulz iteration whose
    coefficients push every singular value towards one quickly rather than exactly."""
    x: Tensor = g.mT if g.shape[-2] > g.shape[-1] else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if g.shape[-2] > g.shape[-1] else x


class Muon:
    """Nesterov momentum, made orthogonal, scaled by sqrt(rows/cols) where that is above one."""

    def __init__(self, flat: Flat, rate: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        self.flat, self.rate, self.momentum, self.decay = flat, rate, momentum, decay
        self.average = torch.zeros_like(flat.values)

    @torch.no_grad()
    def step(self, share: float, number: int) -> None:
        rate = self.rate * share
        self.average.lerp_(self.flat.gradient, 1 - self.momentum)
        ahead = torch.lerp(self.flat.gradient, self.average, self.momentum)  # Nesterov's look ahead
        self.flat.values.mul_(1 - rate * self.decay)
        for shape, alike in self._by_shape(ahead).items():
            moves = orthogonal(torch.stack([move for _, move in alike]))
            for (matrix, _), move in zip(alike, moves, strict=True):
                matrix.add_(move, alpha=-rate * max(1.0, shape[0] / shape[1]) ** 0.5)

    def _by_shape(self, ahead: Tensor) -> dict[tuple[int, ...], list[tuple[Tensor, Tensor]]]:
        """shape -> (matrix, its part of `ahead`) of each matrix of that shape: they are made orthogonal together."""
        found = defaultdict(list)
        for matrix in self.flat.tensors.values():
            begin = matrix.storage_offset()
            found[tuple(matrix.shape)].append((matrix.data, ahead[begin : begin + matrix.numel()].view(matrix.shape)))
        return found

    def state(self) -> dict[str, Tensor]:
        """name.momentum of each tensor: views."""
        return {f"{name}.momentum": self.average[place] for name, place in self.flat.places.items()}
