"""What chat, responses and messages share: a Wish becomes an Ask, and news become text and tool calls (Reply)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request

from ...errors import ContextError, RequestError
from ...tokenizer import Tokenizer
from .. import limits
from ..wire import Ask, News
from .answers import Answer
from .aside import LONG, aside

if TYPE_CHECKING:
    from ...chat import ChatFormat
    from ...grammar import Grammar
    from ..desk import Desk

LENGTH = "this model's maximum context length"  # words by which clients know this error
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Who(NamedTuple):
    """Whose share of the machine a request takes, under which salt it reads and leaves keys and values, and the adapter
    that it wants."""

    client: str
    salt: str
    adapter: str = ""


NOBODY = Who("", "")


@dataclass
class Wish:
    """A reply that somebody wants, in no API's own words."""

    messages: Sequence[dict[str, Any]]  # as in OpenAI's chat API; instruct.read checks them
    tools: Sequence[dict[str, Any]] = ()  # as in OpenAI's chat API
    tool_choice: str | dict[str, Any] = "auto"  # "auto" | "none" | "required" | {"function": {"name": ...}}
    most_calls: int = limits.CALLS
    form: dict[str, Any] | None = None  # what the text has to match, as response_format in OpenAI's chat API
    max_tokens: int | None = None  # None: as many as the context has room for
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False
    alternatives: int | None = None
    who: Who = NOBODY

    @property
    def calls(self) -> bool:
        """Whether tools may be called."""
        return bool(self.tools) and self.tool_choice != "none"


def who(request: Request, salt: str | None, adapter: str = "") -> Who:
    """What access.py found out; `salt`, the request's own, holds within its tenant's."""
    state = request.state
    return Who(getattr(state, "client", ""), "\n".join(filter(None, (getattr(state, "salt", ""), salt))), adapter)


async def ask(desk: Desk, wish: Wish) -> Ask:
    """Tokenised and checked. RequestError, TemplateError, ContextError: what is wrong with the wish."""
    if not wish.tools and wish.tool_choice not in ("auto", "none"):
        raise RequestError("tool_choice demands a call, and no tool is given")
    chat = chat_format(desk)
    check_tools(wish.tools)
    tools = list(wish.tools) if wish.calls else None
    check_length(desk, sum(len(m["content"]) for m in wish.messages if isinstance(m.get("content"), str)))
    size = LONG if tools or not chat.version else sum(len(str(m.get("content"))) for m in wish.messages)
    prompt = await aside(size, chat.encode, wish.messages, tools)
    shape = await aside(LONG, grammar_of, desk, wish) if wish.form or wish.calls else None
    return Ask(
        prompt, room(desk, prompt, wish.max_tokens), wish.sampling, [*wish.stop, *chat.stop], wish.ignore_eos,
        start=not _continued(wish), alternatives=wish.alternatives, grammar=shape,
        client=wish.who.client, salt=wish.who.salt, adapter=wish.who.adapter,
    )  # fmt: skip


