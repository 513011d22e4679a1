"""The verbs that touch each number once, with their ways back; what they remember is only what went in.

On the CPU the C++ kernels do them in one pass; elsewhere, and in other types than float32, torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .memory import empty
from .weights import as_numpy, verbs


@dataclass(frozen=True, eq=False)
class Recipe:
    """How an array was made in one pass from others that are remembered anyway: `linear` makes its input again rather
    than remembering it as well. It is found as the attribute `recipe` of the tensor."""

    make: Callable[..., Tensor]
    of: tuple[Tensor, ...]


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """(T, n), (n,) -> (T, n)."""
    y: Tensor = _RmsNorm.apply(x, w, eps)  # type: ignore[no-untyped-call]
    y.recipe = Recipe(lambda x, w: _rms_norm(x, w, eps), (x, w))  # type: ignore[attr-defined]
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """(T, n), (T, n) -> (T, n)."""
    y: Tensor = _SwiGlu.apply(gate, up)  # type: ignore[no-untyped-call]
    y.recipe = Recipe(_swiglu, (gate, up))  # type: ignore[attr-defined]
    return y


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(T, H*D), (T, D/2), (T, D/2) -> (T, H*D)."""
    y: Tensor = _Rope.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


def _native(*its: Tensor) -> bool:
    """Whether the C++ kernels take them as they are."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in its)


def _rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    if not _native(x, w):
        return F.rms_norm(x, w.shape, w, eps)
    y = empty(x, *x.shape)
    verbs().rms_norm(as_numpy(x), as_numpy(w), eps, as_numpy(y))
    return y


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    if not _native(gate, up):
        return F.silu(gate) * up
    y = empty(gate, *gate.shape)
    verbs().swiglu(as_numpy(gate), as_numpy(up), as_numpy(y))
    return y


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if _native(x, cos, sin):
        y = empty(x, *x.shape).copy_(x.detach())
        verbs().rope(as_numpy(y), as_numpy(cos), as_numpy(sin))
        return y
    a, b = x.reshape(len(x), -1, cos.shape[1], 2).unbind(-1)  # (T, H, D/2) each
    c, s = cos[:, None], sin[:, None]
    return torch.stack([a * c - b * s, a * s + b * c], dim=-1).reshape(x.shape)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.eps = eps
        return _rms_norm(x, w, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With r = 1 / sqrt(mean(x^2) + eps): dx = r (w dy) - x r^3 mean(x w dy), dw = sum of dy x r over rows."""
        x, w = ctx.saved_tensors
        dy, dx, dw = dy.contiguous(), None, None
        if _native(x, w, dy):
            dx = empty(x, *x.shape)
            verbs().rms_norm_back(as_numpy(x), as_numpy(w), ctx.eps, as_numpy(dy), as_numpy(dx))
            if not ctx.needs_input_grad[1]:
                return dx, None, None
        factor = x.square().mean(1, keepdim=True).add_(ctx.eps).rsqrt_()
        if dx is None:
            dx = factor * (w * dy) - x * factor**3 * (x * dy * w).mean(1, keepdim=True)
        if ctx.needs_input_grad[1]:
            dw = (dy * x * factor).sum(0)
        return dx, dw, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        """With s = 1 / (1 + exp(-gate)): dup = dy gate s, dgate = dy up s (1 + gate (1 - s))."""
        gate, up = ctx.saved_tensors
        dy = dy.contiguous()
        if _native(gate, up, dy):
            dgate, dup = empty(gate, *gate.shape), empty(up, *up.shape)
            verbs().swiglu_back(*(as_numpy(t) for t in (gate, up, dy, dgate, dup)))
            return dgate, dup
        s = gate.sigmoid()
        return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rope(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """A turn is undone by turning back, and its transpose is its inverse."""
        cos, sin = ctx.saved_tensors
        return _rope(dy.contiguous(), cos, -sin), None, None
