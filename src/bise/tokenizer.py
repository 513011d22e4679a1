"""Text to token ids and back, with Google's sentencepiece doing the cutting.

Text is only ever text: `encode` never turns "</s>" or "[INST]" into a control token unless it is told to
(`special=True`, which is for templates, never for what a person typed).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .disk import looks_like, read_small
from .errors import FormatError, RequestError, UnsupportedError
from .vocab import BYTE, CONTROL, RUNS, SPACE, UNKNOWN, UNUSED, Vocab, added_tokens, parse_json

if TYPE_CHECKING:
    from .weights import Weights

MAX_FILE = 16 << 20  # bytes; Mistral's tokenizer.json has 2 MB
UNKNOWN_TEXT = " \u2047 ".encode()  # what sentencepiece prints for the unknown token
TURN_ENDS = ("<|im_end|>", "<|end_of_turn|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|endoftext|>")
ENDS = ("eot", "eom")  # tokenizer.ggml.*_token_id: what ends an answer beside eos
_MODEL_FILE = re.compile(r"tokenizer\.model(\.v[123])?|.*\.model\.v[123]")


class Tokenizer:
    """Cuts text into the pieces of a `Vocab`. Attributes: vocab, vocab_size, bos, eos, unk (ids or None), add_bos, and
    ends, ids beside eos that end an answer because the model's files say so."""

    def __init__(self, vocab: Vocab) -> None:
        """Raises FormatError where the sentencepiece library refuses the vocabulary."""
        import sentencepiece

        self.vocab = vocab
        self.ends: tuple[int, ...] = ()
        self.vocab_size = len(vocab.tokens)
        self.bos, self.eos, self.unk, self.add_bos = vocab.bos, vocab.eos, vocab.unk, vocab.add_bos
        self._cut: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._cut.LoadFromSerializedProto(vocab.to_proto())
        except (RuntimeError, OSError) as error:
            raise FormatError(f"{vocab.name}: sentencepiece refuses the vocabulary: {str(error)[:200]}") from None
        if (size := self._cut.vocab_size()) != self.vocab_size:
            raise FormatError(f"{vocab.name}: {self.vocab_size} tokens, sentencepiece made {size} of them")
        self._bytes = [_piece_bytes(t, k) for t, k in zip(vocab.tokens, vocab.types, strict=True)]

    @staticmethod
    def of(weights: Weights) -> Tokenizer | None:
        """The tokenizer that came with a model: the GGUF's own, or its folder's; None where there is none."""
        if weights.layout != "gguf":
            found = Tokenizer.open(weights.path)
        elif "tokenizer.ggml.tokens" in weights.metadata:
            found = Tokenizer.from_gguf(weights.metadata, str(weights.path))
        else:
            found = None
        if found is not None:
            found.ends = ends_of(weights, found.vocab)
        return found

    @staticmethod
    def open(folder: str | Path) -> Tokenizer | None:
        """The tokenizer of a model folder, or None where there is none: tokenizer.model first, then tokenizer.json.

        Tokens that tuning added (tokenizer.json, added_tokens.json) and the ends that tokenizer_config.json names are
        taken over. Raises UnsupportedError for vocabularies that are not SentencePiece.
        """
        folder = Path(folder)
        names = sorted(p.name for p in folder.iterdir())
        models = [n for n in names if _MODEL_FILE.fullmatch(n)]
        if models:
            vocab = Vocab.from_proto(_read(folder / models[0]), models[0]).with_added(_added(folder, names))
        elif "tokenizer.json" in names:
            vocab = Vocab.from_json(_read(folder / "tokenizer.json"))
        elif other := [n for n in names if n in ("tekken.json", "vocab.json", "merges.txt") or n.endswith(".tiktoken")]:
            raise UnsupportedError(f"{folder}: {other[0]} is a byte-level vocabulary (GPT-2, Llama 3, tekken), {RUNS}")
        else:
            return None
        if "tokenizer_config.json" in names:
            config = parse_json(_read(folder / "tokenizer_config.json"), "tokenizer_config.json")
            vocab = vocab.with_ends(_token_name(config.get("bos_token")), _token_name(config.get("eos_token")))
            vocab = replace(vocab, add_bos=config.get("add_bos_token") is not False)
        return Tokenizer(vocab)

    @staticmethod
    def from_file(path: str | Path) -> Tokenizer:
        """A SentencePiece tokenizer.model. Raises FormatError, UnsupportedError."""
        return Tokenizer(Vocab.from_proto(_read(Path(path)), Path(path).name))

    @staticmethod
    def from_json(path: str | Path) -> Tokenizer:
        """A Hugging Face tokenizer.json made from a SentencePiece model. Raises FormatError, UnsupportedError."""
        return Tokenizer(Vocab.from_json(_read(Path(path)), Path(path).name))

    @staticmethod
    def from_gguf(keys: Mapping[str, Any], name: str = "GGUF") -> Tokenizer:
        """The tokenizer.ggml.* keys of a GGUF; `name` is what errors call the file."""
        return Tokenizer(Vocab.from_gguf(keys, name))

    def proto(self) -> bytes:
        """This vocabulary as the bytes of a tokenizer.model."""
        return self.vocab.to_proto()

    def gguf_keys(self) -> dict[str, Any]:
        """This vocabulary as the tokenizer.ggml.* keys of a GGUF."""
        return self.vocab.to_gguf()

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        """text -> ids. `bos`: put the bos token in front (where the vocabulary has one).

        special=True reads the names of control tokens in the text as those tokens; every stretch of text between them
        is cut as a text of its own, with its own leading space (so do mistral-common and llama.cpp).
        """
        ids = [self.bos] if bos and self.bos is not None else []
        if not special:
            return ids + self._encode_text(text)
        for part in self.split(text):
            ids += [part] if isinstance(part, int) else self._encode_text(part)
        return ids

    def split(self, text: str) -> list[int | str]:
        """The text cut at the names of control tokens: those as ids, what is between them as it is."""
        parts = filter(None, self._control_names.split(text))
        return [self.control.get(part, part) if len(part) > 1 else part for part in parts]

    def _encode_text(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._cut.encode(text)
        except (UnicodeEncodeError, RuntimeError, TypeError):  # the library's binding says RuntimeError
            raise RequestError(f"text {text!r:.40} is not Unicode text that can be written as UTF-8") from None
        return ids

    def decode(self, ids: Iterable[int], start: bool = True) -> str:
        """ids -> text; control tokens are dropped. Bytes that are not UTF-8 become U+FFFD.

        start=True: the ids start a text, so the space that `encode` put in front is taken away again.
        start=False: they continue one, and every space is kept.
        """
        stream = self.stream(start)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, start: bool = True) -> Stream:
        """A fresh `Stream` over this vocabulary; `start` as in `decode`."""
        return Stream(self, start)

    def piece(self, id: int) -> bytes:
        """The bytes that this token adds to a text: b"" for control tokens, perhaps part of a character."""
        if not 0 <= id < self.vocab_size:
            raise RequestError(f"token id {id} is outside the vocabulary: expected 0 to {self.vocab_size - 1}")
        return self._bytes[id]

    def name(self, id: int) -> str:
        """The token as its vocabulary spells it: "\u2581the", "<0x0A>", "[INST]"."""
        self.piece(id)
        return self.vocab.tokens[id]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer: eos, what the model's files name beside it, and the ends of a turn that tuning
        added under well-known names."""
        ends = {self.control[name] for name in TURN_ENDS if name in self.control} | set(self.ends)
        return frozenset(ends if self.eos is None else ends | {self.eos})

    def is_control(self, id: int) -> bool:
        """Whether this is a control token: an id without text, which no text can spell."""
        return 0 <= id < self.vocab_size and self.vocab.types[id] == CONTROL

    @cached_property
    def control(self) -> dict[str, int]:
        """The control tokens by name: {"<s>": 1, "</s>": 2, "[INST]": 3, ...}."""
        return {t: i for i, (t, k) in enumerate(zip(self.vocab.tokens, self.vocab.types, strict=True)) if k == CONTROL}

    @cached_property
    def _control_names(self) -> re.Pattern[str]:
        names = sorted((n for n in self.control if len(n) > 1), key=len, reverse=True)  # the longest name wins
        return re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else r"(?!)")


class Stream:
    """Text out of tokens as they come. What `push` and `flush` returned, joined, is `decode` of the same ids.

    Half a character is held back until its other bytes come; `flush` gives what never became one as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._drop_space = start and tokenizer.vocab.space_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """One token in, the characters that it completes out (perhaps none)."""
        data = self._tokenizer.piece(id)
        if data and self._drop_space:
            self._drop_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The end: what is still held back."""
        return self._utf8.decode(b"", final=True)


def ends_of(weights: Weights, vocab: Vocab) -> tuple[int, ...]:
    """The ids beside its eos that end an answer as the model's files have it: a GGUF's eot and eom, a folder's
    generation_config.json, or its config.json."""
    if weights.layout == "gguf":
        ids = [weights.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ENDS]
    else:
        path = weights.path / "generation_config.json"
        said = parse_json(_read(path), path.name) if path.exists() else {}
        found = said.get("eos_token_id", weights.metadata.get("eos_token_id"))
        ids = found if isinstance(found, list) else [found]
    return tuple(dict.fromkeys(i for i in ids if type(i) is int and 0 <= i < len(vocab.tokens) and i != vocab.eos))


def _piece_bytes(token: str, kind: int) -> bytes:
    if kind == BYTE:
        return bytes([int(token[3:5], 16)])
    if kind in (CONTROL, UNUSED):
        return b""
    return UNKNOWN_TEXT if kind == UNKNOWN else token.replace(SPACE, " ").encode()


def _read(path: Path) -> bytes:
    data = read_small(path, MAX_FILE)
    if data.startswith((b"version https://git-lfs", b"<!", b"<html")):
        raise FormatError(f"{path}: {looks_like(data[:256])}")
    return data


def _added(folder: Path, names: list[str]) -> dict[int, tuple[str, bool]]:
    if "tokenizer.json" in names:
        return added_tokens(parse_json(_read(folder / "tokenizer.json"), "tokenizer.json"), "tokenizer.json")
    if "added_tokens.json" not in names:
        return {}
    tree = parse_json(_read(folder / "added_tokens.json"), "added_tokens.json")
    entries = [{"id": i, "content": text, "special": False} for text, i in tree.items()]
    return added_tokens({"added_tokens": entries}, "added_tokens.json")


def _token_name(value: Any) -> str | None:
    """tokenizer_config.json writes a token as its text, or as an object with `content`."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None