def check_tools(tools: Sequence[dict[str, Any]]) -> None:
    """RequestError for the first that is no function with a name and, perhaps, a description and parameters."""
    names: set[str] = set()
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise RequestError(f'tools[{i}]: expected {{"type": "function", "function": {{"name": ..., ...}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise RequestError(f"tools[{i}]: the name is {name!r:.80}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -")
        if name in names:
            raise RequestError(f"tools[{i}]: there is a tool {name} already")
        names.add(name)
        if not isinstance(function.get("description") or "", str):
            raise RequestError(f"tools[{i}]: the description of {name} is not a text")
        if not isinstance(function.get("parameters") or {}, dict):
            raise RequestError(f"tools[{i}]: the parameters of {name} are not an object")


def grammar_of(desk: Desk, wish: Wish) -> str | None:
    """What the reply has to match, written for the engine and tried; None where anything goes."""
    from ... import grammar

    form = written(wish.form)
    if wish.calls and wish.tool_choice != "auto":
        if form is not None:
            raise RequestError("response_format and a tool_choice that demands a call cannot both be met: give one")
        form = grammar.calls(_chosen(wish), chat_format(desk), wish.most_calls)
    if form is not None and wish.ignore_eos:
        raise RequestError("ignore_eos and a form of the text cannot both be met: a text that matches has an end")
    if form is not None:
        _matcher(desk.tokenizer).match(form)
    return form


def written(form: dict[str, Any] | None) -> str | None:
    """response_format -> a grammar: OpenAI's text, json_object and json_schema, and bise's regex and grammar (Lark)."""
    from ... import grammar

    kind = form.get("type") if form else "text"
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return grammar.json_object()
    if kind == "json_schema":
        given = form.get("json_schema")
        schema = given.get("schema") if isinstance(given, dict) else None
        if not isinstance(schema, dict):
            raise RequestError('response_format: json_schema has no schema, expected {"name": ..., "schema": {...}}')
        return grammar.json_schema(schema)
    if kind in ("regex", "grammar"):
        text = form.get(str(kind))
        if not isinstance(text, str):
            raise RequestError(f'response_format: {kind} is missing, expected {{"type": "{kind}", "{kind}": "..."}}')
        return grammar.regex(text) if kind == "regex" else grammar.lark(text)
    kinds = "text, json_object, json_schema, regex or grammar"
    raise RequestError(f"response_format: type is {str(kind)!r:.40}, expected {kinds}")


def _chosen(wish: Wish) -> Sequence[dict[str, Any]]:
    """The tools of which one has to be called."""
    if wish.tool_choice == "required" or not isinstance(wish.tool_choice, dict):
        return wish.tools
    function = wish.tool_choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    chosen = [t for t in wish.tools if isinstance(f := t.get("function"), dict) and f.get("name") == name]
    if not chosen:
        raise RequestError(f"tool_choice demands a tool {str(name)!r:.80}, which is not among tools")
    return chosen


@lru_cache(maxsize=2)
def _matcher(tokenizer: Tokenizer) -> Grammar:
    from ...grammar import Grammar

    return Grammar(tokenizer)


def _continued(wish: Wish) -> bool:
    """The last message is a reply's beginning: what comes keeps the space before it."""
    return bool(wish.messages[-1].get("prefix"))


def chat_format(desk: Desk) -> ChatFormat:
    if desk.chat_format is None:
        raise RequestError(f"{desk.name} is a base model without a chat format: use /v1/completions")
    return desk.chat_format


def check_length(desk: Desk, characters: int) -> None:
    """ContextError for texts that cannot fit however they are cut: nobody has to cut eight megabytes to know that."""
    tokenizer = desk.tokenizer
    least = 0 if tokenizer.vocab.squeeze_spaces else characters // _longest(tokenizer)
    if least > desk.context:
        raise ContextError(f"{LENGTH} is {desk.context:,} tokens, the prompt has more than {least:,}: shorten it")


@lru_cache(maxsize=2)
def _longest(tokenizer: Tokenizer) -> int:
    """Bytes of the longest piece."""
    return max(len(tokenizer.piece(i)) for i in range(tokenizer.vocab_size))


def room(desk: Desk, prompt: Sequence[int], max_tokens: int | None) -> int:
    """max_tokens, where it fits beside the prompt; None: all there is."""
    n, context = len(prompt), desk.context
    if n == 0:
        raise RequestError("the prompt has no tokens: give at least one")
    wanted = 1 if max_tokens is None else max_tokens
    if n + wanted > context:
        beside = "" if max_tokens is None else f" and max_tokens is {max_tokens:,}"
        raise ContextError(f"{LENGTH} is {context:,} tokens, the prompt has {n:,}{beside}: shorten it")
    return context - n if max_tokens is None else max_tokens


class Reply:
    """What becomes of a Wish. After the news with `finish`: text, calls (as in OpenAI's API) and finish are whole."""

    def __init__(self, desk: Desk, wish: Wish, answer: Answer) -> None:
        self.answer = answer
        self.text = ""  # what has been given out
        self.calls: list[dict[str, Any]] = []
        self._chat = chat_format(desk) if wish.calls else None  # None: nothing is held back
        self._most = wish.most_calls
        self._begin = self._chat.calls_begin if self._chat else ""
        self._marker = desk.tokenizer.control.get(self._begin)
        self._stream = desk.tokenizer.stream()
        self._decoded = 0  # characters of the tokens so far
        self._before: int | None = None  # characters that came before the calls

    def hear(self, news: News) -> str:
        """The text that can be shown now; never a part of what is a call."""
        self.answer.hear(news)
        if self._chat is None:
            new = news.text
        else:
            self._look(news)
            shown = self._before if self._before is not None else _certain(self.answer.text, self._begin)
            new = self.answer.text[len(self.text) : shown]
            if news.finish:
                new = self._end(self._chat)
        self.text += new
        return new

    @property
    def finish(self) -> str:
        """ "" | "stop" | "length" | "tool_calls" """
        return "tool_calls" if self.calls else self.answer.finish

    def _look(self, news: News) -> None:
        """Where the calls begin."""
        for token in news.tokens:
            if token.id == self._marker and self._before is None:
                self._before = self._decoded
            self._decoded += len(self._stream.push(token.id))

    def _end(self, chat: ChatFormat) -> str:
        """At the end the ids say what was called; if nothing can be read there, it was text after all."""
        self.calls = chat.parse_calls(self.answer.ids)[1][: self._most]
        if not self.calls:
            return self.answer.text[len(self.text) :]
        before = self._before if self._before is not None else self.answer.text.find(self._begin)
        return self.answer.text[len(self.text) : before].rstrip() if before > len(self.text) else ""


def _certain(text: str, begin: str) -> int:
    """How many characters are certainly no beginning of calls: a model may spell out what is a control token."""
    at = text.find(begin) if begin else len(text)
    if at >= 0:
        return at
    held = next((n for n in range(min(len(text), len(begin) - 1), 0, -1) if text.endswith(begin[:n])), 0)
    return len(text) - held
