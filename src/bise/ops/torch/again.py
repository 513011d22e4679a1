"""Computing once more what was not remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def again(run: Callable[[Tensor], Tensor], x: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """run(x), of which only x is remembered: on the way back it is computed once more (Chen et al. 2016, section 3).

    leaves  all other tensors whose gradients go through `run` (or nowhere: those that another process keeps)
    (torch.utils.checkpoint imports torch's compiler at its first call: 77 MB and 1.3 s.)
    """
    if not torch.is_grad_enabled():
        return run(x)
    y: Tensor = _Again.apply(run, x, *(leaf for leaf in leaves if leaf.requires_grad))  # type: ignore[no-untyped-call]
    return y


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor, *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.run, ctx.leaves = run, leaves
        return run(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,), wanted = ctx.saved_tensors, ctx.needs_input_grad[1]
        x = x.detach().requires_grad_(wanted)
        with torch.enable_grad():
            end = _End.apply(ctx.run(x), dy)  # type: ignore[no-untyped-call]
        found = torch.autograd.grad(end, [*([x] if wanted else []), *ctx.leaves], allow_unused=True)
        return None, *([] if wanted else [None]), *found


class _End(torch.autograd.Function):
    """A number whose gradient for y is dy: given to `torch.autograd.grad` it would import sympy, 30 MB, to look at its
    shape. And y itself, which is not wanted again, can go."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, dy: Tensor) -> Tensor:
        ctx.dy = dy
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:
        return ctx.dy, None
