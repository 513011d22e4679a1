"""Chats that stream, and a prompt as long as the context allows that arrives among them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .checks import Check
from .client import Connection, Leave, Target, connect, finish, send, spell
from .prompts import Prompts, chat
from .tally import Answer, spread

CHUNK = 256  # tokens of a prompt that are read in one step
SPEAKS = 4  # events of a stream after which it certainly speaks
STAY = 240.0  # seconds after which a long prompt leaves, read or not: the gaps are known by then


async def intruder(
    target: Target, chats: int, prompt: int, long: int, answer: int, before: float, times: int
) -> tuple[dict[str, Any], list[Check]]:
    """Gaps between tokens of `chats` streams: undisturbed for `before` seconds, and from a long prompt's arrival to its
    own first token, or until it leaves; `times` such turns. Chats that end are followed by others."""
    prompts = await Prompts.measured(target)
    chunk = await _chunk(target, prompts)
    answers: list[Answer] = []
    guests: list[Answer] = []
    arrivals: list[float] = []
    talking: set[Connection] = set()
    over, leave = asyncio.Event(), Leave(seconds=STAY)

    async def talk() -> None:
        while not over.is_set():
            body = chat(target, prompts.text(prompt), answer)
            connection = await connect(target, spell(target, "chat/completions", body, ""))
            talking.add(connection)
            connection.speak()
            answers.append(Answer(await finish(connection)))
            talking.discard(connection)

    talks = [asyncio.create_task(talk()) for _ in range(chats)]
    while not (len(talking) == chats and all(len(c.reply.parts) > SPEAKS for c in talking)):
        await asyncio.sleep(0.05)  # their own prompts are still being read
    for _ in range(times):
        await asyncio.sleep(before)
        arrivals.append(time.perf_counter())
        guests.append(Answer(await send(target, "chat/completions", chat(target, prompts.text(long), 1), leave=leave)))
    over.set()
    for connection in list(talking):
        connection.go()
    await asyncio.gather(*talks)
    return judged(answers, guests, arrivals, long, before, chunk)


async def _chunk(target: Target, prompts: Prompts) -> float:
    """Seconds that one chunk of a prompt takes where nobody else is: the best of three."""
    found = []
    for _ in range(3):
        reply = await send(target, "chat/completions", chat(target, prompts.text(CHUNK), 1))
        found.append(Answer(reply).first)
    return min(found)


def judged(
    answers: list[Answer], guests: list[Answer], arrivals: list[float], long: int, before: float, chunk: float
) -> tuple[dict[str, Any], list[Check]]:
    took = [guest.reply.done - arrived for guest, arrived in zip(guests, arrivals, strict=True)]
    calm = spread(gap for at in arrivals for gap in _gaps(answers, at - before, at))
    during = spread(gap for at, s in zip(arrivals, took, strict=True) for gap in _gaps(answers, at, at + s))
    figures = {
        "long_prompts": len(guests), "long_prompt_tokens": long, "read_s": round(sum(took), 1),
        "chunk_ms": round(1000 * chunk, 2), "gap_before_ms": calm,
        "gap_during_ms": during,
    }  # fmt: skip
    return figures, [
        Check("long prompts that were taken", sum(g.reply.status == 200 for g in guests), "==", len(guests)),
        Check(
            "p99 between tokens while one is read", during["p99"], "<=", round(2 * calm["p99"] + 1000 * chunk, 2), "ms"
        ),
    ]


def _gaps(answers: list[Answer], since: float, until: float) -> list[float]:
    """Gaps that ended between two moments."""
    return [b - a for x in answers for a, b in zip(x.times, x.times[1:], strict=False) if since < b <= until]
