"""Is the engine well, and what has it done: GET /health and GET /metrics.

/health asks the engine itself, not the process that answers. A step of a big model takes seconds, and the engine
answers between two steps: a question that has been open for a while is no sign of illness, one that stays open is.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..desk import Desk
from ..wire import News
from .journal import NOW, Record

PATIENCE = 2.0  # seconds that /health waits for an answer
STUCK = 60.0  # seconds after which an engine that does not answer is taken for ill
FRESH = 0.5  # seconds that an answer is good for: the route is open to everybody
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

router = APIRouter()


class Pulse:
    """What the engine said last about itself. One question at a time, however many ask."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.stats: dict[str, Any] = {}
        self._asked = self._answered = float("-inf")
        self._question: asyncio.Task[None] | None = None

    async def feel(self, fresh: float = FRESH) -> str:
        """Either "ok", "loading" or "down", from an answer that is at most `fresh` seconds old."""
        if self.desk.state != "ready":
            return self.desk.state
        now = time.monotonic()
        if now - self._answered > fresh:
            if self._question is None or self._question.done():
                self._asked, self._question = now, asyncio.create_task(self._ask())
            await asyncio.wait([self._question], timeout=PATIENCE)
        if self.desk.state != "ready":
            return self.desk.state
        well = self._answered >= self._asked or time.monotonic() - self._asked < STUCK
        return "ok" if well else "down"

    async def _ask(self) -> None:
        try:
            self.stats = await self.desk.call("stats")
            self._answered = time.monotonic()
        except Exception:  # down: feel() sees the state
            self._asked = float("-inf") if self.desk.state == "ready" else self._asked


class Metrics:
    """What is counted. Numbers, route templates and statuses: no text, no client."""

    def __init__(self, desk: Desk) -> None:
        self.pulse = Pulse(desk)
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "method", "status")
        self._requests: dict[tuple[str, str, int], Counter] = {}  # looking one up by its labels takes a lock
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self.reused = self._counter("reused_tokens", "Tokens of prompts that had been read before")
        self.said = self._counter("said_tokens", "Tokens generated")
        self.first = self._histogram("first_token_seconds", "From the ask to its first token")
        self.between = self._histogram("between_tokens_seconds", "Between two pieces of news with tokens")
        self.seconds = self._histogram("request_seconds", "From a request's head to the end of its response")
        self._gauge("slots", "Asks that can be served at once", lambda: desk.slots)
        self._gauge("slots_in_use", "Asks that are being served", lambda: min(desk.taken, desk.slots))
        self._gauge("queue_depth", "Asks that wait", lambda: max(0, desk.taken - desk.slots))
        self._gauge("queue_limit", "Asks that may wait", lambda: desk.queue)
        self._gauge("worker_restarts", "Times the engine's process was started again", lambda: desk.restarts)
        self._gauge("engine_ready", "1 while the engine answers", lambda: desk.state == "ready")
        for name, what in (
            ("cache_bytes", "Keys and values of all slots"), ("reuse_bytes", "Kept of texts that have been read"),
            ("worker_resident_bytes", "Memory of the engine's process"),
            ("engine_running", "Requests in the engine's sequences"),
            ("engine_waiting", "Requests that wait in the engine's process"),
        ):  # fmt: skip
            self._gauge(name, what, lambda name=name: self.pulse.stats.get(name.removeprefix("engine_"), 0))
        desk.ears = lambda ask: Ear(self, NOW.get(), len(ask.prompt))
        ProcessCollector(registry=self.registry)  # resident memory, files and seconds of the front

    def count(self, record: Record) -> None:
        """A request is over."""
        key = record.route, record.method, record.status
        if (counted := self._requests.get(key)) is None:
            counted = self._requests[key] = self.requests.labels(record.route, record.method, str(record.status))
        counted.inc()
        self.seconds.observe(record.seconds)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"bise_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"bise_{name}", what, buckets=SECONDS, registry=self.registry)

    def _gauge(self, name: str, what: str, value: Any) -> None:
        Gauge(f"bise_{name}", what, registry=self.registry).set_function(value)


class Ear:
    """Hears the news of one ask."""

    def __init__(self, metrics: Metrics, record: Record | None, prompt: int) -> None:
        self._metrics, self._record, self._prompt = metrics, record or Record("-"), prompt
        self._record.asked = True
        self._asked, self._spoke = time.perf_counter(), 0.0

    def __call__(self, news: News) -> None:
        if self._prompt and (news.read or news.finish):
            self._metrics.prompt.inc(self._prompt)
            self._metrics.reused.inc(news.reused)
            self._record.prompt += self._prompt
            self._record.reused += news.reused
            self._prompt = 0  # told
        if news.tokens:
            now = time.perf_counter()
            if self._spoke:
                self._metrics.between.observe(now - self._spoke)
            else:
                self._metrics.first.observe(now - self._asked)
            self._spoke = now
            self._metrics.said.inc(len(news.tokens))
            self._record.said += len(news.tokens)


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Is the engine well", responses={503: {}})
async def health(request: Request) -> JSONResponse:
    """200 {"status": "ok"} where the engine answers; 503 with "loading", "down" or "draining". Needs no key."""
    state = await request.app.state.metrics.pulse.feel()
    if getattr(request.state, "leaving", False):
        state = "draining"
    return JSONResponse({"status": state}, 200 if state == "ok" else 503)


@router.get("/metrics", summary="What has been counted, for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Numbers only: no text, no client."""
    found: Metrics = request.app.state.metrics
    await found.pulse.feel(fresh=0)
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
