"""What a server says of itself: how many requests it serves and how many wait (Prometheus' text format)."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass

from .client import Target, send

# running, waiting: by which names
NAMES = (
    ("bise_engine_running", "bise_engine_waiting"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
)
OFTEN = 0.002  # seconds between two looks


@dataclass(frozen=True)
class Gauges:
    """At one moment. at: when we had asked for it (perf_counter)."""

    running: int
    waiting: int
    at: float

    @property
    def busy(self) -> int:
        return self.running + self.waiting

    @staticmethod
    async def look(target: Target) -> Gauges:
        """RuntimeError where a server has no such gauges."""
        at = time.perf_counter()
        reply = await send(target, "/metrics", patience=30)
        text = reply.body.decode()
        for names in NAMES:
            found = [re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)", text, re.MULTILINE) for name in names]
            if all(found):
                running, waiting = (int(float(match[1])) for match in found if match)
                return Gauges(running, waiting, at)
        raise RuntimeError(f"{target.url}: no gauge of running requests in /metrics (status {reply.status})")


async def until_busy(target: Target, count: int, patience: float = 60.0) -> float:
    """Waits until exactly `count` requests run or wait; -> when that was known (perf_counter). TimeoutError."""
    until = time.perf_counter() + patience
    while time.perf_counter() < until:
        if (await Gauges.look(target)).busy == count:
            return time.perf_counter()
        await asyncio.sleep(OFTEN)
    raise TimeoutError(f"not {count} requests after {patience:.0f} s, but {(await Gauges.look(target)).busy}")
