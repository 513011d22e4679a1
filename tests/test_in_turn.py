"""Columns rounded in turn (csrc/in_turn.cpp), against the same in NumPy and float64, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bise import _kernels
from bise.ops.cpu import Cpu
from bise.quant import TYPES, Floats
from bise.quantize.lattice import LATTICES, grid, nearest

ROWS, COLS, SPAN = 37, 544, 256  # no whole number of strips; two spans and a block


@dataclass
class Case:
    type: str
    feedback: Floats
    w: Floats
    zero: Floats
    step: Floats
    pull: Floats
    error: Floats
    levels: np.ndarray

    def arrays(self) -> list[np.ndarray]:
        return [self.w, self.zero, self.step, self.pull, self.error, self.levels]


def case(type: str, cols: int = COLS) -> Case:
    """A matrix that was rounded plainly, and a feedback that couples its columns a little."""
    rng = np.random.default_rng(3)
    w, cols = rng.standard_normal((ROWS, cols)).astype(np.float32), cols // TYPES[type].block * TYPES[type].block
    w = np.ascontiguousarray(w[:, :cols])
    x = rng.standard_normal((4 * cols, cols)) + rng.standard_normal((4 * cols, 1))
    made = Cpu(1).quantise(w, type)
    zero, step = (part.reshape(w.shape) for part in grid(type, made.data.reshape(-1, TYPES[type].nbytes)))
    error = w - made.dequantise()
    feedback = (x.T @ x / len(x)).astype(np.float32)
    return Case(type, feedback, w, zero, step, error @ feedback, error, np.zeros(w.shape, np.int8))


def in_turn(c: Case, at: int, n: int) -> tuple[Floats, np.ndarray]:
    """errors and levels (rows, n), as compensate.py says it."""
    error, levels = c.error[:, at : at + n].astype(np.float64), np.empty((ROWS, n), np.int8)
    feedback, before = c.feedback[at : at + n, at : at + n].astype(np.float64), error.copy()
    for k in range(n):
        pull = c.pull[:, at + k] + (error - before)[:, :k] @ feedback[k, :k]
        best = c.w[:, at + k] - error[:, k] + pull / feedback[k, k]
        index, value = nearest(c.type, best.astype(np.float32), c.zero[:, at + k], c.step[:, at + k])
        error[:, k], levels[:, k] = c.w[:, at + k] - value, LATTICES[c.type].levels[index]
    return error.astype(np.float32), levels


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("type", LATTICES)
def test_each_column_goes_where_it_makes_up_best(type: str, isa: str) -> None:
    """Row for row, but where a weight lies between two levels and float32 goes the other way. What lies outside of the
    columns is left alone."""
    c = case(type)
    at = c.w.shape[1] - 256
    want, levels = in_turn(c, at, 256)
    error, before = c.error, c.error.copy()
    _kernels.Verbs(2, isa).in_turn(type, c.feedback, at, 256, *c.arrays())
    span = slice(at, at + 256)
    same = (c.levels[:, span] == levels).all(axis=1)
    assert same.mean() > 0.9
    np.testing.assert_allclose(error[same][:, span], want[same], atol=1e-5)
    error[:, span] = before[:, span]
    assert np.array_equal(error, before)


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("type", ["Q4_0", "IQ4_NL", "Q3_K"])
def test_a_sweep_is_one_span_after_the_other(type: str, isa: str) -> None:
    """pull follows: afterwards it is what all errors pull. Nothing depends on the threads."""
    c, other, verbs = case(type), case(type), _kernels.Verbs(1, isa)
    for at in range(0, c.w.shape[1], SPAN):
        verbs.in_turn(type, c.feedback, at, min(SPAN, c.w.shape[1] - at), *c.arrays())
        c.pull = c.error @ c.feedback
    _kernels.Verbs(3, isa).sweep(type, other.feedback, *other.arrays())
    same = (c.levels == other.levels).all(axis=1)
    assert same.mean() > 0.9
    np.testing.assert_allclose(other.error[same], c.error[same], atol=1e-5)
    np.testing.assert_allclose(other.pull, other.error @ other.feedback, atol=1e-4 * np.abs(other.pull).max())
    np.testing.assert_allclose(other.error, c.w - (c.zero + c.step * other.levels), atol=1e-5)
    again = case(type)
    verbs.sweep(type, again.feedback, *again.arrays())
    for one, two in zip(other.arrays(), again.arrays(), strict=True):
        assert np.array_equal(one, two)


def test_refusals() -> None:
    c, verbs = case("Q4_0", 64), _kernels.Verbs(1)
    for columns in ((0, 0), (0, 16), (32, 64), (-32, 32), (0, 288)):
        with pytest.raises(ValueError, match="expected blocks of 32, at most 256"):
            verbs.in_turn("Q4_0", c.feedback, *columns, *c.arrays())
    with pytest.raises(ValueError, match="no levels"):
        verbs.sweep("F16", c.feedback, *c.arrays())
    with pytest.raises(ValueError, match="feedback has shape"):
        verbs.sweep("Q4_0", c.feedback[:32], *c.arrays())
    with pytest.raises(ValueError, match="multiple of 32"):
        verbs.sweep("Q4_0", c.feedback[:40, :40].copy(), *(array[:, :40].copy() for array in c.arrays()))
    c.pull = c.pull[:-1]
    with pytest.raises(ValueError, match="pull has shape"):
        verbs.sweep("Q4_0", c.feedback, *c.arrays())
