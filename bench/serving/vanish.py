"""Clients that go away at random moments: while they wait, while their prompt is read, while they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import Check
from .client import Leave, Reply, Target, send
from .gauges import until_busy
from .processes import counts
from .prompts import Prompts, chat
from .tally import Answer, spread

LIMIT = 250.0  # ms, or one chunk where that takes longer
PHASES = ("queued", "prefill", "decode")
SETTLE = 10.0  # seconds for sockets that are being closed


@dataclass
class Vanish:
    """What a run needs to know. slots: requests that the server serves at once; context: tokens of one."""

    target: Target
    slots: int
    context: int
    prompts: Prompts
    chance: random.Random
    reading: float = 0.0  # seconds that the longest prompt takes
    answering: float = 0.0  # and the longest answer to a short one

    @property
    def long(self) -> int:
        return int(self.context * 0.9) - 16

    def body(self, prompt: int, stream: bool) -> dict[str, Any]:
        answer = max(1, int(self.context * 0.95) - prompt)
        return chat(self.target, self.prompts.text(prompt), answer, stream=stream)

    async def learn(self) -> None:
        """How long things take where nobody else is."""
        reply = Answer(await send(self.target, "chat/completions", self.body(self.long, True)))
        self.reading = reply.first
        started = time.perf_counter()
        await send(self.target, "chat/completions", self.body(24, True))
        self.answering = time.perf_counter() - started

    async def leave(self, phase: str, busy: int) -> float | None:
        """One that goes away; -> seconds until the server had `busy` requests again. None if it was answered first."""
        stream, reset = self.chance.random() < 0.5, self.chance.random() < 0.5
        moment = {
            "queued": self.chance.uniform(0.0, 0.1),
            "prefill": self.chance.uniform(0.02, 0.98) * self.reading,
            "decode": self.chance.uniform(0.05, 0.9) * self.answering,
        }[phase]
        body = self.body(self.long if phase == "prefill" else 24, stream)
        reply = await send(self.target, "chat/completions", body, leave=Leave(moment, reset=reset))
        free = await until_busy(self.target, busy)
        return free - reply.left if reply.left else None

    async def queued(self, count: int) -> list[float]:
        """Leaving the queue: the slots are taken by others, anew as often as one of them is done."""
        found: list[float] = []
        while len(found) < count:
            others = [
                asyncio.create_task(send(self.target, "chat/completions", self.body(24, True)))
                for _ in range(self.slots)
            ]
            await until_busy(self.target, self.slots)
            while len(found) < count:
                took = await self._beside(others)
                if took is None:
                    break
                found.append(took)
            await _dismiss(others)
            await until_busy(self.target, 0)
        return found

    async def _beside(self, others: list[asyncio.Task[Reply]]) -> float | None:
        """None where one of the others ended meanwhile: then the count says nothing."""
        try:
            took = await asyncio.wait_for(self.leave("queued", self.slots), self.answering + 1)
        except asyncio.TimeoutError:
            return None
        return None if any(task.done() for task in others) else took


async def _dismiss(tasks: list[asyncio.Task[Reply]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def vanish(
    target: Target, id: int, count: int, slots: int, context: int, report: Callable[[str], None]
) -> tuple[dict[str, Any], list[Check]]:
    """`count` disconnects, a third in each phase. id: the server's first process."""
    run = Vanish(target, slots, context, await Prompts.measured(target), random.Random(0))
    await run.learn()
    await _dismiss([asyncio.create_task(send(target, "chat/completions", run.body(24, True))) for _ in range(slots)])
    await until_busy(target, 0)
    before, freed = await settled(id, None), {phase: [] for phase in PHASES}  # type: ignore[var-annotated]
    for phase in PHASES:
        report(f"leaving in {phase}")
        freed[phase] += await run.queued(count // 3) if phase == "queued" else []
        while len(freed[phase]) < count // 3:
            took = await run.leave(phase, 0)
            freed[phase] += [took] if took is not None else []
    after = await settled(id, before)
    return judged(freed, before, after, run)


async def settled(id: int, wanted: dict[str, int] | None) -> dict[str, int]:
    """The counts, as soon as they are the wanted ones, or do not change for a second."""
    until, last = time.perf_counter() + SETTLE, counts(id)
    while time.perf_counter() < until and last != wanted:
        await asyncio.sleep(1)
        now = counts(id)
        if wanted is None and now == last:
            break
        last = now
    return last


def judged(
    freed: dict[str, list[float]], before: dict[str, int], after: dict[str, int], run: Vanish
) -> tuple[dict[str, Any], list[Check]]:
    every = spread(seconds for phase in freed.values() for seconds in phase)
    chunk = round(1000 * run.reading * 256 / run.long, 2)
    figures = {
        "disconnects": every["count"], "freed_ms": every, "chunk_ms": chunk, "before": before, "after": after,
        **{f"freed_in_{phase}_ms": spread(values) for phase, values in freed.items()},
    }  # fmt: skip
    return figures, [
        Check("p99 until the slot is free", every["p99"], "<=", max(LIMIT, chunk), "ms"),
        Check("processes, threads and descriptors", after, "==", before),
    ]
