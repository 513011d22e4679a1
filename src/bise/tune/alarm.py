"""A run that has gone wrong is stopped: a loss that is no number, or one that grows and grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import BiseError
from .sample import Example, Pair, Sample, Verdict

SPAN = 20  # steps of which the mean counts
TIMES, MORE = 3.0, 1.0  # more than so often the best mean, and so many nats, is an explosion
IN_A_ROW = 3  # steps of it
NAMED = 20  # rows that are named


class BrokenError(BiseError):
    """A run was stopped because its loss is no number, or explodes. What was learnt before is kept."""


@dataclass
class Alarm:
    """recent: the last losses; best: the lowest mean of them so far; high: steps running that were far above it."""

    recent: list[float] = field(default_factory=list)
    best: float = math.inf
    high: int = 0

    def look(self, loss: float, norm: float) -> str:
        """What is wrong with a step of this loss and this norm of its gradient; "" where nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the loss is {loss:.4g}, the norm of its gradient {norm}"
        self.high = self.high + 1 if loss > TIMES * self.best + MORE else 0
        if self.high >= IN_A_ROW:
            return f"the loss is {loss:.4g} and was {self.best:.4g} at its best: it explodes"
        self.recent = [*self.recent, loss][-SPAN:]
        if len(self.recent) == SPAN:
            self.best = min(self.best, sum(self.recent) / SPAN)
        return ""


def place(example: Example) -> str:
    """ "data.jsonl:17": where a row came from."""
    sample: Sample = example.chosen if isinstance(example, Pair) else example.answer if isinstance(example, Verdict) \
        else example  # fmt: skip
    return f"{sample.source or 'row'}:{sample.line}"


def named(examples: Sequence[Example]) -> str:
    """The rows, for a person: at most twenty of them."""
    places = list(dict.fromkeys(map(place, examples)))
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return ", ".join(places[:NAMED]) + more
