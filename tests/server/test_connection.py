"""One connection and its ends: heads, bodies and readers that take too long, in seconds shortened for the test."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn

from bise.server import limits
from bise.server.faults import Fault
from bise.server.front import _look, _Web
from bise.server.gate.connection import Connection
from bise.server.gate.journal import Journal, Record
from server.running import drained, until

HEAD = b"POST / HTTP/1.1\r\nhost: localhost\r\n"


class Small:
    """A server in a thread: it answers with the length of the body, or streams without end where the path is /stream."""

    def __init__(self, most: int) -> None:
        self.records: list[Record] = []
        self.left = threading.Event()  # a stream was given up
        journal = Journal(True, self.records.append)
        config = uvicorn.Config(
            self._app, port=0, http=partial(Connection, most, journal, self._full), ws="none", lifespan="off", log_config=None,  # type: ignore[arg-type]
            interface="asgi3", proxy_headers=False, timeout_keep_alive=1,
        )  # fmt: skip
        self.web = _Web(config)
        self.thread = threading.Thread(target=asyncio.run, args=[self._run()])
        self.thread.start()
        until(lambda: self.web.started)
        self.port = self.web.servers[0].sockets[0].getsockname()[1]

    def _full(self, path: str, scope: Any) -> Fault | None:
        return Fault(429, "no room", code="x", retry_after=3) if path == "/full" else None

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        looking = asyncio.create_task(_look(self.web.server_state))
        await self.web.serve()
        looking.cancel()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            try:
                while (await asyncio.sleep(0)) is None and not self.web.should_exit:
                    await send({"type": "http.response.body", "body": bytes(1 << 14), "more_body": True})
                    if not self.web.server_state.connections:
                        break
            finally:
                self.left.set()
        await send({"type": "http.response.body", "body": b"%d" % size})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def raw(self, data: bytes) -> bytes:
        with self.connect() as line:
            line.sendall(data)
            return drained(line)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Small]]:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "READER_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(limits, name, 0.4)
    monkeypatch.setattr(limits, "BODY", 100_000)
    monkeypatch.setattr("bise.server.front.LOOK", 0.02)
    running: list[Small] = []

    def start(most: int = 100) -> Small:
        running.append(Small(most))
        return running[-1]

    yield start
    for found in running:
        found.web.should_exit = True
        found.thread.join(10)


def refusal(data: bytes) -> tuple[int, str]:
    """Status and message of an answer that says it is the last, in the API's shape."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head and b"content-length: %d" % len(body) in head, data
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["message"]


def test_a_head_that_does_not_end(small: Callable[..., Small]) -> None:
    """Slowloris: bytes that keep coming buy no time."""
    server, began = small(), time.monotonic()
    with server.connect() as line:
        line.sendall(HEAD)
        while time.monotonic() - began < 0.35:
            line.sendall(b"x-more: 1\r\n")
            time.sleep(0.05)
        assert refusal(drained(line))[0] == 408
    assert 0.3 < time.monotonic() - began < 1.5
    assert [record.status for record in server.records] == [408]


def test_silence_and_empty_lines(small: Callable[..., Small]) -> None:
    server = small()
    began = time.monotonic()
    assert server.raw(b"") == b"" and 0.3 < time.monotonic() - began < 1.5
    with server.connect() as line:  # a request, and then nothing but line ends
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b" 200 " in line.recv(1000)
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 3:
                line.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 2


def test_a_body_that_does_not_end(small: Callable[..., Small]) -> None:
    server, began = small(), time.monotonic()
    with server.connect() as line:
        line.sendall(HEAD + b"content-length: 1000\r\n\r\n")
        for _ in range(7):
            line.sendall(b"x")
            time.sleep(0.05)
        status, message = refusal(drained(line))
    assert status == 408 and "body" in message and time.monotonic() - began < 1.5
    with server.connect() as line:  # the same with chunks
        line.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert refusal(drained(line))[0] == 408


def test_a_body_that_is_too_large(small: Callable[..., Small]) -> None:
    """Refused by its announced length before any of it is read, or when the chunks have become too many; and the client
    that goes on sending reads the answer, and no reset."""
    server = small()
    status, message = refusal(server.raw(HEAD + b"content-length: 100001\r\nexpect: 100-continue\r\n\r\n"))
    assert status == 413 and "100,001" in message and "100,000" in message
    with server.connect() as line:
        line.sendall(HEAD + b"content-length: 999999999999999999\r\n\r\n")
        for _ in range(20):
            line.sendall(bytes(10_000))
        assert refusal(drained(line))[0] == 413
    with server.connect() as line:
        line.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            line.sendall(b"4e20\r\n" + bytes(20_000) + b"\r\n")
        assert refusal(drained(line))[0] == 413
    whole = server.raw(HEAD + b"connection: close\r\ncontent-length: 100000\r\n\r\n" + bytes(100_000))
    assert b" 200 " in whole and b"100000" in whole


