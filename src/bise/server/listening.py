"""What comes back: several asks heard at once (Listening), and what one of them has come to (Answer)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .faults import Fault
from .wire import Ask, News, Token

if TYPE_CHECKING:
    from .desk import Desk


class Listening:
    """The news of several asks as they come, told apart by index. `close` cancels what has not finished."""

    def __init__(self, desk: Desk, asks: Sequence[Ask]) -> None:
        self._desk, self._asks = desk, asks
        self._heard: deque[tuple[int, News | Exception]] = deque()
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Listening:
        """Hand all asks in. Raises what refuses one of them (BusyError, DownError), and then none is left running."""
        self._tasks = [asyncio.create_task(self._hear(i, ask)) for i, ask in enumerate(self._asks)]
        await asyncio.sleep(0)  # each task runs up to where it has to wait for news
        for _, item in self._heard:
            if isinstance(item, Exception):
                await self.close()
                raise item
        return self

    async def news(self) -> AsyncGenerator[tuple[int, News], None]:
        """(index, news) until every ask has finished. The first error ends all of them."""
        left = len(self._asks)
        try:
            while left:
                while not self._heard:
                    self._more.clear()
                    await self._more.wait()
                index, item = self._heard.popleft()
                if isinstance(item, Exception):
                    raise item
                if item.finish == "error":
                    raise Fault(400 if item.refused else 500, item.error)
                left -= bool(item.finish)
                yield index, item
        finally:
            await self.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hear(self, index: int, ask: Ask) -> None:
        try:
            async with aclosing(self._desk.listen(ask)) as news:
                async for item in news:
                    self._add(index, item)
        except Exception as error:
            self._add(index, error)

    def _add(self, index: int, item: News | Exception) -> None:
        self._heard.append((index, item))
        self._more.set()


@dataclass
class Answer:
    """What has come of one ask so far."""

    ask: Ask
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    scores: list[Token] = field(default_factory=list)
    embedding: list[float] | None = None
    finish: str = ""  # "stop" | "length"
    read: int = 0  # tokens of the prompt
    reused: int = 0
    began: float = field(default_factory=time.perf_counter)
    spoke: float = 0.0  # when the first token came
    ended: float = 0.0

    def hear(self, news: News) -> None:
        self.text += news.text
        self.tokens += news.tokens
        self.scores += news.scores
        self.embedding = news.embedding or self.embedding
        self.finish = news.finish
        self.read, self.reused = max(self.read, news.read), max(self.reused, news.reused)
        if news.tokens and not self.spoke:
            self.spoke = time.perf_counter()
        if news.finish:
            self.ended = time.perf_counter()
            self.spoke = self.spoke or self.ended

    @property
    def progress(self) -> dict[str, int]:
        return {"read": self.read, "total": len(self.ask.prompt), "reused": self.reused}


def usage(answers: Sequence[Answer], each: int = 1) -> dict[str, Any]:
    """OpenAI's counts. `each`: answers to one prompt, which is counted once."""
    prompt = sum(len(a.ask.prompt) for a in answers[::each])
    completion = sum(len(a.tokens) for a in answers)
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(a.reused for a in answers[::each])},
    }  # fmt: skip


def timings(answers: Sequence[Answer]) -> dict[str, float]:
    """Seconds from the ask to the first token (waiting and prefill), from there to the last, and the pace of that."""
    began, ended = min(a.began for a in answers), max(a.ended for a in answers)
    spoke = min(a.spoke for a in answers)
    later = sum(max(0, len(a.tokens) - 1) for a in answers)  # the first token of each belongs to the prefill
    decode = ended - spoke
    return {
        "prefill_seconds": round(spoke - began, 6), "decode_seconds": round(decode, 6),
        "tokens_per_second": round(later / decode, 3) if later and decode > 0 else 0.0,
    }  # fmt: skip
