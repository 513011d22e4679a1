"""Float weights to the blocks of every quantised type: the search for levels and scales that leave the least error.

This page is the specification, in plain NumPy and slow; `Verbs.quantise` of the C++ kernels does the same operations in
the same order on every instruction set and gives the same bytes. (`quant.quantise` is the plain rounding of Q8_0 and
Q4_0 that needs no search.)

What is minimised is sum w (x - x')^2 over each block of a row, x' being what the file says. w is the importance of the
column, the mean square of what the weight is multiplied by, where it is known: then this is the expected squared error
of the layer's output, if one ignores that inputs are correlated (LeCun et al. 1990 and Hassibi & Stork 1993 go on from
there). A sub-block is solved by trying scales from several sides, and then alternating between the nearest levels for a
scale and the best scale for levels (Lloyd 1982). The scales of the sub-blocks are themselves values to be rounded, with
the curvature of the error as their weights, so the same search finds the scale of the block. At last all are settled
together: each sub-block's integers may move to their neighbours, then the float16 are fitted by least squares to all of
the block.

Arrays: x, w (n, subs, R): R blocks, each of `subs` sub-blocks of n neighbouring values. What belongs to a sub-block is
(subs, R), what belongs to a block (R,). All float32, integers too until they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from .errors import RequestError
from .packing import PACK
from .quant import IQ4_VALUES, Floats, QTensor

AGAIN = 2  # rounds of levels for a scale, scale for the levels, after the targets
SETTLE = 2  # rounds of integers for a float16, float16 for the integers
# Where a line is tried: how many levels the values reach beyond all, and how far their middle is aside. Or fewer.
Places = tuple[tuple[float, float], ...]
PLACES: Places = tuple(product((-1.75, -1.0, -0.25, 0.5, 1.25), (-0.375, -0.125, 0.125, 0.375)))
FEW: Places = ((0.25, -0.25), (0.25, 0.0), (0.25, 0.25), (-0.75, -0.375), (-0.75, 0.375), (-1.75, 0.0))


@dataclass(frozen=True)
class Grid:
    """Levels from `low` to `high` at distance 1, or a table of them. A search tries the value of largest magnitude at
    `first`, at `step` more, ... at `last`: inside the range, at its end and a little beyond. And at minus these, if one
    end of the range cuts off there what the other does not."""

    low: float
    high: float
    first: float = 0
    last: float = -1
    step: float = 1
    table: Floats | None = None

    def snap(self, values: Floats) -> Floats:
        """Values in units of the scale -> the nearest levels."""
        if self.table is None:
            return np.rint(np.clip(values, np.float32(self.low), np.float32(self.high)))
        return self.table[np.searchsorted((self.table[1:] + self.table[:-1]) / 2, values)]

    def targets(self) -> Iterator[np.float32]:
        for target in np.arange(self.first, self.last + self.step / 2, self.step, np.float32):
            yield target
            if self.low < 0 and (self.table is not None or target >= self.high + 0.5):
                yield -target


@dataclass(frozen=True)
class Rounding:
    """How a type spends its bits: `subs` sub-blocks of n values with levels of `grid`; scales: integers that multiply
    the block's float16; minima: whether something is subtracted; few: targets, as good if all errors count alike."""

    n: int
    subs: int
    grid: Grid
    scales: Grid | None = None
    minima: bool = False
    few: tuple[float, ...] = ()


BITS8 = Grid(-128, 127, 120, 128)
BITS6 = Grid(-32, 31, 24, 34)
BITS5 = Grid(-16, 15, 13, 17, 0.5)
BITS4 = Grid(-8, 7, 6, 9, 0.5)
BITS3 = Grid(-4, 3, 2.5, 5, 0.5)
TABLE = Grid(-127, 113, 98, 138, 8, IQ4_VALUES)
TO_63 = Grid(0, 63, 61.5, 63.5, 0.5)
TO_15 = Grid(0, 15, 14, 15.5, 0.5)

