"""Hours of mixed use: people who chat, leave and ask for nonsense; is the memory flat, and does the first hour's
question get the first hour's answer in the last one?
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checks import Check
from .client import Leave, Reply, Target, send
from .processes import census, counts
from .prompts import Prompts, chat
from .tally import outcomes, slope

PEOPLE = 6
PAUSE = 0.4  # seconds that a person thinks, on average
LEAVE, NONSENSE = 0.05, 0.01  # shares of the requests
LOOK = 30.0  # seconds between two looks at the processes, and two rounds of canaries
WARM = 600.0  # seconds after which memory has to be flat
BAD: list[Any] = [
    b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff\xfe{}", b'{"a":' * 2000, {}, {"messages": []},
    {"messages": [{}]}, {"messages": [{"role": "king", "content": "x"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"max_tokens": -1}, {"max_tokens": 1e30}, {"temperature": -1}, {"top_p": 5}, {"n": 10**9}, {"stop": [""]},
    {"logit_bias": {"99999999": 1}}, {"top_logprobs": 10**6, "logprobs": True}, {"seed": -1}, {"no_such_field": 1},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x/y"}}}},
    {"response_format": {"type": "regex", "regex": "(" * 5000}}, {"model": "../../etc/passwd"},
]  # fmt: skip
CANARIES: list[dict[str, Any]] = [
    {"stream": True, "max_tokens": 80},
    {"stream": False, "max_tokens": 120, "logprobs": True, "top_logprobs": 3},
    {"stream": False, "max_tokens": 40, "n": 3, "temperature": 0.8, "seed": 7},
    {"stream": False, "max_tokens": 60, "response_format": {"type": "json_object"}},
]


class Soak:
    """One long run. Lines of JSON go to `path` as it goes; `figures` sums up, whenever it is asked."""

    def __init__(self, target: Target, server: int, path: Path | None, told: Callable[[str], None]) -> None:
        self.target, self.server, self.told = target, server, told
        self.began = time.monotonic()
        self._chance = random.Random(1)
        self._file = path.open("w", encoding="utf-8") if path else None
        self.ended: dict[str, int] = {}
        self.first: list[str] = []
        self.asked = self.differing = self.canaries = 0
        self.memory: dict[str, list[tuple[float, float]]] = {}  # process: (hours, MB)
        self.baseline: dict[str, int] = {}

    async def run(self, hours: float) -> None:
        self.prompts = await Prompts.measured(self.target)
        until = self.began + 3600 * hours
        people = [asyncio.create_task(self._person(until)) for _ in range(PEOPLE)]
        try:
            while time.monotonic() < until:
                await self._canaries()
                self._look()
                await asyncio.sleep(LOOK)
        finally:
            for person in people:
                person.cancel()
            await asyncio.gather(*people, return_exceptions=True)
        await self._canaries()
        self._look()

    async def _person(self, until: float) -> None:
        chance = self._chance
        while time.monotonic() < until:
            await asyncio.sleep(chance.expovariate(1 / PAUSE))
            if chance.random() < NONSENSE:
                self._count("bad ", await send(self.target, "chat/completions", self._nonsense()))
                continue
            for turn in range(chance.choice((1, 1, 1, 3))):
                body = self._talk(turn)
                leave = Leave()
                if chance.random() < LEAVE:
                    leave = Leave(seconds=chance.random() * 0.3, reset=chance.random() < 0.5)
                self._count("", await send(self.target, "chat/completions", body, leave=leave))

    def _talk(self, turn: int) -> dict[str, Any]:
        """A question, or the next of a conversation that grows."""
        chance = self._chance
        long = chance.choice((20, 60, 150, 400)) if turn == 0 else 0
        if turn == 0:
            self._story = self.prompts.text(long)
        text = self._story + " and then " * turn
        more = {"temperature": chance.choice((0.0, 0.7, 1.0)), "stream": chance.random() < 0.7}
        return chat(self.target, text, chance.choice((5, 30, 80, 160)), **more)

    def _nonsense(self) -> Any:
        bad = self._chance.choice(BAD)
        if isinstance(bad, bytes) or "messages" in bad or not bad:
            return bad if bad != b"" else b" "
        return chat(self.target, "hello", 5, stream=False) | bad

    def _count(self, kind: str, reply: Reply) -> None:
        self.asked += 1
        for name in outcomes([reply]):
            self.ended[kind + name] = self.ended.get(kind + name, 0) + 1

    async def _canaries(self) -> None:
        """The same questions in every round: what they get may not change."""
        got = []
        for fields in CANARIES:
            body = chat(self.target, "Tell me a story about a little fox.", 10) | {"temperature": 0.0} | fields
            reply = await send(self.target, "chat/completions", body)
            got.append(_said(reply))
        self.first = self.first or got
        self.canaries += len(got)
        self.differing += sum(a != b for a, b in zip(got, self.first, strict=True))

    def _look(self) -> None:
        hours = (time.monotonic() - self.began) / 3600
        found = census(self.server) if self.server else []
        for number, process in enumerate(found):
            self.memory.setdefault(f"{number} {process.name}", []).append((hours, process.rss / 1e6))
        facts = {
            "hours": round(hours, 4), "asked": self.asked, "ended": self.ended, "canaries": self.canaries,
            "differing": self.differing, "rss_mb": [round(p.rss / 1e6, 2) for p in found],
            "threads": [p.threads for p in found], "descriptors": [p.descriptors for p in found],
        }  # fmt: skip
        if self._file:
            self._file.write(json.dumps(facts) + "\n")
            self._file.flush()
        self.told(f"{hours:.2f} h: {self.asked} requests, {facts['rss_mb']} MB, {self.differing} canaries differ")

    def figures(self) -> tuple[dict[str, Any], list[Check]]:
        warm = WARM / 3600
        slopes = {name: round(slope([p for p in points if p[0] >= warm]), 3) for name, points in self.memory.items()}
        failed = sum(n for how, n in self.ended.items() if how.split()[-1].startswith("5"))
        lost = sum(n for how, n in self.ended.items() if how.split()[-1] in ("reset", "closed", "timeout", "stream"))
        accepted = self.ended.get("bad 200", 0)
        figures = {
            "hours": round((time.monotonic() - self.began) / 3600, 3), "requests": self.asked, "outcomes": self.ended,
            "canaries": self.canaries, "rss_mb_per_hour": slopes,
            "rss_mb": {name: [round(points[0][1], 1), round(points[-1][1], 1)] for name, points in self.memory.items()},
            "at_the_end": counts(self.server) if self.server else {},
        }  # fmt: skip
        return figures, [
            Check("answers with a 5xx", failed, "==", 0),
            Check("connections lost", lost, "==", 0),
            Check("nonsense that was accepted", accepted, "==", 0),
            Check("canaries that differ from the first", self.differing, "==", 0),
            Check("growth after the first ten minutes", max(slopes.values(), default=0.0), "<=", 1.0, "MB/h"),
        ]


def _said(reply: Reply) -> str:
    """What a canary got, without what may differ: ids and times. A stream counts by its text."""
    if reply.streamed:
        choices = [c for _, event in reply.events() for c in event.get("choices", ())]
        return json.dumps(["".join(c["delta"].get("content") or "" for c in choices), reply.whole])
    try:
        return json.dumps(reply.json().get("choices"), sort_keys=True)
    except ValueError:
        return f"status {reply.status} {reply.fault}"
