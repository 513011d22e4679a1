"""Chats that stream, and a prompt as long as the context allows that arrives among them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .checks import Check
from .client import Target, send
from .prompts import Prompts, chat
from .tally import Answer, spread

CHUNK = 256  # tokens of a prompt that are read in one step


async def intruder(
    target: Target, chats: int, prompt: int, long: int, answer: int, before: float
) -> tuple[dict[str, Any], list[Check]]:
    """Gaps between tokens of `chats` streams, undisturbed for `before` seconds, and then until the long prompt's own
    first token. Chats that end are followed by others."""
    prompts = await Prompts.measured(target)
    chunk = await _chunk(target, prompts)
    answers: list[Answer] = []
    over = asyncio.Event()

    async def talk() -> None:
        while not over.is_set():
            answers.append(Answer(await send(target, "chat/completions", chat(target, prompts.text(prompt), answer))))

    talks = [asyncio.create_task(talk()) for _ in range(chats)]
    await asyncio.sleep(before)
    arrived = time.perf_counter()
    guest = Answer(await send(target, "chat/completions", chat(target, prompts.text(long), 1)))
    served = time.perf_counter()
    await asyncio.sleep(before)
    over.set()
    await asyncio.gather(*talks)
    return judged(answers, guest, arrived, served, before, chunk)


async def _chunk(target: Target, prompts: Prompts) -> float:
    """Seconds that one chunk of a prompt takes where nobody else is: the best of three."""
    found = []
    for _ in range(3):
        reply = await send(target, "chat/completions", chat(target, prompts.text(CHUNK), 1))
        found.append(Answer(reply).first)
    return min(found)


def judged(
    answers: list[Answer], guest: Answer, arrived: float, served: float, before: float, chunk: float
) -> tuple[dict[str, Any], list[Check]]:
    calm = _gaps(answers, arrived - before, arrived)
    during = _gaps(answers, arrived, served)
    figures = {
        "long_prompt_tokens": guest.prompt, "long_prompt_first_s": round(served - arrived, 3),
        "chunk_ms": round(1000 * chunk, 2), "gap_before_ms": spread(calm), "gap_during_ms": spread(during),
        "gap_after_ms": spread(_gaps(answers, served, served + before)),
    }  # fmt: skip
    limit = round(2 * figures["gap_before_ms"]["p99"] + 1000 * chunk, 2)  # type: ignore[index]
    return figures, [
        Check("the long prompt was answered", guest.reply.status, "==", 200),
        Check("p99 between tokens while it is read", figures["gap_during_ms"]["p99"], "<=", limit, "ms"),  # type: ignore[index]
    ]


def _gaps(answers: list[Answer], since: float, until: float) -> list[float]:
    """Gaps that ended between two moments."""
    return [b - a for x in answers for a, b in zip(x.times, x.times[1:], strict=False) if since < b <= until]
