"""Conversations in other people's spellings -> messages as chat.py knows them, and which of them are learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...instruct import call_id
from .faults import BadRow

Messages = list[dict[str, Any]]
SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "function_call": "call", "observation": "tool", "tool": "tool",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")
_WEIGHTS = ("weight", "train", "loss_weight")  # Mistral and OpenAI, Axolotl, LLaMA-Factory
_TURN = re.compile(r"\n\n(Human|Assistant):")


def spoken(messages: Any) -> tuple[Messages, list[bool]]:
    """Messages as in OpenAI's API. Those with "weight": 0 or "train": false are read and not learnt. BadRow."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow("no messages", f"messages is {_shown(messages)}, expected a list of at least one")
    if all(isinstance(m, Mapping) and "from" in m for m in messages):
        return from_sharegpt(messages)
    checked = [_message(i, m) for i, m in enumerate(messages)]
    return checked, [_learnt(i, m) for i, m in enumerate(messages)]


def _message(i: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow("no messages", f"message {i} is {_shown(message)}, expected an object with role and content")
    if (role := message.get("role")) is None:
        raise BadRow("no role", f"message {i} has no role: its keys are {', '.join(map(str, message))[:60]}")
    if role not in ROLES:
        raise BadRow("unknown role", f"message {i}: role is {role!r:.40}, expected system, user, assistant or tool")
    if message.get("prefix"):
        raise BadRow("unfinished answer", f"message {i} is a prefix: an answer that is learnt has to end")
    content = _content(i, message.get("content"))
    if not content.strip() and (role == "user" or (role == "assistant" and not message.get("tool_calls"))):
        raise BadRow("empty content", f"message {i}: the {role}'s content is empty")
    kept = {key: message[key] for key in ("tool_calls", "tool_call_id", "name") if message.get(key) is not None}
    return {"role": role, "content": content, **kept}


def _content(i: int, content: Any) -> str:
    """Text, or a list of parts {"type": "text", "text" (LLaMA-Factory: "value")}."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadRow("not a text", f"message {i}: content of type {kind!r:.40}, expected text")
        texts.append(text)
    return "\n\n".join(filter(None, texts))


def _learnt(i: int, message: Mapping[str, Any]) -> bool:
    told = [message[key] for key in _WEIGHTS if message.get(key) is not None]
    if any(not isinstance(value, int | float) or value not in (0, 1) for value in told):
        raise BadRow("unknown weight", f"message {i}: weight is {told[0]!r:.40}, expected 0 or 1")
    assistant = message["role"] == "assistant"
    if not assistant and any(told):
        raise BadRow("unknown weight", f"message {i}: weight 1 for the {message['role']}: answers alone are learnt")
    return assistant and all(told)


def from_sharegpt(turns: Any) -> tuple[Messages, list[bool]]:
    """ShareGPT's {"from", "value"}. Calls of functions get the ids that bise gives to calls which it reads itself."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRow("no messages", f"conversations is {_shown(turns)}, expected a list of at least one")
    messages: Messages = []
    learnt = []
    waiting: list[str] = []  # ids of calls without a result
    for i, turn in enumerate(turns):
        role = SHAREGPT.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        if role is None or not isinstance(turn, Mapping):
            named = turn.get("from") if isinstance(turn, Mapping) else turn
            raise BadRow("unknown role", f"message {i}: from is {_shown(named)}, expected human, gpt or system")
        message = _message(i, {**turn, "role": "assistant" if role == "call" else role, "content": turn.get("value")})
        if role == "call":
            message = {"role": "assistant", "content": "", "tool_calls": _calls(i, message["content"])}
            waiting += [call["id"] for call in message["tool_calls"]]
        if role == "tool" and waiting:
            message["tool_call_id"] = waiting.pop(0)
        messages.append(message)
        learnt.append(_learnt(i, {**turn, "role": message["role"]}))
    return messages, learnt


def _calls(i: int, text: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow("not a call", f"message {i}: the function call {text[:40]!r} is not JSON") from None
    made = []
    for n, call in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise BadRow("not a call", f"message {i}: the function call has no name: {text[:40]!r}")
        arguments = json.dumps(call.get("arguments", {}), ensure_ascii=False)
        own = call_id(f"{n} {call['name']} {arguments}")
        made.append({"id": own, "type": "function", "function": {"name": call["name"], "arguments": arguments}})
    return made


def from_transcript(text: str) -> Messages:
    """hh-rlhf's "\\n\\nHuman: ...\\n\\nAssistant: ..." -> messages. BadRow where it is none."""
    before, *parts = _TURN.split(text)
    if not parts or before.strip():
        raise BadRow("no prompt", "neither a prompt, nor a transcript that begins with '\\n\\nHuman:'")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    turns = [{"from": role, "value": said.strip()} for role, said in pairs]
    return [_message(i, {"role": _HH[t["from"]], "content": t["value"]}) for i, t in enumerate(turns)]


_HH = {"Human": "user", "Assistant": "assistant"}


def from_pairs(system: str, exchanges: Sequence[tuple[str, str]]) -> Messages:
    """A system prompt ("": none), and questions with their answers."""
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for question, answer in exchanges:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Tools as in OpenAI's API, or bare functions, or either as JSON in a string."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("unreadable tools", f"tools is {value[:40]!r}, expected a JSON list") from None
    if not value or value == "":
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("unreadable tools", f"tools is {_shown(value)}, expected a list of functions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]


def _shown(value: Any) -> str:
    return f"{value!r:.40}" if value is None or isinstance(value, str | int | float) else type(value).__name__
