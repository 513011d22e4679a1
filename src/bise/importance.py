"""The importance matrix: how large the inputs of every linear weight are, column by column, when a model reads a text.

An error in a column that is multiplied by large numbers does more harm than one in a column that meets small ones:
the expected square of (W - W') x is, with the columns taken as independent, a sum over columns weighted by the mean
of x^2. Quantisers use these weights; those of llama.cpp and of others exchange them in two kinds of files, a GGUF
with general.type "imatrix" and, older, a plain binary one (.dat). Both are read and written here.

They are measured in moments.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import names
from .disk import Mapped, replacing
from .errors import FormatError, UnsupportedError
from .gguf import GGUF, MAGIC
from .gguf import write as write_gguf
from .quant import QTensor

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
LEGACY_CHUNK = 512  # tokens: a .dat file counts chunks and does not say how long; this is what most were
MOST_ENTRIES, MOST_NAME, MOST_COLS = 65_536, 1024, 1 << 24


@dataclass(frozen=True, eq=False)
class Importance(Mapping[str, Floats]):
    """Canonical weight name ("blk.0.attn_q") -> (cols,) float32, the mean squared input of each column.

    sums      name -> (cols,) float64, the sum of squares over all tokens
    counts    name -> tokens that were seen
    chunks    sequences that were read, each of at most chunk_size tokens
    datasets  what was read, by name
    """

    sums: Mapping[str, Doubles]
    counts: Mapping[str, float]
    chunks: int = 0
    chunk_size: int = 0
    datasets: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Floats:
        """Ones where no token was seen: nothing is known, so all columns are alike."""
        count = self.counts[name]
        mean = self.sums[name] / count if count else np.ones_like(self.sums[name])
        return cast(Floats, mean.astype(np.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)

    def of(self, shapes: Mapping[str, tuple[int, ...]]) -> Importance:
        """The same, checked against a model's shapes (out, in). FormatError where it is another model's."""
        for name, values in self.sums.items():
            shape = shapes.get(name)
            if shape is None or len(shape) != 2 or shape[1] != len(values):
                has = "no such weight" if shape is None else f"{shape[-1]:,}"
                raise FormatError(
                    f"importance of {name!r} has {len(values):,} columns, the model has {has}: it was measured on "
                    "another model"
                )
        return self

    def __add__(self, other: Importance) -> Importance:
        """Both texts together. FormatError where the two do not belong to one model."""
        for name in self.sums.keys() & other.sums.keys():
            ours, theirs = len(self.sums[name]), len(other.sums[name])
            if ours != theirs:
                raise FormatError(f"importance of {name!r} has {ours:,} columns in one file and {theirs:,} in another")
        every = {**self.sums, **other.sums}
        sums = {name: self.sums.get(name, 0) + other.sums.get(name, np.zeros(1)) for name in every}
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in every}
        size, datasets = max(self.chunk_size, other.chunk_size), dict.fromkeys(self.datasets + other.datasets)
        return Importance(sums, counts, self.chunks + other.chunks, size, tuple(datasets))


# on disk


def read(path: str | os.PathLike[str]) -> Importance:
    """An importance matrix of either kind. FormatError for anything else, and for NaN, infinite or negative values."""
    file = Mapped(path)
    found = _from_gguf(Path(path)) if file.data[:4].tobytes() == MAGIC else _from_dat(file)
    for name, values in found.sums.items():
        count = found.counts[name]
        if not np.isfinite(values).all() or (values < 0).any() or not np.isfinite(count) or count < 0:
            raise FormatError(f"{path}: importance of {name!r} holds NaN, infinite or negative values: make it again")
    if not found.sums:
        raise FormatError(f"{path}: an importance matrix without one weight of a model that bise runs")
    return found


def write(path: str | os.PathLike[str], importance: Importance) -> None:
    """A GGUF as llama.cpp has it since 2025, or its older format where the name ends in .dat; whole or not at all."""
    if Path(path).suffix == ".dat":
        with replacing(path) as file:
            file.write(_to_dat(importance))
        return
    keys = {
        "general.type": "imatrix",
        "imatrix.datasets": list(importance.datasets) or ["unknown"],
        "imatrix.chunk_count": np.uint32(importance.chunks),
        "imatrix.chunk_size": np.uint32(importance.chunk_size),
    }
    tensors = {}
    for name in sorted(importance, key=lambda name: names.spelled(name, "gguf")):
        spelled = names.spelled(name, "gguf")
        tensors[spelled + SUMS] = QTensor.of(importance.sums[name][None])  # ggml: (cols, 1)
        tensors[spelled + COUNTS] = QTensor.of(np.array([[importance.counts[name]]]))
    write_gguf(path, keys, tensors)


def _from_gguf(path: Path) -> Importance:
    gguf = GGUF(path)
    keys = gguf.keys
    if keys.get("general.type") != "imatrix":
        what = keys.get("general.architecture", keys.get("general.type"))
        raise FormatError(f"{path}: a GGUF of {what!r:.40}, expected an importance matrix (general.type 'imatrix')")
    sums: dict[str, Doubles] = {}
    counts: dict[str, float] = {}
    for spelled, tensor in gguf.tensors.items():
        name = names.canonical(spelled.removesuffix(SUMS), "gguf") if spelled.endswith(SUMS) else None
        if name is None:
            continue
        count = gguf.tensors.get(spelled.removesuffix(SUMS) + COUNTS)
        if tensor.type != "F32" or count is None or count.type != "F32" or count.nbytes != 4:
            raise FormatError(f"{path}: {spelled!r} is {tensor.type}, its count {count and count.shape}: expected F32")
        if tensor.shape[:-1] not in ((), (1,)):
            raise UnsupportedError(
                f"{path}: {spelled!r} has {tensor.shape}: a mixture of experts, which bise does not run"
            )
        sums[name] = tensor.dequantise().reshape(-1).astype(np.float64)
        counts[name] = float(count.dequantise().reshape(-1)[0])
    datasets = keys.get("imatrix.datasets", [])
    known = tuple(d for d in datasets if isinstance(d, str)) if isinstance(datasets, list) else ()
    chunks, size = _whole(keys.get("imatrix.chunk_count")), _whole(keys.get("imatrix.chunk_size"))
    return Importance(sums, counts, chunks, size, known)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0


class _Dat:
    """Reads the older format forward: every length is compared with what is left of the file."""

    def __init__(self, file: Mapped) -> None:
        self.path, self.buffer, self.at = file.path, file.data.data, 0

    @property
    def left(self) -> int:
        return len(self.buffer) - self.at

    def bytes(self, count: int, what: str) -> memoryview:
        if not 0 <= count <= self.left:
            raise FormatError(
                f"{self.path}: no importance matrix, or cut off: {what} takes {count:,} bytes, {self.left:,} are left"
            )
        self.at += count
        return self.buffer[self.at - count : self.at]

    def number(self, what: str, most: int) -> int:
        value = int.from_bytes(self.bytes(4, what), "little", signed=True)
        if not 0 <= value <= most:
            raise FormatError(f"{self.path}: not an importance matrix: {what} is {value:,}, expected 0 to {most:,}")
        return value

    def text(self, what: str) -> str:
        return str(self.bytes(self.number(f"length of {what}", MOST_NAME), what), "utf-8", "replace")


def _from_dat(file: Mapped) -> Importance:
    """int32 entries; each: name, int32 calls, int32 values, float32 mean squares x calls; int32 chunks; data set."""
    dat = _Dat(file)
    sums: dict[str, Doubles] = {}
    counts: dict[str, float] = {}
    for i in range(dat.number("number of entries", MOST_ENTRIES)):
        spelled = dat.text(f"name {i}")
        calls = dat.number(f"calls of {spelled!r:.80}", 2**31 - 1)
        cols = dat.number(f"columns of {spelled!r:.80}", MOST_COLS)
        values = np.frombuffer(dat.bytes(4 * cols, f"entry {spelled!r:.80}"), "<f4")
        name = names.canonical(spelled, "gguf")
        if name is not None:
            sums[name] = values.astype(np.float64) * LEGACY_CHUNK
            counts[name] = float(max(calls, 1) * LEGACY_CHUNK)
    chunks, datasets = 0, []
    if dat.left:  # the oldest files end here
        chunks = dat.number("number of chunks", 2**31 - 1)
        datasets = [dat.text("name of the data set")]
    return Importance(sums, counts, chunks, LEGACY_CHUNK, tuple(filter(None, datasets)))


def _to_dat(importance: Importance) -> bytes:
    parts = [struct.pack("<i", len(importance))]
    for name in sorted(importance):
        spelled = names.spelled(name, "gguf").encode()
        calls = max(1, -(-int(importance.counts[name]) // (importance.chunk_size or LEGACY_CHUNK)))
        values = (importance[name].astype(np.float64) * calls).astype("<f4")
        parts += [struct.pack("<i", len(spelled)), spelled, struct.pack("<ii", calls, len(values)), values.tobytes()]
    dataset = (importance.datasets[-1] if importance.datasets else "unknown").encode()[:MOST_NAME]
    return b"".join([*parts, struct.pack("<ii", importance.chunks, len(dataset)), dataset])
