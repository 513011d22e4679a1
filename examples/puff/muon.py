"""Muon (Jordan et al. 2024): momentum whose singular values are all made about one before the step is taken.

For the matrices between the streams; embeddings, output and norms stay with AdamW. In float32, because that is what a
CPU multiplies fastest.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonal(g: Tensor, rounds: int = 5) -> Tensor:
    """(..., m, n) -> about U V^T of its singular value decomposition, by the quintic Newton-Schulz iteration whose
    coefficients push every singular value towards one quickly rather than exactly."""
    x = g.mT if g.shape[-2] > g.shape[-1] else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if g.shape[-2] > g.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, scaled by sqrt(rows/cols) where that is above one."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for shape in {p.shape for p in group["params"]}:
                alike = [p for p in group["params"] if p.shape == shape]
                moves = orthogonal(torch.stack([self._momentum(p, group["momentum"]) for p in alike]))
                for p, move in zip(alike, moves, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(move, alpha=-group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5)

    def _momentum(self, p: Tensor, beta: float) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(p.grad, 1 - beta)
        return torch.lerp(p.grad, average, beta)
