"""A run that has to be over in time: how many steps are possible, and when to stop whatever was planned.

The first steps measure the speed while the rate rises; then the number of steps is set, and with it the schedule. If
the machine turns out quicker or slower than that, the schedule is bent so that it still lands.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from dataclasses import dataclass, field

from ..errors import RequestError

LEAST, WARM = 3, 0.02  # steps, and share of the time, in which the speed is measured
RISE = 20  # steps in which the rate rises under a budget; a tenth of all where they turn out fewer
OFF = 0.05  # share of the steps left by which a plan may be off before it is bent
CALM = 4  # steps between two looks at the plan
LATELY = 16  # steps whose mean is the pace
KEEP = 0.1  # share of the time that looking at held-out rows may take
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """ "24h", "20m", "1h30m", "90s" -> seconds."""
    text = text.strip().lower().replace("min", "m")
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise RequestError(f"budget is {text!r}, expected a time: 24h, 1h30m, 20m, 90s")
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text))


class Clock:
    """Seconds spent on a run, those of earlier processes included. since: when this process began with it."""

    def __init__(self, before: float = 0.0, since: float | None = None) -> None:
        self.before, self.since = before, time.monotonic() if since is None else since

    def spent(self) -> float:
        return self.before + time.monotonic() - self.since


@dataclass
class Pace:
    """What things take, in seconds, as measured lately. closing: everything after the last step but its evaluation."""

    closing: float = 0.0
    evaluation: float = 0.0
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=LATELY))

    _cold: bool = True

    def add(self, seconds: float) -> None:
        """Another step's time; a process's first one, in which libraries wake up, counts until there is a second."""
        if self._cold and self.steps:
            self.steps.clear()
            self._cold = False
        self.steps.append(seconds)

    @property
    def step(self) -> float:
        return sum(self.steps) / len(self.steps) if self.steps else 0.0

    def eval_every(self, budget: float) -> int:
        """Steps between two evaluations: about ten in all, fewer where they would take more than a tenth of the
        time."""
        if not self.step:
            return 1
        return max(1, math.ceil(max(budget / 10, self.evaluation / KEEP) / self.step))

    def possible(self, left: float, eval_every: int | None) -> int:
        """Steps that fit into so many seconds, evaluations among and after them."""
        left -= self.closing + self.evaluation
        per_step = self.step + (self.evaluation / eval_every if eval_every else 0.0)
        return max(0, int(left / per_step)) if per_step else 0

    def fits(self, left: float, share: float = 1.0) -> bool:
        """Whether another step, or this share of one, can be made and all be brought home in time."""
        return share * self.step + self.evaluation + self.closing <= left
