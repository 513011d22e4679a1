"""Weights: canonical name -> QTensor, whatever the file looks like; and Parameters, the same on a backend.

Opening reads headers only: it checks that every tensor of the model is there with the right shape. The bytes are mapped
and touched when a tensor is placed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from . import names
from .config import Config
from .disk import PICKLE, Mapped
from .errors import BiseError, FormatError, UnsupportedError
from .gguf import GGUF
from .quant import Planned, QTensor, made
from .safetensors import Safetensors, read_json

if TYPE_CHECKING:
    from .ops import Ops

log = logging.getLogger(__name__)

SAMPLE = 4096  # bytes from either end of each tensor that go into the fingerprint
Shapes = dict[str, tuple[int, ...]]
Progress = Callable[[int, int], None]


@dataclass
class Layer:
    """One block's weights, as the backend holds them; the shapes of the files, (out, in)."""

    attn_norm: Any  # (dim,)
    attn_q: Any  # (n_heads * head_dim, dim)
    attn_k: Any  # (n_kv_heads * head_dim, dim)
    attn_v: Any  # (n_kv_heads * head_dim, dim)
    attn_output: Any  # (dim, n_heads * head_dim)
    ffn_norm: Any  # (dim,)
    ffn_gate: Any  # (hidden_dim, dim)
    ffn_up: Any  # (hidden_dim, dim)
    ffn_down: Any  # (dim, hidden_dim)


@dataclass
class Parameters:
    """Everything the forward pass multiplies by, as the backend holds it."""

    token_embd: Any  # (vocab, dim), a table
    blk: list[Layer]
    output_norm: Any  # (dim,)
    output: Any  # (vocab, dim); the embedding again where the file ties them


