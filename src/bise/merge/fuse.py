"""Fusing: the base's tensors one by one, those that the adapter changes as it makes them, in any float type."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from .. import gguf, names, safetensors
from ..disk import building, replacing
from ..errors import FormatError, RequestError
from ..lora import Adapter, Delta
from ..lora.adapter import targets
from ..ops.cpu import Cpu
from ..quant import ENCODE, Planned, QTensor, nbytes, quantise
from ..release import Release
from ..weights import Weights

Progress = Callable[[int, int], None]

FLOATS = ("F32", "F16", "BF16")
STRIP = 1 << 22  # values that are floats at a time: 16 MiB
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp's numbers for a file of this type


@dataclass(frozen=True)
class Plan:
    """A merge that has been checked and not yet been done.

    out      a .gguf file, or a folder for Hugging Face's layout
    kind     "F32", "F16" or "BF16" for every matrix; None: each keeps its type, and is rounded again where it changes
    tensors  spelled as the result spells them -> Planned
    """

    weights: Weights
    adapter: Adapter
    out: Path
    kind: str | None
    tensors: Mapping[str, Planned]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def types(self) -> list[str]:
        """Of the matrices that the adapter changes."""
        layout = "gguf" if self.out.suffix == ".gguf" else "huggingface"
        return sorted({self.tensors[names.spelled(name, layout)].type for name in self.adapter.deltas})


def plan(weights: Weights, adapter: Adapter, out: str | os.PathLike[str], kind: str | None = None,
         importance: Mapping[str, np.ndarray] | None = None) -> Plan:  # fmt: skip
    """What `write` will do. kind: see Plan; None: BF16 where a folder is made of a quantised base.

    importance  mean square of what each column is multiplied by, by canonical name, for rounding to k-quants
    RequestError for a target that is there already, or a disk that is too small.
    """
    out = Path(out)
    layout = "gguf" if out.suffix == ".gguf" else "huggingface"
    if kind is not None and kind not in FLOATS:
        raise RequestError(
            f"type {kind!r:.40}, expected F32, F16, BF16, or none: the base's own (for another, merge to bf16 and use "
            "bise quantize)"
        )
    if layout == "huggingface" and kind is None and any(t not in FLOATS for t in weights.types()):
        kind = "BF16"
    _check_out(out)
    tensors: dict[str, Planned] = {}
    for name, shape in _shapes(weights, adapter).items():
        stored = weights.entries[_source(weights, name)].type
        to = kind or stored
        if len(shape) == 1:
            to = "F32" if layout == "gguf" else stored if kind is None or stored == "F32" else kind
        make = partial(_made, weights, name, adapter.deltas.get(name), to, layout, (importance or {}).get(name))
        tensors[names.spelled(name, layout)] = Planned(to, shape, make)
    made = Plan(weights, adapter, out, kind, tensors)
    free = shutil.disk_usage(out.parent).free
    if made.nbytes > free:
        raise RequestError(f"{out}: {made.nbytes:,} bytes are needed, {free:,} are free: make room first")
    return made


def write(made: Plan, progress: Progress | None = None) -> Path:
    """Do it: whole or not at all, in memory for about one tensor. -> what to open."""
    weights, tied = made.weights, made.weights.tied and "output" not in made.adapter.deltas
    release = replace(Release.of(weights), tied=tied)
    if made.out.suffix == ".gguf":
        gguf.write(made.out, _keys(made, release), made.tensors, progress)
        return made.out
    sizes = {kind: sum(t.nbytes for t in made.tensors.values() if t.type == kind) for kind in FLOATS}
    with building(made.out) as folder:
        safetensors.write_shards(folder, made.tensors, metadata=release.notes(), progress=progress)
        for name, content in release.huggingface(max(sizes, key=lambda kind: sizes[kind])).items():
            with replacing(folder / name) as file:
                file.write(content)
    return made.out


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RequestError(f"{out} exists: name another, or delete it first")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent}: make it first")


def _shapes(weights: Weights, adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The result's tensors: the base's, and an output of its own where the adapter changes a tied one."""
    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    own = {"output": targets(weights.config)["output"]} if weights.tied and "output" in adapter.deltas else {}
    return shapes | own


def _source(weights: Weights, name: str) -> str:
    return name if name in weights.entries else "token_embd"


def _keys(made: Plan, release: Release) -> dict[str, object]:
    """A GGUF that stays one keeps its keys, also those that nobody here knows."""
    if made.weights.layout != "gguf":
        kind = max(
            (t.type for t in made.tensors.values() if len(t.shape) == 2), key=lambda kind: FILE_TYPES.get(kind, 0)
        )
        return release.gguf(FILE_TYPES.get(kind, 0))
    kept = {key: value for key, value in made.weights.metadata.items() if not key.startswith("split.")}
    return kept | ({"general.file_type": FILE_TYPES[made.kind]} if made.kind else {})


def _made(weights: Weights, name: str, delta: Delta | None, kind: str, layout: str,
          importance: np.ndarray | None) -> QTensor:  # fmt: skip
    """Read, changed, rounded, reordered, a strip of rows at a time; the pages that it was read from are given back."""
    source = _source(weights, name)
    tensor = weights[source]
    if (faults := tensor.faults()).total:
        raise FormatError(f"{weights.path}: tensor {source!r} has {faults.total:,} NaN or infinite values")
    if delta is None and tensor.type == kind:
        out = QTensor(kind, tensor.shape, tensor.data.copy())
    else:
        out = _rounded(tensor, delta, kind, importance)
        if out.faults().total:
            raise RequestError(f"tensor {name!r} has values beyond {kind}'s range: use --type bf16 or f32")
    weights.forget(source)
    turned = layout == "huggingface" and names.turned(name)
    return names.half_split(out, weights.config.head_dim) if turned else out


def _rounded(tensor: QTensor, delta: Delta | None, kind: str, importance: np.ndarray | None) -> QTensor:
    if len(tensor.shape) == 1:
        return quantise(tensor.dequantise(), kind)
    rows, cols = tensor.shape
    data, at = np.empty(nbytes(kind, tensor.shape), np.uint8), 0
    step = max(1, STRIP // cols)
    for start in range(0, rows, step):
        values = tensor.rows(np.arange(start, min(start + step, rows)))
        values = values if delta is None else delta.fused(values, start)
        made = rounded(values, kind, importance).data
        data[at : at + made.size] = made
        at += made.size
    return QTensor(kind, tensor.shape, data)


def rounded(values: np.ndarray, kind: str, importance: np.ndarray | None = None) -> QTensor:
    """(rows, cols) float32 -> QTensor of any type: floats to nearest, block formats by search (rounding.py)."""
    if kind in FLOATS or (kind in ENCODE and importance is None):
        return quantise(values, kind)
    return _cpu().quantise(values, kind, importance)


@cache
def _cpu() -> Cpu:
    return Cpu()
