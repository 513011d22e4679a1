"""One tensor of a model, from its file's type to another, a strip of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import BiseError, FormatError
from ..ops.cpu import Cpu
from ..quant import Floats, QTensor, nbytes, quantise
from ..rounding import ROUNDING
from ..weights import Weights

STRIP = 1 << 24  # values that are floats at a time: 64 MiB
# (canonical name, rows (rows, cols) float32, type, importance (cols,) or None) -> the rows in blocks of that type
Round = Callable[[str, Floats, str, "Floats | None"], QTensor]


def by_kernels(threads: int | None = None) -> Round:
    """The search of rounding.py, in C++."""
    cpu = Cpu(threads)
    return lambda _, values, type, importance: cpu.quantise(values, type, importance)


def retyped(weights: Weights, own: str, type: str, importance: Floats | None, round: Round) -> QTensor:
    """The tensor `own` as `type`; its file's pages are given back. FormatError names the tensor and the row."""
    tensor = weights[own]
    if tensor.type == type:
        return tensor
    data, at = np.empty(nbytes(type, tensor.shape), np.uint8), 0
    for first, rows in strips(tensor):
        try:
            part = _rounded(own, rows.dequantise(), type, importance, round)
        except BiseError as error:
            below = f", rows from {first:,} on" if first else ""
            raise FormatError(f"{weights.path}: tensor {own!r}{below}: {error}") from None
        data[at : at + part.nbytes] = part.data
        at += part.nbytes
    weights.forget(own)
    return QTensor(type, tensor.shape, data)


def strips(tensor: QTensor) -> Iterator[tuple[int, QTensor]]:
    """(first row, rows), so many at a time that their values are few; a vector is one strip."""
    if len(tensor.shape) == 1:
        yield 0, tensor
        return
    rows, cols = tensor.shape
    step, width = max(16, STRIP // cols // 16 * 16), tensor.nbytes // rows
    for at in range(0, rows, step):
        count = min(step, rows - at)
        yield at, QTensor(tensor.type, (count, cols), tensor.data[at * width : (at + count) * width])


def _rounded(own: str, values: Floats, type: str, importance: Floats | None, round: Round) -> QTensor:
    if type in ROUNDING:
        return round(own, values, type, importance)
    found = quantise(values, type)
    if (row := found.faults().row) is not None:
        raise FormatError(f"row {row:,} holds a NaN, or a value that is too large for {type}")
    return found
