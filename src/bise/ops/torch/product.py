"""Products with weights of every kind, and their way back: y = W x + scale * B (A x).

Weights that stay as they are have no gradient, so the way back needs W once more, the input, and nothing else. On the
CPU a quantised W takes the kernels that serve it, in 8 bits on both ways: what is trained is the function that will be
served, and its rounding counts as none on the way back (straight-through, Bengio et al. 2013, section 4). Another W
that is not kept as floats is decoded strip by strip, into one piece of memory that all weights share: at no time is
there more of it than a strip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .memory import empty
from .pointwise import Recipe
from .weights import Adapted, Frozen, Kept, as_numpy, verbs

STRIP = 1 << 22  # values of a weight decoded at a time
_TINY = 1e-30


class Products:
    """Products with weights that need no gradient, and the memory that they are decoded into."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def forward(self, x: Tensor, ws: Sequence[Tensor | Kept]) -> list[Tensor]:
        """x (T, in) -> x @ W.T (T, out) each; with a 16-bit tensor the product is made in its type."""
        kernels = _kernels_of(ws)
        if kernels is None:
            return [self._forward(x, w) for w in ws]
        ys = [empty(x, len(x), w.shape[0]) for w in ws]
        verbs().linear(as_numpy(x.contiguous()), kernels, tuple(as_numpy(y) for y in ys))
        return ys

    def back(self, dys: Sequence[Tensor], ws: Sequence[Tensor | Kept]) -> Tensor:
        """dy (T, out) each -> the sum of all dy @ W (T, in)."""
        dx = empty(dys[0], len(dys[0]), ws[0].shape[1])
        kernels = _kernels_of(ws)
        if kernels is not None:
            verbs().linear_back(tuple(as_numpy(dy.contiguous()) for dy in dys), kernels, as_numpy(dx))
            return dx
        strips = ((dy[:, rows], strip) for dy, w in zip(dys, ws, strict=True) for rows, strip in self._strips(w))
        for number, (dy, strip) in enumerate(strips):
            if strip.dtype == dx.dtype:
                dx.addmm_(dy, strip, beta=min(number, 1))
            else:
                dx = (dx if number else 0) + dy.to(strip.dtype) @ strip
        return dx.to(dys[0].dtype)

    def lengths(self, w: Adapted) -> Tensor:
        """(out,): the length of each row of W + scale * B A."""
        found = w.b.new_empty(len(w.b))
        for rows, strip in self._strips(w.base):
            found[rows] = torch.addmm(strip.to(w.a.dtype), w.b[rows], w.a, alpha=w.scale).norm(dim=1)
        return found

    def _forward(self, x: Tensor, w: Tensor | Kept) -> Tensor:
        if isinstance(w, Tensor) and w.dtype != x.dtype:
            return (x.to(w.dtype) @ w.T).to(x.dtype)
        y = empty(x, len(x), w.shape[0])
        for rows, strip in self._strips(w):
            torch.mm(x, strip.T, out=y[:, rows])
        return y

    def _strips(self, w: Tensor | Kept) -> Iterator[tuple[slice, Tensor]]:
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


def linear(products: Products, x: Tensor, ws: Sequence[Any]) -> tuple[Tensor, ...]:
    """x (T, in), each w (out_i, in) -> (T, out_i) each; x is remembered once for all of them."""
    leaves = [leaf for w in ws for leaf in leaves_of(w)]
    if not torch.is_grad_enabled() or not (x.requires_grad or any(leaf.requires_grad for leaf in leaves)):
        return tuple(_forward(products, x, ws)[0])
    recipe: Recipe = getattr(x, "recipe", None) or Recipe(_itself, (x,))
    ys: tuple[Tensor, ...] = _Linear.apply(products, ws, recipe, x, *recipe.of, *leaves)  # type: ignore[no-untyped-call]
    return ys


def leaves_of(w: Any) -> list[Tensor]:
    """The tensors of a weight that may be trained."""
    if isinstance(w, Adapted):
        return [w.a, w.b] if w.magnitude is None else [w.a, w.b, w.magnitude]
    return [w] if isinstance(w, Tensor) else []


def _kernels_of(ws: Sequence[Tensor | Kept]) -> tuple[Any, ...] | None:
    """What the C++ kernels multiply by, where all of these are theirs."""
    found = tuple(w.kernel for w in ws if isinstance(w, Frozen) and w.kernel)
    return found if len(found) == len(ws) else None


def _itself(x: Tensor) -> Tensor:
    return x


def base_of(w: Any) -> Any:
    """The weight without its adapter."""
    return w.base if isinstance(w, Adapted) else w


def _forward(products: Products, x: Tensor, ws: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """-> ys, and what the way back wants besides: of every adapter A x, of DoRA also the rows' lengths, and y."""
    ys, kept = products.forward(x, [base_of(w) for w in ws]), []
    adapted = [(w, y) for w, y in zip(ws, ys, strict=True) if isinstance(w, Adapted)]
    if adapted:
        inner = x @ torch.cat([w.a for w, _ in adapted]).T  # as one product: x is read once
        for (w, y), h in zip(adapted, torch.split(inner, [len(w.a) for w, _ in adapted], dim=1), strict=True):
            y.addmm_(h, w.b.T, alpha=w.scale)
            kept.append(h)
            if w.magnitude is not None:
                lengths = products.lengths(w).clamp_min_(_TINY)
                y *= w.magnitude / lengths
                kept += [lengths, y]
    return ys, kept


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, ws: Sequence[Any], recipe: Recipe, x: Tensor, *rest: Tensor) -> Any:
        ys, kept = _forward(products, x, ws)
        ctx.save_for_backward(*rest, *kept)
        ctx.products, ctx.ws, ctx.recipe, ctx.rest = products, ws, (recipe.make, len(recipe.of)), len(rest)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        make, sources = ctx.recipe
        saved = ctx.saved_tensors
        x, kept = make(*saved[:sources]), iter(saved[ctx.rest :])
        grads: list[list[Tensor | None]] = []  # of every weight
        through, inner = [], []  # the gradients of W x, and of A x
        for w, dy in zip(ctx.ws, dys, strict=True):
            if isinstance(w, Adapted):
                h, own = next(kept), []
                if w.magnitude is not None:
                    lengths, y = next(kept), next(kept)
                    own = [(dy * y).sum(0) / torch.where(w.magnitude == 0, 1, w.magnitude)]
                    dy = dy * (w.magnitude / lengths)
                inner.append((dy @ w.b).mul_(w.scale))  # (T, rank)
                grads.append([inner[-1].T @ x, (dy.T @ h).mul_(w.scale), *own])
            else:
                wanted = isinstance(w, Tensor) and w.requires_grad
                grads.append([dy.T @ x if wanted else None] if isinstance(w, Tensor) else [])
            through.append(dy)
        dx = None
        if ctx.needs_input_grad[3]:
            dx = ctx.products.back(through, [base_of(w) for w in ctx.ws])
            if inner:
                dx.addmm_(torch.cat(inner, 1), torch.cat([w.a for w in ctx.ws if isinstance(w, Adapted)]))
        return None, None, None, dx, *(None for _ in range(sources)), *(grad for own in grads for grad in own)
