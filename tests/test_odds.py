"""What was right before is believed, for a while; and a guess is made where it is worth its price."""

import pytest

from bise.odds import FADE, FIRM, Odds, worth


def test_rates_move_from_what_is_expected_to_what_is_seen() -> None:
    odds = Odds((0.5, 0.1))
    assert (odds.rate(0), odds.rate(1)) == (0.5, 0.1)
    odds.judge([0] * FIRM, FIRM)
    assert odds.rate(0) == 0.75 and odds.rate(1) == 0.1


def test_after_the_first_wrong_guess_nothing_was_tested() -> None:
    odds = Odds((0.5, 0.5, 0.5))
    odds.judge([0, 1, 2], 1)
    assert odds.rate(0) > 0.5 > odds.rate(1) and odds.rate(2) == 0.5


def test_what_was_seen_fades() -> None:
    odds = Odds((0.5,))
    odds.judge([0] * 40, 40)
    before = odds.rate(0)
    odds.fade(100)
    seen = 40 * FADE**100
    assert odds.rate(0) == pytest.approx((seen + 0.5 * FIRM) / (seen + FIRM)) and odds.rate(0) < before
    odds.fade(5000)
    assert odds.rate(0) == pytest.approx(0.5, abs=1e-3)


def test_worth_by_hand() -> None:
    """0.8, 0.4 and 0.1 of a step are saved by the three guesses; the third costs more than that."""
    count, saved = worth([0.8, 0.5, 0.25], 0.2)
    assert count == 2 and saved == pytest.approx(0.8 + 0.4 - 2 * 0.2)
    assert worth([0.1, 1.0], 0.2) == (0, 0.0) and worth([], 0.2) == (0, 0.0)
