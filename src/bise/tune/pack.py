"""From rows to steps, and from a step to the micro-batches that fit into memory.

A run reads one endless stream: epoch after epoch, each in an order of its own that follows from the seed. A step is
the next few rows of it, so a step's number is all that has to be kept of the position in the data.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import RequestError
from .sample import Example

Rows = Callable[[int], Sequence[Example]]  # epoch (from 0) -> the rows that it goes through


@dataclass(frozen=True)
class Batch:
    """How much a step learns from: so many rows, or as many rows as fit into so many tokens. A pair is one row."""

    size: int
    unit: str = "rows"

    @classmethod
    def read(cls, text: str) -> Batch:
        """ "16" is 16 rows, "4096t" is 4,096 tokens."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})(t?)", text.strip())
        if not match:
            raise RequestError(f"batch is {text!r}, expected rows (16) or tokens (4096t) a step")
        return cls(int(match[1]), "tokens" if match[2] else "rows")

    def __str__(self) -> str:
        return f"{self.size}{'t' if self.unit == 'tokens' else ''}"

    def cost(self, example: Example) -> int:
        return len(example) if self.unit == "tokens" else 1


@dataclass(frozen=True, eq=False)
class Step:
    """The rows of one optimiser step. epoch: how often the data have been gone through at its end."""

    examples: list[Example]
    epoch: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.examples))


def order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the rows, another one in each epoch."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def steps(rows: Rows, batch: Batch, seed: int, epochs: float | None = None) -> Iterator[Step]:
    """Every step in turn, for ever, or for so many epochs: then the last step may be smaller. A row that is larger
    than a batch in tokens is a step of its own."""
    taken: list[Example] = []
    filled, at = 0, 0.0
    for epoch in itertools.count() if epochs is None else range(math.ceil(epochs)):
        examples = rows(epoch)
        share = 1.0 if epochs is None else min(1.0, epochs - epoch)
        for done, i in enumerate(order(len(examples), seed, epoch)[: math.ceil(share * len(examples))], 1):
            cost = batch.cost(examples[i])
            if taken and filled + cost > batch.size:
                yield Step(taken, at)
                taken, filled = [], 0
            taken.append(examples[i])
            filled, at = filled + cost, epoch + done / len(examples)
    if taken:
        yield Step(taken, at)


def micro_batches(examples: Sequence[Example], most: int) -> list[list[Example]]:
    """Rows in packs of at most `most` tokens, none cut; a longer row is a pack of its own. The longest come first, so
    that a step which does not fit into memory says so at its start."""
    packs: list[list[Example]] = []
    filled = most
    for example in sorted(examples, key=len, reverse=True):
        if filled + len(example) > most:
            packs.append([])
            filled = 0
        packs[-1].append(example)
        filled += len(example)
    if len(packs) > 1 and len(packs[-1]) == 1 and len(packs[-2]) > 2:
        packs[-1].insert(0, packs[-2].pop())  # nobody alone without need: KTO compares rows with each other
    return packs
