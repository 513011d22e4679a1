"""One request over one connection: what came, and when. Clients may leave in the middle, or stop reading.

No library of HTTP clients: 32 streams of a small model are 10,000 events a second, and what a client takes of two cores
is missing in the server that it measures. Bytes are parsed in C (httptools); events are only looked into afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

PATIENCE = 600.0  # seconds that a client waits for the end of an answer


@dataclass(frozen=True)
class Target:
    """A server: where, with which key, which model. extra: fields that only this server knows, in every request."""

    url: str  # http://host:port/v1
    model: str = ""
    key: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    def path(self, route: str) -> str:
        """`chat/completions` below the base; a route that begins with a slash is the server's own."""
        return route if route.startswith("/") else f"{urlsplit(self.url).path.rstrip('/')}/{route}"


@dataclass
class Reply:
    """What became of a request. Times are of time.perf_counter, in seconds."""

    sent: float = 0.0
    headed: float = 0.0  # the status line was there
    done: float = 0.0  # the answer was whole, or the connection gone
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[float, bytes]] = field(default_factory=list)  # the body as it came
    whole: bool = False
    fault: str = ""  # "reset", "closed" early, "refused" (no connection), "timeout"
    left: float = 0.0  # when we went away ourselves

    @property
    def body(self) -> bytes:
        return b"".join(part for _, part in self.parts)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[float, Any]]:
        """The data of each server-sent event, with the time at which its end had come. [DONE] is left out."""
        found, rest = [], b""
        for at, part in self.parts:
            *whole, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
                if data and data != b"[DONE]":
                    found.append((at, json.loads(data)))
        return found

    @property
    def complete(self) -> bool:
        """A stream that ended as it should, or a whole body with a good status."""
        return self.status == 200 and self.whole and (not self.streamed or self.body.rstrip().endswith(b"[DONE]"))

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


@dataclass(frozen=True)
class Leave:
    """When a client goes away: so long after sending, or after so many parts of the answer; rudely with a reset."""

    seconds: float | None = None
    parts: int | None = None
    reset: bool = False


class Connection(asyncio.Protocol):
    """Stands open; sends one request when told to speak, and keeps what comes."""

    def __init__(self, request: bytes, leave: Leave, stall: float) -> None:
        self.reply, self.over = Reply(), asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self._request, self._leave, self._stall = request, leave, stall

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.loop = transport, asyncio.get_running_loop()

    def speak(self) -> None:
        self.reply.sent = time.perf_counter()
        self.transport.write(self._request)
        if self._leave.seconds is not None:
            self.loop.call_later(self._leave.seconds, self.go)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.end(f"not HTTP: {error}")
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.end("reset" if error else "closed")

    def end(self, fault: str) -> None:
        if not self.over.done():
            self.reply.fault = "" if self.reply.whole or self.reply.left else fault
            self.reply.done = time.perf_counter()
            self.over.set_result(self.reply)

    def go(self) -> None:
        """Leave, if the answer is not whole by now."""
        if not self.over.done():
            self.reply.left = time.perf_counter()
            if self._leave.reset:
                self.transport.abort()
            else:
                self.transport.close()
            self.end("")

    # What the parser says.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.reply.status, self.reply.headed = self.parser.get_status_code(), self._now

    def on_body(self, body: bytes) -> None:
        parts = self.reply.parts
        parts.append((self._now, body))
        if len(parts) == self._leave.parts:
            self.go()
        elif len(parts) == 1 and self._stall:
            self.transport.pause_reading()
            self.loop.call_later(self._stall, self.transport.resume_reading)

    def on_message_complete(self) -> None:
        self.reply.whole = True
        self.end("")
        self.transport.close()


async def connect(
    target: Target, request: bytes, leave: Leave = Leave(), stall: float = 0.0, source: str = ""
) -> Connection:
    """OSError if nobody takes it."""
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(request, leave, stall), target.host, target.port, local_addr=(source, 0) if source else None
    )
    return connection


async def send(
    target: Target, route: str, body: Any = None, *, method: str = "", leave: Leave = Leave(),
    stall: float = 0.0, source: str = "", patience: float = PATIENCE,
) -> Reply:  # fmt: skip
    """One request; bytes are sent as they are, anything else as JSON. A failure is in the reply, not raised.
    source: the address to come from (127.0.0.2 ..). stall: seconds without reading after the answer's first part."""
    try:
        connection = await connect(target, spell(target, route, body, method), leave, stall, source)
    except OSError as error:
        now = time.perf_counter()
        return Reply(sent=now, done=now, fault="reset" if isinstance(error, ConnectionResetError) else "refused")
    connection.speak()
    return await finish(connection, patience)


async def finish(connection: Connection, patience: float = PATIENCE) -> Reply:
    """The reply, when it is over; the connection is gone after it."""
    try:
        return await asyncio.wait_for(asyncio.shield(connection.over), patience)
    except asyncio.TimeoutError:
        connection.end("timeout")
        return connection.reply
    finally:
        if not connection.reply.whole and not connection.reply.left:
            connection.transport.abort()  # out of patience, or we were cancelled


def spell(target: Target, route: str, body: Any, method: str) -> bytes:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method or ('POST' if data else 'GET')} {target.path(route)} HTTP/1.1",
        f"Host: {target.host}:{target.port}",
        "Connection: close",
    ]
    if target.key:
        lines.append(f"Authorization: Bearer {target.key}")
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data
