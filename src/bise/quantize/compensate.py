"""Rounding that makes up for its own errors: what rounding one column does to a layer's outputs, other columns undo.

With H the second moment of a layer's inputs, rounding W to Q costs tr(E H E^T), E = W - Q. First the columns are
rounded in turn, as in GPTQ (Frantar et al. 2022, arXiv 2210.17323), in the form of LDLQ (Chee et al. 2023, arXiv
2307.13304, section 3), which gives the same numbers and needs no inverse: factor H = M D M^T, M unit upper triangular;
then the cost is sum_k D_k |(E M)_k|^2, and column k is rounded at W_k + sum_{j<k} E_j M_jk. A block's scales are chosen
when its first column is reached, by the ordinary search, on the weights that would undo all errors so far, with D as
their importance.

What was rounded first knew nothing of what came later. So then each column moves again to the level that is best among
all the others as they are, W_k + sum_{j!=k} E_j H_jk / H_kk: coordinate descent, which can only lower the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from ..errors import RequestError
from ..quant import TYPES, Floats, QTensor
from .lattice import LATTICES, grid, nearest
from .tensors import Round

SPAN = 256  # columns of which the scales are chosen at once: a super-block, or eight blocks of 32
STRIDE = 32  # columns within which errors are passed on one by one
DAMPING = 0.01  # of the mean of H's diagonal, added to it
SWEEPS = 3  # times that all columns move again


@dataclass(frozen=True, eq=False)
class Moment:
    """H (n, n) float32, the mean of x x^T over inputs, damped; and its factors M (n, n) and D (n,), float32."""

    h: Floats
    feedback: Floats
    cost: Floats

    @classmethod
    def of(cls, moment: Floats, damping: float = DAMPING) -> Moment:
        """A column that never met an input stays alone: its row and column of H are zero but for the damping."""
        h = np.array(moment, np.float32)
        mean = float(np.mean(np.diagonal(h))) or 1.0
        if not np.isfinite(h).all():
            raise RequestError("the inputs of a layer are not finite: the model is damaged, or overflows on this text")
        while True:
            h[np.diag_indices_from(h)] += np.float32(damping * mean)
            try:
                upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
                break
            except np.linalg.LinAlgError:  # not positive in this precision: damp more
                damping *= 4
        roots = np.diagonal(upper)
        return cls(h, cast(Floats, upper / roots), np.square(roots))


def compensate(weight: Floats, moment: Moment, type: str, search: Round, sweeps: int = SWEEPS) -> QTensor:
    """weight (rows, cols) -> `type`, so that its products with such inputs stay near. search: the ordinary rounding, as
    a `Round`. Rows do not depend on each other.

    What is gained comes from inputs being correlated; on independent ones this is `search` with importance.
    """
    state = _State(weight, moment, type)
    for at in range(0, weight.shape[1], SPAN):
        state.round_span(at, search)
    for _ in range(sweeps):
        for at in range(0, weight.shape[1], SPAN):
            state.move_span(at)
    return state.tensor


class _State:
    """Columns lie in one piece here: w, error (cols, rows); blocks (rows, blocks of a row, bytes)."""

    def __init__(self, weight: Floats, moment: Moment, type: str) -> None:
        self.moment, self.type, (self.rows, self.cols) = moment, type, weight.shape
        self.w = np.ascontiguousarray(weight.T, np.float32)
        self.error = np.zeros_like(self.w)  # w - q
        kind = TYPES[type]
        self.blocks = np.empty((self.rows, self.cols // kind.block, kind.nbytes), np.uint8)

    @cached_property
    def tensor(self) -> QTensor:
        return QTensor(self.type, (self.rows, self.cols), self.blocks.reshape(-1))

    def round_span(self, at: int, search: Round) -> None:
        """Choose the scales of the next columns, and round them one after the other."""
        span = slice(at, min(at + SPAN, self.cols))
        m, error = self.moment.feedback[:, span], self.error[span]
        target = m[:at].T @ self.error[:at]
        m = m[span]
        best = self.w[span] + np.linalg.solve(m.T, target)  # where the span would undo all errors so far
        chosen = search("", np.ascontiguousarray(best.T), self.type, self.moment.cost[span])
        zero, step = self._put(span, chosen.data)
        target += self.w[span]
        index = np.empty(target.shape, np.uint8)
        for begin, end in _strides(len(target)):
            target[begin:end] += m[:begin, begin:end].T @ error[:begin]
            for k in range(begin, end):
                corrected = target[k] + m[begin:k, k] @ error[begin:k]
                index[k], value = nearest(self.type, corrected, zero[k], step[k])
                np.subtract(self.w[at + k], value, out=error[k])
        self._write(span, index)

    def move_span(self, at: int) -> None:
        """Each of these columns to its best level among all others as they are."""
        span = slice(at, min(at + SPAN, self.cols))
        h, w, error = self.moment.h[span], self.w[span], self.error[span]
        pull = h @ self.error  # H E^T: how the cost grows with each error
        h, before = h[:, span], error.copy()
        zero, step = self._grid(span)
        index = np.empty(pull.shape, np.uint8)
        for begin, end in _strides(len(pull)):
            moved = error[begin:end] - before[begin:end]  # zeros yet
            for k in range(begin, end):
                now = pull[k] + h[k, begin:k] @ moved[: k - begin]
                index[k], value = nearest(self.type, w[k] + now / h[k, k] - error[k], zero[k], step[k])
                np.subtract(w[k], value, out=error[k])
                np.subtract(error[k], before[k], out=moved[k - begin])
            pull[end:] += h[end:, begin:end] @ moved
        self._write(span, index)

    def _blocks(self, span: slice) -> np.ndarray:
        """The blocks of these columns: a view (rows, n, bytes)."""
        width = TYPES[self.type].block
        return self.blocks[:, span.start // width : span.stop // width]

    def _put(self, span: slice, data: np.ndarray) -> tuple[Floats, Floats]:
        place = self._blocks(span)
        place[:] = data.reshape(place.shape)
        return self._grid(span)

    def _grid(self, span: slice) -> tuple[Floats, Floats]:
        """zero and step of these columns, (columns, rows)."""
        blocks = self._blocks(span).reshape(-1, self.blocks.shape[-1])
        zero, step = (np.ascontiguousarray(part.reshape(self.rows, -1).T) for part in grid(self.type, blocks))
        return zero, step

    def _write(self, span: slice, index: np.ndarray) -> None:
        """Put levels (columns, rows) into their blocks."""
        place = self._blocks(span)
        blocks = place.reshape(-1, place.shape[-1]).copy()
        LATTICES[self.type].write(blocks, np.ascontiguousarray(index.T).reshape(len(blocks), -1))
        place[:] = blocks.reshape(place.shape)


def _strides(count: int) -> list[tuple[int, int]]:
    return [(at, min(at + STRIDE, count)) for at in range(0, count, STRIDE)]
