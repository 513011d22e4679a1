"""Rounding that makes up for its own errors: what rounding one column does to a layer's outputs, later columns undo.

Source: GPTQ (Frantar et al. 2022, arXiv 2210.17323) in the form of LDLQ (Chee et al. 2023, arXiv 2307.13304, section 3),
which gives the same numbers and needs no inverse. With H the second moment of a layer's inputs, rounding W to Q costs
tr((W - Q) H (W - Q)^T). Factor H = M D M^T, M unit upper triangular. Then that is sum_k D_k |e_k|^2 with
e_k = (W - Q) M column k, and column k is rounded at W_k + sum_{j<k} (W_j - Q_j) M_jk.

A block's scales are chosen when its first column is reached, on the weights corrected so far, by the ordinary rounding,
to which D_k is the importance of column k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from ..quant import TYPES, Floats, QTensor, nbytes
from .lattice import grid, nearest

SPAN = 256  # columns of which the scales are chosen at once: a super-block, or eight blocks of 32
STRIDE = 32  # columns within which errors are passed on one by one
DAMPING = 0.01  # of the mean of H's diagonal, added to it

Round = Callable[[Floats, str, Floats | None], QTensor]  # (rows, cols), type, (cols,) importance


def compensate(weight: Floats, moment: Floats, type: str, round: Round, damping: float = DAMPING) -> QTensor:
    """weight (rows, cols) -> `type`, so that its products with inputs of second moment `moment` (cols, cols) stay near.

    Inputs are correlated, or there is nothing to gain: on independent ones this is `round` with importance.
    """
    rows, cols = weight.shape
    kind = TYPES[type]
    feedback, cost = factor(moment, damping)
    w = np.ascontiguousarray(weight.T, np.float32)  # (cols, rows), so that a column lies in one piece
    error = np.zeros_like(w)  # w - q
    data = np.empty((rows, cols // kind.block, kind.nbytes), np.uint8)
    for at in range(0, cols, SPAN):
        end = min(at + SPAN, cols)
        target = w[at:end] + feedback[:at, at:end].T @ error[:at]
        start = round(np.ascontiguousarray(target.T), type, cost[at:end])
        blocks = start.data.reshape(-1, kind.nbytes).copy()
        zero, step = (np.ascontiguousarray(part.reshape(rows, -1).T) for part in grid(type, blocks))
        index = np.empty((end - at, rows), np.uint8)
        _columns(type, w[at:end], target, zero, step, feedback[at:end, at:end], error[at:end], index)
        write(type, blocks, index)
        data[:, at // kind.block : end // kind.block] = blocks.reshape(rows, -1, kind.nbytes)
    return QTensor(type, (rows, cols), data.reshape(nbytes(type, (rows, cols))))


def _columns(type: str, w: Floats, target: Floats, zero: Floats, step: Floats, feedback: Floats, error: Floats,
             index: np.ndarray) -> None:  # fmt: skip
    """Round the columns of one span, one after the other: fills error and index. All (columns, rows)."""
    for at in range(0, len(w), STRIDE):
        end = min(at + STRIDE, len(w))
        target[at:end] += feedback[:at, at:end].T @ error[:at]
        for k in range(at, end):
            corrected = target[k] + feedback[at:k, k] @ error[at:k]
            index[k], value = nearest(type, corrected, zero[k], step[k])
            np.subtract(w[k], value, out=error[k])


def write(type: str, blocks: np.ndarray, index: np.ndarray) -> None:
    """Put the chosen levels (columns, rows) into the blocks of those rows."""
    from .lattice import LATTICES

    LATTICES[type].write(blocks, np.ascontiguousarray(index.T).reshape(len(blocks), -1))


def factor(moment: Floats, damping: float = DAMPING) -> tuple[Floats, Floats]:
    """H (n, n) -> (M, D): H + damping * mean(diag H) * I = M diag(D) M^T, M unit upper triangular. Both float32.

    A column that never met an input stays alone: its row and column of H are zero.
    """
    h = np.array(moment, np.float64 if len(moment) <= 4096 else np.float32)
    mean = float(np.mean(np.diagonal(h))) or 1.0
    for _ in range(10):
        h[np.diag_indices_from(h)] += damping * mean
        try:
            lower = np.linalg.cholesky(h[::-1, ::-1])
            break
        except np.linalg.LinAlgError:  # not positive in this precision: damp more
            damping *= 4
    upper = lower[::-1, ::-1]
    roots = np.diagonal(upper)
    return cast(Floats, (upper / roots).astype(np.float32)), np.square(roots).astype(np.float32)
