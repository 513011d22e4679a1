"""What one row is, told by its keys, whatever file it came from. The table of all spellings is at `FORMATS`.

    format             keys                                                     becomes
    chat               messages (and tools)                                     Talk
    ShareGPT           conversations (and system, tools)                        Talk
    Alpaca             instruction, input, output (and system, history)         Talk; without a chat format Writing
    prompt/completion  prompt and completion (or response, answer), question    Talk; without a chat format Writing
                       and answer
    text               text, or a string by itself                              Writing
    pairs              chosen and rejected: texts, messages or whole            Choice
                       conversations, with prompt, instruction, messages or
                       conversations; or transcripts as hh-rlhf has them
    KTO                one of the first four, and label or kto_tag              Judged

Without a chat format Alpaca is laid out as in `alpaca_text`, and prompt and completion are joined as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .faults import BadRow
from .messages import Messages, from_pairs, from_transcript, spoken, tools_of

Kind = Literal["sft", "pairs", "verdicts"]
KINDS = ("sft", "pairs", "verdicts")
FORMATS = (
    "messages, conversations, instruction + output, prompt + completion, text, chosen + rejected, or label beside a "
    "conversation"
)
_PROMPTS = ("prompt", "question", "query")
_TOLD = {"messages", "conversations", "instruction", *_PROMPTS}
_ANSWERS = ("completion", "response", "answer", "output")


@dataclass
class Talk:
    """A conversation; learnt: which of its messages are."""

    messages: Messages
    learnt: list[bool]
    tools: list[dict[str, Any]] | None = None


@dataclass
class Writing:
    """A text and how it goes on; only what comes after the prompt is learnt."""

    prompt: str
    text: str


Told = Talk | Writing


@dataclass
class Choice:
    """Two answers to one prompt, the first one better."""

    chosen: Told
    rejected: Told


@dataclass
class Judged:
    """An answer, and whether it was good."""

    told: Told
    good: bool


@dataclass
class Known:
    """A row that was recognised. format: its name in the table above."""

    format: str
    row: Talk | Writing | Choice | Judged
    kind: Kind = field(default="sft")


def kind_of(value: Any) -> Kind:
    """What a row seems to be for, by its keys."""
    if isinstance(value, Mapping):
        if {"chosen", "rejected"} <= value.keys() or {"chosen_messages", "rejected_messages"} <= value.keys():
            return "pairs"
        if _verdict(value) is not None and not _TOLD.isdisjoint(value):
            return "verdicts"
    return "sft"


def recognise(value: Any, kind: Kind, chat: bool) -> Known:
    """A row of JSON -> what it is. chat: the model has a chat format. Raises BadRow."""
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise BadRow("not a row", f"{type(value).__name__}, expected an object with {FORMATS}")
    if kind == "pairs":
        return Known("pairs", _choice(value, chat), kind)
    if kind == "verdicts":
        if (good := _verdict(value)) is None:
            raise BadRow("no verdict", f"no label (or kto_tag) that is true or false among {_keys(value)}")
        return Known("KTO", Judged(_told(value, chat)[1], good), kind)
    return Known(*_told(value, chat))


def _verdict(value: Mapping[str, Any]) -> bool | None:
    found = value.get("kto_tag", value.get("label"))
    return found if isinstance(found, bool) else None


def _told(value: Mapping[str, Any], chat: bool) -> tuple[str, Told]:
    if "messages" in value:
        return "chat", _talk(value, *spoken(value["messages"]))
    if "conversations" in value:
        return "ShareGPT", _talk(value, *spoken(value["conversations"]))
    if "instruction" in value:
        return "Alpaca", _alpaca(value, _answer(value), chat)
    if (key := _first(value, _PROMPTS)) and _first(value, _ANSWERS):
        return "prompt/completion", _completed(value[key], _answer(value, raw=True), chat)
    if "text" in value:
        text = _text(value, "text")
        if not text.strip():
            raise BadRow("empty content", "text is empty")
        return "text", Writing("", text)
    if key:
        raise BadRow("no answer", f"{key} without {', '.join(_ANSWERS[:-1])} or {_ANSWERS[-1]}")
    raise BadRow("unknown keys", f"the keys are {_keys(value)}, expected {FORMATS}")


def _talk(value: Mapping[str, Any], messages: Messages, learnt: list[bool]) -> Talk:
    system = _text(value, "system", "")
    if system.strip() and messages[0]["role"] != "system":
        messages, learnt = [{"role": "system", "content": system}, *messages], [False, *learnt]
    return Talk(messages, learnt, tools_of(value.get("tools")))


def _alpaca(value: Mapping[str, Any], answer: str, chat: bool) -> Told:
    instruction, given = _text(value, "instruction"), _text(value, "input", _text(value, "context", ""))
    system, history = _text(value, "system", ""), _history(value.get("history"))
    if not (instruction + given).strip():
        raise BadRow("empty content", "instruction is empty")
    if not chat:
        return Writing(alpaca_text(instruction, given, system, history), answer)
    question = "\n\n".join(filter(None, (instruction, given)))
    return _by_pairs(system, [*history, (question, answer)])


def alpaca_text(instruction: str, given: str = "", system: str = "", history: Sequence[tuple[str, str]] = ()) -> str:
    """The prompt for a model without a chat format: "### Instruction:", "### Input:" if there is one, "### Response:",
    each with its text below it and an empty line behind; a system prompt in front, earlier exchanges likewise."""
    parts = [system] if system.strip() else []
    for question, answer in history:
        parts += [f"### Instruction:\n{question}", f"### Response:\n{answer}"]
    parts += [f"### Instruction:\n{instruction}", *([f"### Input:\n{given}"] if given.strip() else [])]
    return "\n\n".join([*parts, "### Response:\n"])


def _completed(prompt: Any, answer: Any, chat: bool) -> Told:
    if isinstance(prompt, list) or isinstance(answer, list):
        return Talk(*spoken([*_as_messages(prompt, "user"), *_as_messages(answer, "assistant")]))
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise BadRow("not a text", f"prompt and completion are {type(prompt).__name__} and {type(answer).__name__}")
    if not answer.strip():
        raise BadRow("empty content", "the answer is empty")
    if not chat:
        return Writing(prompt, answer)
    if not prompt.strip():
        raise BadRow("empty content", "prompt is empty")
    return _by_pairs("", [(prompt, answer)])


def _by_pairs(system: str, exchanges: list[tuple[str, str]]) -> Talk:
    messages = from_pairs(system, exchanges)
    return Talk(*spoken(messages))


def _choice(value: Mapping[str, Any], chat: bool) -> Choice:
    """Both sides as whole conversations (or texts), after the same prompt."""
    good, bad = (value.get(side, value.get(f"{side}_messages")) for side in ("chosen", "rejected"))
    if good is None or bad is None:
        raise BadRow("no pair", f"no chosen and rejected among {_keys(value)}")
    if good == bad:
        raise BadRow("nothing to prefer", "chosen and rejected are the same")
    return Choice(_side(value, good, chat), _side(value, bad, chat))


def _side(value: Mapping[str, Any], answer: Any, chat: bool) -> Told:
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping) and not _speaks(answer[0]):
        return _talk(value, *spoken(answer))  # a whole conversation; a prompt beside it says the same again
    if turns := value.get("messages", value.get("conversations")):
        return _talk(value, *_joined(spoken(turns), spoken(_as_messages(answer, "assistant"))))
    if "instruction" in value:
        if isinstance(answer, str):
            return _alpaca(value, _filled(answer), chat)
        raise BadRow("not a text", f"an answer to an instruction is {type(answer).__name__}, expected text")
    if (key := _first(value, _PROMPTS)) is not None:
        return _completed(value[key], answer, chat)
    if isinstance(answer, str):
        messages = from_transcript(answer)
        return Talk(messages, [m["role"] == "assistant" for m in messages])
    raise BadRow("no prompt", f"chosen and rejected without a prompt; the keys are {_keys(value)}")


def _speaks(message: Mapping[str, Any]) -> bool:
    return message.get("role", message.get("from")) in ("assistant", "gpt")


def _joined(a: tuple[Messages, list[bool]], b: tuple[Messages, list[bool]]) -> tuple[Messages, list[bool]]:
    return a[0] + b[0], a[1] + b[1]


def _as_messages(value: Any, role: str) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value if isinstance(value, Mapping) else {"role": role, "content": value}]


def _answer(value: Mapping[str, Any], raw: bool = False) -> Any:
    """The answer under whichever name it has; raw: as it is, perhaps a list of messages."""
    key = _first(value, ("output", *_ANSWERS[:-1]) if not raw else _ANSWERS)
    if key is None:
        raise BadRow("no answer", f"no output, completion, response or answer among {_keys(value)}")
    return value[key] if raw else _filled(_text(value, key))


def _filled(answer: str) -> str:
    if not answer.strip():
        raise BadRow("empty content", "the answer is empty")
    return answer


def _history(value: Any) -> list[tuple[str, str]]:
    pairs = value or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in pairs
    ):
        raise BadRow("not a text", f"history is {str(value)[:40]!r}, expected a list of [question, answer]")
    return [(question, answer) for question, answer in pairs]


def _text(value: Mapping[str, Any], key: str, default: str | None = None) -> str:
    found = value.get(key)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise BadRow("not a text", f"{key} is {type(found).__name__}, expected text")
    return found


def _first(value: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if value.get(key) is not None), None)


def _keys(value: Mapping[str, Any]) -> str:
    return ", ".join(map(str, value))[:80] or "none"


def contents(row: Told | Choice | Judged) -> list[str]:
    """Every text of a row, for who looks for something in them."""
    if isinstance(row, Choice):
        return contents(row.chosen) + contents(row.rejected)
    if isinstance(row, Judged):
        return contents(row.told)
    return [row.prompt, row.text] if isinstance(row, Writing) else [m["content"] for m in row.messages]


def without_tail(talk: Talk) -> Talk:
    """Up to the last answer: what is said after it is answered by nobody."""
    last = max((i for i, m in enumerate(talk.messages) if m["role"] == "assistant"), default=-1)
    if last < 0:
        raise BadRow("no answer", "no message of the assistant")
    return replace(talk, messages=talk.messages[: last + 1], learnt=talk.learnt[: last + 1])
