"""Odds: how often guesses come true, learnt while they are made, and how many of them are worth their price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

FIRM = 8  # observations that weigh as much as what was expected
FADE = 0.998  # what an observation still weighs a token later: a kind that was given up is tried again


class Odds:
    """Guesses of several kinds, each with the share of them that was right."""

    def __init__(self, expected: Sequence[float]) -> None:
        """expected: the share of each kind that is right in most texts."""
        self._expected = expected
        self._right = [0.0] * len(expected)
        self._tried = [0.0] * len(expected)

    def rate(self, kind: int) -> float:
        return (self._right[kind] + FIRM * self._expected[kind]) / (self._tried[kind] + FIRM)

    def judge(self, kinds: Sequence[int], right: int) -> None:
        """A run of guesses of these kinds: the first `right` were right, the next was wrong, the rest never tested."""
        for i, kind in enumerate(kinds[: right + 1]):
            self._tried[kind] += 1
            self._right[kind] += i < right

    def fade(self, tokens: int) -> None:
        """The text has grown by so many tokens."""
        left = FADE**tokens
        self._right = [n * left for n in self._right]
        self._tried = [n * left for n in self._tried]


def worth(rates: Iterable[float], price: float) -> tuple[int, float]:
    """Guesses in a row, each right with its rate once those before it are -> how many to make, and the steps that this
    saves on average. A guess that comes true saves a step; each costs `price` steps, true or not."""
    chance, count, saved = 1.0, 0, 0.0
    for rate in rates:
        chance *= rate
        if chance <= price:
            break
        count, saved = count + 1, saved + chance - price
    return count, saved
