"""The server's side of the engine: Desk starts the worker, sends it asks, hands out its news, and starts it again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ..api import find, windowed
from ..chat import ChatFormat
from ..config import Config
from ..errors import BiseError, BusyError, DownError, FormatError, RequestError
from ..tokenizer import Tokenizer
from ..weights import Weights
from .plan import Plan, plan_memory
from .shelved import Shelved
from .wire import Ask, Inbox, News, frame, news_of, packed

log = logging.getLogger("bise.server")
PAUSES = (0.0, 1.0, 5.0, 30.0)  # seconds before a worker that died once, twice, ... is started again
STEADY = 60.0  # seconds after which its earlier deaths are forgotten
GRACE = 5.0  # seconds a worker has to end by itself


class Desk:
    """One model, served by one worker process. `config`, `tokenizer` and `chat_format` are the server's own."""

    def __init__(
        self, name: str, weights: Weights, config: Config, options: dict[str, Any], slots: int, queue: int, reuse: int,
        shelf: Shelved | None = None,
    ) -> None:  # fmt: skip
        """options: what `bise.load` is told, values that JSON knows. reuse: bytes for what the cache would forget.
        shelf: the adapters beside the model."""
        self.name, self.config, self.context = name, config, options.get("context") or config.context
        self.fingerprint = weights.fingerprint
        self._tokenizer = Tokenizer.of(weights)
        self.chat_format = ChatFormat.of(weights, self._tokenizer) if self._tokenizer else None
        self.slots, self.queue, self.reuse = slots, queue, reuse
        self.state, self.restarts, self.loaded = "loading", 0, (0, 1)
        shelf = shelf or Shelved()
        self.folder = shelf.folder
        self.adapters: dict[str, dict[str, Any]] = {name: {} for name in shelf.paths}  # by name, and what is said of it
        self._paths = dict(shelf.paths)
        self._first = {"load": options, "slots": slots, "reuse": reuse, "adapters": self._paths,
                       "adapter_memory": shelf.limit, "any_base": shelf.any_base}  # fmt: skip
        self._listening: dict[int, Listening] = {}
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self.ears: Callable[[Ask], Callable[[News], None]] | None = None  # who hears the news of an ask, too
        self._pace = 1.0  # seconds that an ask has lately taken, waiting left out

    @staticmethod
    def open(
        path: str | Path | None, options: dict[str, Any], name: str | None = None, slots: int | None = None,
        queue: int = 64, reuse: int | None = None, format: str | None = None, shelf: Shelved | None = None,
    ) -> tuple[Desk, Plan]:  # fmt: skip
        """A desk for a model, and what memory it is going to take; nothing is loaded yet. options: window, context, kv,
        threads, backend, device, lookup, draft, keep_packed, isa, as `bise.load` has them. slots, reuse: plan.py.
        format: "v1", "v2" or "v3" in place of what the model's files say."""
        path = find(path)
        weights = Weights.open(path)
        config = windowed(weights.config, options.get("window"))
        draft = None if options.get("draft") is None else Weights.open(find(options["draft"]))
        context, kv = options.get("context") or config.context, options.get("kv", "f16")
        shelf = (shelf or Shelved()).checked(weights)
        plan = plan_memory(weights, config, context, kv, draft, slots, reuse, adapters=shelf.limit or 0)
        options = {**options, "path": str(path)}
        desk = Desk(name or path.stem, weights, config, options, plan.slots, queue, plan.reuse, shelf)
        if desk.name in desk.adapters:
            raise RequestError(f"an adapter is called {desk.name!r} like the model: give it another name, NAME=PATH")
        if format is not None:
            desk.chat_format = ChatFormat.named(format, desk.tokenizer)
        return desk, plan

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError(f"{self.name} has no tokenizer: send token ids")
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """How many ids may be sampled."""
        return self._tokenizer.vocab_size if self._tokenizer else self.config.vocab_size

    @property
    def worker_pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def taken(self) -> int:
        """Asks that are being served or wait."""
        return len(self._listening)

    @property
    def full(self) -> bool:
        return self.taken >= self.slots + self.queue

    async def start(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Start the worker and wait until its model is loaded. BiseError where it cannot be."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running(ready, progress))
        await ready

    async def close(self) -> None:
        """End the worker; every open ask gets an error."""
        self._closing.set()
        if self._writer:
            self._writer.close()
        if self._process:
            if self.state == "loading":
                self._process.kill()  # it would see the end of the line when it has loaded
            try:
                await asyncio.to_thread(self._process.wait, GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        if self._task:
            await self._task

    def listen(self, ask: Ask) -> Listening:
        """Hand in an ask. BusyError where the queue is full, DownError where no engine is running. Iterate over what is
        returned for the news; `aclose` cancels what is not finished."""
        if self.state != "ready":
            raise DownError(f"the engine is {self.state}: try again in a few seconds")
        if self.full:
            wait = max(1.0, self._pace * (self.queue + 1) / self.slots)
            raise BusyError(
                f"{self.slots} requests are running and {self.queue} wait, as many as may: try again in {wait:.0f} s",
                wait,
            )
        return Listening(self, next(self._ids), ask)

    async def call(self, what: str, **details: Any) -> dict[str, Any]:
        """Ask something of the engine itself. DownError where it is not running, RequestError or BusyError where it
        says no."""
        if self.state != "ready":
            raise DownError(f"the engine is {self.state}: try again in a few seconds")
        id, answer = next(self._ids), asyncio.get_running_loop().create_future()
        self._calls[id] = answer
        try:
            self._send({"call": id, "what": what, "details": details})
            return dict(await answer)
        finally:
            self._calls.pop(id, None)

    async def load_adapter(self, name: str, path: str) -> None:
        """BiseError where it cannot be: what is wrong with it, or that there is no room."""
        facts = await self.call("adapt", name=name, path=path)
        self.adapters[name], self._paths[name] = facts, path

    async def unload_adapter(self, name: str) -> None:
        """Forget the name at once; requests that run with it go on."""
        self.adapters.pop(name, None)
        self._paths.pop(name, None)
        await self.call("unload", name=name)

    def fail(self, line: str) -> None:
        """End every open ask with an error."""
        for listening in list(self._listening.values()):
            listening.push(News(finish="error", error=line, status=503))
            self._send({"cancel": listening.id})
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(DownError(line))

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _keep_running(self, ready: asyncio.Future[None], progress: Callable[[int, int], None] | None) -> None:
        failures = 0
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                await self._run(ready, progress)
            except BiseError as error:
                if not ready.done():
                    ready.set_exception(error)
                    return
                log.error("%s", error)
            if self._closing.is_set():
                break
            line = f"the engine's process ended ({self._way_out()}) and is started again"
            if not ready.done():
                ready.set_exception(FormatError(f"the engine's process ended while it loaded ({self._way_out()})"))
                return
            log.error("%s", line)
            self.state, self.restarts = "down", self.restarts + 1
            self.fail(line)
            failures = 0 if time.monotonic() - began > STEADY else failures
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), PAUSES[min(failures, len(PAUSES) - 1)])
            failures += 1
        self.state = "down"
        self.fail("the server is shutting down")

    async def _run(self, ready: asyncio.Future[None], progress: Callable[[int, int], None] | None) -> None:
        """One worker from its start to its end."""
        self.state = "loading"
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bise.server.worker", str(theirs.fileno())], pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C and its end are for the server, which then ends the worker
        )  # fmt: skip
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        inbox = Inbox()
        self._send(self._first)
        try:
            while data := await reader.read(1 << 18):
                for message in inbox.push(data):
                    self._take(message, ready, progress)
        except ConnectionError:
            pass
        finally:
            self._writer.close()
            await asyncio.to_thread(self._process.wait)

    def _take(
        self, message: dict[str, Any], ready: asyncio.Future[None], progress: Callable[[int, int], None] | None
    ) -> None:
        if "news" in message:
            for id, fields in message["news"]:
                if listening := self._listening.get(id):
                    listening.push(news_of(fields))
        elif "answer" in message:
            answer = self._calls.get(message["answer"])
            if answer and not answer.done():
                if "error" in message:
                    answer.set_exception((BusyError if message["busy"] else RequestError)(message["error"]))
                else:
                    answer.set_result(message["of"])
        elif "loading" in message:
            self.loaded = tuple(message["loading"])
            if progress:
                progress(*self.loaded)
        elif "ready" in message:
            self.state = "ready"
            self.adapters = {name: message["adapters"][name] for name in self._paths if name in message["adapters"]}
            if not ready.done():
                ready.set_result(None)
        elif "fatal" in message:
            raise FormatError(message["fatal"])

    def _way_out(self) -> str:
        code = self._process.poll() if self._process else None
        if code is None or code >= 0:
            return f"exit code {code}"
        return "signal 9: out of memory?" if code == -9 else f"signal {-code}"


class Listening:
    """The news of one ask, as they come. Closing it, or the end of the task that iterates, cancels the ask."""

    def __init__(self, desk: Desk, id: int, ask: Ask) -> None:
        self.id, self._desk = id, desk
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._finished = False
        desk._listening[id] = self
        self._ear = desk.ears(ask) if desk.ears else None
        desk._send({"ask": id, "of": packed(ask)})

    def push(self, news: News) -> None:
        if self._ear:
            self._ear(news)
        if news.finish:
            self._finished = True
            self._desk._listening.pop(self.id, None)
            if news.seconds:
                self._desk._pace += (sum(news.seconds[1:]) - self._desk._pace) / 8
        self._news.put_nowait(news)

    def __aiter__(self) -> AsyncIterator[News]:
        return self._each()

    async def _each(self) -> AsyncIterator[News]:
        try:
            while True:
                news = await self._news.get()
                yield news
                if news.finish:
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        if not self._finished:
            self._finished = True
            self._desk._listening.pop(self.id, None)
            self._desk._send({"cancel": self.id})

    async def aclose(self) -> None:
        self.cancel()
