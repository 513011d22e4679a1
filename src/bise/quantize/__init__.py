"""Quantising a model: every matrix to the type that a recipe gives it, one tensor in memory at a time.

`plan` decides and checks, `write` does it; `bise quantize` is both. The rounding itself is in rounding.py and the C++
kernels, the recipes in recipe.py, the search for one of a given size in bits.py.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf, names
from ..errors import RequestError
from ..quant import TYPES, Floats, Planned, nbytes
from ..rounding import prepared
from ..weights import Shapes, Weights
from . import recipe
from .tensors import Round, by_kernels, retyped

log = logging.getLogger(__name__)

FLOATS = ("F32", "F16", "BF16")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What will be written, decided and checked, and not yet done.

    types       canonical name -> type, for every tensor
    importance  canonical name -> (cols,) weights for the rounding of its columns
    keys        the GGUF's keys
    """

    source: Weights
    out: Path
    types: Mapping[str, str]
    importance: Mapping[str, Floats]
    keys: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(self.types[own], entry.shape) for own, entry in self.source.entries.items())

    @property
    def bits(self) -> float:
        """Bits per weight, norms and all."""
        return 8 * self.nbytes / sum(math.prod(entry.shape) for entry in self.source.entries.values())

    @property
    def again(self) -> list[str]:
        """Types of the source that are quantised already and will be rounded once more."""
        entries = self.source.entries.items()
        return sorted({e.type for own, e in entries if e.type not in FLOATS and e.type != self.types[own]})

    def by_type(self) -> dict[str, tuple[int, int]]:
        """{type: (tensors, bytes)}, the largest share first."""
        found: dict[str, tuple[int, int]] = {}
        for own, entry in self.source.entries.items():
            count, size = found.get(self.types[own], (0, 0))
            found[self.types[own]] = count + 1, size + nbytes(self.types[own], entry.shape)
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


@dataclass(frozen=True)
class Informed:
    """An importance matrix and what is said about it in the file: mean squares (cols,) by canonical name."""

    means: Mapping[str, np.ndarray]
    file: str = ""
    dataset: str = ""
    chunks: int = 0

    def keys(self) -> dict[str, Any]:
        return {
            "quantize.imatrix.file": self.file,
            "quantize.imatrix.dataset": self.dataset,
            "quantize.imatrix.entries_count": np.int32(len(self.means)),
            "quantize.imatrix.chunks_count": np.int32(self.chunks),
        }


def plan(
    weights: Weights,
    out: str | os.PathLike[str],
    type: str | None,
    informed: Informed | None = None,
    keep: Mapping[str, str] | None = None,
    types: Mapping[str, str] | None = None,
) -> Plan:
    """What `write` will do. Reads headers only.

    type   a name in `recipe.RECIPES`; None with `types`
    keep   canonical names ("output", "blk.0.attn_v") or parts of all layers ("attn_v") -> types that they shall have
    types  canonical name -> type, in place of a recipe's: `bits.search`
    RequestError for what cannot be: a wrong name, a file that is there already, too small a disk, foreign importance.
    """
    out = Path(out)
    _check_target(weights, out)
    shapes = {own: entry.shape for own, entry in weights.entries.items()}
    group = weights.config.n_heads // weights.config.n_kv_heads
    chosen = dict(types or recipe.types(str(type), shapes, group, informed is not None))
    for what, kind in (keep or {}).items():
        chosen |= _kept(what, kind, shapes)
    keys = _keys(weights, _file_type(type, chosen, shapes)) | (informed.keys() if informed else {})
    made = Plan(weights, out, chosen, weighed(informed, shapes), keys)
    free = shutil.disk_usage(out.parent).free
    if made.nbytes > free:
        raise RequestError(f"{out}: {made.nbytes:,} bytes are needed, {free:,} are free: choose a smaller --type")
    return made


