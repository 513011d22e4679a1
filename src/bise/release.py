"""Release: everything that a model's files say beside its tensors, read from any layout and written in any.

A GGUF has it in keys. A Hugging Face folder has config.json, generation_config.json, tokenizer_config.json,
tokenizer.model and tokenizer.json; Mistral's own folders params.json and tokenizer.model. What only a GGUF has a place
for (its name, its licence) travels in the __metadata__ of the safetensors files, under "gguf", as JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .chat import find_template
from .config import Config
from .errors import FormatError
from .safetensors import load_json, read_json
from .tokenizer import ENDS, Tokenizer, ends_of
from .tokenizer_json import to_json
from .vocab import UNUSED, Vocab
from .weights import Weights

log = logging.getLogger(__name__)

_DERIVED = ("llama.", "mistral.", "tokenizer.", "split.", "quantize.")  # keys that follow from the rest of a Release
_OWN = {f"general.{key}" for key in ("architecture", "type", "alignment", "file_type", "quantization_version")}


@dataclass(frozen=True)
class Release:
    """A model without its tensors.

    vocab     as many pieces as the embedding has rows; None: ids only
    template  the chat template, Jinja
    stops     ids that end an answer, beside the vocabulary's eos
    pad       the id that fills up short rows in training, if there is one
    tied      the embedding stands in for the output
    facts     general.* and other keys that are not about shape or vocabulary, by their GGUF names
    """

    config: Config
    vocab: Vocab | None
    template: str | None = None
    stops: tuple[int, ...] = ()
    pad: int | None = None
    tied: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Weights) -> Release:
        """From a model's files. FormatError, UnsupportedError where they say what cannot be."""
        tokenizer = Tokenizer.of(weights)
        vocab = None if tokenizer is None else _filled(tokenizer.vocab, weights.config.vocab_size)
        read = _from_gguf if weights.layout == "gguf" else _from_folder
        stops, pad, facts = read(weights, vocab)
        return cls(weights.config, vocab, find_template(weights), stops, pad, weights.tied, facts)

    def gguf(self, file_type: int) -> dict[str, Any]:
        """All keys of a GGUF. file_type: llama.cpp's number for what most matrices are."""
        return {
            "general.architecture": "llama",
            "general.type": "model",
            **self.facts,
            **self.config.to_gguf(),
            "general.file_type": file_type,
            "general.quantization_version": 2,
            **self._gguf_vocabulary(),
        }

    def _gguf_vocabulary(self) -> dict[str, Any]:
        if self.vocab is None:
            return {"tokenizer.ggml.model": "no_vocab"}
        keys = self.vocab.to_gguf()
        keys |= {f"tokenizer.ggml.{end}_token_id": i for end, i in zip(ENDS, self.stops, strict=False)}
        if self.pad is not None:
            keys["tokenizer.ggml.padding_token_id"] = self.pad
        return keys | ({} if self.template is None else {"tokenizer.chat_template": self.template})

    def huggingface(self, dtype: str) -> dict[str, bytes]:
        """File name -> content, all but the tensors. dtype: "F32", "F16" or "BF16", what most tensors are."""
        config = self.config.to_hf() | {
            "tie_word_embeddings": self.tied,
            "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
        }
        if self.vocab is None:
            return {"config.json": _json(config)}
        ends = {"bos_token_id": self.vocab.bos, "eos_token_id": self.vocab.eos, "pad_token_id": self.pad}
        said = {name: i for name, i in ends.items() if i is not None}
        all_ends = [i for i in (self.vocab.eos, *self.stops) if i is not None]
        generation = said | ({"eos_token_id": all_ends} if self.stops else {})
        return {
            "config.json": _json(config | said),
            "generation_config.json": _json(generation),
            "tokenizer_config.json": _json(self._tokenizer_config(self.vocab)),
            "tokenizer.json": to_json(self.vocab),
            "tokenizer.model": self.vocab.to_proto(),
        }

    def _tokenizer_config(self, vocab: Vocab) -> dict[str, Any]:
        """As transformers' LlamaTokenizer reads it."""
        names = {"bos_token": vocab.bos, "eos_token": vocab.eos, "unk_token": vocab.unk, "pad_token": self.pad}
        return {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": vocab.add_bos and vocab.bos is not None,
            "add_eos_token": False,
            "add_prefix_space": vocab.space_prefix,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": self.config.context,
            **{name: None if i is None else vocab.tokens[i] for name, i in names.items()},
            **({} if self.template is None else {"chat_template": self.template}),
        }

    def mistral(self) -> dict[str, bytes]:
        """File name -> content, all but the tensors. mistral-common takes a vocabulary's version from its file's name.
        The layout has no place for a chat template; it lies beside it, where bise finds it."""
        files = {"params.json": _json(self.config.to_params() | ({"tied_embeddings": True} if self.tied else {}))}
        if self.vocab is not None:
            suffix = ".v3" if "[INST]" in self.vocab.tokens else ""
            files[f"tokenizer.model{suffix}"] = self.vocab.to_proto()
        return files | ({} if self.template is None else {"chat_template.jinja": self.template.encode()})

    def notes(self) -> dict[str, str]:
        """The __metadata__ of the safetensors files; transformers wants "format"."""
        return {"format": "pt"} | ({"gguf": json.dumps(self.facts, sort_keys=True)} if self.facts else {})


