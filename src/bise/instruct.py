"""Mistral's own chat formats, v1 to v3, id for id as the mistral-common package writes them.

    v1  Mistral 7B Instruct v0.1, v0.2   <s>"[INST] system\\n\\nuser [/INST]""assistant"</s> ...
    v2, v3  Instruct v0.3 is v3          <s>[INST]"user"[/INST]"assistant"</s>[AVAILABLE_TOOLS]"[...]"[/AVAILABLE_TOOLS]
                                         [INST]"system\\n\\nuser"[/INST][TOOL_CALLS]"[...]"</s>[TOOL_RESULTS]"{...}"[/TOOL_RESULTS]

Quoted parts are text, each cut into pieces on its own, with control tokens off: nobody can type one. In v1 the brackets
are text themselves, so there a user can type "[/INST]" and nothing tells it from the format's own: only v2 and v3 are
safe against that. The system prompt goes with the first user message in v1 and with the last one in v2 and v3, as do
the tools.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import RequestError, TemplateError
from .tokenizer import Tokenizer

JOIN = "\n\n"
TAGS = ("<tool_call>", "</tool_call>")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_AFTER = {  # which roles may follow which
    "system": ("user", "assistant", "system"),
    "user": ("assistant", "system", "user"),
    "assistant": ("assistant", "user", "tool"),
    "tool": ("assistant", "tool", "user"),
}


@dataclass
class Turn:
    """A checked message. calls: {"id": str | None, "name": str, "arguments": any JSON value}."""

    role: str
    content: str
    calls: list[dict[str, Any]] = field(default_factory=list)
    name: str | None = None
    call_id: str | None = None
    prefix: bool = False  # an unfinished answer, to be continued
    at: tuple[int, ...] = ()  # the messages that it was made of, by number


def read(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Messages as in OpenAI's API -> turns. RequestError names message and field; TemplateError for the order."""
    if not messages:
        raise TemplateError("a conversation needs at least one message")
    turns = [_turn(i, m) for i, m in enumerate(messages)]
    if turns[0].role == "tool" or (len(turns) == 1 and turns[0].role == "assistant" and not turns[0].prefix):
        raise TemplateError(f"a conversation cannot start with role {turns[0].role}: start with system or user")
    for i in range(1, len(turns)):
        if turns[i].role not in (allowed := _AFTER[turns[i - 1].role]):
            wanted = " or ".join(sorted(allowed))
            raise TemplateError(f"message {i}: role {turns[i].role} after {turns[i - 1].role}, expected {wanted}")
        if turns[i - 1].prefix:
            raise TemplateError(f"message {i - 1}: prefix is for the last message only")
    _check_results(turns)
    return turns


def _turn(i: int, message: Mapping[str, Any]) -> Turn:
    if not isinstance(message, Mapping):
        raise RequestError(f"message {i} is {type(message).__name__}, expected an object with role and content")
    role = message.get("role")
    role = "system" if role == "developer" else role
    if not isinstance(role, str) or role not in _AFTER:
        raise RequestError(f"message {i}: role is {role!r:.40}, expected system, user, assistant or tool")
    turn = Turn(role, _content(i, message.get("content"), role), prefix=bool(message.get("prefix")), at=(i,))
    if turn.prefix and role != "assistant":
        raise RequestError(f"message {i}: prefix is for assistant messages, the role is {role}")
    calls = message.get("tool_calls", [])
    calls = [] if calls is None else calls
    if not isinstance(calls, list | tuple):
        raise RequestError(f"message {i}: tool_calls is {type(calls).__name__}, expected a list")
    if role == "assistant":
        turn.calls = [_call(i, c) for c in calls]
        if not turn.calls and not turn.content:
            raise TemplateError(f"message {i}: an assistant message needs content or tool_calls")
    if role == "tool":
        turn.name, turn.call_id = message.get("name"), message.get("tool_call_id")
        if turn.name is not None:
            _check_name(i, turn.name)
        if turn.call_id is not None and not isinstance(turn.call_id, str):
            raise RequestError(f"message {i}: tool_call_id is {turn.call_id!r:.40}, expected a string")
    return turn