class Weights(Mapping[str, QTensor]):
    """The tensors of one model under canonical names ("blk.0.attn_q"), lazily mapped.

    path         what was opened
    layout       "gguf" | "huggingface" | "mistral"
    metadata     the GGUF's keys, or config.json, or params.json
    config       Config, from the metadata and the real shapes
    tied         True if there is no "output": the embedding stands in for it
    """

    def __init__(self, path: Path, layout: str, metadata: Mapping[str, Any], source: GGUF | Safetensors) -> None:
        self.path, self.layout, self.metadata, self._source = path, layout, metadata, source
        declared = source.tensors if isinstance(source, GGUF) else source.places
        self._spelled = {own: name for name in declared if (own := names.canonical(name, layout))}
        if layout == "huggingface" and metadata.get("tie_word_embeddings") is True:
            self._spelled.pop("output", None)
        shapes = {own: declared[name].shape for own, name in self._spelled.items()}
        try:
            _refuse_foreign(set(declared) - set(self._spelled.values()), metadata)
            self.config = _config(layout, metadata, shapes)
            _check_shapes(self.config, shapes)
            _check_vocabulary(metadata, self.config.vocab_size)
        except BiseError as error:
            raise type(error)(f"{path}: {error}") from None
        self._note_extra(set(declared) - set(self._spelled.values()))
        self.tied = "output" not in shapes
        self._entries = {own: self._entry(own) for own in expected_shapes(self.config) if own in shapes}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Weights:
        """A .gguf file (any part of a split one), or a folder with model*.safetensors + config.json (Hugging Face),
        with consolidated*.safetensors + params.json (Mistral), or with one GGUF. FormatError, UnsupportedError."""
        path = Path(path)
        if path.suffix == ".safetensors" and path.is_file():
            path = path.parent  # its config.json lies beside it
        if not path.is_dir():
            gguf = GGUF(path)
            return cls(path, "gguf", gguf.keys, gguf)
        for layout, stem, description in (
            ("huggingface", "model", "config.json"),
            ("mistral", "consolidated", "params.json"),
        ):
            found = [path / f"{stem}.safetensors{end}" for end in (".index.json", "")]
            files = [file for file in found if file.exists()]
            if files and (path / description).exists():
                return cls(path, layout, _described(path / description), Safetensors(files[0]))
        return cls.open(_only_gguf(path))

    def __getitem__(self, name: str) -> QTensor:
        return made(self._entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> Mapping[str, QTensor | Planned]:
        """Like the mapping itself, but a tensor that has to be reordered first is Planned: for the writers."""
        return self._entries

    @property
    def notes(self) -> Mapping[str, str]:
        """What a safetensors file says beside its tensors; empty for a GGUF, whose keys are the metadata."""
        return {} if isinstance(self._source, GGUF) else self._source.metadata

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as the file stores them."""
        return sum(entry.nbytes for entry in self._entries.values())

    def types(self) -> dict[str, tuple[int, int]]:
        """{type: (tensors, bytes)}, the largest share first."""
        found: dict[str, tuple[int, int]] = {}
        for entry in self._entries.values():
            count, size = found.get(entry.type, (0, 0))
            found[entry.type] = count + 1, size + entry.nbytes
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    @property
    def files(self) -> list[Mapped]:
        """The files that the tensors lie in: the parts of a split model, in order."""
        return list(dict.fromkeys(self._source.files.values()))

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the configuration, all names, types and shapes, and both ends of every tensor: cheap, and
        different for different models; it is not a checksum of every byte."""
        configuration = asdict(self.config)
        del configuration["window_reason"]
        digest = hashlib.sha256(repr(sorted(configuration.items())).encode())
        for own, entry in self._entries.items():
            data = self._raw(own).data
            digest.update(repr((own, entry.type, entry.shape)).encode())
            digest.update(data[:SAMPLE].tobytes())
            digest.update(data[-SAMPLE:].tobytes())
        return digest.hexdigest()

    def forget(self, name: str) -> None:
        """Drop the tensor's pages from this process's memory; they are read again if touched."""
        self._source.forget(self._spelled[name])

    def place(
        self, ops: Ops, progress: Progress | None = None, ready: Mapping[str, Any] = MappingProxyType({})
    ) -> Parameters:
        """Hand every tensor to the backend, one at a time, but for those that are `ready` there, by name.
        progress is called with (bytes done, bytes in all). FormatError for a tensor with NaN or infinite scales."""
        done, total = 0, self.nbytes

        def placed(name: str, put: Callable[[QTensor], Any] = ops.weight) -> Any:
            nonlocal done
            weight = ready.get(name)
            if weight is None:
                tensor = self[name]
                self._check_values(name, tensor)
                weight = put(tensor)
                self.forget(name)
            done += self._entries[name].nbytes
            if progress:
                progress(done, total)
            return weight

        table = placed("token_embd", ops.table)
        layers = [
            Layer(**{part: placed(f"blk.{i}.{part}") for part in names.LAYER}) for i in range(self.config.n_layers)
        ]
        norm = placed("output_norm")
        if self.tied:
            output = ready["output"] if "output" in ready else ops.weight(self["token_embd"])
        else:
            output = placed("output")
        self.forget("token_embd")
        return Parameters(table, layers, norm, output)

    def _raw(self, name: str) -> QTensor:
        """The tensor in its file's own order of rows."""
        source = self._source.tensors if isinstance(self._source, GGUF) else self._source
        return source[self._spelled[name]]

    def _entry(self, name: str) -> QTensor | Planned:
        raw = self._raw(name)
        if self.layout == "huggingface" and names.turned(name):
            head_dim = self.config.head_dim
            return Planned(raw.type, raw.shape, lambda: names.interleaved(self._raw(name), head_dim))
        return raw

    def _check_values(self, name: str, tensor: QTensor) -> None:
        faults = tensor.faults()
        if faults.total:
            what = f"{faults.total:,} NaN or infinite values, first in row {faults.row:,}"
            raise FormatError(f"{self.path}: tensor {name!r} ({tensor.type}) has {what}: download or convert it again")
        if not tensor.data[:SAMPLE].any() and not tensor.data.any():
            log.warning("%s: tensor %r is all zeros", self.path, name)

    def _note_extra(self, extra: set[str]) -> None:
        if extra:
            log.warning("%s: ignored, not part of the model: %s", self.path, _some(extra))


def expected_shapes(config: Config) -> Shapes:
    """Canonical name -> shape of every tensor of a model of this configuration, in the order of the forward pass."""
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer: Shapes = {
        "attn_norm": (c.dim,),
        "attn_q": (q, c.dim),
        "attn_k": (kv, c.dim),
        "attn_v": (kv, c.dim),
        "attn_output": (c.dim, q),
        "ffn_norm": (c.dim,),
        "ffn_gate": (c.hidden_dim, c.dim),
        "ffn_up": (c.hidden_dim, c.dim),
        "ffn_down": (c.dim, c.hidden_dim),
    }
    table = {"token_embd": (c.vocab_size, c.dim)}
    blocks = {f"blk.{i}.{part}": shape for i in range(c.n_layers) for part, shape in layer.items()}
    return table | blocks | {"output_norm": (c.dim,), "output": (c.vocab_size, c.dim)}


def _config(layout: str, metadata: Mapping[str, Any], shapes: Shapes) -> Config:
    read = {"gguf": Config.from_gguf, "huggingface": Config.from_hf, "mistral": Config.from_params}[layout]
    return read(metadata, shapes)


def _described(path: Path) -> dict[str, Any]:
    """config.json or params.json; what would make others run code is left alone, and said."""
    description = read_json(path)
    code = [key for key in ("auto_map", "trust_remote_code") if key in description]
    if code:
        log.warning("%s: %s ignored: bise never runs a model's own code", path, " and ".join(code))
    quantised = description.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise UnsupportedError(
            f"{path}: quantised with {method!r:.40}; bise reads F32, F16 and BF16 safetensors, or a GGUF"
        )
    return description


def _only_gguf(folder: Path) -> Path:
    """The one GGUF of a folder, or why there is none."""
    files = sorted(os.listdir(folder))
    found = [
        name for name in files if name.endswith(".gguf") and not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", name)
    ]
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise FormatError(f"{folder}: holds {len(found)} models, name one of them: {_some(found)}")
    if any(name.endswith(".safetensors") for name in files):
        raise FormatError(
            f"{folder}: expected config.json beside model.safetensors or its index, or params.json beside consolidated"
        )
    pickles = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise FormatError(f"{folder}: {_some(pickles)}: {PICKLE}")
    raise FormatError(
        f"{folder}: no model in this folder: expected a .gguf file, or .safetensors with config.json or params.json"
    )


def _refuse_foreign(extra: set[str], metadata: Mapping[str, Any]) -> None:
    """Tensors that change what a model computes belong to an architecture that is not run here."""
    packed = [name for name in extra if name.endswith((".qweight", ".qzeros", ".SCB", ".absmax", ".weight_scale"))]
    if packed:
        raise UnsupportedError(
            f"tensors {_some(packed)}: a GPTQ, AWQ or bitsandbytes model; bise reads F32, F16 and BF16 safetensors"
        )
    foreign = [name for name in extra if re.search(r"\.bias$|norm|_exps|gate_inp|experts|rope_freqs|\.gate\.", name)]
    if foreign and metadata.get("general.architecture", "llama") in ("llama", "mistral"):
        raise UnsupportedError(
            f"tensors {_some(foreign)}: another architecture; bise runs Mistral 7B and dense Llama shapes"
        )


def _check_shapes(config: Config, shapes: Shapes) -> None:
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes and name != "output"]
    if missing:
        raise FormatError(f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing, ordered=True)}")
    for name, shape in shapes.items():
        if name not in expected:
            raise FormatError(f"tensor {name!r} is beyond the last of n_layers = {config.n_layers}")
        if shape != expected[name]:
            raise FormatError(f"tensor {name!r} has shape {shape}, the configuration needs {expected[name]}")


