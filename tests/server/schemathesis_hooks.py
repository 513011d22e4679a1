"""Loaded by schemathesis: good bodies come further than "no such model" and "a conversation cannot start like this",
and do not ask for a thousand tokens. What is bad in a body stays bad.
"""

from __future__ import annotations

from typing import Any

import schemathesis

from bise.server import limits

SAID = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens"}
SHORT = 4


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and len(body["model"]) <= limits.NAME:
        del body["model"]
    match body.get("messages"):
        case [{"role": "assistant" | "tool"} as first, *_]:
            first["role"] = "user"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int) and SHORT < body[name] <= limits.MAX_TOKENS:
            body[name] = SHORT
    name = SAID.get(context.operation.path, "")
    if name and body.get(name) is None and body.get("max_completion_tokens") is None:
        body[name] = SHORT
    return body
