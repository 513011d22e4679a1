"""QTensor and the block formats of GGUF, in plain NumPy: the specification that the C++ kernels are tested against.

Source of the layouts: GGUF (ggml/docs/gguf.md) and ggml's block structures. All fields are little-endian.
A block is `block` neighbouring values of one row in `nbytes` bytes. A "k" block holds 256 values: one float16 scale
for all of them and a small integer scale for each sub-block of 16 or 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, RequestError

Bytes = NDArray[np.uint8]  # blocks (n, nbytes), or some of their bytes
Floats = NDArray[np.float32]

STRIP = 1 << 17  # values decoded at a time: the intermediate arrays stay in the cache
GLANCE = 1 << 13  # blocks looked at for faults at a time


@dataclass(frozen=True)
class BlockType:
    """id: GGML's number of the type; block: values per block; nbytes: bytes per block;
    scales: where the float16 scales lie in a block (none for plain floats)."""

    id: int
    block: int
    nbytes: int
    scales: tuple[int, ...] = ()


TYPES: dict[str, BlockType] = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "BF16": BlockType(30, 1, 2),
    "Q4_0": BlockType(2, 32, 18, (0,)),
    "Q4_1": BlockType(3, 32, 20, (0, 2)),
    "Q5_0": BlockType(6, 32, 22, (0,)),
    "Q5_1": BlockType(7, 32, 24, (0, 2)),
    "Q8_0": BlockType(8, 32, 34, (0,)),
    "Q2_K": BlockType(10, 256, 84, (80, 82)),
    "Q3_K": BlockType(11, 256, 110, (108,)),
    "Q4_K": BlockType(12, 256, 144, (0, 2)),
    "Q5_K": BlockType(13, 256, 176, (0, 2)),
    "Q6_K": BlockType(14, 256, 210, (208,)),
    "IQ4_NL": BlockType(20, 32, 18, (0,)),
    "IQ4_XS": BlockType(23, 256, 136, (0,)),
}
EXPONENT = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80)}  # the bits that are all ones in NaN and Inf
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def nbytes(type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape`, in unbounded ints. FormatError if a row is no whole number of blocks."""
    kind = TYPES[type]
    if shape and shape[-1] % kind.block:
        raise FormatError(f"a row of {shape[-1]} values is not a multiple of {type}'s block of {kind.block}")
    return math.prod(shape) // kind.block * kind.nbytes


class Faults(NamedTuple):
    """total: bad scales or values; row: the first row that holds one (None if there is none)."""

    total: int
    row: int | None