def _filled(vocab: Vocab, rows: int) -> Vocab:
    """A vocabulary with a piece for every row of the embedding, which some trainers round up."""
    missing = rows - len(vocab.tokens)
    if missing < 0:
        raise FormatError(
            f"{vocab.name}: {len(vocab.tokens):,} pieces, the embedding has {rows:,} rows: another model's tokenizer"
        )
    if not missing:
        return vocab
    log.warning("%s: %s pieces for %s rows of the embedding, the rest stays unused",
                vocab.name, f"{len(vocab.tokens):,}", f"{rows:,}")  # fmt: skip
    more = [f"[PAD{i}]" for i in range(len(vocab.tokens), rows)]
    return replace(
        vocab, tokens=vocab.tokens + more, scores=vocab.scores + [0.0] * missing, types=vocab.types + [UNUSED] * missing
    )


def _from_gguf(weights: Weights, vocab: Vocab | None) -> tuple[tuple[int, ...], int | None, dict[str, Any]]:
    keys = weights.metadata
    facts = {key: value for key, value in keys.items() if key not in _OWN and not key.startswith(_DERIVED)}
    pad = keys.get("tokenizer.ggml.padding_token_id")
    known = vocab is not None and type(pad) is int and 0 <= pad < len(vocab.tokens)
    return _ends(weights, vocab), pad if known else None, {"general.name": weights.path.stem} | facts


def _from_folder(weights: Weights, vocab: Vocab | None) -> tuple[tuple[int, ...], int | None, dict[str, Any]]:
    path = weights.path / "tokenizer_config.json"
    pad = (read_json(path) if path.exists() else {}).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    ids = {} if vocab is None else {token: i for i, token in enumerate(vocab.tokens)}
    facts = {"general.name": str(weights.metadata.get("_name_or_path") or _name(weights.path))} | _carried(weights)
    return _ends(weights, vocab), ids.get(pad) if isinstance(pad, str) else None, facts


def _ends(weights: Weights, vocab: Vocab | None) -> tuple[int, ...]:
    return () if vocab is None else ends_of(weights, vocab)


def _name(folder: Path) -> str:
    """A folder's name, or its repository's where it is a snapshot in the hub's cache."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _carried(weights: Weights) -> dict[str, Any]:
    """The keys of a GGUF that were written into a safetensors file's metadata."""
    if (raw := weights.notes.get("gguf")) is None:
        return {}
    found = load_json(raw.encode(), f"{weights.path}: __metadata__.gguf")
    return {key: value for key, value in found.items()
            if key not in _OWN and not key.startswith(_DERIVED) and _plain(value)}  # fmt: skip


def _plain(value: Any) -> bool:
    """What a GGUF key can hold: a scalar, or a list of one kind of them that is not empty."""
    if isinstance(value, list):
        return bool(value) and len({type(item) for item in value}) == 1 and not isinstance(value[0], (list, dict))
    return isinstance(value, (str, bool, int, float))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"