ROUNDING: dict[str, Rounding] = {
    "Q8_0": Rounding(32, 1, BITS8),
    "Q5_0": Rounding(32, 1, BITS5, few=(-16.5, -16, -15.5, 15)),
    "Q4_0": Rounding(32, 1, BITS4, few=(-8.5, -8, -7.5, 7)),
    "IQ4_NL": Rounding(32, 1, TABLE),
    "Q5_1": Rounding(32, 1, Grid(0, 31), minima=True),
    "Q4_1": Rounding(32, 1, Grid(0, 15), minima=True),
    "Q6_K": Rounding(16, 16, BITS6, BITS8),
    "Q3_K": Rounding(16, 16, BITS3, BITS6),
    "IQ4_XS": Rounding(32, 8, TABLE, BITS6),
    "Q5_K": Rounding(32, 8, Grid(0, 31), TO_63, minima=True),
    "Q4_K": Rounding(32, 8, Grid(0, 15), TO_63, minima=True),
    "Q2_K": Rounding(16, 16, Grid(0, 3), TO_15, minima=True),
}


@dataclass
class Rounded:
    """What the search chose for R blocks. q (n, subs, R), scale and minimum (subs, R): integers; d, least (R,): the
    float16 of the scales and of the minima (of types without sub-blocks: the minimum itself, which is added)."""

    q: Floats
    d: Floats
    least: Floats | None = None
    scale: Floats | None = None
    minimum: Floats | None = None


def rounded(array: np.ndarray, type: str, importance: np.ndarray | None = None) -> QTensor:
    """float array (rows, cols) -> QTensor of `type`; importance (cols,): positive, None for all alike. RequestError."""
    if type not in ROUNDING:
        raise RequestError(f"quantise to {type!r}: expected one of {', '.join(ROUNDING)}")
    kind, (rows, cols) = ROUNDING[type], array.shape
    block = kind.n * kind.subs
    if cols % block:
        raise RequestError(f"quantise to {type}: rows of {cols} values, expected a multiple of {block}")
    weights = np.ones(cols, np.float32) if importance is None else np.asarray(importance, np.float32)
    x = _by_element(np.ascontiguousarray(array, np.float32), kind)
    w = _by_element(np.broadcast_to(weights, (rows, cols)), kind)
    with np.errstate(over="ignore", invalid="ignore"):
        found = search(kind, x, w, alike=importance is None)
    return QTensor(type, (rows, cols), PACK[type](found).reshape(-1))


def search(kind: Rounding, x: Floats, w: Floats, alike: bool) -> Rounded:
    """The whole search. x, w (n, subs, R); alike: all w are 1."""
    if kind.scales is None:
        return (_round_line if kind.minima else _round_single)(kind, x, w, alike)
    return (_round_nested_lines if kind.minima else _round_nested)(kind, x, w)


