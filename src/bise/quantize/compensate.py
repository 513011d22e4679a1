"""Rounding that makes up for its own errors: what rounding one column does to a layer's outputs, other columns undo.

With H the second moment of a layer's inputs, rounding W to Q costs tr(E H E^T), E = W - Q. First the columns are
rounded in turn, as in GPTQ (Frantar et al. 2022, arXiv 2210.17323), in the form of LDLQ (Chee et al. 2023, arXiv
2307.13304, section 3), which gives the same numbers and needs no inverse: factor H = M D M^T, M unit upper triangular;
then the cost is sum_k D_k |(E M)_k|^2, and column k is rounded at W_k + sum_{j<k} E_j M_jk. A block's scales are chosen
when its first column is reached, by the ordinary search, on the weights that would undo all errors so far, with D as
their importance.

What was rounded first knew nothing of what came later. So then each column moves again to the level that is best among
all the others as they are, W_k + sum_{j!=k} E_j H_jk / H_kk: coordinate descent, which can only lower the cost. How all
errors pull at a column, E H, is worked out once; then it follows those few that move.

Large products are NumPy's; what goes column by column is in csrc/in_turn.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RequestError
from ..ops.cpu import Cpu
from ..quant import TYPES, Bytes, Floats, QTensor
from .lattice import LATTICES, grid

SPAN = 256  # columns of which the scales are chosen at once: a super-block, or eight blocks of 32
DAMPING = 0.01  # of the mean of H's diagonal, added to it
SWEEPS = 3  # times that all columns move again


@dataclass(frozen=True, eq=False)
class Moment:
    """H (n, n) float32, the mean of x x^T over inputs, damped; and its factors, float32 too: `feedback` is M^T
    (n, n), `cost` is D (n,)."""

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
        feedback = np.ascontiguousarray(upper.T)
        feedback /= roots[:, None]
        return cls(h, feedback, np.square(roots))


def compensate(weight: Floats, moment: Moment, type: str, cpu: Cpu, sweeps: int = SWEEPS) -> QTensor:
    """weight (rows, cols) -> `type`, so that its products with such inputs stay near. Rows do not depend on each other.

    What is gained comes from inputs being correlated; on independent ones this is `cpu.quantise` with importance.
    """
    state = _State(weight, moment, type, cpu)
    for at in range(0, weight.shape[1], SPAN):
        state.round_span(at)
    if sweeps:
        state.gather()
    for _ in range(sweeps):
        state.sweep()
    return state.tensor()


class _State:
    """Where a matrix stands. All (rows, cols): level l of a column is worth zero + step l, error is w less what it has
    become; pull is what the errors so far do to a column: E M - E of those before it, later E H."""

    def __init__(self, weight: Floats, moment: Moment, type: str, cpu: Cpu) -> None:
        self.moment, self.type, self.cpu = moment, type, cpu
        self.w = np.ascontiguousarray(weight, np.float32)
        self.error, self.pull = np.zeros_like(self.w), np.zeros_like(self.w)
        self.zero, self.step = np.empty_like(self.w), np.empty_like(self.w)
        self.levels = np.empty(weight.shape, np.int8)
        rows, cols = weight.shape
        self.blocks = np.empty((rows, cols // TYPES[type].block, TYPES[type].nbytes), np.uint8)

    def round_span(self, at: int) -> None:
        """Choose the scales of the next columns, and round them one after the other."""
        span = slice(at, min(at + SPAN, self.w.shape[1]))
        feedback, cost = self.moment.feedback, self.moment.cost[span]
        own = feedback[span, span].T
        target = self.error[:, :at] @ feedback[span, :at].T
        self._choose(span, self.w[:, span] + target @ np.linalg.inv(own), cost)
        self.pull[:, span] = target
        self._in_turn(span)
        self.pull[:, span] = (target + self.error[:, span] @ own) * cost  # E M D, for `gather`

    def _choose(self, span: slice, best: Floats, cost: Floats) -> None:
        """The scales of these columns, for the weights that would undo all errors so far."""
        chosen = self.cpu.quantise(best, self.type, cost)
        zero, step = grid(self.type, chosen.data.reshape(-1, TYPES[self.type].nbytes), self._decode)
        self.zero[:, span], self.step[:, span] = zero.reshape(best.shape), step.reshape(best.shape)
        place = self.blocks[:, span.start // TYPES[self.type].block : span.stop // TYPES[self.type].block]
        place[:] = chosen.data.reshape(place.shape)

    def _decode(self, blocks: Bytes) -> Floats:
        out = np.empty((len(blocks), TYPES[self.type].block), np.float32)
        self.cpu.verbs.dequantise(self.type, blocks.reshape(-1), out)
        return out

    def _in_turn(self, span: slice) -> None:
        self.cpu.verbs.in_turn(
            self.type, self.moment.feedback, span.start, span.stop - span.start,
            self.w, self.zero, self.step, self.pull, self.error, self.levels,
        )  # fmt: skip

    def gather(self) -> None:
        """E M D to E H = E M D M^T."""
        for at in range(0, self.w.shape[1], SPAN):
            self.pull[:, at : at + SPAN] = self.pull[:, at:] @ self.moment.feedback[at:, at : at + SPAN]

    def sweep(self) -> None:
        """Each column to its best level among all others as they are."""
        self.cpu.verbs.sweep(self.type, self.moment.h, self.w, self.zero, self.step, self.pull, self.error, self.levels)

    def tensor(self) -> QTensor:
        LATTICES[self.type].put(self.blocks.reshape(-1, TYPES[self.type].nbytes), self.levels)
        return QTensor(self.type, self.w.shape, self.blocks.reshape(-1))
