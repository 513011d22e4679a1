"""Who keeps what: every trained tensor lives with one rank, with its gradient and its averages, and the others have it
only while they compute with it.

The third stage of ZeRO (Rajbhandari et al. 2020, section 5.3), cut between tensors and not through them: each is whole
where it is kept, so that an optimiser treats it as it would alone. `here` is a step of the graph: forward it brings
tensors from their keepers, backward it brings the sums of their gradients back. Inside a checkpoint they are taken
again on the way back, and so no more than a layer's are there at a time; without one, a micro-batch holds on to all.

All ranks have to come by in the same order: they compute the same graph, of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ops.torch.product import leaves_of
from ..ops.torch.weights import Adapted
from .distributed import Ranks


def dealt(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """name -> its keeper: the largest first, each to whom has least so far. A matrix is the smallest piece, so the
    shares of many ranks differ by up to one."""
    load, keeper = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        keeper[name] = load.index(min(load))
        load[keeper[name]] += sizes[name]
    return {name: keeper[name] for name in sizes}


def held(sizes: Mapping[str, int], ranks: int) -> list[int]:
    """What each rank keeps then."""
    load = [0] * ranks
    for name, rank in dealt(sizes, ranks).items():
        load[rank] += sizes[name]
    return load


class Keepers:
    """trained: name -> leaf; on the meta device, a shape without numbers, where another rank keeps it."""

    def __init__(self, trained: Mapping[str, Tensor], ranks: Ranks) -> None:
        self.ranks, self.device = ranks, next(iter(trained.values())).device
        self.trained, self._of = dict[str, Tensor](), dict[Tensor, int]()
        for name, keeper in dealt({name: t.numel() for name, t in trained.items()}, ranks.size).items():
            tensor = trained[name]
            leaf = tensor if keeper == ranks.rank else torch.empty_like(tensor, device="meta").requires_grad_()
            self.trained[name], self._of[leaf] = leaf, keeper

    def here(self, *weights: Any) -> list[Any]:
        """Weights of any kind, with what is trained in them as all compute with it."""
        kept = list(dict.fromkeys(tensor for w in weights for tensor in leaves_of(w) if tensor in self._of))
        if not kept:
            return list(weights)
        keeper = [self._of[tensor] for tensor in kept]
        found = dict(zip(kept, _Here.apply(self.ranks, keeper, self.device, *kept), strict=True))  # type: ignore[no-untyped-call]
        return [changed(w, lambda tensor: found.get(tensor, tensor)) for w in weights]


class _Here(torch.autograd.Function):
    """All that one rank keeps goes in one piece."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, keeper: list[int], device: torch.device, *kept: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.keeper = ranks, keeper
        found = [tensor.detach() for tensor in kept]
        for rank, places in _by(keeper):
            theirs = [found[i] for i in places]
            piece = _joined(theirs) if rank == ranks.rank else torch.empty(sum(map(torch.numel, theirs)), device=device)
            ranks.spread(piece, rank)
            if rank != ranks.rank:
                _part(piece, places, found)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        found: list[Any] = [None] * len(gradients)
        for rank, places in _by(ctx.keeper):
            piece = _joined([gradients[i] for i in places])
            ctx.ranks.reduce(piece, rank)
            if rank == ctx.ranks.rank:
                for i in places:
                    found[i] = gradients[i]
                _part(piece, places, found)
        return None, None, None, *found


def _by(keeper: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(rank, the places of what it keeps), in turn."""
    for rank in sorted(set(keeper)):
        yield rank, [i for i, other in enumerate(keeper) if other == rank]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """End to end; one alone, which may be the whole embedding, is not copied."""
    flat = [tensor.flatten() for tensor in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _part(piece: Tensor, places: Sequence[int], found: list[Any]) -> None:
    """Put the parts of a piece where tensors of their shapes stand."""
    parts = torch.split(piece, [found[i].numel() for i in places])
    for i, part in zip(places, parts, strict=True):
        found[i] = part.view(found[i].shape)


def changed(w: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A weight with other tensors in it."""
    if isinstance(w, Adapted):
        magnitude = None if w.magnitude is None else change(w.magnitude)
        return replace(w, a=change(w.a), b=change(w.b), magnitude=magnitude)
    return change(w) if isinstance(w, Tensor) else w
