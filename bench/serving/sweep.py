"""Tokens per second and waiting, for more and more clients at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from .client import Target, send
from .prompts import Prompts, chat
from .tally import Answer, outcomes, spread

CLIENTS = (1, 2, 4, 8, 16, 32)


async def sweep(
    target: Target, clients: Sequence[int], prompt: int, answer: int, repeats: int = 1,
    report: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each number of clients: all ask at once, and each asks again as soon as it has its answer."""
    prompts = await Prompts.measured(target)
    await send(target, "chat/completions", chat(target, prompts.text(prompt), answer))  # warm
    found = []
    for count in clients:
        report(f"{count} clients")
        found.append(await together(target, prompts, count, prompt, answer, repeats))
    return found


async def together(
    target: Target, prompts: Prompts, count: int, prompt: int, answer: int, repeats: int
) -> dict[str, Any]:
    async def client() -> list[Any]:
        body = [chat(target, prompts.text(prompt), answer) for _ in range(repeats)]
        return [await send(target, "chat/completions", b) for b in body]

    started = time.perf_counter()
    replies = [reply for mine in await asyncio.gather(*(client() for _ in range(count))) for reply in mine]
    seconds = time.perf_counter() - started
    answers = [Answer(reply) for reply in replies if reply.status == 200]
    said, read = sum(a.tokens for a in answers), sum(a.prompt for a in answers)
    return {
        "clients": count, "seconds": round(seconds, 3), "prompt_tokens": read, "answer_tokens": said,
        "answer_per_s": round(said / seconds, 2), "all_per_s": round((said + read) / seconds, 2),
        "first_ms": spread(a.first for a in answers if a.times),
        "gap_ms": spread(gap for a in answers for gap in a.gaps),
        "outcomes": outcomes(replies),
    }  # fmt: skip
