"""llama.cpp as the tests use it: silent. Tests that import this are skipped where llama-cpp-python is missing."""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bise.quant import TYPES, QTensor, nbytes

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, data: Any) -> None: ...


llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
for null in (llama_cpp._utils.outnull_file, llama_cpp._utils.errnull_file):
    atexit.register(null.close)  # left open for ever, and Python would complain after the tests' last line


def _base() -> ctypes.CDLL:
    """ggml's own library: its quantiser, a matrix at a time."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(next(path for path in folder.iterdir() if path.name.startswith("libggml-base."))))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return base


def quantised(x: np.ndarray, type: str, importance: np.ndarray | None = None) -> QTensor:
    """float32 (rows, cols) -> what llama.cpp makes of it."""
    (rows, cols), out = x.shape, np.empty(nbytes(type, x.shape), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointer = None if weights is None else weights.ctypes.data
    _base().ggml_quantize_chunk(TYPES[type].id, x.ctypes.data, out.ctypes.data, 0, rows, cols, pointer)
    return QTensor(type, x.shape, out)


def importance_data(means: Mapping[str, np.ndarray]) -> Any:
    """An importance matrix for llama_model_quantize_params.imatrix; keeps the arrays alive."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    entries.kept = list(means.values())
    for entry, (own, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = f"{own}.weight".encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries
