"""The blocks of Anthropic's messages API -> messages and tools of OpenAI's chat API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..faults import Fault

Message = dict[str, Any]
JOIN = "\n\n"


def conversation(system: str | Sequence[Any] | None, messages: Sequence[Any]) -> list[Message]:
    """A last message of the assistant is continued, as Anthropic's API does. Fault 400 names the block that cannot be
    read."""
    text = _texts(system, "system") if system else ""
    found: list[Message] = [{"role": "system", "content": text}] if text else []
    for i, message in enumerate(messages):
        at = f"messages.{i}"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant"):
            raise Fault(400, f"{at}: role is {role!r:.40}, expected user or assistant", at)
        blocks = _blocks(message.get("content"), f"{at}.content")
        found += _user(blocks, at) if role == "user" else _assistant(blocks, at)
    if found and found[-1]["role"] == "assistant" and not found[-1].get("tool_calls"):
        found[-1]["prefix"] = True
    return found


def _blocks(content: Any, at: str) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise Fault(400, f"{at} is {type(content).__name__}, expected a text or a list of blocks", at)
    return content


def _user(blocks: Sequence[Mapping[str, Any]], at: str) -> list[Message]:
    """Results of tools first, then what is said."""
    found: list[Message] = []
    texts = []
    for i, block in enumerate(blocks):
        where = f"{at}.content.{i}"
        if block.get("type") == "tool_result":
            text = _texts(block.get("content") or "", f"{where}.content")
            content = json.dumps({"error": text}, ensure_ascii=False) if block.get("is_error") else text
            found.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": content})
        else:
            texts.append(_text(block, where))
    return [*found, {"role": "user", "content": JOIN.join(texts)}] if texts or not found else found


def _assistant(blocks: Sequence[Mapping[str, Any]], at: str) -> list[Message]:
    texts, calls = [], []
    for i, block in enumerate(blocks):
        where = f"{at}.content.{i}"
        if block.get("type") == "tool_use":
            function = {"name": _string(block, "name", where), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": _string(block, "id", where), "type": "function", "function": function})
        else:
            texts.append(_text(block, where))
    text = JOIN.join(texts)
    if not calls:
        return [{"role": "assistant", "content": text}] if text else []
    return [{"role": "assistant", "content": text or None, "tool_calls": calls}]


def _texts(content: Any, at: str) -> str:
    return JOIN.join(_text(block, f"{at}.{i}") for i, block in enumerate(_blocks(content, at)))


def _text(block: Mapping[str, Any], at: str) -> str:
    if block.get("type") != "text":
        raise Fault(400, f"{at}: a block of type {block.get('type')!r:.40}, this model reads text only", at)
    return _string(block, "text", at)


def _string(block: Mapping[str, Any], name: str, at: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise Fault(400, f"{at}.{name} is {type(value).__name__}, expected a text", f"{at}.{name}")
    return value


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools with an input_schema; Fault 400 for those that Anthropic's servers run themselves."""
    found = []
    for i, tool in enumerate(tools):
        if tool.get("type") not in (None, "custom"):
            raise Fault(400, f"tools.{i}: type {tool['type']!r:.40} is not run here, only your own tools", "tools")
        function = {
            "name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema"),
        }  # fmt: skip
        found.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    return found


def choice_of(choice: Mapping[str, Any] | None) -> tuple[str | dict[str, Any], bool]:
    """tool_choice -> (as in OpenAI's API, whether several calls may come)."""
    kind = choice.get("type") if choice else "auto"
    several = not (choice and choice.get("disable_parallel_tool_use"))
    if kind == "tool" and choice:
        return {"function": {"name": choice.get("name")}}, several
    names = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in names:
        raise Fault(400, f"tool_choice: type is {kind!r:.40}, expected auto, any, tool or none", "tool_choice")
    return names[kind], several
