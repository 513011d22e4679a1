"""Adapters in GGUF, as llama.cpp reads them: NAME.lora_a (rank, in) and NAME.lora_b (out, rank) for each weight.

Source: llama.cpp's adapter loader. general.type is "adapter", adapter.type "lora", and adapter.lora.alpha one number
for all: scale = alpha / rank. Rows lie in GGUF's order, which is bise's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf, names
from ..config import Config
from ..errors import FormatError, RequestError, UnsupportedError
from ..quant import QTensor
from .adapter import Adapter, Delta, check_delta, targets

BASE = "bise.adapter.base"  # the base's fingerprint; others leave the key alone
ALPHA = "adapter.lora.alpha"


def read(path: Path, config: Config) -> Adapter:
    """A GGUF adapter for a model of this configuration. FormatError, UnsupportedError."""
    file = gguf.GGUF(path)
    alpha = _check_keys(path, file.keys)
    halves: dict[str, dict[str, QTensor]] = {}
    for spelled, tensor in file.tensors.items():
        weight, _, half = spelled.rpartition(".")
        if half not in ("lora_a", "lora_b"):
            raise UnsupportedError(f"{path}: tensor {spelled!r:.120} is neither lora_a nor lora_b of a weight")
        halves.setdefault(weight, {})[half] = tensor
    if not halves:
        raise FormatError(f"{path}: the adapter changes no weight at all")
    shapes, deltas = targets(config), {}
    for weight, found in halves.items():
        name = names.canonical(weight, "gguf")
        if name not in shapes:
            raise FormatError(f"{path}: {weight!r:.120} is no matrix of this model that an adapter can change")
        if len(found) < 2:
            raise FormatError(f"{path}: {weight} has {next(iter(found))} and not its other half: it is incomplete")
        a, b = (np.ascontiguousarray(found[half].dequantise(), np.float32) for half in ("lora_a", "lora_b"))
        delta = Delta(a, b, alpha / max(1, a.shape[0]))
        check_delta(delta, shapes[name], f"{path}: {weight}")
        deltas[name] = delta
    base, name = (str(file.keys.get(key, "")) for key in (BASE, "general.name"))
    return Adapter({n: deltas[n] for n in shapes if n in deltas}, alpha, base, name, file.keys)


def write_gguf(path: str | os.PathLike[str], adapter: Adapter) -> None:
    """Write an adapter as llama.cpp reads it, F32. Where weights have scales of their own, alpha is the first one's
    and the others' B is multiplied. RequestError for DoRA, which llama.cpp does not have."""
    if any(delta.magnitude is not None for delta in adapter.deltas.values()):
        raise RequestError(
            "a DoRA adapter cannot be written as GGUF, llama.cpp has none: write it for PEFT, or merge it"
        )
    if not adapter.deltas:
        raise RequestError("the adapter changes no weight: there is nothing to write")
    first = next(iter(adapter.deltas.values()))
    alpha = float(np.float32(first.scale * first.rank))
    tensors = {}
    for name, delta in adapter.deltas.items():
        delta, weight = _scaled(delta, alpha / delta.rank), names.spelled(name, "gguf")
        tensors[f"{weight}.lora_a"], tensors[f"{weight}.lora_b"] = QTensor.of(delta.a), QTensor.of(delta.b)
    keys: dict[str, Any] = {
        "general.architecture": "llama", "general.type": "adapter", "general.name": adapter.name or "adapter",
        "adapter.type": "lora", ALPHA: alpha,
    }  # fmt: skip
    gguf.write(path, keys | ({BASE: adapter.base} if adapter.base else {}), tensors)


def _check_keys(path: Path, keys: Mapping[str, Any]) -> float:
    """-> alpha."""
    if keys.get("general.type") != "adapter":
        what = f"general.type = {keys.get('general.type')!r:.40}"
        raise FormatError(f"{path}: not an adapter ({what}, expected 'adapter'): is it a model?")
    if keys.get("adapter.type") != "lora" or keys.get("general.architecture", "llama") not in ("llama", "mistral"):
        raise UnsupportedError(
            f"{path}: adapter.type = {keys.get('adapter.type')!r:.40} of a {keys.get('general.architecture')!r:.40} "
            "model: bise reads lora of llama"
        )
    if keys.get("adapter.alora.invocation_tokens"):
        raise UnsupportedError(f"{path}: adapter.alora.invocation_tokens: an activated LoRA is not supported")
    alpha = keys.get(ALPHA)
    if not isinstance(alpha, float) or not np.isfinite(alpha) or alpha == 0:
        raise FormatError(f"{path}: {ALPHA} = {alpha!r:.40}, expected a number other than 0")
    return alpha


def _scaled(delta: Delta, scale: float) -> Delta:
    """The same delta with another scale."""
    if abs(delta.scale - scale) <= 1e-7 * abs(scale):
        return delta
    return replace(delta, b=delta.b * np.float32(delta.scale / scale), scale=scale)
