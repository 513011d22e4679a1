"""Several processes, one run: torchrun starts them, each reads its share of every step, and what they found is summed,
so that the losses are those of one process.

    torchrun --nproc-per-node 2 -m bise tune MODEL DATA

All ranks go through the same data in the same order and so know every step whole; what passes between them is the sum
of the gradients and a few numbers. Nothing is ever sent as Python objects: those would be pickles.
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

PATIENCE = timedelta(minutes=15)  # how long a rank waits for the others: a step, or rank 0's checkpoint and evaluation

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are. Alone, nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """The one that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """What of a step's micro-batches is this rank's: they come longest first, so all get about the same."""
        return list(items[self.rank :: self.size])

    def add(self, tensor: Tensor) -> None:
        """The sum over all ranks, in place; all get the same bits. BiseError where another rank has ended."""
        if self.size > 1:
            with _one_line(self):
                dist.all_reduce(tensor)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks, in float64."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        self.add(sums)
        return [float(value) for value in sums]

    def told(self, numbers: Sequence[float]) -> list[float]:
        """Rank 0's numbers, for all: what depends on a clock is decided by one of them."""
        said = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            with _one_line(self):
                dist.broadcast(said, 0)
        return [float(value) for value in said]

    def wait(self) -> None:
        """Until all are here: before one reads what another has written."""
        self.total([0.0])

    def agree(self, what: str, facts: bytes) -> None:
        """RequestError on all ranks unless every one brings the same facts (of any length)."""
        if self.size == 1:
            return
        mine = [float(byte) for byte in hashlib.sha256(facts).digest()]
        odd = self.total([float(self.told(mine) != mine)])[0]
        if odd:
            raise RequestError(
                f"{what}: {odd:.0f} of {self.size} ranks have another than rank 0: start all with the same arguments "
                "on the same files"
            )


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """The ranks that torchrun started; alone where it did not. Those that are left end when one of them fails."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RequestError(f"WORLD_SIZE is {size}, but {', '.join(missing)} not set: start with torchrun")
    ranks = Ranks(int(os.environ["RANK"]), size)
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
