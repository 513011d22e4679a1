"""One connection: how much a stranger may send, and how long everything may take.

uvicorn's protocol, with an end to each phase: the head of a request, its body, a reader that does not read. What breaks
a limit is refused in one small answer, and the connection then reads on for a moment: closed with bytes unread, it
would be reset, and the answer with it.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .. import limits
from ..faults import Fault
from .journal import Journal, Record

TOO_LONG = f"the request has more than {limits.HEAD_FIELDS} headers, or more than {limits.HEAD_BYTES:,} bytes of them"
PROGRESS = 1 << 16  # bytes that a reader has to take in limits.READER_SECONDS


class Refused(Exception):
    """Raised inside the parser, which stops there: the status and the line of the answer."""


class Connection(HttpToolsProtocol):
    """most: connections that may be open; one more is told to come back. full: says why there is no room for a request
    to a path, if there is none: a crowd is turned away here, before anything is made of it. Who owns it calls `look`
    now and then."""

    def __init__(
        self, most: int, journal: Journal, full: Callable[[str, Any], Fault | None],
        config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, server_state, app_state, _loop)
        self.most, self.journal, self.full = most, journal, full
        self._no_room: Fault | None = None  # why the request that is being read will be turned away
        self._end = math.inf  # when the phase has to be over: head, body, leaving
        self._between = True  # no request is being read, or only its head
        self._head = self._body = 0  # bytes of the request that is being read
        self._reader_end = math.inf  # the end of patience with a client that does not read
        self._unread = 0  # bytes that waited for it when that began
        self._leaving = False  # refused: what still comes is thrown away
        self._fault: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=limits.UNREAD_BYTES)
        if len(self.connections) > self.most:
            self._refuse(503, f"{self.most:,} connections are open, as many as may be: try again")
        else:
            self._end = self.loop.time() + limits.HEAD_SECONDS

    def data_received(self, data: bytes) -> None:
        if self._leaving:
            return
        if self._between:
            self._head += len(data)
            if self._end == math.inf:
                self._end = self.loop.time() + limits.HEAD_SECONDS
        super().data_received(data)
        if self._between and self._head > limits.HEAD_BYTES and not self._leaving:
            self._refuse(431, TOO_LONG)

    def on_headers_complete(self) -> None:
        self._between, self._head, self._body = False, 0, 0
        self._end = self.loop.time() + limits.BODY_SECONDS
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"content-length" and int(value) > limits.BODY:
                self._fail(413, f"the body has {int(value):,} bytes, at most {limits.BODY:,} are read")
        if size > limits.HEAD_BYTES or len(self.headers) > limits.HEAD_FIELDS:
            self._fail(431, TOO_LONG)
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._fail(400, "only HTTP 1 is spoken here")
        if not self.url.startswith(b"/"):
            self._fail(400, "the target of a request is a path that begins with /")
        alone = self.cycle is None or self.cycle.response_complete
        if alone and not self.expect_100_continue and self.parser.get_method() == b"POST":
            self._no_room = self.full(self.url.decode("latin-1"), self.scope)
        if not self._no_room:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        if self._body > limits.BODY:
            self._fail(413, f"the body has more than {limits.BODY:,} bytes")
        if not self._no_room:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._between, self._end = True, math.inf
        if self._no_room:  # it has been read to its end: closed with bytes unread, it would be reset
            self._answer(self._no_room, self.url.decode())
            self.transport.close()
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()  # a connection that is being closed first sends what waits

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses, or one of the limits above."""
        status, line = self._fault or (400, "this is no HTTP request")
        self._refuse(status, line)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def look(self, now: float, late: float = 0.0) -> None:
        """End what takes too long. now: the loop's time; late: seconds that it stood still."""
        self._end += late
        self._reader_end += late
        if now > self._end:
            self._end = math.inf
            self._late()
        if now > self._reader_end:
            self._reader_end = math.inf
            left = self.transport.get_write_buffer_size()
            if left and self._unread - left < PROGRESS:
                self.transport.abort()
            else:
                self._watch_reader()

    def _fail(self, status: int, line: str) -> None:
        self._fault = status, line
        raise Refused(line)

    def _refuse(self, status: int, line: str) -> None:
        """Answer without the app, where no answer has begun, and leave."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self._answer(Fault(status, line, retry_after=1 if status in (408, 503) else None))
        self._leave()

    def _answer(self, fault: Fault, path: str = "") -> None:
        """path: where it is a route's, without anything of the client's in it."""
        method = self.scope.get("method", "-") if self.scope else "-"
        record = Record("POST" if path else method, route=path or "-", status=fault.status_code)
        self.transport.write(answer(fault, path, record.id, self.server_state.default_headers))
        self.journal.end(record)

    def _leave(self) -> None:
        self._leaving = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self._end = self.loop.time() + limits.LINGER_SECONDS

    def _late(self) -> None:
        if self._leaving:
            self.transport.abort()
        elif self._between and not self._head:
            self.transport.close()
        else:
            part, seconds = ("head", limits.HEAD_SECONDS) if self._between else ("body", limits.BODY_SECONDS)
            self._refuse(408, f"the {part} of the request did not arrive in {seconds:g} seconds")

    def _watch_reader(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        if self._unread and self._reader_end == math.inf:
            self._reader_end = self.loop.time() + limits.READER_SECONDS


def answer(fault: Fault, path: str, id: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The whole of a response that ends the connection."""
    more = "".join(f"{name}: {value}\r\n".lower() for name, value in (fault.headers or {}).items())
    before = b"".join(b"%s: %s\r\n" % header for header in headers)
    first, rest = _written(fault.status_code, fault.message, fault.code, path)
    return b"%s%s%sx-request-id: %s\r\n%s" % (first, before, more.encode(), id.encode(), rest)


@lru_cache(64)
def _written(status: int, line: str, code: str | None, path: str) -> tuple[bytes, bytes]:
    """What is the same for a whole crowd: the first lines, and the last ones with the body."""
    body = json.dumps(Fault(status, line, code=code).said(path)).encode()
    lines = (
        b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close",
        b"x-content-type-options: nosniff", b"", body,
    )  # fmt: skip
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode(), b"\r\n".join(lines)
