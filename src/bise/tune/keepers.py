"""Who keeps what: every trained tensor lives with one rank, with its gradient and its averages, and the others have it
only while they compute with it.

The third stage of ZeRO (Rajbhandari et al. 2020, section 5.3), cut between tensors and not through them: each is whole
where it is kept, so that an optimiser treats it as it would alone. `whole` is a step of the graph: forward it brings a
tensor from its keeper, backward it brings the sum of its gradients back. Inside a checkpoint it is taken again on the
way back, and so no more than a layer is there at a time; without one, a micro-batch holds on to all of them.

All ranks have to come by in the same order: they compute the same graph, of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..ops.torch.weights import Adapted
from ..weights import Layer, Parameters
from .distributed import Ranks


def dealt(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """name -> its keeper: the largest first, each to whom has least so far. A matrix is the smallest piece, so the
    shares of many ranks differ by up to one."""
    held, keeper = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        keeper[name] = held.index(min(held))
        held[keeper[name]] += sizes[name]
    return {name: keeper[name] for name in sizes}


class Keepers:
    """keeper: name -> rank; trained: name -> leaf, on the meta device (a shape without numbers) where another rank
    keeps it; change: what to put into the weights, in place of what was trained there before."""

    def __init__(self, trained: Mapping[str, Tensor], ranks: Ranks) -> None:
        self.ranks = ranks
        self.keeper = dealt({name: t.numel() for name, t in trained.items()}, ranks.size)
        self.trained, self._of = dict[str, Tensor](), dict[Tensor, int]()
        for name, tensor in trained.items():
            mine = self.keeper[name] == ranks.rank
            leaf = tensor if mine else torch.empty_like(tensor, device="meta").requires_grad_()
            self.trained[name], self._of[leaf] = leaf, self.keeper[name]
        self._device = next(iter(trained.values())).device

    def whole(self, tensor: Tensor) -> Tensor:
        """A trained tensor as all compute with it; any other as it is."""
        if tensor not in self._of:
            return tensor
        found: Tensor = _Whole.apply(tensor, self._of[tensor], self.ranks, self._device)  # type: ignore[no-untyped-call]
        return found


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Tensor, keeper: int, ranks: Ranks, device: torch.device) -> Tensor:
        ctx.keeper, ctx.ranks = keeper, ranks
        tensor = torch.empty(kept.shape, device=device) if kept.is_meta else kept.detach()
        ranks.spread(tensor, keeper)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()  # it was made for this tensor alone, and may be added to in place
        ctx.ranks.reduce(gradient, ctx.keeper)
        return gradient if ctx.keeper == ctx.ranks.rank else None, None, None, None


def changed(parameters: Parameters, change: Callable[[Tensor], Tensor]) -> Parameters:
    """The same model with other tensors, those of its adapters included."""
    return Parameters(
        changed_weight(parameters.token_embd, change),
        [changed_layer(w, change) for w in parameters.blk],
        changed_weight(parameters.output_norm, change),
        changed_weight(parameters.output, change),
    )


def changed_layer(w: Layer, change: Callable[[Tensor], Tensor]) -> Layer:
    return Layer(**{field.name: changed_weight(getattr(w, field.name), change) for field in fields(Layer)})


def changed_weight(w: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(w, Adapted):
        magnitude = None if w.magnitude is None else change(w.magnitude)
        return replace(w, a=change(w.a), b=change(w.b), magnitude=magnitude)
    return change(w) if isinstance(w, Tensor) else w