def write(made: Plan, progress: Progress | None = None, round: Round | None = None) -> None:
    """Do it: whole or not at all. progress gets (bytes done, bytes in all); round: in place of the kernels' search."""
    if made.again:
        log.warning("%s holds %s: quantised already, and rounded once more; start from the original if you can",
                    made.source.path, ", ".join(made.again))  # fmt: skip
    search = round or by_kernels()
    tensors = {
        names.spelled(own, "gguf"): Planned(
            made.types[own],
            entry.shape,
            partial(retyped, made.source, own, made.types[own], made.importance.get(own), search),
        )
        for own, entry in made.source.entries.items()
    }
    gguf.write(made.out, made.keys, tensors, progress)


def quantize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str,
    informed: Informed | None = None,
    keep: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    round: Round | None = None,
) -> Plan:
    """`plan` and `write` in one -> what was done."""
    made = plan(Weights.open(source), out, type, informed, keep)
    write(made, progress, round)
    return made


def _check_target(weights: Weights, out: Path) -> None:
    if out.suffix != ".gguf":
        raise RequestError(f"{out}: name the file that will be made with .gguf at its end")
    if any(out.exists() and out.samefile(file.path) for file in weights.files):
        raise RequestError(f"{out}: is the model itself: name another file")
    if out.exists():
        raise RequestError(f"{out} exists: name another, or delete it first")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent}: make it first")


def _kept(what: str, kind: str, shapes: Shapes) -> dict[str, str]:
    """The tensors that --keep means, each checked against the type."""
    if kind not in TYPES:
        raise RequestError(f"--keep {what}={kind:.40}: expected a type, one of {', '.join(TYPES)}")
    found = [own for own, shape in shapes.items() if len(shape) == 2 and what in (own, own.split(".")[-1])]
    if not found:
        parts = dict.fromkeys(own.split(".")[-1] for own, shape in shapes.items() if len(shape) == 2)
        raise RequestError(f"--keep {what:.60}: no such matrix here, there are {', '.join(parts)}")
    for own in found:
        if shapes[own][-1] % TYPES[kind].block:
            raise RequestError(
                f"--keep {what}={kind}: {own} has rows of {shapes[own][-1]:,}, "
                f"no whole number of {kind}'s blocks of {TYPES[kind].block}"
            )
    return dict.fromkeys(found, kind)


def _file_type(type: str | None, chosen: Mapping[str, str], shapes: Shapes) -> int:
    """llama.cpp's number of the recipe, or of the first whose base has most of the bytes."""
    if type is not None:
        return recipe.RECIPES[type].file_type
    sizes: dict[str, int] = {}
    for own, kind in chosen.items():
        sizes[kind] = sizes.get(kind, 0) + nbytes(kind, shapes[own])
    main = max(sizes, key=lambda kind: sizes[kind])
    return next((found.file_type for found in recipe.RECIPES.values() if found.base == main), 0)


def weighed(informed: Informed | None, shapes: Shapes) -> dict[str, Floats]:
    """Canonical name -> (cols,) weights for the search. RequestError for another model's importance."""
    if informed is None:
        return {}
    for own, means in informed.means.items():
        shape = shapes.get(own)
        if shape is None or len(shape) != 2 or len(means) != shape[1]:
            has = "no such matrix" if shape is None else f"{shape[-1]:,}"
            raise RequestError(f"importance of {own!r} has {len(means):,} columns, the model {has}: another model's")
    missing = [own for own, shape in shapes.items() if len(shape) == 2 and own not in informed.means]
    if unexpected := [own for own in missing if own not in ("token_embd", "output")]:
        log.warning("no importance is known of %d matrices, first %s: all their columns count alike",
                    len(unexpected), unexpected[0])  # fmt: skip
    return {own: prepared(means) for own, means in informed.means.items()}


def _keys(weights: Weights, file_type: int) -> dict[str, Any]:
    """A GGUF keeps its keys, also those that nobody here knows."""
    said = {"general.file_type": file_type, "general.quantization_version": 2}
    if weights.layout == "gguf":
        dropped = "split.", "quantize."
        return {key: value for key, value in weights.metadata.items() if not key.startswith(dropped)} | said
    from ..release import Release

    return Release.of(weights).gguf(file_type) | said
