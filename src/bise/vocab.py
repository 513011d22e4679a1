"""A SentencePiece vocabulary, and the three files it comes from: tokenizer.model, GGUF keys, tokenizer.json.

tokenizer.model is a protocol buffer (sentencepiece/src/sentencepiece_model.proto). No byte of a
stranger's file reaches C++: what the sentencepiece library is handed is always rebuilt from a checked `Vocab`.
GGUF numbers its token types as that protocol does (gguf specification, "tokenizer.ggml.token_type").
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import FormatError, UnsupportedError
from .protobuf import bytes_at, fields, int_at, number, string, varint

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2  # TrainerSpec.model_type
MAX_TOKENS = 1 << 18  # Mistral has 2^15; the largest vocabulary of the family about 2^17
MAX_PIECE = 1024  # bytes
MAX_SCORE = 3e38  # a float32 holds it
SPACE = "\u2581"  # how a piece spells a space
RUNS = "bise runs SentencePiece vocabularies (Mistral 7B v0.1 to v0.3, Llama 1 and 2, and what was tuned from them)"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_LOOKS_LIKE_CONTROL = re.compile(r"<\|[^ ]+\|>|</?[A-Za-z_]+>|\[/?[A-Z_]+\]")


@dataclass(frozen=True)
class Vocab:
    """V pieces by id. Spaces are written "\u2581"; a merge prefers the piece with the higher score.

    tokens  V strings, distinct and not empty     scores  V floats     types  V numbers, NORMAL ... BYTE
    unk     the one piece of type UNKNOWN         bos, eos  ids of type CONTROL, or None
    space_prefix    a text gets one space in front before it is cut into pieces
    squeeze_spaces  runs of spaces become one (never so in Mistral's vocabularies)
    add_bos         a prompt starts with bos unless the caller says otherwise
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    unk: int
    bos: int | None = None
    eos: int | None = None
    space_prefix: bool = True
    squeeze_spaces: bool = False
    add_bos: bool = True
    name: str = field(default="tokenizer", compare=False)

    @staticmethod
    def checked(
        tokens: Iterable[Any], scores: Iterable[Any], types: Iterable[Any], unk: Any, bos: Any, eos: Any, *,
        space_prefix: bool, squeeze_spaces: bool = False, add_bos: bool = True, name: str = "tokenizer",
    ) -> Vocab:  # fmt: skip
        """The only door to a Vocab made of a stranger's numbers: raises FormatError, repairs what is harmless.

        Repairs: empty or repeated pieces become UNUSED placeholders, a second UNKNOWN becomes UNUSED, bytes typed
        NORMAL become BYTE, and bos, eos and user-defined pieces that look like control tokens become CONTROL, so that
        no text can spell them.
        """
        pieces = [_text(t, i, name) for i, t in enumerate(tokens)]
        try:
            values, kinds = [float(s) for s in scores], [int(t) for t in types]
        except (TypeError, ValueError) as error:
            raise FormatError(f"{name}: a score or token type is no number: {error}") from None
        V = len(pieces)
        if not 0 < V <= MAX_TOKENS:
            raise FormatError(f"{name}: {V:,} tokens, expected 1 to {MAX_TOKENS:,}")
        if len(values) != V or len(kinds) != V:
            raise FormatError(f"{name}: {V:,} tokens but {len(values):,} scores and {len(kinds):,} token types")
        for i, s in enumerate(values):
            if not abs(s) < MAX_SCORE:  # NaN fails here
                raise FormatError(f"{name}: the score of token {i} is {s}, expected a finite number")
        for i, t in enumerate(kinds):
            if not NORMAL <= t <= BYTE:
                raise FormatError(f"{name}: the type of token {i} is {t}, expected {NORMAL} to {BYTE}")
        unk, bos, eos = (_id(value, V, what, name) for value, what in ((unk, "unknown"), (bos, "bos"), (eos, "eos")))
        unk = _repair_types(pieces, kinds, unk, bos, eos, name)
        _repair_repeats(pieces, kinds, name)
        return Vocab(pieces, values, kinds, unk, bos, eos, space_prefix, squeeze_spaces, add_bos, name)

    def with_added(self, added: Mapping[int, tuple[str, bool]]) -> Vocab:
        """`added`: id -> (text, is control), as Hugging Face lists what tuning added to a tokenizer.model."""
        if added and not 0 <= min(added) <= max(added) < MAX_TOKENS:
            raise FormatError(
                f"{self.name}: added token ids {min(added)} to {max(added)}, expected 0 to {MAX_TOKENS - 1}"
            )
        V = max([len(self.tokens), *(i + 1 for i in added)])
        more = V - len(self.tokens)
        tokens = self.tokens + [""] * more
        types = self.types + [UNUSED] * more
        for i, (text, control) in added.items():
            if i >= len(self.tokens) or types[i] not in (UNKNOWN, BYTE):
                control = control or (i < len(self.tokens) and types[i] == CONTROL)
                tokens[i], types[i] = (text, CONTROL) if control else (text.replace(" ", SPACE), USER_DEFINED)
        return Vocab.checked(
            tokens, self.scores + [0.0] * more, types, self.unk, self.bos, self.eos, space_prefix=self.space_prefix,
            squeeze_spaces=self.squeeze_spaces, add_bos=self.add_bos, name=self.name,
        )  # fmt: skip

    # --- tokenizer.model

    @staticmethod
    def from_proto(data: bytes, name: str = "tokenizer.model") -> Vocab:
        """Reads a serialised ModelProto of a byte-pair vocabulary without text normalisation."""
        pieces: list[bytes] = []
        trainer, normaliser = b"", b""
        for at, value in fields(data, name):
            if at == 1 and isinstance(value, bytes):
                pieces.append(value)
            elif at == 2 and isinstance(value, bytes):
                trainer = value
            elif at == 3 and isinstance(value, bytes):
                normaliser = value
        if not 0 < len(pieces) <= MAX_TOKENS:
            raise FormatError(
                f"{name}: holds {len(pieces):,} tokens, expected a SentencePiece model of up to {MAX_TOKENS:,}"
            )
        spec, text = dict(fields(trainer, name)), dict(fields(normaliser, name))
        if (kind := int_at(spec, 3, 1, name)) != BPE:
            raise UnsupportedError(f"{name}: SentencePiece model type {kind}, {RUNS}: type {BPE}, byte pairs")
        if text.get(2) or int_at(spec, 24, 0, name) or not int_at(text, 5, 1, name):
            rule = bytes_at(text, 1, b"?", name).decode(errors="replace")
            raise UnsupportedError(f"{name}: changes text before cutting it (rule {rule!r}); train it with 'identity'")
        tokens, scores, types = _pieces(pieces, name)
        control = {t: i for i, t in enumerate(tokens) if types[i] == CONTROL}
        return Vocab.checked(
            tokens, scores, types, None, control.get(bytes_at(spec, 46, b"<s>", name)),
            control.get(bytes_at(spec, 47, b"</s>", name)), space_prefix=bool(int_at(text, 3, 1, name)),
            squeeze_spaces=bool(int_at(text, 4, 1, name)), name=name,
        )  # fmt: skip

    def to_proto(self) -> bytes:
        """The same vocabulary as a tokenizer.model that the sentencepiece library, and so everyone, loads."""
        out = bytearray()
        for token, score, kind in zip(self.tokens, self.scores, self.types, strict=True):
            text = token.encode()
            body = b"\x0a" + varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind)
            out += b"\x0a" + varint(len(body)) + body
        spec = number(3, BPE) + number(4, len(self.tokens)) + number(35, int(BYTE in self.types))
        for at, i in ((40, self.unk), (41, self.bos), (42, self.eos), (43, None)):
            spec += number(at, -1 if i is None else i)
        for at, i in ((45, self.unk), (46, self.bos), (47, self.eos)):
            spec += b"" if i is None else string(at, self.tokens[i].encode())
        text = string(1, b"identity") + number(3, int(self.space_prefix)) + number(4, int(self.squeeze_spaces))
        return bytes(out + string(2, spec) + string(3, text + number(5, 1)))

    # --- GGUF

    @staticmethod
    def from_gguf(keys: Mapping[str, Any], name: str = "GGUF") -> Vocab:
        """From the keys tokenizer.ggml.*; only tokenizer.ggml.model = "llama" is SentencePiece."""
        model = keys.get("tokenizer.ggml.model")
        if model != "llama":
            raise UnsupportedError(f"{name}: tokenizer.ggml.model is {model!r}, expected 'llama': {RUNS}")
        if (tokens := keys.get("tokenizer.ggml.tokens")) is None:
            raise FormatError(f"{name}: tokenizer.ggml.tokens is missing")
        if not isinstance(tokens, list):
            raise FormatError(f"{name}: tokenizer.ggml.tokens is {type(tokens).__name__}, expected a list of strings")
        if len(tokens) > MAX_TOKENS:
            raise FormatError(
                f"{name}: tokenizer.ggml.tokens has {len(tokens):,} entries, expected up to {MAX_TOKENS:,}"
            )
        scores, types = keys.get("tokenizer.ggml.scores"), keys.get("tokenizer.ggml.token_type")
        if scores is None or types is None:
            raise FormatError(f"{name}: tokenizer.ggml.scores or tokenizer.ggml.token_type is missing")
        return Vocab.checked(
            tokens, _plain(scores), _plain(types), keys.get("tokenizer.ggml.unknown_token_id"),
            keys.get("tokenizer.ggml.bos_token_id", 1), keys.get("tokenizer.ggml.eos_token_id", 2),
            space_prefix=bool(keys.get("tokenizer.ggml.add_space_prefix", True)),
            squeeze_spaces=bool(keys.get("tokenizer.ggml.remove_extra_whitespaces", False)),
            add_bos=bool(keys.get("tokenizer.ggml.add_bos_token", True)), name=name,
        )  # fmt: skip

    def to_gguf(self) -> dict[str, Any]:
        """The tokenizer.ggml.* keys of this vocabulary, as llama.cpp reads them."""
        ids = {"bos": self.bos, "eos": self.eos, "unknown": self.unk}
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.scores": self.scores,
            "tokenizer.ggml.token_type": self.types,
            **{f"tokenizer.ggml.{what}_token_id": i for what, i in ids.items() if i is not None},
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": False,
            "tokenizer.ggml.add_space_prefix": self.space_prefix,
            **({"tokenizer.ggml.remove_extra_whitespaces": True} if self.squeeze_spaces else {}),
        }

    # --- tokenizer.json

    @staticmethod
    def from_json(data: bytes, name: str = "tokenizer.json") -> Vocab:
        """From Hugging Face's form of the same thing: a merge that comes earlier makes a piece with a higher score."""
        tree = parse_json(data, name)
        model = _expect(tree.get("model"), dict, "model", name)
        kind = model.get("type", "BPE")
        if kind != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
            what = "byte-level BPE (GPT-2, Llama 3, tekken)" if kind == "BPE" else f"{kind} model"
            raise UnsupportedError(f"{name}: a {what} without byte fallback, {RUNS}")
        vocab, merges = (
            _expect(model.get("vocab"), dict, "model.vocab", name),
            _expect(model.get("merges"), list, "model.merges", name),
        )
        if len(vocab) > MAX_TOKENS or len(merges) > 8 * MAX_TOKENS:
            raise FormatError(
                f"{name}: {len(vocab):,} tokens and {len(merges):,} merges, expected up to {MAX_TOKENS:,}"
            )
        tokens = _by_id(vocab, name)
        types = [NORMAL if t else UNUSED for t in tokens]
        unk = vocab.get(model.get("unk_token") or "<unk>")
        base = Vocab.checked(
            tokens, _scores(tokens, merges, name), types, unk, vocab.get("<s>"), vocab.get("</s>"),
            space_prefix=_json_space_prefix(tree), name=name,
        )  # fmt: skip
        return base.with_added(added_tokens(tree, name))

    def with_ends(self, bos: str | None, eos: str | None) -> Vocab:
        """The same pieces with other bos and eos, by name, as tokenizer_config.json has them; unknown names change
        nothing."""
        ids = {t: i for i, t in enumerate(self.tokens)}
        vocab = replace(
            self, bos=ids.get(bos or "", self.bos), eos=ids.get(eos or "", self.eos), types=list(self.types)
        )
        for i in (vocab.bos, vocab.eos):
            if i is not None:
                vocab.types[i] = CONTROL
        return vocab


