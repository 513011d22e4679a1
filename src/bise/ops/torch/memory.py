"""What the C library does with memory that torch has done with."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE = 1 << 20  # bytes


def give_back_large_arrays() -> None:
    """From now on arrays of a megabyte and more go back to the system as soon as they are dropped.

    By default glibc keeps those that are smaller than the largest one that was ever dropped (up to 32 MB), and the holes
    between them add up: a checkpointed step of 1,024 tokens held 1,105 MiB instead of 868. It costs some 7 % of the time,
    for pages that have to be zeroed again. Elsewhere than with glibc nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