@dataclass(frozen=True, eq=False)
class QTensor:
    """A tensor as its file stores it: quantised blocks, or plain floats (blocks of one).

    type   a key of TYPES: "F32", "F16", "BF16", "Q8_0", "Q4_K", ...
    shape  (rows, cols) as the maths uses it, y = W x with W (out, in); or (n,) for a vector
    data   uint8, 1-D, C-contiguous, exactly nbytes(type, shape) long; may be a read-only view of a mapped file,
           and need not be aligned there
    """

    type: str
    shape: tuple[int, ...]
    data: Bytes

    def __post_init__(self) -> None:
        expected = nbytes(self.type, self.shape)
        if self.data.dtype != np.uint8 or self.data.shape != (expected,):
            raise FormatError(f"{self.type} {self.shape} needs {expected:,} bytes, got {self.data.shape}")

    @classmethod
    def of(cls, array: np.ndarray, type: str = "F32") -> QTensor:
        """float array -> QTensor, rounded as `quantise` does."""
        return quantise(array, type)

    @property
    def nbytes(self) -> int:
        return int(self.data.size)

    def dequantise(self) -> Floats:
        """-> float32 of `shape`. F32 tensors come back as a view of `data` (read-only if that is)."""
        if self.type == "F32":
            return self.data.view(np.float32).reshape(self.shape)
        kind = TYPES[self.type]
        blocks, step = self.data.reshape(-1, kind.nbytes), STRIP // kind.block
        values = np.empty((len(blocks), kind.block), np.float32)
        for at in range(0, len(blocks), step):
            values[at : at + step] = DECODE[self.type](blocks[at : at + step])
        return values.reshape(self.shape)

    def take(self, ids: Any) -> QTensor:
        """The rows `ids` in that order, still quantised: rows are whole blocks, so only bytes move."""
        ids = np.asarray(ids)
        return QTensor(self.type, (len(ids), *self.shape[1:]), self.data.reshape(self.shape[0], -1)[ids].reshape(-1))

    def rows(self, ids: Any) -> Floats:
        """(n,) row numbers -> float32 (n, cols): touches only the bytes of those rows."""
        return self.take(ids).dequantise()

    def faults(self) -> Faults:
        """NaN and infinite scales (or values, for plain floats). Reads nothing but the scale fields."""
        kind = TYPES[self.type]
        dtype, mask = EXPONENT.get(self.type, ("<u2", 0x7C00))
        blocks, width = self.data.reshape(-1, kind.nbytes), int(dtype[-1])
        fields = [blocks[:, at : at + width].view(dtype)[:, 0] for at in kind.scales or (0,)]
        total, first = 0, len(blocks)
        for at in range(0, len(blocks), GLANCE):  # strips, so that the second scale of a block is read from the cache
            for field in fields:
                bad = (field[at : at + GLANCE] & mask) == mask
                if bad.any():
                    total += int(bad.sum())
                    first = min(first, at + int(bad.argmax()))
        return Faults(total, first * kind.block // math.prod(self.shape[-1:]) if total else None)


@dataclass(frozen=True)
class Planned:
    """A tensor whose bytes are made when asked for. Writers take one wherever a QTensor may stand, so that a model is
    never in memory as a whole."""

    type: str
    shape: tuple[int, ...]
    make: Callable[[], QTensor]

    @property
    def nbytes(self) -> int:
        return nbytes(self.type, self.shape)


def made(tensor: QTensor | Planned) -> QTensor:
    """The tensor itself, made now if it was planned. RequestError if it is not what the plan said."""
    if isinstance(tensor, QTensor):
        return tensor
    real = tensor.make()
    if (real.type, real.shape) != (tensor.type, tensor.shape):
        raise RequestError(f"a tensor planned as {tensor.type} {tensor.shape} came out as {real.type} {real.shape}")
    return real


# dequantise: (n, nbytes) uint8 -> (n, block) float32


def _scale(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of every block -> (n, 1)."""
    return blocks[:, at : at + 2].view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(..., k) bytes -> (..., 2, k): all low halves, then all high halves."""
    return np.stack([packed & 15, packed >> 4], axis=-2)


def _pairs(packed: Bytes) -> Bytes:
    """(..., k) bytes -> (..., 4, k): bits 0-1 of all, then bits 2-3, 4-5, 6-7."""
    pairs: Bytes = packed[..., None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    return pairs


def _bits(packed: Bytes) -> Bytes:
    """(..., k) bytes -> (..., 8, k): bit 0 of all, then bit 1, ..."""
    bits: Bytes = packed[..., None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return bits


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 2:]).reshape(-1, 32).astype(np.float32) - 8
    return _scale(blocks, 0) * q


def _q4_1(blocks: Bytes) -> Floats:
    q = _nibbles(blocks[:, 4:]).reshape(-1, 32).astype(np.float32)
    return _scale(blocks, 0) * q + _scale(blocks, 2)


def _five_bits(high: Bytes, low: Bytes) -> Floats:
    """(n, 4) bytes of fifth bits and (n, 16) of nibbles -> (n, 32) integers 0..31."""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    return (_nibbles(low).reshape(-1, 32) | fifth << 4).astype(np.float32)


def _q5_0(blocks: Bytes) -> Floats:
    return _scale(blocks, 0) * (_five_bits(blocks[:, 2:6], blocks[:, 6:]) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    return _scale(blocks, 0) * _five_bits(blocks[:, 4:8], blocks[:, 8:]) + _scale(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _scale(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q2_k(blocks: Bytes) -> Floats:
    """16 sub-blocks of 16: 4-bit scale (low half) and 4-bit minimum (high half) each."""
    small, minimum = (blocks[:, :16] & 15).astype(np.float32), (blocks[:, :16] >> 4).astype(np.float32)
    q = _pairs(blocks[:, 16:80].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    scale, offset = _scale(blocks, 80) * small, _scale(blocks, 82) * minimum
    return (scale[..., None] * q - offset[..., None]).reshape(-1, 256)


def _q3_k(blocks: Bytes) -> Floats:
    """16 sub-blocks of 16 with 6-bit scales (4 bits in bytes 96..103, 2 in 104..107); q's third bit is inverted."""
    third = _bits(blocks[:, :32]).reshape(-1, 16, 16)
    q = _pairs(blocks[:, 32:96].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    small = _nibbles(blocks[:, 96:104]).reshape(-1, 16) | _pairs(blocks[:, 104:108]).reshape(-1, 16) << 4
    scale = _scale(blocks, 108) * (small.astype(np.float32) - 32)
    return (scale[..., None] * ((q | third << 2).astype(np.float32) - 4)).reshape(-1, 256)


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """(n, 12) bytes -> eight 6-bit scales and eight 6-bit minima, (n, 8) each. The first four of both lie in the low
    six bits of bytes 0..3 and 4..7; the rest have their low halves in bytes 8..11 and their top bits in bytes 0..7."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    minima = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)
    return scales, minima


def _eight_of_32(blocks: Bytes, q: Bytes) -> Floats:
    """Q4_K and Q5_K: scale * q - minimum over eight sub-blocks, q (n, 8, 32)."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scale, offset = _scale(blocks, 0) * scales, _scale(blocks, 2) * minima
    return (scale[..., None] * q - offset[..., None]).reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Floats:
    return _eight_of_32(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _eight_of_32(blocks, low | _bits(blocks[:, 16:48]) << np.uint8(4))


def _q6_k(blocks: Bytes) -> Floats:
    """Two halves of 128: 64 bytes of low nibbles, 32 bytes of top bit pairs; 16 signed 8-bit scales in all."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 16, 16)
    high = _pairs(blocks[:, 128:192].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    scale = _scale(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (scale[..., None] * ((low | high << 4).astype(np.float32) - 32)).reshape(-1, 256)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _scale(blocks, 0) * IQ4_VALUES[_nibbles(blocks[:, 2:]).reshape(-1, 32)]


def _iq4_xs(blocks: Bytes) -> Floats:
    """Eight sub-blocks of 32: the low nibbles of their 6-bit scales in bytes 4..7, the top pairs in bytes 2..3."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = _pairs(blocks[:, 2:4]).transpose(0, 2, 1).reshape(-1, 8)
    scale: Floats = _scale(blocks, 0) * ((low | high << np.uint8(4)).astype(np.float32) - 32)
    q = IQ4_VALUES[_nibbles(blocks[:, 8:].reshape(-1, 8, 16)).reshape(-1, 8, 32)]
    return (scale[..., None] * q).reshape(-1, 256)


DECODE: dict[str, Callable[[Bytes], Floats]] = {
    "F16": _f16, "BF16": _bf16, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip


# quantise: (n, block) float32 -> (n, nbytes) uint8, rounded as ggml rounds


def _to_bf16(values: Floats) -> Bytes:
    """Round to nearest, ties to even; a NaN stays a (quiet) NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, bits >> 16 | 64, rounded).astype(np.uint16).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _to_q8_0(values: Floats) -> Bytes:
    """The largest magnitude becomes 127; halves are rounded away from zero."""
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    size = np.abs(values * _inverse(scale))
    q = np.copysign(np.floor(size) + (size - np.floor(size) >= 0.5), values).astype(np.int8)
    return np.concatenate([scale.astype(np.float16).view(np.uint8), q.view(np.uint8)], axis=1)


def _to_q4_0(values: Floats) -> Bytes:
    """The value of largest magnitude, with its sign, becomes -8. The product stays unrounded, as a fused one does."""
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)
    q = np.trunc(values.astype(np.float64) * _inverse(scale) + 8.5).clip(0, 15).astype(np.uint8)
    return np.concatenate([scale.astype(np.float16).view(np.uint8), q[:, :16] | q[:, 16:] << 4], axis=1)


def _to_f16(values: Floats) -> Bytes:
    return values.astype(np.float16).view(np.uint8)


ENCODE: dict[str, Callable[[Floats], Bytes]] = {
    "F32": lambda values: values.view(np.uint8), "F16": _to_f16, "BF16": _to_bf16, "Q8_0": _to_q8_0, "Q4_0": _to_q4_0,
}  # fmt: skip


def quantise(array: np.ndarray, type: str) -> QTensor:
    """float array (rows, cols) or (n,) -> QTensor of `type`, rounded as ggml does; F32 F16 BF16 Q8_0 Q4_0.
    A value beyond float16's 65,504 becomes infinite there: `faults()` of the result tells."""
    if type not in ENCODE:
        raise RequestError(f"quantise to {type!r}: expected one of {', '.join(ENCODE)}")
    kind, shape = TYPES[type], np.shape(array)
    if shape and shape[-1] % kind.block:
        raise RequestError(f"quantise to {type}: rows of {shape[-1]} values, expected a multiple of {kind.block}")
    flat, step = np.ascontiguousarray(array).reshape(-1, kind.block), STRIP // kind.block
    data = np.empty((len(flat), kind.nbytes), np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, len(flat), step):
            data[at : at + step] = ENCODE[type](np.ascontiguousarray(flat[at : at + step], np.float32))
    return QTensor(type, shape, data.reshape(-1))
