"""Adapters as PEFT (Hugging Face) keeps them: a folder with adapter_config.json and adapter_model.safetensors.

Source: PEFT's LoraConfig and its checkpoint format (docs, developer_guides/checkpoint). Modules have Hugging Face's
names there, and the rows of B (and of DoRA's magnitude) for q and k its order; both change at this door.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import names
from ..config import Config
from ..disk import replacing
from ..errors import FormatError, RequestError, UnsupportedError
from ..quant import QTensor
from ..safetensors import Safetensors, read_json
from ..safetensors import write as write_safetensors
from .adapter import Adapter, Delta, check_delta, targets

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BASE = "bise.base"  # in the safetensors' own metadata, which others leave alone: the base's fingerprint
PREFIX = "base_model.model."
PARTS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude",
         "lora_magnitude_vector.weight": "magnitude"}  # fmt: skip
FROZEN = ".base_layer.weight"  # PEFT adds a copy of the base's own lm_head to an adapter of it
_TENSOR = re.compile(r"(.+)\.(lora_[A-Za-z_]+(?:\.weight|\.bias)?)")
_FOREIGN = (  # settings that change what an adapter computes, and that nothing here computes
    "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip
_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga", "lora-ga")  # ways to begin that change the base as well


def read(folder: Path, config: Config) -> Adapter:
    """A folder's adapter for a model of this configuration. FormatError, UnsupportedError."""
    told = read_json(folder / CONFIG)
    _check_settings(told, folder / CONFIG)
    file = Safetensors(folder / TENSORS)
    where, shapes = folder / TENSORS, targets(config)
    deltas: dict[str, Delta] = {}
    for module, parts in _modules(file, where).items():
        name = names.canonical(f"{module}.weight", "huggingface")
        if name not in shapes:
            raise FormatError(f"{where}: {module!r:.120} is no matrix of this model that an adapter can change")
        found = {part: _array(file, tensor) for part, tensor in parts.items()}
        _check_parts(found, told, module, where)
        delta = Delta(found["a"], found["b"], _scale(told, module, found["a"].shape), found.get("magnitude"))
        check_delta(delta, shapes[name], f"{where}: {module}")
        deltas[name] = _turned(name, delta, config.head_dim)
    _check_targets(told, deltas, folder)
    _check_frozen(file, shapes, where)
    base = file.metadata.get(BASE, "")
    return Adapter({n: deltas[n] for n in shapes if n in deltas}, float(told["lora_alpha"]), base, "", told)