def _check_vocabulary(keys: Mapping[str, Any], rows: int) -> None:
    """A GGUF's own tokenizer: SentencePiece, with as many pieces as the embedding has rows."""
    kind = keys.get("tokenizer.ggml.model")
    if kind in ("gpt2", "bert", "t5", "rwkv"):
        known = "Llama 3 and its relatives" if kind == "gpt2" else kind
        raise UnsupportedError(
            f"tokenizer.ggml.model = {kind!r} ({known}): bise runs SentencePiece vocabularies (Mistral, Llama 2)"
        )
    pieces = keys.get("tokenizer.ggml.tokens")
    if pieces is None:
        return
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces[:1]):
        raise FormatError("tokenizer.ggml.tokens is not an array of strings")
    if len(pieces) != rows:
        raise FormatError(
            f"tokenizer.ggml.tokens has {len(pieces):,} pieces, the embedding {rows:,} rows: another model's tokenizer"
        )
    for field, wanted in (("scores", float), ("token_type", int)):
        values = keys.get(f"tokenizer.ggml.{field}", [wanted()] * rows)
        if not isinstance(values, list) or len(values) != rows or type(values[0]) is not wanted:
            raise FormatError(
                f"tokenizer.ggml.{field}: expected an array of {rows:,} {wanted.__name__}s, one per piece"
            )
    for field in ("bos", "eos", "unknown", "padding"):
        value = keys.get(f"tokenizer.ggml.{field}_token_id", 0)
        if type(value) is not int or not (0 <= value < rows or field == "padding"):
            raise FormatError(
                f"tokenizer.ggml.{field}_token_id = {value!r:.40}, expected less than the {rows:,} pieces"
            )


def _some(items: set[str] | list[str], ordered: bool = False) -> str:
    """Up to three names, and how many more."""
    listed = list(items) if ordered else sorted(items)
    return ", ".join(repr(name)[1:-1][:120] for name in listed[:3]) + (
        f" and {len(listed) - 3:,} more" if len(listed) > 3 else ""
    )
