"""Pace: how long steps take, by their number of rows, and so what one row more costs."""

from __future__ import annotations

from collections import deque

ROW = 0.04  # of a step: what one row more adds, until it has been measured
LEAST, MOST = 0.02, 0.4  # measurements outside are noise
ENOUGH = 5  # timings that are believed
LAST = 9  # timings that are kept


class Pace:
    """The quickest of the last steps of each size, so that a hiccup does not count. It decides how much is guessed, and
    never a token."""

    def __init__(self) -> None:
        self._last: dict[int, deque[float]] = {}  # rows -> seconds
        self._known: list[int] = []  # ascending: rows of which there are enough

    def add(self, rows: int, seconds: float) -> None:
        """A step that read `rows` tokens, few of each sequence, took so long."""
        last = self._last.setdefault(rows, deque(maxlen=LAST))
        last.append(seconds)
        if len(last) == ENOUGH and rows not in self._known:
            self._known = sorted([*self._known, rows])

    @property
    def step(self) -> float | None:
        """Seconds of a step with the fewest rows; None until there are enough of them."""
        return min(self._last[self._known[0]]) if self._known else None

    @property
    def row(self) -> float:
        """What one row more costs, in steps with the fewest rows."""
        if len(self._known) < 2:
            return ROW
        few, many = self._known[0], self._known[-1]
        more = min(self._last[many]) / min(self._last[few]) - 1
        return min(MOST, max(LEAST, more / (many - few)))
