"""One model, three layouts: GGUF, Hugging Face's safetensors, Mistral's own; from each to each, tensor by tensor.

What is computed stays the same: names and the order of q and k rows change (`names.py`), and what is said beside the
tensors is said in the other layout's words (`release.py`). Types stay as they are stored unless asked otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import names, safetensors
from ..disk import building, replacing
from ..errors import RequestError
from ..release import Release
from ..weights import Weights
from .parts import write_parts
from .tensors import FLOATS, Tensors, planned

Progress = Callable[[int, int], None]

STEMS = {"huggingface": "model", "mistral": "consolidated"}
FILE_TYPES = {  # llama.cpp's numbers (enum llama_ftype) for a file most of whose matrices are of this type
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A conversion that has been checked and not yet been done.

    layout   of the result: "gguf" | "huggingface" | "mistral"
    out      the .gguf file, or the folder
    tensors  spelled as the result spells them -> Planned
    shard    bytes of tensors per file, or None: one file
    """

    source: Weights
    layout: str
    out: Path
    release: Release
    tensors: Tensors
    shard: int | None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def main_type(self) -> str:
        """The type of most of the bytes."""
        sizes = self.types()
        return max(sizes, key=lambda kind: sizes[kind][1])

    def types(self) -> dict[str, tuple[int, int]]:
        """{type: (tensors, bytes)} of the result."""
        found: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors.values():
            count, size = found.get(tensor.type, (0, 0))
            found[tensor.type] = count + 1, size + tensor.nbytes
        return found

    def dequantised(self) -> list[str]:
        """The block formats that do not outlive the conversion."""
        lost = {kind for kind in self.source.types() if kind not in FLOATS}
        return sorted(lost - set(self.types()))


def plan(weights: Weights, out: str | os.PathLike[str], to: str | None = None, dtype: str | None = None,
         shard: int | None = None) -> Plan:  # fmt: skip
    """What `write` will do. Reads headers and norms only.

    to     "gguf", "huggingface" or "mistral"; None: by the name of `out`, a folder is Hugging Face's
    dtype  "F32", "F16" or "BF16" for every tensor (a GGUF keeps norms in F32, as llama.cpp wants them); None: as stored
    shard  the most bytes of tensors per file; None: 5 GB for Hugging Face, else one file

    RequestError for a target that exists, is on too small a disk or would be what is there already.
    """
    out = Path(out)
    layout = to or ("gguf" if out.suffix == ".gguf" else "huggingface")
    _check(weights, out, layout, dtype, shard)
    head_dim, tensors = weights.config.head_dim, {}
    for own, tensor in planned(weights, layout, dtype, head_dim).items():
        tensors[names.spelled(own, layout)] = tensor
    shard = shard or (5_000_000_000 if layout == "huggingface" else None)
    made = Plan(weights, layout, out, Release.of(weights), tensors, shard)
    _check_space(made)
    return made


def _check(weights: Weights, out: Path, layout: str, dtype: str | None, shard: int | None) -> None:
    if layout not in names.LAYOUTS:
        raise RequestError(f"layout {layout!r:.40}, expected one of {', '.join(names.LAYOUTS)}")
    if dtype is not None and dtype not in FLOATS:
        raise RequestError(f"dtype {dtype!r:.40}, expected F32, F16 or BF16 (bise quantize makes the block formats)")
    if (out.suffix == ".gguf") != (layout == "gguf"):
        wanted = "the name of a .gguf file" if layout == "gguf" else "a folder"
        raise RequestError(f"{out}: for the layout {layout} name {wanted}")
    if layout == weights.layout and dtype is None and shard is None:
        raise RequestError(f"{weights.path} is {layout} already: ask for another layout, a --dtype or --shard-size")
    if shard is not None and shard < 100_000:
        raise RequestError(f"shards of {shard:,} bytes, expected at least 100,000")
    if out.exists() and not (out.is_dir() and layout != "gguf" and not any(out.iterdir())):
        raise RequestError(f"{out} exists: name another, or delete it first")
    if not out.parent.is_dir():
        raise RequestError(f"{out}: there is no folder {out.parent}: make it first")


def _check_space(made: Plan) -> None:
    free = shutil.disk_usage(made.out.parent).free
    if made.nbytes > free:
        short = f"{made.nbytes:,} bytes are needed, {free:,} are free"
        raise RequestError(f"{made.out}: {short}: free {made.nbytes - free:,} more, or choose a smaller --dtype")


def write(made: Plan, progress: Progress | None = None) -> list[Path]:
    """Do it: every file whole or not at all, in memory for about one tensor. progress gets (bytes done, in all).
    -> the files. RequestError where a value does not fit into the new type."""
    if made.layout == "gguf":
        return write_parts(made.out, _keys(made), made.tensors, made.shard, progress)
    release, stem = made.release, STEMS[made.layout]
    files = release.mistral() if made.layout == "mistral" else release.huggingface(made.main_type)
    with building(made.out) as folder:
        shard = made.shard or made.nbytes
        safetensors.write_shards(folder, made.tensors, shard, release.notes(), progress, stem)
        for name, content in files.items():
            with replacing(folder / name) as file:
                file.write(content)
    return sorted(made.out.iterdir())


def _keys(made: Plan) -> dict[str, object]:
    """A GGUF that stays one keeps its keys, also those that nobody here knows."""
    if made.source.layout != "gguf":
        return made.release.gguf(FILE_TYPES[made.main_type])
    kept = {key: value for key, value in made.source.metadata.items() if not key.startswith("split.")}
    changed = any(kind not in made.types() for kind in made.source.types())
    return kept | ({"general.file_type": FILE_TYPES[made.main_type]} if changed else {})


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str | None = None,
    dtype: str | None = None,
    shard: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """`plan` and `write` in one."""
    return write(plan(Weights.open(source), out, to, dtype, shard), progress)
