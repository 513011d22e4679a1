"""Several measurements of one thing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of several measurements, in whatever unit they have."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(*(round(v, 4 if v < 10 else 2) for v in (statistics.median(values), min(values), max(values))))
