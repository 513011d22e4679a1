"""All that a run needs to go on as if nothing had happened, in one safetensors file that is there whole or not at all.

Tensors: what is trained ("student.*", with the state of its chance) and the optimiser's averages ("optimiser.*"). Facts
beside them, as JSON: the step (which is also the position in the data), the schedule, the best so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import safetensors
from ..errors import FormatError
from .optimiser import Optimiser
from .student import Student

KIND = "bise-checkpoint-1"  # the number counts changes of its layout


def save(path: Path, student: Student, optimiser: Optimiser, facts: Mapping[str, Any]) -> None:
    arrays = {f"student.{name}": array for name, array in student.state().items()}
    arrays |= {f"optimiser.{name}": t.detach().cpu().numpy() for name, t in optimiser.state().items()}
    safetensors.save(path, arrays, {"kind": KIND, "facts": json.dumps(facts)})


def restore(path: Path, student: Student, optimiser: Optimiser) -> dict[str, Any]:
    """Put back what `save` saved -> the facts. FormatError for a file of another kind."""
    arrays, metadata = safetensors.load(path)
    if metadata.get("kind") != KIND:
        raise FormatError(f"{path}: kind = {metadata.get('kind')!r}, expected {KIND}: another version's checkpoint")
    student.restore(_below("student.", arrays))
    optimiser.restore({name: torch.from_numpy(array.copy()) for name, array in _below("optimiser.", arrays).items()})
    return dict(json.loads(metadata["facts"]))


def keep(path: Path, student: Student, step: int) -> None:
    """What is trained alone: the best so far."""
    safetensors.save(path, student.state(), {"kind": KIND, "step": str(step)})


def take(path: Path, student: Student) -> None:
    """Put back what `keep` kept."""
    student.restore(safetensors.load(path)[0])


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
