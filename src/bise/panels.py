"""Packed weights on disk: what the CPU backend makes of a model's matrices, kept so that the next load only maps it.

One file per model in the cache folder, a GGUF of its own kind: every matrix's panels as they lie in memory, and what
they were made of. It is used only where all of that agrees (the model's files, their sizes and times of change, its
fingerprint, the layout of panels) and every matrix has its checksum; otherwise it is made anew. Processes that map the
same file share its memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import gguf, names
from .errors import BiseError, FormatError, RequestError
from .quant import TYPES, QTensor
from .weights import Parameters, Progress, Weights

if TYPE_CHECKING:
    from .ops import Ops
    from .ops.cpu import Cpu

log = logging.getLogger(__name__)

KIND = "bise-panels-1"  # the architecture in such a file; the number counts changes of what stands in ABOUT
ABOUT, CHECK = f"{KIND}.about", f"{KIND}.check"
ALIGNMENT = 4096  # bytes; pages, so that a matrix is mapped whole
ABANDONED = 3600  # seconds without a change after which an unfinished file has no writer any more
Matrices = dict[str, Any]  # canonical name -> Matrix


@dataclass(frozen=True)
class Kept:
    """One file in the cache folder, and the model that it belongs to."""

    model: Path | None  # None: the file is damaged, or another version's
    path: Path
    nbytes: int
    used: float  # when it was last read, seconds since 1970


def folder() -> Path:
    """Where packed weights lie: BISE_CACHE, or bise in XDG_CACHE_HOME, or ~/.cache/bise."""
    own, shared = os.environ.get("BISE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or "~/.cache").expanduser() / "bise"


def place(weights: Weights, backend: Ops, progress: Progress | None = None) -> Parameters:
    """`Weights.place`, from the file of packed weights where there is a sound one; otherwise it is written.

    Without room or permission the model is placed all the same; one line on the log says why nothing was kept.
    RequestError for a backend that packs nothing.
    """
    if backend.name != "cpu":
        raise RequestError(f"packed weights are the cpu backend's: {backend.name} takes them as the file has them")
    ops = cast("Cpu", backend)
    path, origin = path_of(weights), _origin(weights, ops)
    matrices: Matrices = {}
    try:
        if path.exists():
            matrices = read(path, origin, _shapes(weights), ops, progress)
    except (BiseError, OSError) as error:
        log.info("%s: packing again", error)
    if matrices:
        return weights.place(ops, None, matrices)
    parameters = weights.place(ops, progress)
    try:
        _keep(path, {**origin, "model": os.path.abspath(weights.path)}, _matrices(parameters, _shapes(weights)), ops)
    except (BiseError, OSError) as error:
        log.info("packed weights are not kept: %s", error)
    return parameters


def path_of(weights: Weights) -> Path:
    """One file for each model file (the first of several), so that a new version takes the place of the old one."""
    model = os.path.realpath(weights.files[0].path)
    key = hashlib.sha256(os.fsencode(model)).hexdigest()[:16]
    return folder() / f"{Path(model).stem[:40]}-{key}.panels"


def layout(ops: Cpu) -> str:
    """Names how the kernels pack: a digest of what they make of made-up weights of every type, here and now, so that it
    changes whenever packing does. One row more than a panel has, one block more than a packed block."""
    digest = hashlib.sha256()
    for type, kind in TYPES.items():
        rows, cols = 17, 256 + kind.block
        made_up = hashlib.shake_256(type.encode()).digest(rows * cols // kind.block * kind.nbytes)
        finite = np.frombuffer(made_up, np.uint8) & 0xBF  # no float of any width has an exponent of ones
        matrix = ops.verbs.pack(type, finite, rows, cols)
        digest.update(f"{type} {matrix.type}".encode() + bytes(memoryview(matrix)))
    return digest.hexdigest()[:16]


def read(path: Path, origin: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], ops: Cpu,
         progress: Progress | None = None) -> Matrices:  # fmt: skip
    """Every matrix of a file of packed weights, as views of the mapped file, once all its bytes were checked.

    origin, shapes  what the file must have been made of. FormatError says what does not agree.
    """
    file = gguf.GGUF(path)
    about = _about(path, file.keys)
    for what, value in origin.items():
        if about.get(what) != value:
            raise FormatError(f"{path}: packed from {_CHANGES.get(what, what)}")
    recorded, matrices, done = about["matrices"], {}, 0
    total = sum(tensor.nbytes for tensor in file.tensors.values())
    for name, shape in shapes.items():
        if name not in recorded or name not in file.tensors or tuple(recorded[name][1:3]) != shape:
            raise FormatError(f"{path}: has no {name} of shape {shape}")
        type, rows, cols, checksum = recorded[name]
        data = file.tensors[name].data
        if ops.verbs.checksum(data) != checksum:
            raise FormatError(f"{path}: {name} is damaged")
        try:
            matrices[name] = ops.verbs.adopt(type, data, rows, cols)
        except (TypeError, ValueError) as error:
            raise FormatError(f"{path}: {name}: {error}") from None
        done += data.size
        if progress:
            progress(done, total)
    return matrices


def kept() -> list[Kept]:
    """What lies in the cache folder."""
    return [found for path in sorted(folder().glob("*.panels")) if (found := _kept(path))]


def remove(name: str | os.PathLike[str]) -> int:
    """Delete the packed weights of a model (its path; the model itself stays), or one file of packed weights (its own
    path); returns the bytes that became free, 0 if there were none."""
    wanted = os.path.realpath(name)
    return _delete(found.path for found in kept() if wanted in (os.path.realpath(found.model or ""), str(found.path)))


def sweep() -> int:
    """Delete the packed weights of models that are gone, and what writers left unfinished; returns the bytes."""
    orphans = [found.path for found in kept() if found.model and not found.model.exists()]
    parts = [path for path in folder().glob(".*.panels.*.part") if _age(path) > ABANDONED]
    return _delete([*orphans, *parts])


def _origin(weights: Weights, ops: Cpu) -> dict[str, Any]:
    """What packed weights are made of, as JSON can hold it."""
    files = [[os.path.realpath(file.path), file.size, file.changed] for file in weights.files]
    return {"files": files, "fingerprint": weights.fingerprint, "layout": layout(ops)}


_CHANGES = {
    "files": "files of another size or time",
    "fingerprint": "another model",
    "layout": "the same model, but laid out for another version of bise",
}


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The matrices that are multiplied by: all but the table, which is looked up in the model's own file."""
    shapes: dict[str, tuple[int, ...]] = {
        name: entry.shape for name, entry in weights.entries.items() if len(entry.shape) == 2
    }
    table = shapes.pop("token_embd")
    return shapes | ({"output": table} if weights.tied else {})