def added_tokens(tree: Mapping[str, Any], name: str) -> dict[int, tuple[str, bool]]:
    """The added_tokens of a parsed tokenizer.json: id -> (text, is control)."""
    out = {}
    for entry in _expect(tree.get("added_tokens", []), list, "added_tokens", name):
        entry = _expect(entry, dict, "added_tokens[]", name)
        i, text = _expect(entry.get("id"), int, "added_tokens[].id", name), entry.get("content")
        out[i] = (_expect(text, str, "added_tokens[].content", name), bool(entry.get("special")))
    return out


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; anything else, also one nested too deeply, is a FormatError."""
    try:
        return dict(_expect(json.loads(data), dict, "the file", name))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not JSON ({type(error).__name__}: {str(error)[:80]})") from None


def _expect(value: Any, kind: type, what: str, name: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"{name}: {what} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _by_id(vocab: Mapping[str, Any], name: str) -> list[str]:
    ids = [_expect(i, int, f"model.vocab[{t!r:.40}]", name) for t, i in vocab.items()]
    if not ids or min(ids) < 0 or max(ids) >= MAX_TOKENS:
        raise FormatError(f"{name}: model.vocab holds {len(ids)} ids, expected 1 or more in 0 to {MAX_TOKENS - 1}")
    tokens = [""] * (max(ids) + 1)
    for text, i in vocab.items():
        tokens[i] = text
    return tokens


def _scores(tokens: list[str], merges: list[Any], name: str) -> list[float]:
    """A piece's score is minus the rank of the first merge that makes it: SentencePiece merges the best piece first."""
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        parts = pair.split(" ") if isinstance(pair, str) else pair
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
            raise FormatError(f"{name}: model.merges[{i}] is {str(pair)[:40]!r}, expected two pieces")
        rank.setdefault(parts[0] + parts[1], i)
    return [-float(rank.get(t, len(merges))) for t in tokens]


