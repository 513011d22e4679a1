"""Memory for the large arrays of a step: every layer and every step asks for the same sizes again."""

from __future__ import annotations

import ctypes
import math
import weakref
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 18  # bytes
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
Piece = np.ndarray  # (bytes,) uint8


class Pieces:
    """Pieces of memory that were used before, to be used again: the system would give empty ones, which takes a fifth
    of a step's time. All together they are never more than what was in use at once."""

    def __init__(self) -> None:
        self._free: dict[int, list[Piece]] = {}  # by size
        self._used = self._most = self._idle = 0  # bytes

    def take(self, size: int) -> Piece:
        """At least that many bytes, at most an eighth more."""
        fitting = [n for n, pieces in self._free.items() if pieces and size <= n <= size * 9 // 8]
        if fitting:
            piece = self._free[min(fitting)].pop()
            self._idle -= piece.nbytes
        else:
            self._forget(max(0, self._most - self._used - size))
            piece = _aligned(size)
        self._used += piece.nbytes
        self._most = max(self._most, self._used)
        return piece

    def put_back(self, piece: Piece) -> None:
        self._free.setdefault(piece.nbytes, []).append(piece)
        self._used -= piece.nbytes
        self._idle += piece.nbytes

    def _forget(self, most: int) -> None:
        """Of what is idle keep at most so many bytes."""
        for size in sorted(self._free, reverse=True):
            while self._idle > most and self._free[size]:
                self._idle -= self._free[size].pop().nbytes


def _aligned(size: int) -> Piece:
    """From the beginning of a cache line on: a register of AVX-512 is as long as one."""
    piece = np.empty(size + 64, np.uint8)
    return piece[-piece.ctypes.data % 64 :][:size]


_pieces = Pieces()


def empty(like: Tensor, *shape: int) -> Tensor:
    """An array of `like`'s type beside it; a large one on the CPU in memory that was used before."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or like.dtype != torch.float32 or size < LARGE:
        return like.new_empty(shape)
    piece = _pieces.take(size)
    array = piece[:size].view(np.float32).reshape(shape)
    weakref.finalize(array, _pieces.put_back, piece).atexit = False  # torch holds the array as long as it needs it
    return torch.from_numpy(array)


def give_back() -> None:
    """From now on malloc returns other large arrays to the system as soon as they are dropped.

    By default glibc keeps all that are smaller than the largest one that was ever dropped (up to 32 MB), and the holes
    between them add up: half a gigabyte of tensors holds 0.7. Elsewhere than with glibc nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
