"""safetensors files, read and written, alone or as shards with an index.

Source: the safetensors format (README of huggingface/safetensors): eight bytes of header length, a JSON header from
names to dtype, shape and data_offsets, then the tensors' bytes, which fill the rest of the file, no hole, no overlap.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .disk import Mapped, looks_like, read_small, replacing
from .errors import FormatError, RequestError, UnsupportedError
from .quant import Planned, QTensor, made

MOST_HEADER = 100_000_000  # bytes; the format's own limit
MOST_JSON = 4 << 20  # bytes of an index or a config file
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
Progress = Callable[[int, int], None]
READ = ("F32", "F16", "BF16")  # the types that become a QTensor; they are called the same there
SAVED = {"F32": "<f4", "F64": "<f8", "U8": "|u1", "I64": "<i8"}  # what `save` takes, as NumPy calls it


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes `begin` to `end` of the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    metadata: dict[str, str]
    tensors: dict[str, Place]


def load_json(raw: bytes, name: str) -> dict[str, Any]:
    """A JSON object from a stranger: no duplicate keys, no NaN, no depth that overflows the stack."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            names = [key for key, _ in items]
            raise FormatError(
                f"{name}: the key {next(key for key in names if names.count(key) > 1)!r:.80} is there twice"
            )
        return found

    def constant(word: str) -> NoReturn:
        raise FormatError(f"{name}: holds {word}, which JSON does not have")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise FormatError(f"{name}: JSON nested too deeply") from None
    except ValueError as error:  # bad UTF-8, bad JSON, an int of thousands of digits
        raise FormatError(f"{name}: not JSON: {error!s:.120}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{name}: a JSON {type(value).__name__}, expected an object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    return load_json(read_small(path, MOST_JSON), str(path))


def parse(buffer: memoryview | bytes, size: int, name: str) -> Header:
    """The header at the start of `buffer`; the file is really `size` bytes long and is called `name` in errors."""
    buffer = memoryview(buffer)
    length = int.from_bytes(buffer[:8], "little")
    if size < 10 or not 2 <= length <= MOST_HEADER or length > size - 8 or bytes(buffer[8:9]) != b"{":
        _refuse_head(bytes(buffer[:64]), length, size, name)
    raw = load_json(bytes(buffer[8 : 8 + length]), f"{name}: header")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{name}: __metadata__ = {metadata!r:.60}, expected an object of strings")
    tensors = {key: _place(entry, 8 + length, f"{name}: tensor {key!r:.120}") for key, entry in raw.items()}
    _check_cover(tensors, 8 + length, size, name)
    return Header(metadata, tensors)


def _refuse_head(head: bytes, length: int, size: int, name: str) -> NoReturn:
    """Why these cannot be the first bytes of a safetensors file."""
    if size >= 10 and head[8:9] == b"{" and size - 8 < length <= MOST_HEADER:
        raise FormatError(
            f"{name}: the file is {size:,} bytes, its header alone needs {8 + length:,}: download it again"
        )
    what = looks_like(head)
    if size < 10 or head[8:9] == b"{" or what.startswith("unknown"):
        raise FormatError(f"{name}: header length = {length:,}, expected 2 to {MOST_HEADER:,} and a '{{' at byte 8")
    raise FormatError(f"{name}: not a safetensors file: it is {what}")


def _place(entry: Any, start: int, what: str) -> Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what} = {entry!r:.80}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise FormatError(f"{what}: dtype = {dtype!r:.40}, expected one of {', '.join(WIDTHS)}")
    if not _sizes(shape) or len(shape) > 8:
        raise FormatError(f"{what}: shape = {shape!r:.60}, expected at most 8 whole numbers")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{what}: data_offsets = {offsets!r:.60}, expected [begin, end]")
    needed = math.prod(shape) * WIDTHS[dtype]
    if offsets[1] - offsets[0] != needed:
        raise FormatError(
            f"{what}: data_offsets hold {offsets[1] - offsets[0]:,} bytes, {dtype} {shape} needs {needed:,}"
        )
    return Place(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_cover(tensors: Mapping[str, Place], start: int, size: int, name: str) -> None:
    """The tensors fill the file from `start` to `size`, each byte once."""
    end = start
    for key, place in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != end:
            what = "overlaps the tensor before it" if place.begin < end else "leaves a hole before it"
            raise FormatError(f"{name}: tensor {key!r} begins at byte {place.begin:,}, expected {end:,}: it {what}")
        end = place.end
    if end > size:
        raise FormatError(f"{name}: the file is {size:,} bytes, needs {end:,}: download it again")
    if end < size:
        raise FormatError(
            f"{name}: the file is {size:,} bytes, its tensors end at {end:,}: the rest belongs to nothing"
        )


class Safetensors(Mapping[str, QTensor]):
    """One file, or the shards that an index names, as name -> QTensor; nothing is read until it is touched.

    metadata   the strings under __metadata__ (the first shard's)
    places     name -> Place, for types and shapes without making a tensor
    files      the same name -> the file it lies in
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: a .safetensors file or a .safetensors.index.json beside its shards."""
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.places: dict[str, Place] = {}
        self.files: dict[str, Mapped] = {}
        if self.path.suffix == ".json":
            self._open_index()
        else:
            self._add(self.path)

    def __getitem__(self, name: str) -> QTensor:
        place = self.places[name]
        if place.type not in READ:
            raise UnsupportedError(f"{self.path}: tensor {name!r} is {place.type}, bise reads {', '.join(READ)}")
        return QTensor(place.type, place.shape, self.files[name].data[place.begin : place.end])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def forget(self, name: str) -> None:
        """Drop the tensor's pages from this process's memory; they are read again if touched."""
        place = self.places[name]
        self.files[name].forget(self.files[name].data[place.begin : place.end])

    def _add(self, path: Path) -> dict[str, Place]:
        file = Mapped(path)
        header = parse(file.data.data, file.size, str(path))
        for name in header.tensors:
            if name in self.places:
                raise FormatError(f"{path}: tensor {name!r} is in another shard too")
        self.metadata = self.metadata or header.metadata
        self.places.update(header.tensors)
        self.files.update(dict.fromkeys(header.tensors, file))
        return header.tensors

    def _open_index(self) -> None:
        shards = read_json(self.path).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise FormatError(f"{self.path}: weight_map = {shards!r:.60}, expected an object of tensor name: file name")
        for shard in shards.values():
            if not isinstance(shard, str) or not _plain(shard):
                raise FormatError(
                    f"{self.path}: weight_map names {shard!r:.80}, expected a .safetensors name in the same folder"
                )
        found = {shard: self._add(self.path.with_name(shard)) for shard in dict.fromkeys(shards.values())}
        for name, shard in shards.items():
            if name not in found[shard]:
                raise FormatError(
                    f"{self.path.with_name(shard)}: has no tensor {name!r}, the index says it does: another revision's?"
                )


def _plain(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith(".") and not set(name) & set("/\\:\0")


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, QTensor | Planned],
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write one file, whole or not at all. Tensors (F32, F16, BF16) are asked for and written one by one.
    progress is called with (bytes written, bytes in all)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    total = 0
    for name, tensor in tensors.items():
        if tensor.type not in READ:
            raise RequestError(
                f"tensor {name!r} is {tensor.type}: a safetensors file holds {', '.join(READ)}, dequantise it first"
            )
        end = total + tensor.nbytes
        header[name] = {"dtype": tensor.type, "shape": list(tensor.shape), "data_offsets": [total, end]}
        total = end
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data are aligned
    done = 0
    with replacing(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for planned in tensors.values():
            tensor = made(planned)
            file.write(tensor.data.data)
            done += tensor.nbytes
            if progress:
                progress(done, total)


def write_shards(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, QTensor | Planned],
    shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    stem: str = "model",
) -> Path:
    """Write `stem`.safetensors, or shards of about `shard_bytes` and their index, which is written last.
    -> the file to open."""
    folder = Path(folder)
    shards: list[dict[str, QTensor | Planned]] = [{}]
    filled, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        write(folder / f"{stem}.safetensors", tensors, metadata, progress)
        return folder / f"{stem}.safetensors"
    weight_map, done = {}, 0
    for number, shard in enumerate(shards, 1):
        name, before = f"{stem}-{number:05}-of-{len(shards):05}.safetensors", done
        write(folder / name, shard, metadata, _later(progress, before, total))
        weight_map.update(dict.fromkeys(shard, name))
        done += sum(tensor.nbytes for tensor in shard.values())
    index = folder / f"{stem}.safetensors.index.json"
    with replacing(index) as file:
        file.write(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode())
    return index


def _later(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one shard, told as progress of them all."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def save(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str],
    read: Callable[[str], np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Arrays of any kind in SAVED, whole or not at all: what a program keeps for itself. `load` gives them back.
    read: gives each by its name, in order, when it is written; `arrays` then say no more than shapes and types."""
    kinds = {dtype: name for name, dtype in SAVED.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": kinds[array.dtype.str], "shape": list(array.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with replacing(path) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, array in arrays.items():
            array = read(name) if read else array
            file.write(np.ascontiguousarray(array).data if array.size else b"")


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """-> what `save` was given; the arrays lie in the file, mapped, and are read when they are touched. FormatError."""
    file = Mapped(path)
    header = parse(file.data.data, file.size, str(path))
    arrays = {}
    for name, place in header.tensors.items():
        if place.type not in SAVED:
            raise FormatError(f"{path}: tensor {name!r} is {place.type}, expected one of {', '.join(SAVED)}")
        arrays[name] = file.data[place.begin : place.end].view(SAVED[place.type]).reshape(place.shape)
    return arrays, header.metadata
