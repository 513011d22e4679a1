"""An adapter's file, whichever kind it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..disk import PICKLE
from ..errors import FormatError
from ..weights import Weights
from . import llama, peft
from .adapter import Adapter, check_base, named

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def read(path: str | os.PathLike[str], weights: Weights, any_base: bool = False) -> Adapter:
    """A PEFT folder (or the adapter_model.safetensors in one, or a run of `bise tune` around it), or a GGUF adapter,
    checked against its base.

    any_base  also one that was trained on other weights of these shapes
    FormatError, UnsupportedError.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise FormatError(f"{path}: {PICKLE}")
    if path.suffix == ".safetensors" and path.is_file():
        path = path.parent  # its adapter_config.json lies beside it
    if path.is_dir():
        folder = path / "adapter" if (path / "adapter" / peft.CONFIG).exists() else path
        _check_folder(folder)
        adapter = peft.read(folder, weights.config)
    else:
        adapter = llama.read(path, weights.config)
    adapter = replace(adapter, name=adapter.name or named(path))
    check_base(adapter, weights, any_base)
    return adapter


def _check_folder(folder: Path) -> None:
    if (folder / peft.CONFIG).exists() and (folder / peft.TENSORS).exists():
        return
    pickles = sorted(name for name in os.listdir(folder) if name.endswith(PICKLES))
    if pickles:
        raise FormatError(f"{folder / pickles[0]}: {PICKLE}")
    raise FormatError(f"{folder}: no adapter in this folder: expected {peft.CONFIG} and {peft.TENSORS}, or a .gguf")
