"""Several processes, one run: torchrun starts them, each reads its share of every step, and what they found is summed,
so that the losses are those of one process.

    torchrun --nproc-per-node 2 -m bise tune MODEL DATA

All ranks go through the same data in the same order and so know every step whole; what passes between them are
tensors, in an order that all keep to, and a few numbers. Never Python objects: those would be pickles.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import BiseError, RequestError

PATIENCE = timedelta(minutes=30)  # how long a rank waits for the others: a step, or rank 0's checkpoint and evaluation

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are, how many of them on this machine. Alone, nothing is sent."""

    rank: int = 0
    size: int = 1
    here: int = 1

    @property
    def first(self) -> bool:
        """The one that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[tuple[Item, float]]:
        """What of a step's micro-batches is this rank's: they come longest first, so all get about the same, and as
        many. Where they do not come out even, one counts for nothing: (item, 1.0 or 0.0)."""
        mine = range(self.rank, -(-len(items) // self.size) * self.size, self.size)
        return [(items[min(i, len(items) - 1)], float(i < len(items))) for i in mine]

    def spread(self, tensor: Tensor, source: int) -> None:
        """What rank `source` has, for all, in place. BiseError, as of all that follow, where another has ended."""
        if self.size > 1:
            with _one_line(self):
                dist.broadcast(tensor, source)

    def reduce(self, tensor: Tensor, target: int) -> None:
        """The sum over all ranks, in place at rank `target`; what the others have then is nothing to rely on."""
        if self.size > 1:
            with _one_line(self):
                dist.reduce(tensor, target)

    def bring(self, tensor: Tensor, source: int) -> None:
        """From rank `source` to rank 0, in place; to be called by these two."""
        if source:
            with _one_line(self):
                if self.first:
                    dist.recv(tensor, source)
                else:
                    dist.send(tensor, 0)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks, in float64; all get the same bits."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            with _one_line(self):
                dist.all_reduce(sums)
        return [float(value) for value in sums]

    def any(self, mine: bool) -> bool:
        """Whether it is so for one of them."""
        return self.total([float(mine)])[0] > 0

    def told(self, numbers: Sequence[float]) -> list[float]:
        """Rank 0's numbers, for all: what depends on a clock is decided by one of them."""
        said = torch.tensor(numbers, dtype=torch.float64)
        self.spread(said, 0)
        return [float(value) for value in said]

    def listed(self, mine: bytes) -> list[bytes]:
        """What each rank brings, for all."""
        found = []
        for rank in range(self.size):
            size = torch.tensor([len(mine)])
            self.spread(size, rank)
            text = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if rank == self.rank and mine \
                else torch.empty(int(size), dtype=torch.uint8)  # fmt: skip
            self.spread(text, rank)
            found.append(text.numpy().tobytes())
        return found

    def wait(self) -> None:
        """Until all are here: before one reads what another has written."""
        self.total([0.0])

    def agree(self, what: str, facts: bytes) -> None:
        """RequestError on all ranks unless every one brings the same facts (of any length)."""
        if self.size == 1:
            return
        first, *others = self.listed(hashlib.sha256(facts).digest())
        odd = sum(other != first for other in others)
        if odd:
            raise RequestError(
                f"{what}: {odd} of {self.size} ranks have another than rank 0: start all with the same arguments "
                "on the same files"
            )


ALONE = Ranks()


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """The ranks that torchrun started; alone where it did not. Those that are left end when one of them fails."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RequestError(f"WORLD_SIZE is {size}, but {', '.join(missing)} not set: start with torchrun")
    ranks = Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    with _one_line(ranks):
        dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=PATIENCE)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _one_line(ranks: Ranks) -> Iterator[None]:
    """What torch raises when a peer is gone, in a line: the peer has said why, this one did nothing wrong."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError and DistStoreError are such
        raise BiseError(
            f"rank {ranks.rank} of {ranks.size} lost the others: one of them ended, or was silent for "
            f"{PATIENCE.total_seconds() / 60:.0f} minutes ({str(error).splitlines()[0][:80]})"
        ) from None
