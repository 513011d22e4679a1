"""What is written down about a request: who asked for what is not; when, which route, which status, how long is."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

BACKLOG = 10_000  # lines that may wait for a slow reader of stderr; the rest are counted, not kept
STDERR = 2


@dataclass
class Record:
    """One request, from its first byte to its last. Numbers and names of our own only: no text, no query, no client."""

    method: str
    id: str = field(default_factory=lambda: "req_" + os.urandom(8).hex())
    route: str = "-"  # the template, "/v1/sessions/{id}", never the path
    status: int = 0
    prompt: int = 0  # tokens
    reused: int = 0
    said: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


NOW: ContextVar[Record | None] = ContextVar("NOW", default=None)  # the record of the request that is being served


class Journal:
    """One line of JSON per request on stderr, written by a thread: a reader that sleeps must not stop the server."""

    def __init__(self, quiet: bool = False, counted: Callable[[Record], None] | None = None) -> None:
        self.quiet = quiet
        self.lost = 0  # lines that found no room
        self._counted = counted
        self._lines: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        if not quiet:
            self._thread.start()

    def end(self, record: Record) -> None:
        """The request is over: count it and write its line."""
        if self._counted:
            self._counted(record)
        if not self.quiet:
            facts = {"id": record.id, "method": record.method, "route": record.route, "status": record.status,
                     "prompt": record.prompt, "said": record.said, "ms": round(1000 * record.seconds, 1)}  # fmt: skip
            self._put(facts)

    def trouble(self, error: BaseException, record: Record | None = None) -> None:
        """What went wrong and where; not the error's own words, which may hold a prompt."""
        if self.quiet:
            return
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{os.path.basename(frames[0].filename)}:{frames[0].lineno}" if frames else "-"
        self._put({"id": record.id if record else "-", "error": type(error).__name__, "at": where})

    def close(self) -> None:
        """Write what waits, for at most a second."""
        if self._thread.is_alive():
            try:
                self._lines.put_nowait(None)
            except queue.Full:
                return
            self._thread.join(1)

    def _put(self, facts: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            self._lines.put_nowait(json.dumps({"time": now} | facts))  # ASCII: control characters are escaped
        except queue.Full:
            self.lost += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                os.write(STDERR, line.encode() + b"\n")
            except OSError:  # closed, or a full disk: serving goes on
                self.lost += 1
