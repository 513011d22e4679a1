"""A GGUF in several files, as llama.cpp's gguf-split names and describes them: NAME-00001-of-00003.gguf, all keys in
the first, and in each its number, their count and the number of tensors in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf
from ..errors import RequestError
from ..quant import Planned

Progress = Callable[[int, int], None]


def write_parts(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, Planned], most: int | None,
                progress: Progress | None = None) -> list[Path]:  # fmt: skip
    """One file, or several of about `most` bytes of tensors each. All or none: -> their paths."""
    groups = _groups(tensors, most)
    if len(groups) == 1:
        gguf.write(path, keys, tensors, progress)
        return [path]
    paths = [path.with_name(f"{path.stem}-{i + 1:05}-of-{len(groups):05}.gguf") for i in range(len(groups))]
    if there := [part for part in paths if part.exists()]:
        raise RequestError(f"{there[0]} exists: name another, or delete it first")
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    try:
        for number, (part, group) in enumerate(zip(paths, groups, strict=True)):
            described = {"split.no": np.uint16(number), "split.count": np.uint16(len(groups)),
                         "split.tensors.count": np.int32(len(tensors))}  # fmt: skip
            gguf.write(part, {**({} if number else keys), **described}, group, _later(progress, done, total))
            done += sum(tensor.nbytes for tensor in group.values())
    except BaseException:
        for part in paths:
            part.unlink(missing_ok=True)
        raise
    return paths


def _groups(tensors: Mapping[str, Planned], most: int | None) -> list[dict[str, Planned]]:
    groups: list[dict[str, Planned]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if most and groups[-1] and filled + tensor.nbytes > most:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    return groups


def _later(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part, told as progress of them all."""
    return None if progress is None else lambda done, _: progress(min(before + done, total), total)
