"""Log-probabilities of targets: the logits of a few rows at a time, and never again.

With p = softmax(z) and z = W x, the gradient of log p[t] is (onehot(t) - p) W for x: it is made as soon as the logits
are there, which are then forgotten. That serves any loss of these log-probabilities, because the gradient of a row is
this one times a number (Mistral's 32,000 logits of 1,024 rows would be 131 MB, and the textbook keeps three of them).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .again import again
from .product import Products, leaves_of, linear
from .weights import Adapted

LOGITS = 1 << 23  # that exist at a time


def logprobs(products: Products, states: Tensor, output: Any, targets: Tensor) -> Tensor:
    """states (R, dim), what the output matrix reads; targets (R,) ids -> (R,) log p(target)."""
    if isinstance(output, Adapted) or (isinstance(output, Tensor) and output.requires_grad):
        return _trained(products, states, output, targets)
    found: Tensor = _LogProbs.apply(products, states, output, targets)  # type: ignore[no-untyped-call]
    return found


def _parts(rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, LOGITS // vocabulary)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _trained(products: Products, states: Tensor, output: Any, targets: Tensor) -> Tensor:
    """Where the output matrix learns as well, its gradient has to wait for the loss: the logits are made once more."""

    def part(x: Tensor, ids: Tensor) -> Tensor:
        (logits,) = linear(products, x, [output])
        return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)

    vocabulary = len(output.b) if isinstance(output, Adapted) else len(output)
    found = [
        again(partial(part, ids=targets[rows]), states[rows], leaves_of(output))
        for rows in _parts(len(states), vocabulary)
    ]
    return torch.cat(found) if found else states.new_zeros(0)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, states: Tensor, output: Any, targets: Tensor) -> Tensor:
        found = states.new_empty(len(states))
        dx = torch.empty_like(states) if ctx.needs_input_grad[1] else None
        for rows in _parts(len(states), output.shape[0]):
            logits, ids = products.forward(states[rows], [output])[0], targets[rows, None]
            chosen, (top, at) = logits.gather(1, ids), logits.max(1, keepdim=True)
            p = torch.softmax(logits, 1, out=logits)
            found[rows] = (chosen - top + p.gather(1, at).log())[:, 0]  # log of the sum = top - log p(top)
            if dx is not None:
                p.scatter_add_(1, ids, torch.full_like(chosen, -1.0))
                dx[rows] = products.back([p], [output]).neg_()
        if dx is not None:
            ctx.save_for_backward(dx)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Any, ...]:
        (dx,) = ctx.saved_tensors
        return None, weights[:, None] * dx, None, None
