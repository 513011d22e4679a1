"""What the scales of a block leave open: the values that each of its columns may take, and where the choice is written.

Once its scales are fixed, a block format is a lattice: column j of a block is zero_j + step_j * level, with the levels
of the type (0 to 15 in Q4_K, a table in IQ4_XS). Layouts as in quant.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..quant import DECODE, IQ4_VALUES, TYPES, Bytes, Floats

Decode = Callable[[Bytes], Floats]  # (n, nbytes) blocks -> (n, block)


@dataclass(frozen=True)
class Lattice:
    """levels: (L,) ascending; zero, one: the indices of level 0 (None: there is none) and 1; write(blocks, indices)
    puts (n, block) uint8 indices into (n, nbytes) blocks, scales untouched."""

    levels: Floats
    zero: int | None
    one: int
    write: Callable[[Bytes, Bytes], None]

    def put(self, blocks: Bytes, levels: np.ndarray) -> None:
        """Put levels (int8), as many as they hold, into (n, nbytes) blocks."""
        index = np.zeros(256, np.uint8)
        index[self.levels.astype(np.int8).view(np.uint8)] = np.arange(len(self.levels))
        self.write(blocks, index[levels.view(np.uint8)].reshape(len(blocks), -1))


def grid(type: str, blocks: Bytes, decode: Decode | None = None) -> tuple[Floats, Floats]:
    """(n, nbytes) blocks -> zero and step, (n, block) each: what their columns are at level 0, and per level."""
    lattice, decode = LATTICES[type], decode or DECODE[type]
    one = decode(_all_at(lattice.one, type, blocks))
    zero = np.zeros_like(one) if lattice.zero is None else decode(_all_at(lattice.zero, type, blocks))
    return zero, one - zero


def _all_at(index: int, type: str, blocks: Bytes) -> Bytes:
    """The blocks with all of their columns at one level."""
    ends = np.array([[0], [255]], np.uint8).repeat(TYPES[type].nbytes, axis=1)
    LATTICES[type].write(ends, np.full((2, TYPES[type].block), index, np.uint8))
    return np.where(ends[0] == ends[1], ends[0], blocks)  # what was written, and what was left


def nearest(type: str, values: Floats, zero: Floats, step: Floats) -> tuple[Bytes, Floats]:
    """For each value the index of the level that comes nearest to it, and what it becomes. All of one shape."""
    lattice = LATTICES[type]
    place = np.divide(values - zero, step, out=np.zeros_like(values), where=step != 0)
    if type.startswith("IQ4"):
        index = np.searchsorted((lattice.levels[1:] + lattice.levels[:-1]) / 2, place).astype(np.uint8)
    else:
        low, high = lattice.levels[[0, -1]]
        index = (np.clip(np.rint(place), low, high) - low).astype(np.uint8)
    return index, zero + step * lattice.levels[index]


def _halves(blocks: Bytes, index: Bytes, at: int, groups: int) -> None:
    """Nibbles: of each group the first half of the columns low, the second high."""
    parts = (index & 15).reshape(len(blocks), groups, 2, -1)
    blocks[:, at : at + index.shape[1] // 2] = (parts[:, :, 0] | parts[:, :, 1] << 4).reshape(len(blocks), -1)


def _quarters(blocks: Bytes, index: Bytes, at: int) -> None:
    """Pairs of bits: of each 128 columns the first 32 lowest, and so on."""
    parts = (index & 3).reshape(len(blocks), 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    blocks[:, at : at + 64] = np.bitwise_or.reduce(parts, axis=2).reshape(len(blocks), -1)


def _eighths(blocks: Bytes, bits: Bytes, at: int) -> None:
    """Single bits: the first 32 columns lowest, and so on."""
    parts = (bits & 1).reshape(len(blocks), 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    blocks[:, at : at + 32] = np.bitwise_or.reduce(parts, axis=1)


def _q2_k(blocks: Bytes, index: Bytes) -> None:
    _quarters(blocks, index, 16)


def _q3_k(blocks: Bytes, index: Bytes) -> None:
    _quarters(blocks, index, 32)
    _eighths(blocks, index >> np.uint8(2), 0)


def _q4_k(blocks: Bytes, index: Bytes) -> None:
    _halves(blocks, index, 16, 4)


def _q5_k(blocks: Bytes, index: Bytes) -> None:
    _halves(blocks, index, 48, 4)
    _eighths(blocks, index >> np.uint8(4), 16)


def _q6_k(blocks: Bytes, index: Bytes) -> None:
    _halves(blocks, index, 0, 2)
    _quarters(blocks, index >> np.uint8(4), 128)


def _iq4_xs(blocks: Bytes, index: Bytes) -> None:
    _halves(blocks, index, 8, 8)


def _of_32(at: int, fifth: int | None = None) -> Callable[[Bytes, Bytes], None]:
    def write(blocks: Bytes, index: Bytes) -> None:
        _halves(blocks, index, at, 1)
        if fifth is not None:
            blocks[:, fifth : fifth + 4] = np.packbits(index >> np.uint8(4), axis=1, bitorder="little")

    return write


def _q8_0(blocks: Bytes, index: Bytes) -> None:
    blocks[:, 2:] = index - np.uint8(128)  # modulo 256: two's complement


def _whole(low: int, high: int, write: Callable[[Bytes, Bytes], None]) -> Lattice:
    return Lattice(np.arange(low, high + 1, dtype=np.float32), -low, 1 - low, write)


def _table(write: Callable[[Bytes, Bytes], None]) -> Lattice:
    return Lattice(IQ4_VALUES, None, int(np.flatnonzero(IQ4_VALUES == 1)[0]), write)


LATTICES: dict[str, Lattice] = {
    "Q2_K": _whole(0, 3, _q2_k),
    "Q3_K": _whole(-4, 3, _q3_k),
    "Q4_K": _whole(0, 15, _q4_k),
    "Q5_K": _whole(0, 31, _q5_k),
    "Q6_K": _whole(-32, 31, _q6_k),
    "Q4_0": _whole(-8, 7, _of_32(2)),
    "Q4_1": _whole(0, 15, _of_32(4)),
    "Q5_0": _whole(-16, 15, _of_32(6, 2)),
    "Q5_1": _whole(0, 31, _of_32(8, 4)),
    "Q8_0": _whole(-128, 127, _q8_0),
    "IQ4_NL": _table(_of_32(2)),
    "IQ4_XS": _table(_iq4_xs),
}
