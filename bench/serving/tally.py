"""Figures of many requests: percentiles, gaps, shares. Never a mean of latencies: a mean hides who waits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .client import Reply


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 .. 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """p50, p95, p99 and the most in ms, and how many there were."""
    values = list(seconds)
    found = {f"p{int(100 * share)}": percentile(values, share) for share in (0.5, 0.95, 0.99)}
    found["most"] = max(values, default=0.0)
    return {name: round(1000 * value, 2) for name, value in found.items()} | {"count": len(values)}


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness, 1/n .. 1: (sum x)^2 / (n sum x^2) (Jain, Chiu, Hawe 1984)."""
    squares = sum(x * x for x in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of (x, y)."""
    if len(points) < 2:
        return 0.0
    x, y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    spread_x = sum((p[0] - x) ** 2 for p in points)
    return sum((p[0] - x) * (p[1] - y) for p in points) / spread_x if spread_x else 0.0


class Answer:
    """A streamed answer, looked into: when its pieces came, its text, its tokens."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.text, self.tokens, self.prompt, self.error = reply, "", 0, 0, ""
        self.times: list[float] = []  # of every piece that has text or tokens in it
        self.finish = ""
        for at, event in reply.events():
            self._take(at, event)
        self.tokens = self.tokens or len(self.times)  # where a server gives no usage, a piece is a token

    def _take(self, at: float, event: dict[str, Any]) -> None:
        usage = event.get("usage") or {}
        self.tokens, self.prompt = usage.get("completion_tokens", self.tokens), usage.get("prompt_tokens", self.prompt)
        if event.get("error"):
            self.error = str(event["error"])
        for choice in event.get("choices", ()):
            piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
            self.text += piece
            if piece:
                self.times.append(at)
            self.finish = choice.get("finish_reason") or self.finish

    @property
    def first(self) -> float:
        """Seconds until the first piece: what a person waits for."""
        return self.times[0] - self.reply.sent if self.times else 0.0

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces. A piece may be several tokens, or the end of a character that took several."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def outcomes(replies: Iterable[Reply]) -> dict[str, int]:
    """How many ended how: "200", "429", "reset", "left" ..."""
    found: dict[str, int] = {}
    for reply in replies:
        name = "left" if reply.left else reply.fault or str(reply.status)
        if name == "200" and reply.streamed and not reply.complete:
            name = "broken stream"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