def write_peft(folder: str | os.PathLike[str], adapter: Adapter, config: Config) -> Path:
    """Write an adapter as PEFT reads it, F32, each file whole or not at all -> the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, QTensor] = {}
    for name, delta in adapter.deltas.items():
        module, delta = _module(name), _turned(name, delta, config.head_dim, back=True)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = QTensor.of(delta.a)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = QTensor.of(delta.b)
        if delta.magnitude is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = QTensor.of(delta.magnitude)
    if not tensors:
        raise RequestError("the adapter changes no weight: there is nothing to write")
    write_safetensors(folder / TENSORS, tensors, {"format": "pt", BASE: adapter.base} if adapter.base else
                      {"format": "pt"})  # fmt: skip
    with replacing(folder / CONFIG) as file:
        file.write(json.dumps(_settings(adapter, config), indent=2).encode() + b"\n")
    return folder


def _modules(file: Safetensors, where: Path) -> dict[str, dict[str, str]]:
    """Hugging Face module -> {"a" | "b" | "magnitude": tensor name}. FormatError for tensors that are none of these."""
    modules: dict[str, dict[str, str]] = {}
    for tensor in file:
        if tensor.endswith(FROZEN):
            continue
        match = _TENSOR.fullmatch(tensor)
        part = PARTS.get(match[2]) if match else None
        if match is None or part is None:
            raise UnsupportedError(
                f"{where}: tensor {tensor!r:.120} is neither A nor B of a LoRA (a whole module that was trained beside "
                "it, an embedding, or another method): merge it where it was made"
            )
        modules.setdefault(match[1].removeprefix(PREFIX), {})[part] = tensor
    if not modules:
        raise FormatError(f"{where}: the adapter changes no module at all")
    return modules


def _array(file: Safetensors, tensor: str) -> np.ndarray:
    return np.ascontiguousarray(file[tensor].dequantise(), np.float32)


def _check_parts(found: Mapping[str, np.ndarray], told: Mapping[str, Any], module: str, where: Path) -> None:
    for part in ("a", "b", *(["magnitude"] if told.get("use_dora") else [])):
        if part not in found:
            raise FormatError(f"{where}: {module} has no {'A' if part == 'a' else 'B' if part == 'b' else part} "
                              "beside its other half: the file is incomplete")  # fmt: skip
    if "magnitude" in found and not told.get("use_dora"):
        raise FormatError(f"{where}: {module} has a DoRA magnitude, and use_dora is not set in {CONFIG}")
    rank = _pattern(told.get("rank_pattern"), module, told["r"], where)
    if found["a"].ndim == 2 and found["a"].shape[0] != rank:
        raise FormatError(f"{where}: A of {module} has {found['a'].shape[0]} rows, {CONFIG} says rank {rank}")


def _scale(told: Mapping[str, Any], module: str, shape: tuple[int, ...]) -> float:
    alpha = _number(_pattern(told.get("alpha_pattern"), module, told["lora_alpha"], Path(CONFIG)), "alpha")
    rank = max(1, shape[0] if shape else 1)
    return alpha / math.sqrt(rank) if told.get("use_rslora") else alpha / rank


def _pattern(patterns: Any, module: str, usual: Any, where: Path) -> Any:
    """The value of the first pattern that the module's name ends with. They are regular expressions, and a stranger's:
    those that could take long are refused."""
    if patterns is None:
        return usual
    if not isinstance(patterns, dict) or len(patterns) > 4096:
        raise FormatError(f"{where}: rank_pattern or alpha_pattern = {patterns!r:.60}, expected an object")
    for pattern, value in patterns.items():
        if len(pattern) > 200 or re.search(r"\)[*+{?]|[*+}?][*+{?]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
            raise UnsupportedError(f"{where}: the pattern {pattern!r:.60} is too involved: write the modules' names")
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except re.error as error:
            raise FormatError(f"{where}: the pattern {pattern!r:.60} is no regular expression: {error}") from None
    return usual


def _check_settings(told: Mapping[str, Any], where: Path) -> None:
    """UnsupportedError, by name, for what would be computed in another way than here."""
    if told.get("peft_type") != "LORA":
        raise UnsupportedError(
            f"{where}: peft_type = {told.get('peft_type')!r:.40}, bise reads LORA (with DoRA, rsLoRA)"
        )
    saved = told.get("modules_to_save")
    if saved:
        raise UnsupportedError(f"{where}: modules_to_save = {saved!r:.80}: whole modules were trained beside the "
                               "adapter; merge it where it was made")  # fmt: skip
    for name in _FOREIGN:
        if told.get(name):
            raise UnsupportedError(f"{where}: {name} = {told[name]!r:.60} is not supported")
    if told.get("bias", "none") != "none":
        raise UnsupportedError(f"{where}: bias = {told['bias']!r:.40}: bise's models have no biases")
    begun = told.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED):
        raise UnsupportedError(f"{where}: init_lora_weights = {begun!r:.40} changed the base as well: save it "
                               "with PEFT's path_initial_model_for_weight_conversion")  # fmt: skip
    rank = told.get("r")
    if type(rank) is not int or rank < 1:
        raise FormatError(f"{where}: r = {rank!r:.40}, expected a rank of 1 or more")
    _number(told.get("lora_alpha"), f"{where}: lora_alpha")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value == 0:
        raise FormatError(f"{what} = {value!r:.40}, expected a number other than 0")
    return float(value)


def _check_targets(told: Mapping[str, Any], deltas: Mapping[str, Delta], folder: Path) -> None:
    """A target that a model of this kind has, and of which the file holds nothing: it is incomplete."""
    wanted = told.get("target_modules")
    if not isinstance(wanted, list):  # a regular expression, "all-linear" or nothing: the tensors tell
        return
    there = [f".{_module(name)}" for name in deltas]
    own = {f".{spelling}".rpartition(".")[2] for _, spelling, _ in names.TABLE.values()}
    for target in wanted:
        last = str(target).rpartition(".")[2]
        if last in own and not any(module.endswith(f".{target}") for module in there):
            raise FormatError(f"{folder / CONFIG}: target_modules names {target!r:.80}, {TENSORS} has nothing of it")


def _check_frozen(file: Safetensors, shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Copies of the base's weights: of the same shape, unless words were added to the vocabulary."""
    for tensor, place in file.places.items():
        if tensor.endswith(FROZEN):
            name = names.canonical(tensor.removeprefix(PREFIX).removesuffix(FROZEN) + ".weight", "huggingface")
            if (own := shapes.get(name or "")) != place.shape:
                raise FormatError(
                    f"{where}: {tensor} is {place.shape}, the model's weight {own}: an adapter of another model, or of "
                    "one with more words"
                )


