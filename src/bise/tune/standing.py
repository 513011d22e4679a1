"""How far a run is: with the weights and the optimiser's averages, all that the rest of it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .alarm import Alarm
from .schedule import Schedule


@dataclass
class Standing:
    """JSON keeps it exactly: a float64 comes back as it was.

    step       steps done, which is also the position in the data
    tokens     read in them; learnt: how many were targets
    seconds    spent in all, evaluations and earlier processes included
    before     the loss on the held-out rows before the first step; held_out: the last one; best, and its step
    looked     the step of the last evaluation; look_seconds: what it took; worse: how many since the best
    planned    the number of steps has been set (under a budget: after the speed was measured)
    ended      why there are no more steps: "finished", "early stop", "time"; "" while there are
    """

    schedule: Schedule
    eval_every: int | None = None
    step: int = 0
    epoch: float = 0.0
    tokens: int = 0
    learnt: int = 0
    seconds: float = 0.0
    before: float | None = None
    held_out: float | None = None
    best: float | None = None
    best_step: int = 0
    looked: int = 0
    look_seconds: float = 0.0
    worse: int = 0
    planned: bool = True
    ended: str = ""
    alarm: Alarm = field(default_factory=Alarm)

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Standing:
        return cls(**{**facts, "schedule": Schedule(**facts["schedule"]), "alarm": Alarm(**facts["alarm"])})
