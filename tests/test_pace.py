"""What a row costs is measured, and a hiccup is no measurement."""

import pytest

from bise.pace import ENOUGH, LEAST, MOST, ROW, Pace


def pace(**seconds: float) -> Pace:
    """pace(one=0.2, five=0.22): as many steps of each as are believed."""
    made = Pace()
    for name, s in seconds.items():
        for _ in range(ENOUGH):
            made.add({"one": 1, "two": 2, "five": 5}[name], s)
    return made


def test_nothing_is_known_at_first() -> None:
    made = Pace()
    assert (made.step, made.row) == (None, ROW)
    for _ in range(ENOUGH - 1):
        made.add(1, 0.5)
    assert made.step is None
    made.add(1, 0.5)
    assert (made.step, made.row) == (0.5, ROW)


def test_a_rows_price_by_hand() -> None:
    assert pace(one=0.2, five=0.224).row == pytest.approx(0.03)
    assert pace(two=0.2, five=0.23).row == pytest.approx(0.05)
    assert pace(one=0.2, two=1.0, five=0.24).row == pytest.approx(0.05)  # the farthest two


def test_nonsense_is_cut() -> None:
    assert pace(one=0.2, five=0.1).row == LEAST and pace(one=0.2, five=9.0).row == MOST


def test_hiccups_do_not_count_and_the_past_is_forgotten() -> None:
    made = pace(one=0.2)
    made.add(1, 50.0)
    assert made.step == 0.2
    for _ in range(9):
        made.add(1, 0.3)
    assert made.step == 0.3
