"""Tensors on their way from one layout to another: which type each gets, and how it is made, a strip at a time."""

from __future__ import annotations

from functools import partial

import numpy as np

from .. import names
from ..errors import FormatError, RequestError
from ..quant import Planned, QTensor, nbytes, quantise
from ..weights import Weights

Tensors = dict[str, Planned]

FLOATS = ("F32", "F16", "BF16")
STRIP = 1 << 22  # values that are floats at a time: 16 MiB
UNPACKED = "F16"  # what a block format becomes in a safetensors file unless told otherwise


def planned(weights: Weights, layout: str, dtype: str | None, head_dim: int) -> Tensors:
    """Canonical name -> the tensor as `layout` has it."""
    types = {own: _matrix_type(entry.type, layout, dtype) for own, entry in weights.entries.items()}
    sizes: dict[str, int] = {}
    for own, entry in weights.entries.items():
        if len(entry.shape) == 2:
            sizes[types[own]] = sizes.get(types[own], 0) + nbytes(types[own], entry.shape)
    main = max(sizes, key=lambda kind: sizes[kind])
    tensors = {}
    for own, entry in weights.entries.items():
        kind = types[own] if len(entry.shape) == 2 else _vector_type(weights[own], main, layout, dtype)
        tensors[own] = Planned(kind, entry.shape, partial(_made, weights, own, kind, layout, head_dim))
    return tensors


def _matrix_type(stored: str, layout: str, dtype: str | None) -> str:
    if dtype is not None or stored in FLOATS or layout == "gguf":
        return dtype or stored
    return UNPACKED


def _vector_type(vector: QTensor, main: str, layout: str, dtype: str | None) -> str:
    """Norms: F32 in a GGUF; else the type of the matrices, if it was asked for or costs no bit."""
    if layout == "gguf":
        return "F32"
    if dtype is not None:
        return dtype
    values = vector.dequantise()
    return main if np.array_equal(quantise(values, main).dequantise(), values) else "F32"


def _made(weights: Weights, own: str, kind: str, layout: str, head_dim: int) -> QTensor:
    """Read, checked, retyped, reordered; the pages that it was read from are given back."""
    tensor = weights[own]
    _check(weights, own, tensor, "download it again")
    out = retyped(tensor, kind)
    if out.type != tensor.type:
        _check_fit(own, tensor, out)
    if layout == "huggingface" and names.turned(own):
        out = names.half_split(out, head_dim)
    elif out is tensor:
        out = QTensor(out.type, out.shape, out.data.copy())
    weights.forget(own)
    return out


def _check(weights: Weights, own: str, tensor: QTensor, remedy: str) -> None:
    if (faults := tensor.faults()).total:
        what = f"{faults.total:,} NaN or infinite values, first in row {faults.row:,}"
        raise FormatError(f"{weights.path}: tensor {own!r} ({tensor.type}) has {what}: {remedy}")


def _check_fit(own: str, before: QTensor, after: QTensor) -> None:
    if faults := after.faults().total:
        largest = max(float(np.abs(part.dequantise()).max()) for part in strips(before))
        most = "65,504" if after.type == "F16" else "3.39e38"
        raise RequestError(f"tensor {own!r}: {faults:,} values are beyond {after.type}'s {most}, the largest is "
                           f"{largest:.6g}: use --dtype {'bf16' if after.type == 'F16' else 'f32'}")  # fmt: skip


def strips(tensor: QTensor) -> list[QTensor]:
    """The same rows in order, so many at a time that their values are few."""
    rows = tensor.shape[0]
    width = tensor.nbytes // rows if len(tensor.shape) == 2 else tensor.nbytes
    if len(tensor.shape) == 1:
        return [tensor]
    step = max(1, STRIP // tensor.shape[1])
    return [
        QTensor(tensor.type, (min(step, rows - at), tensor.shape[1]), tensor.data[at * width : (at + step) * width])
        for at in range(0, rows, step)
    ]


def retyped(tensor: QTensor, kind: str) -> QTensor:
    """The same values, rounded to `kind`: to nearest, ties to even."""
    if tensor.type == kind:
        return tensor
    data = np.empty(nbytes(kind, tensor.shape), np.uint8)
    at = 0
    for part in strips(tensor):
        made = quantise(part.dequantise(), kind).data
        data[at : at + made.size] = made
        at += made.size
    return QTensor(kind, tensor.shape, data)