def _module(name: str) -> str:
    """A canonical name as Hugging Face's module: "model.layers.0.self_attn.q_proj"."""
    return names.spelled(name, "huggingface").removesuffix(".weight")


def _turned(name: str, delta: Delta, head_dim: int, back: bool = False) -> Delta:
    """Rows of B and magnitude from Hugging Face's order to bise's own, or back."""
    if not names.turned(name):
        return delta
    turn = names.half_split if back else names.interleaved
    magnitude = delta.magnitude
    if magnitude is not None:
        magnitude = turn(magnitude[:, None], head_dim)[:, 0]
    return Delta(delta.a, turn(delta.b, head_dim), delta.scale, magnitude)


def _settings(adapter: Adapter, config: Config) -> dict[str, Any]:
    """adapter_config.json: the most common rank and alpha, and by module those that differ."""
    rslora = all(math.isclose(d.scale * math.sqrt(d.rank), adapter.alpha) for d in adapter.deltas.values())
    rslora = rslora and any(d.rank > 1 for d in adapter.deltas.values())
    ranks = {_module(name): d.rank for name, d in adapter.deltas.items()}
    alphas = {_module(n): d.scale * (math.sqrt(d.rank) if rslora else d.rank) for n, d in adapter.deltas.items()}
    alphas = {n: round(a) if math.isclose(a, round(a), rel_tol=1e-9) and round(a) else a for n, a in alphas.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    dora = {d.magnitude is not None for d in adapter.deltas.values()}
    if len(dora) > 1:
        raise RequestError(
            "some weights of the adapter have a DoRA magnitude and some have none: PEFT has no such kind"
        )
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
        "base_model_name_or_path": adapter.facts.get("base_model_name_or_path"),
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none",
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "use_rslora": rslora, "use_dora": dora == {True}, "fan_in_fan_out": False, "init_lora_weights": True,
        "modules_to_save": None, "target_modules": _targeted(adapter, config),
    }  # fmt: skip


def _targeted(adapter: Adapter, config: Config) -> list[str]:
    """The last words of the modules where all layers are alike, else each module by its full name."""
    parts = {name.split(".", 2)[2] for name in adapter.deltas if name.startswith("blk.")}
    others = [_module(name) for name in adapter.deltas if not name.startswith("blk.")]
    whole = [f"blk.{i}.{part}" for i in range(config.n_layers) for part in names.LAYER if part in parts]
    if set(whole) == {name for name in adapter.deltas if name.startswith("blk.")}:
        return sorted({_module(name).rpartition(".")[2] for name in whole}) + others
    return [_module(name) for name in adapter.deltas]
