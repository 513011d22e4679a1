"""All that a run needs to go on as if nothing had happened, in one safetensors file that is there whole or not at all.

Tensors: what is trained ("student.*", with the state of its chance) and the optimiser's averages ("optimiser.*"). Facts
beside them, as JSON: the step (which is also the position in the data), the schedule, the best so far. Whoever keeps
them, each tensor is whole in it, so that any number of ranks may go on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import safetensors
from ..errors import FormatError
from .distributed import ALONE, Ranks
from .optimiser import Optimiser
from .student import Student

KIND = "bise-checkpoint-2"  # the number counts changes of its layout


def save(path: Path, student: Student, optimiser: Optimiser, facts: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
    """Of all ranks, by all ranks; rank 0 writes."""
    mine = {f"student.{name}": tensor for name, tensor in _kept(student).items()}
    mine |= {f"optimiser.{name}": tensor for name, tensor in optimiser.state().items()}
    _write(path, mine, {"kind": KIND, "facts": json.dumps(facts)}, ranks)


def restore(path: Path, student: Student, optimiser: Optimiser) -> dict[str, Any]:
    """Put back what `save` saved, as far as it is kept here -> the facts. FormatError for a file of another kind."""
    arrays, metadata = safetensors.load(path)
    if metadata.get("kind") != KIND:
        raise FormatError(f"{path}: kind = {metadata.get('kind')!r}, expected {KIND}: another version's checkpoint")
    student.restore(_below("student.", arrays))
    optimiser.restore(_below("optimiser.", arrays))
    return dict(json.loads(metadata["facts"]))


def keep(path: Path, student: Student, step: int, ranks: Ranks = ALONE) -> None:
    """What is trained alone: the best so far. By all ranks, as `save`."""
    _write(path, _kept(student), {"kind": KIND, "step": str(step)}, ranks)


def take(path: Path, student: Student) -> None:
    """Put back what `keep` kept."""
    student.restore(safetensors.load(path)[0])


def _kept(student: Student) -> dict[str, Tensor]:
    return {**student.kept, "chance": student.chance}


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _write(path: Path, mine: Mapping[str, Tensor], metadata: Mapping[str, str], ranks: Ranks) -> None:
    """One file of what all ranks keep, and of what all have as rank 0 has it. No more than one tensor of another rank
    is there at a time."""
    kinds = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in mine.items()}
    keeper, shapes = dict[str, int](), dict[str, np.ndarray]()
    for rank, listed in enumerate(ranks.listed(json.dumps(kinds).encode())):
        for name, (dtype, shape) in json.loads(listed).items():
            if name not in keeper:
                keeper[name], shapes[name] = rank, np.broadcast_to(np.zeros((), dtype), shape)

    def piece(name: str) -> np.ndarray:
        tensor = mine[name].detach() if keeper[name] == ranks.rank else torch.from_numpy(np.array(shapes[name]))
        ranks.bring(tensor, keeper[name])
        return np.asarray(tensor.cpu().numpy())

    if ranks.first:
        safetensors.save(path, shapes, metadata, piece)
    else:
        for name in (name for name in mine if keeper[name] == ranks.rank):
            piece(name)