def _json_space_prefix(tree: Mapping[str, Any]) -> bool:
    """Old files prepend "\u2581" in the normaliser, newer ones in a Metaspace pre-tokeniser with a prepend_scheme."""
    found = json.dumps([tree.get("normalizer"), tree.get("pre_tokenizer")])
    return '"Prepend"' in found or ('"Metaspace"' in found and '"prepend_scheme": "never"' not in found)


def _pieces(pieces: list[bytes], name: str) -> tuple[list[bytes], list[float], list[int]]:
    read = [dict(fields(piece, name)) for piece in pieces]
    scores = [struct.unpack("<f", bytes_at(piece, 2, b"\0\0\0\0", name))[0] for piece in read]
    return [bytes_at(piece, 1, b"", name) for piece in read], scores, [int_at(piece, 3, NORMAL, name) for piece in read]


def _text(token: Any, i: int, name: str) -> str:
    if isinstance(token, (bytes, bytearray, memoryview)):
        try:
            token = bytes(token).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{name}: token {i} is not UTF-8") from None
    if not isinstance(token, str) or len(token) > MAX_PIECE:
        raise FormatError(
            f"{name}: token {i} is {str(token)[:20]!r}, expected a text of at most {MAX_PIECE} characters"
        )
    return token


def _id(value: Any, V: int, what: str, name: str) -> int | None:
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value < V:
        raise FormatError(f"{name}: the {what} token id is {value!r:.40}, expected 0 to {V - 1}")
    return int(value)


