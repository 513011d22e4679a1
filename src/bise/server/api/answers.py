"""What comes back: several asks heard at once (Answers), and what each of them has come to so far (Answer)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import BusyError, DownError
from ..faults import Fault
from ..wire import Ask, News, Token

if TYPE_CHECKING:
    from ..desk import Desk, Listening


@dataclass
class Answer:
    """What has come of one ask."""

    ask: Ask
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    scores: list[Token] = field(default_factory=list)
    embedding: list[float] | None = None
    finish: str = ""  # "stop" | "length"
    stop: str = ""  # the stop string that ended it
    read: int = 0  # tokens of the prompt
    reused: int = 0
    held: int = 0  # tokens whose keys are held, and the first that the next one sees
    first: int = 0
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)  # waiting, reading the prompt, speaking

    def hear(self, news: News) -> None:
        self.text += news.text
        self.tokens += news.tokens
        self.scores += news.scores
        self.embedding = news.embedding or self.embedding
        self.finish, self.stop = news.finish, news.stop
        self.read, self.reused = max(self.read, news.read), max(self.reused, news.reused)
        self.held, self.first = news.held, news.first
        if news.seconds:
            self.seconds = (news.seconds[0], news.seconds[1], news.seconds[2])

    @property
    def ids(self) -> list[int]:
        return [t.id for t in self.tokens]

    @property
    def progress(self) -> dict[str, int]:
        return {"read": self.read, "total": len(self.ask.prompt), "reused": self.reused}


class Answers:
    """The asks of one request: at most as many at once as the desk has slots, so that a long list of prompts does not
    fill the queue that others wait in. `each` gives the news; closing it cancels what has not finished."""

    def __init__(self, desk: Desk, asks: Sequence[Ask]) -> None:
        """Raises what refuses one of the first asks (BusyError, DownError); then none is left running."""
        self.all = [Answer(ask) for ask in asks]
        self._desk = desk
        self._waiting = deque(range(len(asks)))
        self._open: dict[int, Listening] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._heard: deque[tuple[int, News | Exception]] = deque()
        self._more = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._hand_in()
        except Exception:
            self._close()
            raise

    async def each(self) -> AsyncGenerator[tuple[int, News], None]:
        """(index, news) until every ask has finished. The first error ends all of them, as a Fault."""
        try:
            while self._open or self._waiting:
                while not self._heard:
                    self._more.clear()
                    await self._more.wait()
                index, item = self._heard.popleft()
                if isinstance(item, Exception):
                    raise item
                if item.finish == "error":
                    raise Fault.of(DownError(item.error)) if item.status == 503 else Fault(item.status, item.error)
                if item.finish:
                    del self._open[index]
                    self._go_on()
                yield index, item
        finally:
            self._close()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def whole(self) -> list[Answer]:
        """All of it, at the end."""
        async with aclosing(self.each()) as each:
            async for index, news in each:
                self.all[index].hear(news)
        return self.all

    def _hand_in(self) -> None:
        if self._timer:
            self._timer.cancel()
        while self._waiting and len(self._open) < max(1, self._desk.slots):
            index = self._waiting[0]
            listening = self._open[index] = self._desk.listen(self.all[index].ask)
            self._tasks.append(asyncio.create_task(self._hear(index, listening)))
            self._waiting.popleft()

    def _go_on(self) -> None:
        """The rest, as there is room; where others have taken it, after a while."""
        try:
            self._hand_in()
        except BusyError as error:
            self._timer = asyncio.get_running_loop().call_later(error.retry_after, self._go_on)
        except Exception as error:
            self._add(self._waiting[0], error)

    async def _hear(self, index: int, listening: Listening) -> None:
        try:
            async for item in listening:
                self._add(index, item)
        except Exception as error:
            self._add(index, error)

    def _add(self, index: int, item: News | Exception) -> None:
        self._heard.append((index, item))
        self._more.set()

    def _close(self) -> None:
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for listening in self._open.values():
            listening.cancel()


def numbers(answers: Sequence[Answer]) -> int:
    """How many logprobs there are to be shown."""
    return sum((1 + len(t.top)) for a in answers if a.ask.alternatives is not None for t in (*a.scores, *a.tokens))


def usage(answers: Sequence[Answer], n: int = 1) -> dict[str, Any]:
    """OpenAI's counts. n: answers to one prompt, which is counted once."""
    prompt = sum(len(a.ask.prompt) for a in answers[::n])
    completion = sum(len(a.tokens) for a in answers)
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(a.reused for a in answers[::n])},
    }  # fmt: skip


def timings(answers: Sequence[Answer]) -> dict[str, float]:
    """Seconds of the answer that took longest in each, and the tokens of all per second of speaking."""
    waiting, prefill, decode = (max(a.seconds[i] for a in answers) for i in range(3))
    later = sum(max(0, len(a.tokens) - 1) for a in answers)  # the first token of each belongs to its prefill
    return {
        "queue_seconds": round(waiting, 6), "prefill_seconds": round(prefill, 6), "decode_seconds": round(decode, 6),
        "tokens_per_second": round(later / decode, 3) if later and decode > 0 else 0.0,
    }  # fmt: skip
