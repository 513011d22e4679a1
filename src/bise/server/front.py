"""The front process: one loop that listens, and ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from ..errors import RequestError
from . import Serving, limits
from .app import build
from .desk import Desk
from .gate import ports
from .gate.access import Access
from .gate.connection import Connection
from .gate.health import Metrics
from .gate.journal import Journal, Notes
from .gate.keys import Keys, read_keys
from .shelved import Shelved

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOOK = 0.5  # seconds between two looks at all connections
LAST_WORDS = 2.0  # seconds in which broken-off requests have to get their error
FORCED = 130  # the exit code of a second signal


class Front:
    """One server, from its options to its exit code."""

    def __init__(
        self, told: Serving, say: Callable[[str], None], note: Callable[[str], None],
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        """Everything that can be refused is refused here, before anything is loaded."""
        self.told, self.say, self.progress = told, say, progress
        keys, warning = read_keys(told.key_file)
        self.keys = Keys(keys)
        self.local = ports.is_loopback(told.host)
        if not self.local and not keys:
            raise RequestError(
                f"--host {told.host} can be reached from other machines: pass --key-file FILE, or set BISE_KEY"
            )
        self.most = ports.raise_files()
        self.desk, plan = Desk.open(
            told.model, told.options, told.name, told.slots, told.queue, told.reuse, told.format,
            Shelved(told.adapters, told.folder, told.adapter_memory, told.any_base),
        )  # fmt: skip
        self.data = told.data or data_folder()
        self._claimed = ports.claim(self.data)
        self.socket = ports.listen(told.host, told.port)
        note(plan.line)
        if warning:
            note(warning)

    def run(self) -> int:
        """Serve until a signal comes."""
        loop = _new_loop()
        try:
            return loop.run_until_complete(self._serve())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        metrics = Metrics(self.desk)
        self.journal = Journal(self.told.quiet, metrics.count)
        logging.getLogger("bise").handlers = [Notes(self.journal)]
        loop.set_exception_handler(self._trouble)
        web = self._web(metrics)
        serving = loop.create_task(web.serve(sockets=[self.socket]))
        loading = loop.create_task(self.desk.start(self.progress))
        stopping = loop.create_task(self._stop.wait())
        looking = loop.create_task(_look(web.server_state))
        gc.collect()
        gc.freeze()  # what is here now stays: collections need not walk through it
        try:
            await asyncio.wait([loading, stopping, serving], return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()  # raises what the load raised
                self._announce()
                await asyncio.wait([stopping, serving], return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            loading.cancel()
            stopping.cancel()
            looking.cancel()
            self.desk.fail("the server is shutting down")
            await self.desk.close()
            web.should_exit = True
            await serving
            self.journal.close()
        return 0

    def _web(self, metrics: Metrics) -> uvicorn.Server:
        app = build(self.desk, self.data)
        app.state.metrics = metrics
        port = self.socket.getsockname()[1]
        self.access = Access(app, self.desk, self.keys, self.journal, self.local, self.told.hosts, f"bise_{port}")
        for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):  # what matters, the journal has
            logging.getLogger(name).handlers = [logging.NullHandler()]
            logging.getLogger(name).propagate = False
        config = uvicorn.Config(
            self.access, http=partial(Connection, self.most, self.journal, self.access.full), ws="none", lifespan="off",  # type: ignore[arg-type]
            interface="asgi3", log_config=None, access_log=False, proxy_headers=False, server_header=False,
            backlog=ports.BACKLOG, timeout_keep_alive=limits.IDLE_SECONDS, timeout_graceful_shutdown=1,
        )  # fmt: skip
        return _Web(config)

    def _announce(self) -> None:
        desk = self.desk
        self.say(f"bise: serving {desk.name} on {ports.url(self.socket)} ({desk.slots} at once, {desk.queue} may wait)")

    def _signalled(self) -> None:
        """The first signal drains; the second ends at once."""
        if self._stop.is_set():
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(self.desk.worker_pid, signal.SIGKILL)  # type: ignore[arg-type]  # None: there is none
            os._exit(FORCED)
        self._stop.set()

    async def _drain(self) -> None:
        """Refuse what is new, wait for what runs, and break off what takes too long."""
        self.access.leaving = True
        await self._until_idle(self.told.drain)
        if self.access.open:
            self.desk.fail("the server is shutting down")
            await self._until_idle(LAST_WORDS)

    async def _until_idle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.access.open and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.journal.trouble(context.get("exception") or RuntimeError())


def data_folder() -> Path:
    """Where conversations and sessions lie unless told otherwise (XDG base directory specification)."""
    if "BISE_DATA" in os.environ:
        return Path(os.environ["BISE_DATA"])
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "bise"


async def _look(state: ServerState) -> None:
    """End what takes too long on any connection. Where this process was held up itself (a busy machine, a laptop that
    slept), that time is nobody's fault."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LOOK
        await asyncio.sleep(LOOK)
        now = loop.time()
        for connection in list(state.connections):
            cast(Connection, connection).look(now, now - due)


class _Web(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the front's: uvicorn would stop listening before anybody could be told to come back."""
        yield


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
