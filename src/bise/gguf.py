"""GGUF files, read and written (versions 2 and 3, little-endian).

Source: the GGUF specification, ggml/docs/gguf.md: a header (magic, version, counts), typed keys, one description per
tensor, and the tensors' bytes at aligned offsets. A reader must not believe any of it: here every number is an
unbounded Python int, compared with the real size of the file before anything depends on it.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .disk import Mapped, looks_like, replacing
from .errors import FormatError, RequestError, UnsupportedError
from .quant import TYPES, Planned, QTensor, made, nbytes

log = logging.getLogger(__name__)

MAGIC = b"GGUF"
MOST_KEYS, MOST_TENSORS, MOST_PARTS, MOST_ALIGNMENT = 4096, 65_536, 1024, 65_536
MOST_TEXT, MOST_NAME, MOST_ARRAY = 1 << 24, 1 << 16, 1 << 21  # bytes of a value, bytes of a key, elements

_CODES = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
SCALARS: dict[int, np.dtype[Any]] = {kind: np.dtype(code) for kind, code in _CODES.items()}
STRING, ARRAY = 8, 9
_NUMBERS = {dtype: kind for kind, dtype in SCALARS.items()}
_TYPE_NAMES = {kind.id: name for name, kind in TYPES.items()}
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_PART = re.compile(r"(?s)(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes `begin` to `begin + nbytes` of the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    keys: dict[str, Any]
    tensors: dict[str, Place]


@dataclass
class _Cursor:
    """Reads forward through `buffer` (which may be the whole file or its head) of a file of `size` bytes."""

    name: str
    buffer: memoryview
    size: int
    at: int = 0

    def refuse(self, what: str) -> FormatError:
        return FormatError(f"{self.name}: {what}")

    def bytes(self, count: int, what: str) -> memoryview:
        end = self.at + count
        if end > len(self.buffer):
            raise self.refuse(f"{what} ends at byte {end:,}, the file has {self.size:,}: download it again")
        part, self.at = self.buffer[self.at : end], end
        return part

    def uint(self, width: int, what: str) -> int:
        return int.from_bytes(self.bytes(width, what), "little")

    def count(self, width: int, what: str, most: int, each: int = 1) -> int:
        """A number of things that take at least `each` bytes apiece in the rest of the file."""
        value = self.uint(width, what)
        if value > most:
            raise self.refuse(f"{what} = {value:,}, expected at most {most:,}")
        left = len(self.buffer) - self.at
        if value * each > left:
            raise self.refuse(f"{what} = {value:,} needs {value * each:,} bytes, {left:,} are left: download it again")
        return value

    def text(self, what: str, most: int) -> str:
        raw = self.bytes(self.count(8, f"length of {what}", most), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"{what} is not UTF-8 (bytes {bytes(raw[:8]).hex(' ')} ...)") from None

    def texts(self, count: int, what: str) -> list[str]:
        """An array of strings: the one loop of a header that is long (a vocabulary), so it is kept bare."""
        buffer, at, end, length = self.buffer, self.at, len(self.buffer), struct.Struct("<Q").unpack_from
        out = []
        try:
            for _ in range(count):
                stop = at + 8 + length(buffer, at)[0]
                if stop > end:
                    break
                out.append(str(buffer[at + 8 : stop], "utf-8"))
                at = stop
        except (struct.error, UnicodeDecodeError) as error:
            raise self.refuse(f"{what}[{len(out)}]: {error}, expected a length and that many bytes of UTF-8") from None
        if len(out) < count:
            raise self.refuse(f"{what}[{len(out)}] is longer than the rest of the file, which has {self.size:,} bytes")
        self.at = at
        return out

    def value(self, what: str) -> Any:
        kind = self.uint(4, f"value type of {what}")
        if kind == STRING:
            return self.text(what, MOST_TEXT)
        if kind == ARRAY:
            return self.array(what)
        if kind not in SCALARS:
            raise self.refuse(f"{what} has value type {kind}, expected 0 to 12")
        return self.numbers(SCALARS[kind], 1, what)[0]

    def array(self, what: str) -> list[Any]:
        kind = self.uint(4, f"element type of {what}")
        if kind == STRING:
            return self.texts(self.count(8, f"elements of {what}", MOST_ARRAY, 8), what)
        if kind not in SCALARS:
            raise self.refuse(f"{what} is an array of value type {kind}, expected numbers, booleans or strings")
        count = self.count(8, f"elements of {what}", MOST_ARRAY, SCALARS[kind].itemsize)
        return self.numbers(SCALARS[kind], count, what)

    def numbers(self, dtype: np.dtype[Any], count: int, what: str) -> list[Any]:
        raw = bytes(self.bytes(count * dtype.itemsize, what))
        if dtype.kind == "b" and not set(raw) <= {0, 1}:
            raise self.refuse(f"{what} = {max(raw)}, expected a boolean, 0 or 1")
        return list(np.frombuffer(raw, dtype).tolist())


def parse(buffer: memoryview | bytes, size: int, name: str) -> Header:
    """The header at the start of `buffer`; the file is really `size` bytes long and is called `name` in errors."""
    cursor = _Cursor(name, memoryview(buffer), size)
    _check_version(cursor)
    n_tensors = cursor.count(8, "n_tensors", MOST_TENSORS, 33)  # name, dims, type and offset take at least as much
    n_keys = cursor.count(8, "n_kv", MOST_KEYS, 14)
    keys: dict[str, Any] = {}
    for i in range(n_keys):
        key = cursor.text(f"key {i}", MOST_NAME)
        if not key or key in keys:
            raise cursor.refuse(f"key {i} {key[:80]!r} is {'there twice' if key else 'empty'}")
        keys[key] = cursor.value(repr(key[:80]))
    alignment = _alignment(keys, name)
    declared = dict(_tensor(cursor, i) for i in range(n_tensors))
    if len(declared) < n_tensors:
        raise cursor.refuse(f"n_tensors = {n_tensors}, but only {len(declared)} different names: some are there twice")
    return Header(keys, _places(declared, _up(cursor.at, alignment), alignment, cursor))


def _check_version(cursor: _Cursor) -> None:
    head = bytes(cursor.buffer[:64])
    if head[:4] != MAGIC:
        raise cursor.refuse(f"not a GGUF file: it is {looks_like(head)}")
    cursor.at = 4
    version = cursor.uint(4, "version")
    if version in (2 << 24, 3 << 24):
        raise UnsupportedError(f"{cursor.name}: a big-endian GGUF file, bise reads little-endian ones")
    if version not in (2, 3):
        raise cursor.refuse(f"GGUF version = {version}, expected 2 or 3")


def _alignment(keys: Mapping[str, Any], name: str) -> int:
    value = keys.get("general.alignment", 32)
    sound = isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= MOST_ALIGNMENT
    if not sound or value & (value - 1):
        raise FormatError(
            f"{name}: general.alignment = {value!r:.40}, expected a power of two, 8 to {MOST_ALIGNMENT:,}"
        )
    return int(value)


def _tensor(cursor: _Cursor, index: int) -> tuple[str, tuple[str, tuple[int, ...], int]]:
    """-> name, (type, shape, offset from the start of the data)."""
    name = cursor.text(f"name of tensor {index}", 127)
    n_dims = cursor.uint(4, f"n_dims of {name!r}")
    if not 1 <= n_dims <= 4:
        raise cursor.refuse(f"tensor {name!r}: n_dims = {n_dims}, expected 1 to 4")
    dims = [cursor.uint(8, f"dims of {name!r}") for _ in range(n_dims)]
    kind = cursor.uint(4, f"type of {name!r}")
    if kind in _OTHER_TYPES:
        raise UnsupportedError(f"{cursor.name}: tensor {name!r} is {_OTHER_TYPES[kind]}, bise reads {', '.join(TYPES)}")
    if kind not in _TYPE_NAMES:
        raise cursor.refuse(f"tensor {name!r}: type = {kind}, which GGML does not have")
    if 0 in dims:
        raise cursor.refuse(f"tensor {name!r}: dims = {dims}, expected no 0")
    return name, (_TYPE_NAMES[kind], tuple(reversed(dims)), cursor.uint(8, f"offset of {name!r}"))


def _places(declared: dict[str, Any], start: int, alignment: int, cursor: _Cursor) -> dict[str, Place]:
    """Check every range against the file: aligned, inside, no two on the same bytes."""
    places, end, last = {}, start, ""
    for name, (kind, shape, offset) in sorted(declared.items(), key=lambda item: item[1][2]):
        if offset % alignment:
            raise cursor.refuse(f"tensor {name!r}: offset = {offset:,}, expected a multiple of {alignment}")
        try:
            places[name] = Place(kind, shape, start + offset, nbytes(kind, shape))
        except FormatError as error:
            raise cursor.refuse(f"tensor {name!r}: {error}") from None
        if start + offset < end:
            raise cursor.refuse(f"tensors {last!r} and {name!r} overlap at offset {offset:,}")
        end, last = start + offset + places[name].nbytes, name
    if end > cursor.size and declared:
        raise cursor.refuse(f"the file is {cursor.size:,} bytes, tensor {last!r} needs {end:,}: download it again")
    if cursor.size > _up(end, alignment):
        log.warning("%s: %s bytes after the last tensor are ignored", cursor.name, f"{cursor.size - end:,}")
    return {name: places[name] for name in declared}


class GGUF:
    """An open GGUF file, or all the parts of a split one.

    keys     str -> int | float | bool | str, or a list of one of these (the first part's)
    tensors  name as in the file -> QTensor, a view of the mapping: (rows, cols), GGUF's dims reversed
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.tensors: dict[str, QTensor] = {}
        self.files: dict[str, Mapped] = {}  # by tensor name
        header = self._add(self.path)
        self.keys = header.keys
        if len(parts := _parts(self.path, header.keys)) > 1:
            self._open_parts(parts)

    def forget(self, name: str) -> None:
        """Drop the tensor's pages from this process's memory; they are read again if touched."""
        self.files[name].forget(self.tensors[name].data)

    def _add(self, path: Path) -> Header:
        file = Mapped(path)
        header = parse(file.data.data, file.size, str(path))
        for name, place in header.tensors.items():
            if name in self.tensors:
                raise FormatError(f"{path}: tensor {name!r} is in another part too")
            self.tensors[name] = QTensor(place.type, place.shape, file.data[place.begin : place.begin + place.nbytes])
            self.files[name] = file
        return header

    def _open_parts(self, parts: list[Path]) -> None:
        self.tensors, self.files = {}, {}
        headers = [self._add(part) for part in parts]
        for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
            found = header.keys.get("split.no"), header.keys.get("split.count")
            if found != (number, len(parts)):
                raise FormatError(f"{part}: split.no, split.count = {found}, expected {(number, len(parts))}")
        self.keys = headers[0].keys
        total = self.keys.get("split.tensors.count")
        if total != len(self.tensors):
            raise FormatError(f"{parts[0]}: split.tensors.count = {total}, the parts hold {len(self.tensors)}")


def _parts(path: Path, keys: Mapping[str, Any]) -> list[Path]:
    """The files of a split model, given any one of them."""
    count = keys.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MOST_PARTS:
        raise FormatError(f"{path}: split.count = {count!r:.40}, expected at most {MOST_PARTS}")
    if count < 2:
        return [path]
    match = _PART.fullmatch(path.name)
    if not match or int(match[3]) != count:
        raise FormatError(f"{path}: split.count = {count}, expected a name that ends in -00001-of-{count:05}.gguf")
    return [path.with_name(f"{match[1]}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]


def write(path: str | os.PathLike[str], keys: Mapping[str, Any], tensors: Mapping[str, QTensor | Planned],
          progress: Callable[[int, int], None] | None = None) -> None:  # fmt: skip
    """Write a GGUF version 3 file, whole or not at all; tensors are asked for and written one by one.

    keys      bool, str, int (stored as UINT32, INT32, UINT64 or INT64: the first that fits), float (FLOAT32), lists of
              one of these (ints: INT32), NumPy arrays; a NumPy scalar such as numpy.uint64(7) is stored as its own type
    progress  called with (bytes of tensors written, bytes in all)
    """
    alignment = _alignment(keys, str(path))
    header, done = _head(keys, tensors, alignment), 0
    total = sum(_up(tensor.nbytes, alignment) for tensor in tensors.values())
    with replacing(path) as file:
        file.write(header + bytes(-len(header) % alignment))
        for planned in tensors.values():
            tensor = made(planned)
            file.write(tensor.data.data)
            file.write(bytes(-tensor.nbytes % alignment))
            done += _up(tensor.nbytes, alignment)
            if progress:
                progress(done, total)


def _up(count: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-count // alignment) * alignment


def _head(keys: Mapping[str, Any], tensors: Mapping[str, QTensor | Planned], alignment: int) -> bytes:
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for key, value in keys.items():
        head += [_text(key), _encode(value, key)]
    offset = 0
    for name, tensor in tensors.items():
        dims = tuple(reversed(tensor.shape))
        if not 0 < len(name.encode()) < 64 or not 1 <= len(dims) <= 4:
            raise RequestError(
                f"tensor {name!r} {tensor.shape}: GGUF holds names of 1 to 63 bytes and 1 to 4 dimensions"
            )
        head += [_text(name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPES[tensor.type].id, offset)]
        offset += _up(tensor.nbytes, alignment)
    return b"".join(head)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode(value: Any, key: str) -> bytes:
    """A key's value with its type in front."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    array = _typed(value)
    kind = _NUMBERS.get(array.dtype.newbyteorder("<"))
    if kind is None or array.ndim > 1:
        raise RequestError(f"key {key!r}: {' '.join(repr(value).split()):.60} has no GGUF type")
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return (struct.pack("<IIQ", ARRAY, kind, array.size) if array.ndim else struct.pack("<I", kind)) + data


def _typed(value: Any) -> np.ndarray:
    """Python's numbers have no width: give them the one that GGUF files usually use."""
    ragged = isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in value)
    array = np.empty((), object) if ragged else np.asarray(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return array
    if not array.size or array.dtype.kind == "f":
        return array.astype("<f4" if array.size else "<i4")
    if array.dtype.kind in "iu":
        order = ("<i4", "<u4", "<i8", "<u8") if array.ndim else ("<u4", "<i4", "<u8", "<i8")
        low, high = int(array.min()), int(array.max())
        return array.astype(next(t for t in order if np.iinfo(t).min <= low and high <= np.iinfo(t).max))
    return array
