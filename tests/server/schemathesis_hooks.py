"""Loaded by schemathesis: bodies that come further than "no such model" and "a conversation cannot start like this"."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict):
        body.pop("model", None)
        messages = body.get("messages")
        if isinstance(messages, list) and messages and isinstance(messages[0], dict):
            messages[0] = {"role": "user", "content": "Tell me a story."}
    return body
