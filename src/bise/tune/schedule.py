"""The learning rate over a run: up, level, down to a floor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import RequestError

KINDS = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Schedule:
    """The share of the peak rate that a step gets.

    steps   in all; after the last one the rate would be at the floor
    warmup  steps over which it rises from nothing
    begin   the step at which it begins to fall, from `top`
    floor   the share at which it ends
    """

    kind: str
    steps: int
    warmup: int = 0
    begin: int = 0
    top: float = 1.0
    floor: float = 0.0

    @classmethod
    def over(cls, kind: str, steps: int, warmup: int = 0, floor: float = 0.0, fall: float = 1.0) -> Schedule:
        """fall: the share of the steps after the warm-up in which it falls; before them it stays at the peak."""
        if kind not in KINDS:
            raise RequestError(f"schedule is {kind!r}, expected {', '.join(KINDS)}")
        warmup = min(warmup, steps)
        return cls(kind, steps, warmup, warmup + round((1 - fall) * (steps - warmup)), 1.0, floor)

    def share(self, step: int) -> float:
        """Of the peak rate, at this step (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant" or step < self.begin:
            return self.top
        way = min(1.0, (step - self.begin) / max(1, self.steps - self.begin))
        fallen = way if self.kind == "linear" else 0.5 - 0.5 * math.cos(math.pi * way)
        return self.top + (self.floor - self.top) * fallen

    def landing(self, step: int, steps: int) -> Schedule:
        """The same from `step` on, but so that it lands after `steps` in all: no jump, and what was a share of the way
        in which it falls stays one."""
        steps = max(steps, step)
        fall = (self.steps - self.begin) / max(1, self.steps - self.warmup)
        begin = self.warmup + round((1 - fall) * max(0, steps - self.warmup))
        if step >= self.begin or step >= begin:
            begin = max(step, self.warmup)
        return replace(self, steps=steps, begin=begin, top=self.top if step <= self.begin else self.share(step))
