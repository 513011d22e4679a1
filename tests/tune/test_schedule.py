"""The shapes of the rate, against their formulas."""

from __future__ import annotations

import math

import pytest

from bise.errors import RequestError
from bise.tune.schedule import Schedule


def test_warm_up_and_cosine() -> None:
    s = Schedule.over("cosine", 110, 10, floor=0.1)
    assert [s.share(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    for i in range(10, 111):
        assert s.share(i) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (i - 10) / 100)) / 2)
    assert s.share(500) == pytest.approx(0.1)


def test_linear_and_constant() -> None:
    s = Schedule.over("linear", 100)
    assert [s.share(i) for i in (0, 25, 50, 100)] == [1, 0.75, 0.5, 0]
    s = Schedule.over("constant", 100, 4)
    assert [s.share(i) for i in (0, 3, 50, 1000)] == [0.25, 1, 1, 1]


def test_it_may_stay_before_it_falls() -> None:
    """As puff was trained: level, and down over the last half."""
    s = Schedule.over("linear", 100, 0, fall=0.5)
    assert [s.share(i) for i in (0, 50, 75, 100)] == [1, 1, 0.5, 0]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("fall", [1.0, 0.4])
@pytest.mark.parametrize(("step", "steps"), [(30, 60), (30, 150), (70, 72), (70, 300), (5, 50)])
def test_a_bent_schedule_lands_without_a_jump(kind: str, fall: float, step: int, steps: int) -> None:
    s = Schedule.over(kind, 100, 10, floor=0.05, fall=fall)
    bent = s.landing(step, steps)
    assert bent.share(step) == pytest.approx(s.share(step))
    assert bent.share(steps) == pytest.approx(0.05)
    shares = [bent.share(i) for i in range(max(step, 10), steps + 1)]
    assert shares == sorted(shares, reverse=True)


def test_a_warm_up_longer_than_the_run() -> None:
    """The guide's own command had 100 steps and a warm-up of 100: the rate only rose. It still does, if one insists."""
    assert Schedule.over("linear", 100, 500).share(99) == 1


def test_unknown_kinds() -> None:
    with pytest.raises(RequestError, match="schedule is 'step'"):
        Schedule.over("step", 10)
