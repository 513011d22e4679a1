"""What is written down about a request: who asked for what is not; when, which route, which status, how long is."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache

BACKLOG = 10_000  # lines that may wait for a slow reader of stderr; the rest are counted, not kept
PAUSE = 0.05  # seconds in which lines are gathered before they are written
STDERR = 2
_START, _COUNT = os.urandom(4).hex(), itertools.count(1)


@dataclass
class Record:
    """One request, from its first byte to its last. Numbers and names of our own only: no text, no query, no client."""

    method: str
    id: str = field(default_factory=lambda: f"req_{_START}{next(_COUNT):08x}")
    route: str = "-"  # the template, "/v1/sessions/{id}", never the path
    status: int = 0
    prompt: int = 0  # tokens
    reused: int = 0
    said: int = 0
    asked: bool = False  # it has come as far as the engine
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


NOW: ContextVar[Record | None] = ContextVar("NOW", default=None)  # the record of the request that is being served


class Notes(logging.Handler):
    """What the library logs, as lines of the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.say(record.getMessage())


class Journal:
    """One line of JSON per request on stderr, written by a thread: a reader that sleeps must not stop the server."""

    def __init__(self, quiet: bool = False, counted: Callable[[Record], None] | None = None) -> None:
        self.quiet = quiet
        self.lost = 0  # lines that found no room
        self._counted = counted
        self._lines: list[bytes] = []
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def end(self, record: Record) -> None:
        """The request is over: count it and write its line."""
        if self._counted:
            self._counted(record)
        if not self.quiet:
            self._put(
                f'"id": "{record.id}", "method": {_quoted(record.method)}, "route": {_quoted(record.route)}, '
                f'"status": {record.status}, "prompt": {record.prompt}, "said": {record.said}, '
                f'"ms": {1000 * record.seconds:.1f}'
            )

    def trouble(self, error: BaseException, record: Record | None = None) -> None:
        """What went wrong and where; not the error's own words, which may hold a prompt."""
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{os.path.basename(frames[0].filename)}:{frames[0].lineno}" if frames else "-"
        self.say(f"{type(error).__name__} at {where}", record.id if record else "-")

    def say(self, line: str, id: str = "-") -> None:
        """What is no request: a worker that died."""
        self._put(f'"id": "{id}", "note": {_quoted(line)}')

    def close(self) -> None:
        """Write what waits, for at most a second."""
        self._closed = True
        self._wake.set()
        self._thread.join(1)

    def _put(self, facts: str) -> None:
        if len(self._lines) >= BACKLOG:
            self.lost += 1
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._lines.append(f'{{"time": "{now[:-6]}Z", {facts}}}\n'.encode())
        if not self._wake.is_set():
            self._wake.set()

    def _write(self) -> None:
        while not self._closed or self._lines:
            self._wake.wait()
            if not self._closed:
                time.sleep(PAUSE)
            self._wake.clear()
            lines, self._lines = self._lines, []
            try:
                _write_all(STDERR, b"".join(lines))
            except OSError:  # closed, or a full disk: serving goes on
                self.lost += len(lines)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@lru_cache(1024)
def _quoted(text: str) -> str:
    """As JSON has it, in ASCII: control characters are escaped."""
    return json.dumps(text)
