"""Many connections at one moment: nobody is cut off, and who cannot be served is told at once."""

from __future__ import annotations

import asyncio
from typing import Any

from .checks import Check
from .client import Connection, Target, connect, finish, spell
from .prompts import Prompts, chat
from .tally import outcomes, spread

LIMIT = 100.0  # ms until a refusal


async def crowd(target: Target, count: int, prompt: int, answer: int) -> tuple[dict[str, Any], list[Check]]:
    """All connections are opened first; then each sends its request, all in one turn of the loop."""
    prompts = await Prompts.measured(target)
    bodies = [chat(target, prompts.text(prompt), answer) for _ in range(count)]
    requests = [spell(target, "chat/completions", body, "") for body in bodies]
    opened = await asyncio.gather(*(connect(target, request) for request in requests), return_exceptions=True)
    connections = [c for c in opened if isinstance(c, Connection)]
    for connection in connections:
        connection.speak()
    replies = await asyncio.gather(*(finish(connection) for connection in connections))
    surplus = [reply for reply in replies if reply.status in (429, 503)]
    ended = outcomes(replies) | {"not connected": count - len(connections)}
    told = spread(reply.headed - reply.sent for reply in surplus)
    retry = sum("retry-after" in reply.headers for reply in surplus)
    lost = sum(n for name, n in ended.items() if name not in ("200", "429", "503"))
    figures = {"connections": count, "outcomes": ended, "refused_ms": told, "with_retry_after": retry}
    return figures, [
        Check("connections reset, closed or never made", lost, "==", 0),
        Check("the slowest refusal", told["most"], "<=", LIMIT, "ms"),
        Check("refusals with Retry-After", retry, "==", len(surplus)),
    ]
