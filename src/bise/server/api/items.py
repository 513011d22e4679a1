"""The items of OpenAI's responses API and the messages of its chat API: each as the other."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .. import limits
from ..faults import Fault
from .replies import Reply

Message = dict[str, Any]
TEXTS = ("input_text", "output_text", "text")
ROLES = ("user", "assistant", "system", "developer")


def messages_of(items: str | Sequence[Any]) -> list[Message]:
    """What `input` may be -> messages. Fault 400 names the item that cannot be read."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not 1 <= len(items) <= limits.MESSAGES:
        raise Fault(400, f"input has {len(items):,} items, expected 1 to {limits.MESSAGES:,}", "input")
    messages: list[Message] = []
    for i, item in enumerate(items):
        at = f"input[{i}]"
        if not isinstance(item, Mapping):
            raise Fault(400, f"{at} is no object: expected a message, function_call or function_call_output", at)
        kind = item.get("type") or "message"
        if kind == "message":
            messages += _message(item, at)
        elif kind == "function_call":
            _add_call(messages, item, at)
        elif kind == "function_call_output":
            content = _text(item.get("output"), f"{at}.output")
            messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", at), "content": content})
        else:
            raise Fault(400, f"{at} has type {kind!r:.40}: expected message, function_call or function_call_output", at)
    return messages


def _message(item: Mapping[str, Any], at: str) -> list[Message]:
    """None where a reply was empty: no chat format can say that."""
    role, text = item.get("role"), _text(item.get("content"), f"{at}.content")
    if role not in ROLES:
        raise Fault(400, f"{at}.role is {role!r:.40}, expected {', '.join(ROLES)}", at)
    return [] if role == "assistant" and not text else [{"role": role, "content": text}]


def _add_call(messages: list[Message], item: Mapping[str, Any], at: str) -> None:
    """Calls that stand side by side, and the text before them, are one message."""
    function = {"name": _string(item, "name", at), "arguments": _string(item, "arguments", at)}
    call = {"id": _string(item, "call_id", at), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None, "tool_calls": []})
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: Any, at: str) -> str:
    """A text, or a list of parts that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Fault(400, f"{at} is {type(content).__name__}, expected a text or a list of parts", at)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if kind in TEXTS else None
        if not isinstance(text, str):
            raise Fault(400, f"{at}[{i}] is of type {kind!r:.40}: this model reads text only (input_text)", at)
        texts.append(text)
    return "\n\n".join(texts)


def _string(item: Mapping[str, Any], name: str, at: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise Fault(400, f"{at}.{name} is {type(value).__name__}, expected a text", f"{at}.{name}")
    return value


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Function tools -> tools as in the chat API. Fault 400 for every other kind: nothing here searches or executes."""
    for i, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise Fault(400, f"tools[{i}] has type {tool.get('type')!r:.40}: only functions can be offered", "tools")
    names = ("name", "description", "parameters")
    return [{"type": "function", "function": {n: t[n] for n in names if t.get(n) is not None}} for t in tools]


def said(reply: Reply) -> list[Message]:
    """A reply as a message; none where nothing was said."""
    if reply.calls:
        return [{"role": "assistant", "content": reply.text or None, "tool_calls": reply.calls}]
    return [{"role": "assistant", "content": reply.text}] if reply.text else []


# --- what a response is made of


def text_item(status: str, parts: Sequence[dict[str, Any]], id: str = "") -> dict[str, Any]:
    id = id or f"msg_{uuid.uuid4().hex}"
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def text_part(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def call_item(call: Mapping[str, Any], status: str = "completed", id: str = "") -> dict[str, Any]:
    """A call as in the chat API -> an item; without its arguments while it is in progress."""
    arguments = call["function"]["arguments"] if status == "completed" else ""
    return {
        "id": id or f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": status, "call_id": call["id"],
        "name": call["function"]["name"], "arguments": arguments,
    }  # fmt: skip
