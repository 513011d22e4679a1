"""What a run hands over: an adapter as PEFT and llama.cpp read it, or a whole model in its own kind of file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .. import gguf, lora, names, safetensors
from ..disk import replacing
from ..quant import QTensor
from ..weights import Weights
from .student import Student

ALL_F32 = 0  # general.file_type
_COPIED = ("*.json", "tokenizer.model*", "*.jinja", "*.txt")  # beside the tensors of a safetensors folder
_NOT = ("model.safetensors.index.json", "consolidated.safetensors.index.json")


def export(student: Student, weights: Weights, method: str, folder: Path) -> Path:
    """Write it into the run folder -> the file or folder to load. weights: what the student was opened from, or has
    the shape and the vocabulary of."""
    if method != "full":
        adapter = student.adapter()
        if method == "lora":  # the format has no place for DoRA's lengths
            lora.write_gguf(folder / "adapter.gguf", adapter)
        return lora.write_peft(folder / "adapter", adapter, student.config)
    tensors = {name: QTensor.of(array) for name, array in student.state().items() if name in weights}
    if weights.layout == "gguf":
        keys = {**_keys(weights), "general.file_type": ALL_F32}
        gguf.write(folder / "model.gguf", keys, {names.spelled(name, "gguf"): t for name, t in tensors.items()})
        return folder / "model.gguf"
    return _safetensors(tensors, weights, folder / "model")


def _keys(weights: Weights) -> dict[str, Any]:
    """The file's own keys, but for those that speak of parts of it."""
    return {key: value for key, value in weights.metadata.items() if not key.startswith("split.")}


def _safetensors(tensors: dict[str, QTensor], weights: Weights, folder: Path) -> Path:
    """The same layout as the original's, in F32, with its configuration and its tokenizer beside it."""
    folder.mkdir(exist_ok=True)
    named = {}
    for name, tensor in tensors.items():
        if weights.layout == "huggingface" and names.turned(name):
            tensor = names.half_split(tensor, weights.config.head_dim)
        named[names.spelled(name, weights.layout)] = tensor
    stem = "model" if weights.layout == "huggingface" else "consolidated"
    for pattern in _COPIED:
        for path in sorted(weights.path.glob(pattern)):
            if path.is_file() and path.name not in _NOT:
                with replacing(folder / path.name) as file, path.open("rb") as source:
                    shutil.copyfileobj(source, file)
    safetensors.write_shards(folder, named, metadata={"format": "pt"}, stem=stem)
    return folder
