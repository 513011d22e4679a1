"""llama.cpp as the tests use it: silent. Tests that import this are skipped where llama-cpp-python is missing."""

from __future__ import annotations

import atexit
import ctypes
from typing import Any

import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, data: Any) -> None: ...


llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
for null in (llama_cpp._utils.outnull_file, llama_cpp._utils.errnull_file):
    atexit.register(null.close)  # left open for ever, and Python would complain after the tests' last line