def _content(i: int, content: Any, role: str) -> str:
    """A string, nothing, or OpenAI's list of {"type": "text", "text": ...}."""
    if content is None and role in ("assistant", "tool"):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"message {i}: content is {type(content).__name__}, expected a string")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RequestError(f"message {i}: content of type {kind!r:.40}, this model reads text only")
        texts.append(text)
    return JOIN.join(t for t in texts if t)


def _call(i: int, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise RequestError(
            f"message {i}: tool_calls holds {str(call)[:40]!r}, expected {{'function': {{'name', 'arguments'}}}}"
        )
    _check_name(i, function.get("name"))
    arguments = function.get("arguments")
    value = _json(arguments or "{}") if arguments is None or isinstance(arguments, str) else arguments
    call_id = call.get("id")
    return {"id": None if call_id in (None, "", "null") else str(call_id), "name": function["name"], "arguments": value}


def _check_name(i: int, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"message {i}: function name {name!r:.80}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -")


def _check_results(turns: Sequence[Turn]) -> None:
    waiting = 0
    for i, turn in enumerate(turns):
        if turn.role == "tool":
            waiting -= 1
        elif turn.role == "assistant":
            if waiting:
                said = (
                    f"{waiting} tool calls have no result" if waiting > 0 else f"{-waiting} tool results have no call"
                )
                raise TemplateError(f"message {i}: before it, {said}")
            waiting = len(turn.calls)


def merge(turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """(system prompt, the rest): neighbours of one role become one message, joined by an empty line; tool results
    stay apart."""
    system = JOIN.join(t.content for t in turns if t.role == "system" and t.content)
    merged: list[Turn] = []
    before = ""
    for turn in turns:
        if turn.role == before and turn.role in ("user", "assistant"):
            last = merged[-1]
            content = JOIN.join(filter(None, (last.content, turn.content)))
            merged[-1] = Turn(turn.role, content, last.calls + turn.calls, prefix=turn.prefix, at=last.at + turn.at)
        elif turn.role != "system":
            merged.append(turn)
        before = turn.role
    if not merged or merged[0].role != "user":
        merged.insert(0, Turn("user", ""))
    return system, merged


def encode(
    version: int, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None
) -> list[int]:
    """Messages and tools -> ids, bos first. An assistant's last message is closed with eos, unless it is a prefix."""
    return [id for _, ids in encode_turns(version, messages, tokenizer, tools) for id in ids]


def encode_turns(
    version: int, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None
) -> Iterator[tuple[Turn | None, list[int]]]:
    """The same turn by turn, None for what belongs to nobody's (bos, the tools)."""
    system, turns = merge(read(messages))
    if version == 1 and (tools or any(t.calls or t.role == "tool" for t in turns)):
        raise TemplateError("Mistral's format v1 has no tools: use Mistral 7B v0.3, whose format v3 has them")
    users = [i for i, t in enumerate(turns) if t.role == "user"]
    with_system = users[0] if version == 1 else users[-1]
    if version == 2:
        _check_single_results(turns, users[-1])
    yield None, [] if tokenizer.bos is None else [tokenizer.bos]
    for i, turn in enumerate(turns):
        if i == with_system and system:
            turn = Turn("user", system + JOIN + turn.content)
        if turn.role == "user":
            if version > 1 and i == users[-1] and tools:
                yield None, _between("[AVAILABLE_TOOLS]", _dumps([_tool(t) for t in tools]), tokenizer)
            yield turn, _user(version, turn, tokenizer)
        elif version == 2 and i < users[-1] and (turn.calls or turn.role == "tool"):
            continue  # v2 was trained without the calls of earlier exchanges
        elif turn.role == "tool":
            yield turn, _between("[TOOL_RESULTS]", _result(version, turn), tokenizer)
        else:
            yield turn, _assistant(version, turn, tokenizer)


def _user(version: int, turn: Turn, tokenizer: Tokenizer) -> list[int]:
    if version == 1:
        return tokenizer.encode(f"[INST] {turn.content} [/INST]")
    return _between("[INST]", turn.content, tokenizer)


def _assistant(version: int, turn: Turn, tokenizer: Tokenizer) -> list[int]:
    """Text, then calls. (mistral-common refuses to write both; the models do write both, and read what they wrote.)"""
    ids = []
    if turn.content or not turn.calls:
        ids = tokenizer.encode(turn.content if version == 1 else turn.content.rstrip(" "))
    if turn.calls:
        calls = [_call_json(version, c) for c in turn.calls]
        ids += [_control("[TOOL_CALLS]", tokenizer), *tokenizer.encode(_dumps(calls))]
    return ids if turn.prefix or tokenizer.eos is None else [*ids, tokenizer.eos]


def _call_json(version: int, call: Mapping[str, Any]) -> dict[str, Any]:
    value = {"name": call["name"], "arguments": call["arguments"]}
    return value if version == 2 or call["id"] is None else {**value, "id": call_id(call["id"])}


def _result(version: int, turn: Turn) -> str:
    content = _json(turn.content or "{}")
    if version == 2:
        return _dumps([{"name": turn.name, "content": content}])
    if turn.call_id is None:
        raise TemplateError("a tool message needs tool_call_id: the id of the call that it answers")
    return _dumps({"content": content, "call_id": call_id(turn.call_id)})


def _check_single_results(turns: Sequence[Turn], last_user: int) -> None:
    for i in range(last_user + 1, len(turns) - 1):
        if turns[i].role == turns[i + 1].role == "tool":
            raise TemplateError(
                "Mistral's format v2 takes one tool result a turn: use v3, or ask again for each result"
            )


def call_id(given: str) -> str:
    """Mistral's ids are nine letters or digits; any other id is mapped onto such a one, always the same."""
    if _CALL_ID.fullmatch(given):
        return given
    number = int.from_bytes(hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return "".join(digits[number // 62**i % 62] for i in range(9))


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not _NAME.fullmatch(str(function.get("name"))):
        raise RequestError(
            f"tools holds {str(tool)[:60]!r}, expected {{'type': 'function', 'function': {{'name', ...}}}}"
        )
    about = {"name": function["name"], "description": function.get("description") or ""}
    return {"type": "function", "function": {**about, "parameters": function.get("parameters") or {}}}


def _between(name: str, text: str, tokenizer: Tokenizer) -> list[int]:
    """[NAME] text [/NAME]"""
    return [_control(name, tokenizer), *tokenizer.encode(text), _control("[/" + name[1:], tokenizer)]


def _control(name: str, tokenizer: Tokenizer) -> int:
    if name not in tokenizer.control:
        raise TemplateError(f"this vocabulary has no control token {name}: Mistral's format v1 needs none")
    return tokenizer.control[name]


def parse_calls(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[dict[str, Any]]]:
    """An answer of v2 or v3 -> (its text, its tool calls as in OpenAI's API, [] where none can be read).

    The model writes [TOOL_CALLS] and then a JSON list of {"name", "arguments"}, perhaps with an "id".
    """
    ids, marker = list(ids), tokenizer.control.get("[TOOL_CALLS]")
    if marker in ids:
        at = ids.index(marker)
        before, after = tokenizer.decode(ids[:at]), tokenizer.decode(ids[at + 1 :])
    else:  # some models spell the token out
        before, found, after = tokenizer.decode(ids).partition("[TOOL_CALLS]")
        if not found:
            return before, []
    calls = _openai_calls(after)
    return (before.strip(), calls) if calls else (before + after, [])


def parse_tagged_calls(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[dict[str, Any]]]:
    """The same for an answer as the Hermes models write it: <tool_call>{"name", "arguments"}</tool_call> for each call.

    The tags may be control tokens or text. Where one of the calls cannot be read, all of it is text.
    """
    tags = {tokenizer.control[name]: name for name in TAGS if name in tokenizer.control}
    stream = tokenizer.stream()
    said = "".join([*(tags.get(i) or stream.push(i) for i in ids), stream.flush()])
    before, *parts = said.split(TAGS[0])
    calls = [_openai_calls(part, at) for at, part in enumerate(parts)]
    if not calls or not all(calls):
        return tokenizer.decode(ids), []
    return before.strip(), [call for found in calls for call in found]


def _openai_calls(text: str, first: int = 0) -> list[dict[str, Any]]:
    """first: how many calls came before these."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return []
    calls = []
    for i, call in enumerate(value if isinstance(value, list) else [value], first):
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return []
        arguments = _dumps(call.get("arguments", {}))
        own = call_id(str(call.get("id") or f"{i} {call['name']} {arguments}"))
        calls.append({"id": own, "type": "function", "function": {"name": call["name"], "arguments": arguments}})
    return calls


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"tools and tool calls must be made of JSON's kinds of values: {error}") from None
