"""What a text must match: a JSON schema, a regex, a Lark grammar, a call of a tool; as masks over token ids.

The library llguidance does the parsing (Earley's algorithm over derivatives of regexes, with a limit on every kind of
work). Grammars are written as its own JSON: that string is what travels (`Ask.grammar`), and `Grammar.match` reads it.

The text that has to match is the text that people get. SentencePiece puts a space in front of a text, and a reply loses
it again; so the first token of a reply is known to the matcher without its space (see `Grammar.__init__`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import schema as schemas
from .errors import RequestError
from .instruct import TAGS
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .chat import ChatFormat

REGEX = 16 << 10  # characters
LARK = 64 << 10
CALLS = 16  # of tools, in one answer
# Between the parts of a JSON text, in each place at most once: one space, or a new line and its indentation. Without a
# bound a weak model would go on with spaces for ever.
SPACE = r"\n[ ]{0,24}|[ ]"
# No \uXXXX: half a surrogate pair is no character. No control character can be written then.
JSON = {
    "whitespace_pattern": SPACE, "lenient": False, "coerce_one_of": False,
    "json_allow_general_unicode_escapes": False,
}  # fmt: skip
# Every token that fits may come, not only those of one way to cut the text. (The last such line counts.)
ALL_TOKENS = '\n%llguidance {"no_forcing": true}'
# Of one step: rows of Earley's table, items in it, steps of the lexer. The costliest grammars found within them take
# 10 ms a token until they end in an error; JSON schemas take 0.02 ms.
LIMITS = {"max_items_in_row": 600, "step_max_items": 3_000, "step_lexer_fuel": 100_000, "verbose_errors": False}
Mask = npt.NDArray[np.bool_]


# --- writing grammars


def json_schema(schema: Any) -> str:
    """A JSON value that validates under `schema` (see schema.py). Raises RequestError for what cannot be promised."""
    return _written("start: @value", {"value": schemas.checked(schema)})


def json_object() -> str:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> str:
    """The whole text matches. The syntax is that of Rust's regex crate: no look-around, no back-references."""
    from llguidance import regex_to_lark

    if len(pattern) > REGEX:
        raise RequestError(f"the regex has {len(pattern):,} characters, expected at most {REGEX:,}")
    return _written(f"start: /{regex_to_lark(pattern, '')}/", {})


def lark(text: str) -> str:
    """A grammar in llguidance's dialect of Lark, with the rule `start`; JSON schemas inside it are refused."""
    if len(text) > LARK:
        raise RequestError(f"the grammar has {len(text):,} characters, expected at most {LARK:,}")
    if "%json" in text:
        raise RequestError("the grammar says %json: ask for a JSON schema by itself")
    return _written(text, {})


def calls(tools: Sequence[Mapping[str, Any]], chat: ChatFormat, most: int = CALLS) -> str:
    """1 to `most` calls of these tools (as in OpenAI's API), as this format writes them.

    Mistral  [TOOL_CALLS][{"name": ..., "arguments": {...}, "id": nine letters or digits, may be missing}, ...]
    Hermes   <tool_call>
             {"name": ..., "arguments": {...}}
             </tool_call>, once for each call, each on lines of its own
    """
    if not chat.calls_begin:
        raise RequestError(f"a tool call cannot be demanded here: {chat.name} has none that are known")
    if not tools:
        raise RequestError("a tool call is demanded, and no tool is given")
    functions = [tool["function"] for tool in tools]
    given = {f"arguments{i}": _arguments(f) for i, f in enumerate(functions)}
    begin, end = (_tag(name, chat.tokenizer) for name in (chat.calls_begin, TAGS[1]))
    own_id = '(", \\"id\\": \\"" /[a-zA-Z0-9]{9}/ "\\"")?' if chat.version else ""
    if chat.version:
        rules = [f'start: {begin} "[" {_several("call", ", ", most)} "]"']
    else:
        rules = [f"start: {_several('tagged', chr(10), most)}", f'tagged: {begin} "\\n" call "\\n" {end}']
    rules.append("call: " + " | ".join(f"call{i}" for i in range(len(functions))))
    for i, function in enumerate(functions):
        head = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
        rules.append(f'call{i}: {head} @arguments{i} {own_id} "}}"')
    return _written("\n".join(rules), given)


def _tag(name: str, tokenizer: Tokenizer) -> str:
    """The control token, or the text where the vocabulary has none."""
    return f"<[{tokenizer.control[name]}]>" if name in tokenizer.control else json.dumps(name)


def _several(rule: str, between: str, most: int) -> str:
    return rule + (f" ({json.dumps(between)} {rule}){{0,{most - 1}}}" if most > 1 else "")


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's parameters; one without any takes an empty object."""
    parameters = function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
    try:
        return schemas.checked({"type": "object", **parameters})
    except RequestError as error:
        raise RequestError(f"tool {function['name']}: {error}") from None