def test_heads_that_are_too_large(small: Callable[..., Small]) -> None:
    server = small()
    for head in (
        HEAD + b"x: " + b"y" * (64 << 10) + b"\r\n\r\n",
        HEAD + b"x: y\r\n" * 10_000 + b"\r\n",
        HEAD + b"x: y\r\n" * 101 + b"\r\n",
        b"GET /" + b"x" * (64 << 10) + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        HEAD + b"x: " + b"y" * (1 << 20),  # and no end
    ):
        assert refusal(server.raw(head))[0] == 431, head[:50]
    fine = server.raw(b"GET / HTTP/1.1\r\nconnection: close\r\n" + b"x: y\r\n" * 90 + b"\r\n")
    assert b" 200 " in fine


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"content-length: +3\r\n\r\nabc",
        HEAD + b"content-length: 0x3\r\n\r\nabc",
        HEAD + b"content-length: 99999999999999999999999999\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n",
        HEAD + b"transfer-encoding: gzip, x\r\n\r\nabc",
        HEAD + b"a: b\r\n c\r\n\r\n",
        HEAD + b"a : b\r\n\r\n",
        HEAD + b"a: b\0c\r\n\r\n",
        b"POST / HTTP/1.1\nhost: localhost\n\n",
        b"POST /\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"GARBAGE / HTTP/1.1\r\n\r\n",
        b"CONNECT evil.com:80 HTTP/1.1\r\nhost: evil.com\r\n\r\n",
        b"GET http://evil.com/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(99),
        b"\x00" * 100,
    ],
    ids=lambda data: repr(data[-30:]),
)
def test_what_is_no_request(small: Callable[..., Small], data: bytes) -> None:
    """Two lengths, a length and chunks, folded lines, bare line feeds, TLS: 400 and the end of the connection, and never
    a second request out of what follows."""
    answers = small().raw(data + b"GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert refusal(answers)[0] == 400 and answers.count(b"HTTP/1.1") == 1


def test_old_reused_and_piled_up(small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 10)
    server = small()
    old = server.raw(b"GET / HTTP/1.0\r\n\r\n")
    assert b" 200 " in old and b"connection: close" in old
    with server.connect() as line:
        for i in range(3):
            line.sendall(HEAD + b"content-length: %d\r\n\r\n" % i + b"x" * i)
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                data = line.recv(1000)
                assert data
                answer += data
            assert b" 200 " in answer and answer.endswith(b"\r\n1\r\n%d\r\n0\r\n\r\n" % i)
    pipelined = server.raw((HEAD + b"content-length: 2\r\n\r\nab") * 3 + b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert pipelined.count(b" 200 ") == 4


@pytest.mark.parametrize("late, answered", [(0.0, False), (2.0, True)])
def test_a_server_that_slept_blames_nobody(small: Callable[..., Small], late: float, answered: bool) -> None:
    """A look that comes two seconds late itself gives everybody two seconds more."""
    server = small()
    with server.connect() as line:
        until(lambda: len(server.web.server_state.connections) == 1)
        (connection,) = server.web.server_state.connections
        server.loop.call_soon_threadsafe(connection.look, server.loop.time() + 1, late)
        time.sleep(0.1)
        line.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert (b" 200 " in drained(line)) == answered


def test_turned_away_after_the_last_byte(small: Callable[..., Small]) -> None:
    server = small()
    with server.connect() as line:
        line.sendall(b"POST /full HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000\r\n\r\n" + b"x" * 40_000)
        time.sleep(0.1)
        line.sendall(b"x" * 10_000)
        answer = drained(line)
    assert refusal(answer)[0] == 429 and b"retry-after: 3" in answer and b"connection: close" in answer
    assert [(r.route, r.status) for r in server.records] == [("/full", 429)]
    assert b" 200 " in server.raw(b"GET /full HTTP/1.0\r\n\r\n")


def test_upgrades_are_not_taken(small: Callable[..., Small]) -> None:
    asked = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: %b\r\n\r\n"
    for to in (b"websocket", b"h2c"):
        answer = small().raw(asked % to)
        assert answer.startswith(b"HTTP/1.1 200") or refusal(answer)[0] == 400


def test_a_reader_that_does_not_read(small: Callable[..., Small]) -> None:
    """The buffer stays bounded, and after a while the client is dropped; one that reads slowly is not."""
    server = small()
    with server.connect() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until(lambda: server.web.server_state.connections)
        time.sleep(0.2)
        connection = next(iter(server.web.server_state.connections))
        assert connection.transport.get_write_buffer_size() < 2 * limits.UNREAD_BYTES
        until(lambda: not server.web.server_state.connections, 5)
    assert server.left.wait(5)
    with server.connect() as line:
        line.sendall(b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
        began, read = time.monotonic(), 0
        while time.monotonic() - began < 1.5:
            read += len(line.recv(1 << 16))
            time.sleep(0.01)
        assert read > 1 << 20


def test_one_connection_too_many(small: Callable[..., Small]) -> None:
    """It is told so, whatever it sends, and the others go on."""
    server = small(most=3)
    lines = [server.connect() for _ in range(3)]
    until(lambda: len(server.web.server_state.connections) == 3)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", HEAD + b"content-length: 90000\r\n\r\n" + bytes(90_000)):
        status, message = refusal(server.raw(data))
        assert status == 503 and "3 connections" in message
    lines[0].sendall(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert b" 200 " in drained(lines[0])
    for line in lines:
        line.close()
    until(lambda: not server.web.server_state.connections)
    assert b" 200 " in server.raw(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