def _matrices(parameters: Parameters, shapes: Mapping[str, Any]) -> Matrices:
    layers = {f"blk.{i}.{part}": getattr(layer, part) for i, layer in enumerate(parameters.blk) for part in names.LAYER}
    return {name: ({"output": parameters.output} | layers)[name] for name in shapes}


def _keep(path: Path, origin: Mapping[str, Any], matrices: Matrices, ops: Cpu) -> None:
    """Write the file, whole or not at all. BiseError or OSError where it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep()
    size, free = sum(matrix.nbytes for matrix in matrices.values()), shutil.disk_usage(path.parent).free
    if free < 1.1 * size:
        raise BiseError(
            f"{path.parent} has {free:,} bytes free, {int(1.1 * size):,} are needed: make room, or set BISE_CACHE"
        )
    log.info("keeping packed weights, %s bytes, in %s", f"{size:,}", path)
    recorded = {
        n: [m.type, m.rows, m.cols, ops.verbs.checksum(np.frombuffer(m, np.uint8))] for n, m in matrices.items()
    }
    about = json.dumps({**origin, "matrices": recorded})
    keys = {"general.architecture": KIND, "general.alignment": ALIGNMENT, ABOUT: about, CHECK: _digest(about)}
    # Panels are 64-byte groups: F32 stands for "bytes, four at a time", the plainest type that GGUF readers take.
    gguf.write(
        path, keys, {n: QTensor("F32", (m.nbytes // 4,), np.frombuffer(m, np.uint8)) for n, m in matrices.items()}
    )


def _about(path: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    if keys.get("general.architecture") != KIND:
        raise FormatError(f"{path}: {keys.get('general.architecture')!r:.40} is not this version's packed weights")
    about = keys.get(ABOUT)
    if not isinstance(about, str) or keys.get(CHECK) != _digest(about):
        raise FormatError(f"{path}: what it says of itself is damaged")
    return dict(json.loads(about))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path) -> Kept | None:
    """None: gone in the meantime."""
    try:
        status = path.stat()
    except OSError:
        return None
    try:
        model = Path(_about(path, gguf.GGUF(path).keys)["model"])
    except BiseError:
        model = None
    return Kept(model, path, status.st_size, status.st_atime)


def _age(path: Path) -> float:
    """Seconds since its last change; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0


def _delete(paths: Iterable[Path]) -> int:
    """Bytes that became free; another process may be quicker."""
    freed = 0
    for path in paths:
        try:
            size = path.stat().st_size
            path.unlink()
            freed += size
        except OSError:
            continue
    return freed
