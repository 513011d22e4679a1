"""The wire format of protocol buffers, as much of it as a tokenizer.model needs: each field is the varint
(field number << 3 | wire type), then its value (protobuf.dev, "Encoding"). All reads are bounded: FormatError, never a
crash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .errors import FormatError


def fields(data: bytes, name: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value): varints as int, strings and messages as bytes, fixed 4 and 8 byte values as bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = (data[at], at + 1) if data[at] < 128 else _read_varint(data, at, name)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(data, at, name)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = (data[at], at + 1) if at < end and data[at] < 128 else _read_varint(data, at, name)
        elif not size:
            raise FormatError(f"{name}: wire type {kind} at byte {at}: not a SentencePiece model")
        if size > end - at:
            raise FormatError(f"{name}: field {key >> 3} wants {size:,} bytes, {end - at:,} are left: truncated?")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int, name: str) -> tuple[int, int]:
    value = shift = 0
    for i in range(at, min(at + 10, len(data))):
        byte = data[i]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, i + 1
        shift += 7
    raise FormatError(f"{name}: an unfinished number at byte {at}: truncated, or not a SentencePiece model")


def bytes_at(found: Mapping[int, int | bytes], at: int, default: bytes, name: str) -> bytes:
    value = found.get(at, default)
    if not isinstance(value, bytes) or (default == b"\0\0\0\0" and len(value) != 4):
        raise FormatError(f"{name}: field {at} is {str(value)[:20]}, expected bytes: not a SentencePiece model")
    return value


def int_at(found: Mapping[int, int | bytes], at: int, default: int, name: str) -> int:
    value = found.get(at, default)
    if not isinstance(value, int):
        raise FormatError(f"{name}: field {at} is {len(value)} bytes, expected a number: not a SentencePiece model")
    return value


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take their two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(at: int, value: int) -> bytes:
    return varint(at << 3) + varint(value)


def string(at: int, value: bytes) -> bytes:
    return varint(at << 3 | 2) + varint(len(value)) + value