def _repair_types(
    tokens: list[str], types: list[int], unk: int | None, bos: int | None, eos: int | None, name: str
) -> int:
    """Sets the types in place as `Vocab.checked` promises; returns the id of the unknown token."""
    bytes_seen = {t for t in tokens if _BYTE_PIECE.fullmatch(t)}
    for i, t in enumerate(types):
        if len(bytes_seen) == 256 and tokens[i] in bytes_seen:
            types[i] = BYTE
        elif t == USER_DEFINED and _LOOKS_LIKE_CONTROL.fullmatch(tokens[i]):
            types[i] = CONTROL
    if BYTE in types and len(bytes_seen) < 256:
        raise FormatError(f"{name}: {len(bytes_seen)} byte tokens <0x00> to <0xFF>, expected none or 256")
    typed = [i for i, t in enumerate(types) if t == UNKNOWN]
    if not typed and unk is None:
        raise FormatError(f"{name}: no token stands for the unknown (type {UNKNOWN})")
    chosen = unk if unk is not None else typed[0]
    for i in typed:
        types[i] = UNUSED
    for end in (bos, eos):
        if end is not None and end != chosen:
            types[end] = CONTROL
    types[chosen] = UNKNOWN
    return chosen


def _repair_repeats(tokens: list[str], types: list[int], name: str) -> None:
    seen: set[str] = set()
    for i, t in enumerate(tokens):
        if not t or t in seen:
            if types[i] in (UNKNOWN, BYTE):
                raise FormatError(f"{name}: token {i} is {t!r}, empty or repeated")
            t, types[i] = f"\U000f0000{i}", UNUSED  # private use: no text spells it
            tokens[i] = t
        seen.add(t)


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values
