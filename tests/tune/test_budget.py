"""Time: what fits into it is planned once the speed is known, and it is never overrun."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from bise.errors import RequestError
from bise.tune import loop
from bise.tune.budget import Clock, Pace, seconds
from bise.tune.loop import Training
from bise.tune.run import Run
from bise.tune.settings import Settings

from .pupil import QUICK, fresh, sentences, training


@pytest.mark.parametrize(("text", "expected"), [("24h", 86400), ("20m", 1200), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400),
                                                ("20min", 1200), ("2d", 172800)])  # fmt: skip
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "24", "h", "-3m", "3 weeks", "1h 30m"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="expected a time"):
        seconds(text)


def test_pace() -> None:
    pace = Pace(closing=10, evaluation=5)
    for took in (9.0, 2.0, 2.0):  # the first one woke the libraries up
        pace.add(took)
    assert pace.step == 2
    assert pace.possible(115, None) == 50
    assert pace.possible(115, 10) == 40  # an evaluation every ten steps
    assert pace.possible(3, 10) == 0
    assert pace.fits(17) and not pace.fits(16.9)
    assert pace.eval_every(1000) == 50 and pace.eval_every(100) == 25


class FakeTime:
    """A machine whose every look at the clock takes a moment, and whose speed can be set."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 0.0

    def monotonic(self) -> float:
        return self.now


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, budget: float, speed: Any) -> tuple[Training, FakeTime]:
    """A run on a machine whose steps take speed(step) seconds, by its own clock."""
    clock, rows = FakeTime(), sentences()
    monkeypatch.setattr(loop.time, "monotonic", clock.monotonic)
    teaching: list[Training] = []

    def objective(student: Any, samples: Any) -> Any:
        clock.now += speed(teaching[0].at.step) * (0.05 if not loop.torch.is_grad_enabled() else 1)
        return loop.sft(student, samples)

    settings = Settings(**{**QUICK, "steps": None, "budget": budget, "micro": 10_000})
    teaching.append(Training(fresh(), lambda e: rows, settings, Run(folder), held_out=sentences(10, 1000),
                             objective=objective, clock=Clock(), closing=2.0))  # fmt: skip
    teaching[0].run()
    return teaching[0], clock


def rates(folder: Path) -> list[float]:
    return [note["rate"] for note in Run(folder).notes() if "rate" in note]


def test_it_lands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, clock = run(tmp_path, monkeypatch, 100.0, lambda step: 1.0)
    assert 95 < clock.now + 2.0 <= 100 and done.at.ended == "finished"
    found = rates(tmp_path)
    assert found[0] < 0.2 * max(found) and found[-1] < 0.03 * max(found)


@pytest.mark.parametrize("later", [0.5, 2.5])
def test_it_lands_when_the_machine_changes_its_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    _, clock = run(tmp_path, monkeypatch, 100.0, lambda step: 1.0 if step < 30 else later)
    assert 90 < clock.now + 2.0 <= 100
    found = rates(tmp_path)
    assert found[-1] < 0.15 * max(found)
    assert max(abs(a - b) for a, b in itertools.pairwise(found[10:])) < 0.12 * max(found)  # and no jumps


def test_it_stops_in_time_when_the_machine_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, clock = run(tmp_path, monkeypatch, 100.0, lambda step: 20.0 if step >= 50 else 1.0)
    assert done.at.ended and clock.now <= 100 + 20  # one step that nobody could foresee
    assert done.at.best is not None


def test_spent_time_counts_after_a_stop(tmp_path: Path) -> None:
    first = training(tmp_path, steps=None, budget=1000.0)
    begun = iter([False] * 40)
    first.wanted = lambda: next(begun, True)
    at = first.run()
    assert at.ended == ""
    again = training(tmp_path, steps=None, budget=1000.0)
    assert again.clock.spent() >= at.seconds


def test_on_a_real_clock(tmp_path: Path) -> None:
    """Twenty times quicker than the twenty minutes of a demonstration."""
    began = time.monotonic()
    at = training(tmp_path, steps=None, budget=6.0).run()
    assert time.monotonic() - began < 6.5 and at.step > 10 and at.planned
    assert at.ended in ("finished", "time") and at.best is not None