def _written(rules: str, values: Mapping[str, dict[str, Any]]) -> str:
    parts = [{"name": name, "json_schema": {**value, "x-guidance": JSON}} for name, value in values.items()]
    return json.dumps({"grammars": [{"lark_grammar": rules + ALL_TOKENS}, *parts]}, ensure_ascii=False)


# --- matching


class Grammar:
    """One vocabulary, ready to be matched against any grammar. Making it takes about 0.1 s for 32,768 tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

        self.words = Words(tokenizer)
        self._vocabulary = LLTokenizer(TokenizerWrapper(self.words), eos_token=self.words.ends)
        self._limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]

    def match(self, text: str, start: bool = True) -> Match:
        """A fresh text that has to match; `start` as in `Speech`. RequestError: no grammar, too large, or no text fits.

        A few milliseconds at most for all that the limits above let through: nothing is kept of it.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=self._limits)
        match = Match(matcher, self.words, start)
        if not match.allowed().any():
            raise RequestError("the grammar: no text matches it")
        return match


class Match:
    """How far one text has come. `allowed` says which token may be next, `accept` tells which one it was.

    Both raise RequestError where the grammar takes more work than the limits allow.
    """

    def __init__(self, matcher: Any, words: Words, start: bool) -> None:
        self._matcher, self._words = matcher, words
        self._begun = not (start and words.space_prefix)

    def allowed(self) -> Mask:
        """(vocab_size,) True for each token that may come next; the ends exactly where the text may end."""
        words, data = self._words, self._matcher.compute_bitmask()
        self._check()
        mask: Mask = np.unpackbits(np.frombuffer(data, np.uint8), count=len(words.tokens), bitorder="little").view(
            np.bool_
        )
        if self._begun:
            return mask[: words.vocab_size]
        first: Mask = mask[words.first]
        first[words.space] = first[words.is_text].any()
        return first

    def accept(self, token: int) -> None:
        """The token that was chosen. Raises RequestError for one that may not come."""
        words = self._words
        if not self._begun and words.is_text[token]:
            self._begun = True
            if token in words.space:
                return
            token = int(words.first[token])
        self._matcher.consume_token(token)
        self._check()

    @property
    def may_end(self) -> bool:
        """Whether the text matches as it is."""
        return bool(self._matcher.is_accepting())

    @property
    def stopped(self) -> bool:
        """Whether the text matches and nothing can follow it."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the grammar: {_one_line(self._matcher.get_error())}")


class Words:
    """A vocabulary as llguidance wants to see it: the bytes of each token, and some tokens more.

    first     (vocab_size,) what each token is at the start of a reply: the id of the same bytes without their first
              space. Where no token has those bytes, one is added for the matcher alone.
    space     the tokens that are nothing but that space
    is_text   (vocab_size,) False for control tokens and those that are not in use
    ends      what ends a text; one is added where the vocabulary has none
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size, self.space_prefix = tokenizer.vocab_size, tokenizer.vocab.space_prefix
        pieces = [tokenizer.piece(i) for i in range(self.vocab_size)]
        self.is_text = np.array([bool(piece) for piece in pieces])
        self.tokens = [piece or tokenizer.name(i).encode() for i, piece in enumerate(pieces)]
        self.special_token_ids = [i for i, piece in enumerate(pieces) if not piece]
        self._known = {piece: i for i, piece in enumerate(pieces) if piece}
        self.first = np.arange(self.vocab_size)
        self.space = [i for i, piece in enumerate(pieces) if piece == b" "]
        for i, piece in enumerate(pieces):
            if piece.startswith(b" ") and len(piece) > 1:
                self.first[i] = self._id(piece[1:])
        self.ends = sorted(tokenizer.stop_ids) or [self._id(b"<end>")]
        self.special_token_ids += [self.ends[0]] * (self.ends[0] >= self.vocab_size)
        self._longest = max(map(len, self._known))
        self.eos_token_id, self.bos_token_id = self.ends[0], None  # the names that llguidance looks for

    def _id(self, word: bytes) -> int:
        if word not in self._known:
            self._known[word] = len(self.tokens)
            self.tokens.append(word)
        return self._known[word]

    def __call__(self, text: bytes | str) -> list[int]:
        """The longest token first: llguidance asks for a cut of its own strings, any will do."""
        data = text.encode() if isinstance(text, str) else text
        ids, at = [], 0
        while at < len(data):
            n = next((n for n in range(self._longest, 0, -1) if data[at : at + n] in self._known), 0)
            if n == 0:
                break
            ids.append(self._known[data[at : at + n]])
            at += len(data[at : at + n])
        return ids


def _one_line(error: str) -> str:
    """The library's own words, without the state of its parser."""
    if error.startswith("NoExtension"):
        return "no text matches it"
    return error.split("<non-verbose/>")[0].strip().split("\n")[0][:200]
