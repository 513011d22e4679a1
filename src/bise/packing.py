"""What a search chose to the bytes of a file: the inverse of the decoding in quant.py, for every quantised type.

q (n, subs, R) are levels, scale and minimum (subs, R) the integers of the sub-blocks, d and least (R,) float16s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from .quant import IQ4_VALUES, Bytes, Floats


class Chosen(Protocol):
    """`rounding.Rounded`."""

    q: Floats
    d: Floats
    least: Floats | None
    scale: Floats | None
    minimum: Floats | None


def _rows(values: Floats | None, offset: int = 0) -> Bytes:
    """(..., R) integers -> (R, k), in the order of the columns; `offset` makes signed ones unsigned."""
    assert values is not None
    rows: Bytes = (values.T.reshape(values.shape[-1], -1) + offset).astype(np.int16).astype(np.uint8)
    return rows


def _half(values: Floats | None) -> Bytes:
    """(R,) -> (R, 2)."""
    assert values is not None
    return values.astype(np.float16)[:, None].view(np.uint8)


def _nibbles(q: Bytes, apart: int) -> Bytes:
    """(R, k) -> (R, k / 2): of every 2 * apart levels, the first half in the low nibbles."""
    halves = q.reshape(len(q), -1, 2, apart)
    bytes: Bytes = halves[:, :, 0] & np.uint8(15) | halves[:, :, 1] << np.uint8(4)
    return bytes.reshape(len(q), -1)


def _pairs(q: Bytes, apart: int) -> Bytes:
    """(R, k) -> (R, k / 4): of every 4 * apart levels, the lowest two bits of each quarter."""
    quarters = q.reshape(len(q), -1, 4, apart) & np.uint8(3)
    pairs: Bytes = (quarters << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(axis=2, dtype=np.uint8)
    return pairs.reshape(len(q), -1)


def _bits(q: Bytes, apart: int) -> Bytes:
    """(R, 8 * apart) -> (R, apart): bit 0 of every level, that of the first `apart` lowest."""
    eighths = q.reshape(len(q), 8, apart) & np.uint8(1)
    bits: Bytes = (eighths << np.arange(8, dtype=np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    return bits


def _fifth_bits(q: Bytes) -> Bytes:
    return np.packbits(q >> np.uint8(4) & np.uint8(1), axis=1, bitorder="little")


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Eight 6-bit scales and minima -> (R, 12), as `quant._six_bit_scales` reads them."""
    a, b = (half[:, :4] | half[:, 4:] >> 4 << 6 for half in (scales, minima))
    return np.concatenate([a, b, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)


def _codes(c: Chosen) -> Bytes:
    codes: Bytes = np.searchsorted(IQ4_VALUES, c.q.T.reshape(c.q.shape[-1], -1)).astype(np.uint8)
    return codes


def _joined(*parts: Bytes) -> Bytes:
    return np.concatenate(parts, axis=1)


def _q2_k(c: Chosen) -> Bytes:
    scales = _rows(c.scale) | _rows(c.minimum) << np.uint8(4)
    return _joined(scales, _pairs(_rows(c.q), 32), _half(c.d), _half(c.least))


def _q3_k(c: Chosen) -> Bytes:
    q, scales = _rows(c.q, 4), _rows(c.scale, 32)
    high, scale_high = q >> np.uint8(2), scales >> np.uint8(4)
    return _joined(_bits(high, 32), _pairs(q, 32), _nibbles(scales, 8), _pairs(scale_high, 4), _half(c.d))


def _q4_k(c: Chosen) -> Bytes:
    return _joined(_half(c.d), _half(c.least), _six_bits(_rows(c.scale), _rows(c.minimum)), _nibbles(_rows(c.q), 32))


def _q5_k(c: Chosen) -> Bytes:
    q, scales = _rows(c.q), _six_bits(_rows(c.scale), _rows(c.minimum))
    return _joined(_half(c.d), _half(c.least), scales, _bits(q >> np.uint8(4), 32), _nibbles(q, 32))


def _q6_k(c: Chosen) -> Bytes:
    q = _rows(c.q, 32)
    return _joined(_nibbles(q, 64), _pairs(q >> np.uint8(4), 32), _rows(c.scale), _half(c.d))


def _iq4_xs(c: Chosen) -> Bytes:
    scales = _rows(c.scale, 32)
    high = (scales.astype(np.uint16) >> 4 << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=1, dtype=np.uint16)
    return _joined(_half(c.d), high[:, None].view(np.uint8), _nibbles(scales, 1), _nibbles(_codes(c), 16))


PACK: dict[str, Callable[[Chosen], Bytes]] = {
    "Q8_0": lambda c: _joined(_half(c.d), _rows(c.q)),
    "Q4_0": lambda c: _joined(_half(c.d), _nibbles(_rows(c.q, 8), 16)),
    "IQ4_NL": lambda c: _joined(_half(c.d), _nibbles(_codes(c), 16)),
    "Q4_1": lambda c: _joined(_half(c.d), _half(c.least), _nibbles(_rows(c.q), 16)),
    "Q5_0": lambda c: _joined(_half(c.d), _fifth_bits(_rows(c.q, 16)), _nibbles(_rows(c.q, 16), 16)),
    "Q5_1": lambda c: _joined(_half(c.d), _half(c.least), _fifth_bits(_rows(c.q)), _nibbles(_rows(c.q), 16)),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
