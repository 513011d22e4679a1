"""Messages to ids: Mistral's formats natively, any other model's Jinja template as a guest in the sandbox.

Messages are as in OpenAI's API: {"role": "system" | "user" | "assistant" | "tool", "content": text, "tool_calls",
"tool_call_id"}. System messages are gathered into one prompt, neighbours of one role are merged, and
{"role": "assistant", "prefix": True} at the end is continued.

What a guest template prints is text in which control tokens are spelled out, so contents must not spell any. A mark
(a private-use character that occurs nowhere else) is put into every text that comes from a message before the
template sees it: after each character that begins a control token's name, before each that ends one, and after the
first character of the text. No name can then come about from a content, alone or together with what stands beside it.
The printed text is split at control tokens, then the marks are taken out. A template may still spell roles in plain
text ("<|user|>" in Zephyr): as in Mistral's v1, that much a user can type too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import instruct
from .disk import read_small
from .errors import RequestError, TemplateError
from .instruct import Turn
from .template import render
from .tokenizer import MAX_FILE, TURN_ENDS, Tokenizer
from .vocab import parse_json

if TYPE_CHECKING:
    from .weights import Weights

Render = Callable[[str, Mapping[str, Any]], str]
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

# What bise writes into its own GGUF files, for other programs; bise itself recognises it and uses v1 as it is.
TEMPLATE_V1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


class Answer(NamedTuple):
    """One turn of the assistant in the ids of a conversation.

    first, end  its first id, and behind its last, which is eos or what else ends a turn (closed), if anything does
    messages    the numbers of the messages that it was made of
    """

    first: int
    end: int
    messages: tuple[int, ...]
    closed: bool


@dataclass(frozen=True)
class ChatFormat:
    """How one model is spoken to. version: Mistral's 1, 2 or 3, or 0 for a guest template."""

    tokenizer: Tokenizer
    version: int
    template: str = ""

    @staticmethod
    def of(weights: Weights, tokenizer: Tokenizer) -> ChatFormat | None:
        """What the model's files say: the GGUF's tokenizer.chat_template, or the folder's templates."""
        return ChatFormat.detect(tokenizer, find_template(weights))

    @staticmethod
    def detect(tokenizer: Tokenizer, template: str | None = None) -> ChatFormat | None:
        """None: a base model, which has no format of its own (`named` gives it one by request).

        A vocabulary with the control token [INST] speaks v3 (v2 only by request: the two share their tokens). A
        template that prints what Mistral's does, spaces aside, stands for the native format; any other is a guest.
        """
        native = 3 if "[INST]" in tokenizer.control else 1
        if not template:
            return ChatFormat(tokenizer, native) if native == 3 else None
        if template == TEMPLATE_V1 or _prints_as_mistral(template, tokenizer):
            return ChatFormat(tokenizer, native, template)
        return ChatFormat(tokenizer, 0, template)

    @staticmethod
    def named(name: str, tokenizer: Tokenizer) -> ChatFormat:
        """ "v1", "v2" or "v3", whatever the files say."""
        if name not in ("v1", "v2", "v3"):
            raise RequestError(f"chat format {name!r:.40}, expected v1, v2 or v3")
        if name != "v1" and "[INST]" not in tokenizer.control:
            raise RequestError(f"chat format {name} needs control tokens that this vocabulary has not: use v1")
        return ChatFormat(tokenizer, int(name[1]))

    @property
    def name(self) -> str:
        """For people: "Mistral v3", or what the guest is."""
        return f"Mistral v{self.version}" if self.version else "the model's own template (sandboxed)"

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer, where the vocabulary has no control token for them."""
        return tuple(
            s for s in TURN_ENDS if not self.version and s in self.template and s not in self.tokenizer.control
        )

    def encode(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        """Messages (and tools, as in OpenAI's API) -> ids, bos first, ready for the assistant to speak.

        A last message of the assistant is closed, or left open where it is a prefix. Raises TemplateError where the
        format cannot say it, RequestError for a message that is not one.
        """
        if self.version:
            return instruct.encode(self.version, messages, self.tokenizer, tools)
        if tools and "tools" not in self.template:
            raise TemplateError("this model's chat template has no tools: ask without them")
        return _encode_guest(self.template, instruct.read(messages), self.tokenizer, tools)

    def answers(
        self, messages: Messages, tools: Tools | None = None, last: bool = False, render: Render = render
    ) -> tuple[list[int], list[Answer]]:
        """The ids of `encode`, and where in them the assistant speaks: what a model has to learn. last: look for the
        last answer only. render: a `template.Guest` where there are many conversations.

        In a guest's text an answer begins where the prompt for it ends, and ends with the first token (or text) at
        which the engine stops. TemplateError where the prompt is not how the whole begins, id for id.
        """
        if not self.version:
            return _guest_answers(self, instruct.read(messages), tools, last, render)
        ids: list[int] = []
        found = []
        for turn, part in instruct.encode_turns(self.version, messages, self.tokenizer, tools):
            if turn and turn.role == "assistant":
                closed = not turn.prefix and self.tokenizer.eos is not None
                found.append(Answer(len(ids), len(ids) + len(part), turn.at, closed))
            ids += part
        return ids, found[-1:] if last else found

    def parse_calls(self, ids: Sequence[int]) -> tuple[str, list[dict[str, Any]]]:
        """An answer's ids -> (text, tool calls as in OpenAI's API)."""
        if self.calls_begin == instruct.TAGS[0]:
            return instruct.parse_tagged_calls(ids, self.tokenizer)
        return instruct.parse_calls(ids, self.tokenizer) if self.calls_begin else (self.tokenizer.decode(ids), [])

    @property
    def calls_begin(self) -> str:
        """What stands before calls of tools: [TOOL_CALLS], or <tool_call> in a guest's template that says so (Hermes).

        "": this format has no calls, or none that are known here; what a model writes then is text.
        """
        if self.version:
            return "[TOOL_CALLS]" if self.version > 1 else ""
        return instruct.TAGS[0] if instruct.TAGS[0] in self.template and "tools" in self.template else ""


def find_template(weights: Weights) -> str | None:
    """The chat template that came with a model, if there is one."""
    if weights.layout == "gguf":
        return _text(weights.metadata.get("tokenizer.chat_template"))
    if (path := weights.path / "chat_template.jinja").exists():
        return read_small(path, MAX_FILE).decode(errors="replace")
    if (path := weights.path / "tokenizer_config.json").exists():
        return _text(parse_json(read_small(path, MAX_FILE), path.name).get("chat_template"))
    return None


def _text(found: Any) -> str | None:
    """A template, or the one called "default" of a list of {"name", "template"}."""
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _prints_as_mistral(template: str, tokenizer: Tokenizer) -> bool:
    if "[INST]" not in template or "<<SYS>>" in template or "[SYSTEM_PROMPT]" in template:
        return False
    bos, eos = _ends(tokenizer)
    messages = [{"role": r, "content": c} for r, c in (("user", "A1"), ("assistant", "B2"), ("user", "C3"))]
    variables = {"messages": messages, "bos_token": bos, "eos_token": eos, "add_generation_prompt": True, "tools": None}
    try:
        text = "".join(render(template, variables).split())
    except TemplateError:
        return False
    return text.removeprefix(bos) == f"[INST]A1[/INST]B2{eos}[INST]C3[/INST]"


def _ends(tokenizer: Tokenizer) -> tuple[str, str]:
    bos, eos = (None if i is None else tokenizer.name(i) for i in (tokenizer.bos, tokenizer.eos))
    return bos or "", eos or ""


# --- guests


def _encode_guest(template: str, turns: list[Turn], tokenizer: Tokenizer, tools: Tools | None) -> list[int]:
    page = _Page(template, *instruct.merge(turns), tokenizer, tools, render)
    return page.ids(page.text(len(page.turns)))


def _guest_answers(
    format: ChatFormat, turns: list[Turn], tools: Tools | None, last: bool, render: Render
) -> tuple[list[int], list[Answer]]:
    page = _Page(format.template, *instruct.merge(turns), format.tokenizer, tools, render)
    ends = {*map(format.tokenizer.name, format.tokenizer.stop_ids), *format.stop}
    speaks = [n for n, turn in enumerate(page.turns) if turn.role == "assistant"]
    whole = page.text(len(page.turns))
    ids = page.ids(whole)
    found = []
    for n in speaks[-1:] if last else speaks:
        prompt, said = page.text(n), whole if n + 1 == len(page.turns) else page.text(n + 1)
        at = said.find(prompt) + len(prompt)
        closing = _any_of(ends).search(said, at)
        upto = page.ids(said[: closing.end() if closing else len(said.rstrip())])
        first = page.ids(prompt)
        if page.turns[n - 1].role == "assistant" or not (said.startswith(prompt) and _begins(ids, upto, first)):
            raise TemplateError(
                f"message {page.turns[n].at[0]}: this chat template writes the conversation up to an answer in another "
                "way once the answer is there, so what the model would see is not certain: learn the last answer only, "
                "or use a format by name (v1, v2, v3)"
            )
        found.append(Answer(len(first), len(upto), page.turns[n].at, closing is not None))
    return ids, found


def _begins(ids: list[int], upto: list[int], first: list[int]) -> bool:
    """Whether a conversation begins with the prompt and the answer, and these with the prompt."""
    return ids[: len(upto)] == upto and upto[: len(first)] == first and len(upto) > len(first)


@dataclass
class _Page:
    """One conversation, as a guest prints it: all of it, or its first turns, with the same mark."""

    template: str
    system: str
    turns: list[Turn]
    tokenizer: Tokenizer
    tools: Tools | None
    render: Render

    def __post_init__(self) -> None:
        texts = [self.system, *(t.content for t in self.turns), str(self.tools), str([t.calls for t in self.turns])]
        self.mark = _Mark(self.tokenizer, texts)

    def ids(self, text: str) -> list[int]:
        """What was printed -> ids: control tokens are those that the template wrote."""
        ids = []
        for part in self.tokenizer.split(text):
            ids += [part] if isinstance(part, int) else self.tokenizer.encode(self.mark.remove(part))
        if self.tokenizer.add_bos and self.tokenizer.bos is not None and ids[:1] != [self.tokenizer.bos]:
            ids.insert(0, self.tokenizer.bos)
        return ids

    def text(self, count: int) -> str:
        """What the template makes of the first turns, marks in it. One that has no system role gets the system prompt
        in front of the first user message."""
        turns = self.turns[:count]
        if not self.system:
            return self._print(turns)
        try:
            return self._print([Turn("system", self.system), *turns])
        except TemplateError:
            first = Turn("user", self.system + "\n" + turns[0].content)
            return self._print([first, *turns[1:]])

    def _print(self, turns: list[Turn]) -> str:
        bos, eos = _ends(self.tokenizer)
        mark, last = self.mark, turns[-1]
        tools = mark.into(list(self.tools)) if self.tools else None
        text = self.render(self.template, {
            "messages": [_message(t, mark) for t in turns], "tools": tools,
            "add_generation_prompt": last.role != "assistant", "bos_token": bos, "eos_token": eos,
        })  # fmt: skip
        for turn in turns:
            if turn.role in ("system", "user") and mark.text(turn.content).strip() not in text:
                raise TemplateError(f"the chat template drops a {turn.role} message: {turn.content.strip()[:40]!r}")
        return _open_end(text, mark.text(last.content).strip()) if last.prefix else text


def _open_end(text: str, answer: str) -> str:
    """The text up to the end of the unfinished answer."""
    at = text.rfind(answer)
    if at < 0:
        raise TemplateError("this chat template does not print the answer that is to be continued")
    return text[: at + len(answer)]


def _message(turn: Turn, mark: _Mark) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": mark.text(turn.content)}
    if turn.calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            {"id": mark.text(c["id"] or ""), "type": "function",
             "function": {"name": c["name"], "arguments": mark.into(c["arguments"])}} for c in turn.calls
        ]  # fmt: skip
    if turn.role == "tool":
        message |= {"name": turn.name, "tool_call_id": mark.text(turn.call_id or "")}
    return message


class _Mark:
    """Puts marks into what people said, and takes them out again."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        """`texts`: all that will be marked, so that the mark occurs in none of it."""
        used = set("".join(texts))
        self.mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)
        self.names = [n for n in tokenizer.control if len(n) > 1]
        self._first, self._last = (_any_of({n[at] for n in self.names}) for at in (0, -1))

    def text(self, text: str) -> str:
        text = re.sub(r"\S", lambda m: m[0] + self.mark, text, count=1)
        text = self._first.sub(lambda m: m[0] + self.mark, text)
        return self._last.sub(lambda m: self.mark + m[0], text)

    def into(self, value: Any) -> Any:
        """Every string of a JSON value, marked. Keys stay: templates look things up by them."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            if bad := [k for k in value if any(n in str(k) for n in self.names)]:
                raise RequestError(f"tools: the key {bad[0]!r:.40} spells a control token")
            return {str(k): self.into(v) for k, v in value.items()}
        return [self.into(v) for v in value] if isinstance(value, list | tuple) else value

    def remove(self, text: str) -> str:
        return text.replace(self.mark, "")


def _any_of(characters: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(characters))) or "(?!)")
