"""Products with weights of every kind, and their way back: y = W x + scale * B (A x).

Weights that stay as they are have no gradient, so the way back needs W once more, the input, and nothing else. A W that
is kept in 4 or 16 bits is decoded strip by strip, into one piece of memory that all weights share, on both ways:
at no time is there more of it than a strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pointwise import Recipe
from .weights import Adapted, Kept

STRIP = 1 << 22  # values of a weight decoded at a time
_TINY = 1e-30


class Strips:
    """The memory that weights are decoded into, one strip at a time."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def of(self, w: Tensor | Kept) -> Iterator[tuple[slice, Tensor]]:
        """(rows, those rows as floats), all of them in order; each is lost with the next."""
        if isinstance(w, Tensor):
            yield slice(None), w
            return
        out, columns = w.shape
        step = max(1, STRIP // columns)
        size = min(step, out) * columns
        if self._memory.numel() < size or self._memory.device != w.device:
            self._memory = torch.empty(size, device=w.device)
        for start in range(0, out, step):
            end = min(out, start + step)
            strip = self._memory[: (end - start) * columns].view(end - start, columns)
            w.decode(start, end, strip)
            yield slice(start, end), strip

    def product(self, x: Tensor, w: Tensor | Kept) -> Tensor:
        """x (T, in) -> x @ W.T (T, out); with a 16-bit tensor the product is made in its type."""
        if isinstance(w, Tensor):
            return (x.to(w.dtype) @ w.T).to(x.dtype)
        y = x.new_empty(len(x), w.shape[0])
        for rows, strip in self.of(w):
            torch.mm(x, strip.T, out=y[:, rows])
        return y

    def back(self, dy: Tensor, w: Tensor | Kept, dx: Tensor | None) -> Tensor:
        """dy (T, out) -> dx + dy @ W (T, in), added in place where there is a dx."""
        for rows, strip in self.of(w):
            part = dy[:, rows].to(strip.dtype)
            if dx is None:
                dx = (part @ strip).to(dy.dtype)
            elif strip.dtype == dx.dtype:
                dx.addmm_(part, strip)
            else:
                dx += part @ strip
        assert dx is not None  # a matrix has rows
        return dx

    def lengths(self, w: Adapted) -> Tensor:
        """(out,): the length of each row of W + scale * B A."""
        found = w.b.new_empty(len(w.b))
        for rows, strip in self.of(w.base):
            found[rows] = torch.addmm(strip.to(w.a.dtype), w.b[rows], w.a, alpha=w.scale).norm(dim=1)
        return found


def linear(strips: Strips, x: Tensor, ws: Sequence[Any]) -> tuple[Tensor, ...]:
    """x (T, in), each w (out_i, in) -> (T, out_i) each; x is remembered once for all of them."""
    leaves = [leaf for w in ws for leaf in _leaves(w)]
    if not torch.is_grad_enabled() or not (x.requires_grad or any(leaf.requires_grad for leaf in leaves)):
        return tuple(_forward(strips, x, w)[0] for w in ws)
    recipe: Recipe = getattr(x, "recipe", None) or Recipe(_itself, (x,))
    ys: tuple[Tensor, ...] = _Linear.apply(strips, ws, recipe, x, *recipe.of, *leaves)  # type: ignore[no-untyped-call]
    return ys


def _itself(x: Tensor) -> Tensor:
    return x


def _leaves(w: Any) -> list[Tensor]:
    """The tensors of a weight that may be trained."""
    if isinstance(w, Adapted):
        return [w.a, w.b] if w.magnitude is None else [w.a, w.b, w.magnitude]
    return [w] if isinstance(w, Tensor) else []


def _again(w: Any) -> Callable[[Iterator[Tensor]], Any]:
    """How to put a weight together again from its leaves. They are remembered as the graph remembers tensors, and no
    other way, so that inside a checkpoint they may go and come."""
    if isinstance(w, Tensor):
        return next
    if isinstance(w, Adapted):
        base, scale, dora = w.base, w.scale, w.magnitude is not None
        return lambda leaves: Adapted(base, next(leaves), next(leaves), scale, next(leaves) if dora else None)
    return lambda leaves: w


def _forward(strips: Strips, x: Tensor, w: Any) -> tuple[Tensor, list[Tensor]]:
    """-> y, and what the way back wants besides: for an adapter A x, for DoRA also the rows' lengths, and y."""
    if not isinstance(w, Adapted):
        return strips.product(x, w), []
    y, h = strips.product(x, w.base), x @ w.a.T
    y.addmm_(h, w.b.T, alpha=w.scale)
    if w.magnitude is None:
        return y, [h]
    lengths = strips.lengths(w).clamp_min_(_TINY)
    y *= w.magnitude / lengths
    return y, [h, lengths, y]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, strips: Strips, ws: Sequence[Any], recipe: Recipe, x: Tensor, *rest: Tensor) -> Any:
        ys, kept = [], []
        for w in ws:
            y, more = _forward(strips, x, w)
            ys.append(y)
            kept += more
        ctx.save_for_backward(*rest, *kept)
        ctx.strips, ctx.recipe, ctx.rest = strips, (recipe.make, len(recipe.of)), len(rest)
        ctx.ws = [_again(w) for w in ws]
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        make, sources = ctx.recipe
        saved = ctx.saved_tensors  # to be asked for once only: a checkpoint computes them when it is
        x, wanted, mores = make(*saved[:sources]), ctx.needs_input_grad[3], iter(saved[ctx.rest :])
        leaves = iter(saved[sources : ctx.rest])
        dx: Tensor | None = None
        grads: list[Tensor | None] = []
        for again, dy in zip(ctx.ws, dys, strict=True):
            w = again(leaves)
            if isinstance(w, Adapted):
                dx, found = _adapted_back(ctx.strips, w, x, mores, dy, dx, wanted)
                grads += found
                continue
            if wanted:
                dx = ctx.strips.back(dy, w, dx)
            if isinstance(w, Tensor):
                grads.append(dy.T @ x if ctx.needs_input_grad[4 + sources + len(grads)] else None)
        return None, None, None, dx, *(None for _ in range(sources)), *grads


def _adapted_back(
    strips: Strips, w: Adapted, x: Tensor, mores: Iterator[Tensor], dy: Tensor, dx: Tensor | None, wanted: bool
) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
    """-> dx (its part added), [dA, dB, for DoRA d magnitude]. mores: what `_forward` gave besides y."""
    h, magnitude = next(mores), []
    if w.magnitude is not None:
        lengths, y = next(mores), next(mores)
        factor = w.magnitude / lengths
        magnitude = [(dy * y).sum(0) / torch.where(w.magnitude == 0, 1, w.magnitude)]
        dy = dy * factor
    g = dy @ w.b  # (T, rank)
    if wanted:
        dx = strips.back(dy, w.base, dx)
        dx.addmm_(g, w.a, alpha=w.scale)
    return dx, [(g.T @ x).mul_(w.scale), (dy.T @ h).mul_(w.scale), *magnitude]