def prepared(importance: np.ndarray) -> Floats:
    """An importance matrix's mean squares (cols,) as weights: their mean is 1, and a column that was never used still
    counts a little. RequestError for negative, infinite or NaN values."""
    values = np.asarray(importance, np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values.min() < 0:
        raise RequestError(f"importance of {values.size:,} columns: expected finite values of at least 0")
    mean = values.mean()
    return (values / mean + 1e-4 if mean > 0 else np.ones_like(values)).astype(np.float32)


def _by_element(array: Floats, kind: Rounding) -> Floats:
    """(rows, cols) -> (n, subs, R)."""
    return np.ascontiguousarray(array.reshape(-1, kind.subs, kind.n).transpose(2, 1, 0))


# Arithmetic whose order is part of the specification.


def _total(terms: Floats) -> Floats:
    """The sum over the first axis, one after the other (NumPy's own sums add pairs)."""
    total: Floats = np.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def _inverse(values: Floats) -> Floats:
    """1 / values, and 0 of 0."""
    return np.divide(1, values, out=np.zeros_like(values), where=np.abs(values) > np.float32(1e-30))


def _halved(values: Floats) -> Floats:
    """What is left in a float16; no negative zeros."""
    return (values + 0).astype(np.float16).astype(np.float32)


def _where(better: np.ndarray, new: Iterable[Floats], old: Iterable[Floats]) -> list[Floats]:
    return [np.where(better, n, o) for n, o in zip(new, old, strict=True)]


# One scale: x is near s q.


def _fit(x: Floats, w: Floats, grid: Grid, few: tuple[float, ...] = ()) -> tuple[Floats, Floats]:
    """-> scale s and curve (...) of least sum w (x - s q)^2 over the first axis: away from its best, a scale's error
    grows by curve * distance^2. For given levels s = sum w x q / sum w q^2."""
    wx = w * x
    top = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    best = [np.zeros_like(top)] * 3  # gain, scale, curve

    def attempt(inverse: Floats) -> None:
        nonlocal best
        q = grid.snap(x * inverse)
        a, c = _total(wx * q), _total(w * q * q)
        s = a * _inverse(c)
        best = _where(a * s > best[0], (a * s, s, c), best)

    for target in map(np.float32, few) if few else grid.targets():
        attempt(target * _inverse(top))
    for _ in range(AGAIN):
        attempt(_inverse(best[1]))
    return best[1], best[2]


def _round_single(kind: Rounding, x: Floats, w: Floats, alike: bool) -> Rounded:
    d = _halved(_fit(x, w, kind.grid, kind.few if alike else ())[0])[0]
    return Rounded(kind.grid.snap(x * _inverse(d)), d)


def _round_nested(kind: Rounding, x: Floats, w: Floats) -> Rounded:
    assert kind.scales is not None
    s, curve = _fit(x, w, kind.grid)
    d = _halved(_fit(s, curve, kind.scales)[0])
    own = kind.scales.snap(s * _inverse(d))
    for _ in range(SETTLE):
        best = _attempt(kind.grid, x, w, d, own)
        for step in (-1, 1):
            other = _attempt(kind.grid, x, w, d, np.clip(own + np.float32(step), kind.scales.low, kind.scales.high))
            best = _where(other[0] < best[0], other, best)
        _, own, wqx, wqq = best
        d = _halved(_total(own * wqx) * _inverse(_total(own * own * wqq)))
    return Rounded(kind.grid.snap(x * _inverse(d * own)), d, scale=own)


def _attempt(grid: Grid, x: Floats, w: Floats, d: Floats, own: Floats) -> list[Floats]:
    """Sub-blocks with the integer scales `own` -> [error, own, sum w q x, sum w q^2]."""
    scale = d * own
    q = grid.snap(x * _inverse(scale))
    off, wq = x - scale * q, w * q
    return [_total(w * off * off), own, _total(wq * x), _total(wq * q)]


# A scale and a base: x is near s q + base, q from 0 on.


@dataclass
class _Sums:
    """Sums over sub-blocks: w, wx of the values alone, the others for given levels."""

    w: Floats
    wx: Floats
    wq: Floats
    wqq: Floats
    wqx: Floats


def _levels(grid: Grid, x: Floats, base: Floats, inverse: Floats) -> Floats:
    return np.rint(np.clip((x - base) * inverse, np.float32(0), np.float32(grid.high)))


def _add_up(x: Floats, w: Floats, q: Floats) -> _Sums:
    wq = w * q
    return _Sums(_total(w), _total(w * x), _total(wq), _total(wq * q), _total(wq * x))


def _over(det: Floats, whole: Floats) -> Floats:
    """1 / det, the determinant of two equations and a difference from `whole`; 0 where it is only rounding."""
    return np.where(det > np.float32(1e-6) * whole, _inverse(det), np.float32(0))


def _solve(s: _Sums, any_sign: bool) -> tuple[Floats, Floats, Floats]:
    """Least squares for given levels -> scale, base, curve. A base above zero only if it may have any sign: else the
    scale does it alone, as it does where all levels are alike."""
    whole = s.w * s.wqq
    r = _over(whole - s.wq * s.wq, whole)
    scale, base = (s.w * s.wqx - s.wq * s.wx) * r, (s.wqq * s.wx - s.wq * s.wqx) * r
    curve = s.wqq - s.wq * s.wq * _inverse(s.w)
    if any_sign:
        return scale, base, curve
    alone = (base > 0) | (r == 0)
    scale, curve = _where(alone, (s.wqx * _inverse(s.wqq), s.wqq), (scale, curve))
    return scale, np.minimum(base, np.float32(0)), curve


def _fit_line(x: Floats, w: Floats, grid: Grid, any_sign: bool, places: Places) -> tuple[Floats, Floats, Floats]:
    """-> scale, base, curve of least sum w (x - scale q - base)^2. curve: of the error over the scale, if the base
    follows it."""
    low, high, w_all, wx_all = x.min(axis=0), x.max(axis=0), _total(w), _total(w * x)
    mean = wx_all * _inverse(w_all)
    if not any_sign:
        low, mean = np.minimum(low, np.float32(0)), np.minimum(mean, np.float32(0))
    zeros = np.zeros_like(mean)
    best = [mean * wx_all, zeros, mean, zeros]  # gain, scale, base, curve: as if all values were alike

    def attempt(base: Floats, inverse: Floats) -> None:
        nonlocal best
        s = _add_up(x, w, _levels(grid, x, base, inverse))
        scale, base, curve = _solve(s, any_sign)
        gain = np.where(scale > 0, scale * s.wqx + base * s.wx, zeros)
        best = _where(gain > best[0], (gain, scale, base, curve), best)

    for beyond, aside in places:
        levels = np.float32(grid.high + beyond)
        attempt(low + np.float32(beyond / 2 + aside) / levels * (high - low), levels * _inverse(high - low))
    for _ in range(AGAIN):
        attempt(best[2], _inverse(best[1]))
    return best[1], best[2], best[3]


def _round_line(kind: Rounding, x: Floats, w: Floats, alike: bool) -> Rounded:
    scale, base, _ = _fit_line(x, w, kind.grid, any_sign=True, places=FEW if alike else PLACES)
    d, least = _halved(scale), _halved(base)
    return Rounded(_levels(kind.grid, x, least, _inverse(d)), d[0], least[0])


def _round_nested_lines(kind: Rounding, x: Floats, w: Floats) -> Rounded:
    assert kind.scales is not None
    scale, base, curve = _fit_line(x, w, kind.grid, any_sign=False, places=PLACES)
    d = _halved(_fit(scale, curve, kind.scales)[0])
    own = kind.scales.snap(scale * _inverse(d))
    s = _add_up(x, w, _levels(kind.grid, x, base, _inverse(d * own)))
    below = np.maximum((d * own * s.wq - s.wx) * _inverse(s.w), np.float32(0))  # the best beside the scale as it is now
    least = _halved(_fit(below, s.w, kind.scales)[0])
    minimum = kind.scales.snap(below * _inverse(least))
    for _ in range(SETTLE):
        best = _attempt_line(kind, x, w, d, least, own, minimum)
        for step in (-1, 1):
            near = np.clip(own + np.float32(step), np.float32(0), np.float32(kind.scales.high))
            other = _attempt_line(kind, x, w, d, least, near, minimum)
            best = _where(other[0] < best[0], other, best)
        _, own, minimum, *sums = best
        d, least = map(_halved, _pair(own, minimum, _Sums(*sums), d, least))
    q = _levels(kind.grid, x, -(least * minimum), _inverse(d * own))
    return Rounded(q, d, least, own, minimum)


def _attempt_line(
    kind: Rounding, x: Floats, w: Floats, d: Floats, least: Floats, own: Floats, minimum: Floats
) -> list[Floats]:
    """Sub-blocks with the integer scales `own`: the minimum follows the levels, then the levels follow the minimum.
    -> [error, own, minimum, and the fields of _Sums]."""
    assert kind.scales is not None
    scale = d * own
    inverse = _inverse(scale)
    s = _add_up(x, w, _levels(kind.grid, x, -(least * minimum), inverse))
    base = (s.wx - scale * s.wq) * _inverse(s.w)
    minimum = kind.scales.snap(-base * _inverse(least))
    low = -(least * minimum)
    q = _levels(kind.grid, x, low, inverse)
    off, s = x - low - scale * q, _add_up(x, w, q)
    return [_total(w * off * off), own, minimum, s.w, s.wx, s.wq, s.wqq, s.wqx]


def _pair(own: Floats, minimum: Floats, s: _Sums, d: Floats, least: Floats) -> tuple[Floats, Floats]:
    """Least squares over whole blocks, x near d (own q) - least minimum, for given integers -> d, least (R,). Where the
    two cannot be told apart, or the minimum would be negative, `least` stays."""
    aa, ab, bb = _total(own * own * s.wqq), _total(own * minimum * s.wq), _total(minimum * minimum * s.w)
    u, v = _total(own * s.wqx), _total(minimum * s.wx)
    whole = aa * bb
    r = _over(whole - ab * ab, whole)
    both, other = (bb * u - ab * v) * r, (ab * u - aa * v) * r
    return np.where(other > 0, both, (u + least * ab) * _inverse(aa)), np.where(other > 0, other, least)
