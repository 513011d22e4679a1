"""Loaded by schemathesis: bodies that come further than "no such model" and "a conversation cannot start like this",
and that do not ask for a thousand tokens.
"""

from __future__ import annotations

from typing import Any

import schemathesis

SAID = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}
SHORT = 4
ROLES = ("system", "developer", "user", "assistant", "tool")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    body.pop("model", None)
    messages = body.get("messages")
    if isinstance(messages, list) and messages and _is_sound(messages[0]):
        messages[0] = {"role": "user", "content": "Tell me a story."}
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int) and body[name] > SHORT:
            body[name] = SHORT
    name = SAID.get(context.operation.path)
    if name and body.get(name) is None and body.get("max_completion_tokens") is None:
        body[name] = SHORT
    return body


def _is_sound(message: Any) -> bool:
    """What is wrong with a message on purpose stays wrong."""
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        return False
    return message["role"] in ROLES and isinstance(message["content"], str)
