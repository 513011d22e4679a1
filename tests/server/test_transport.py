"""Crowds, idlers and clients that leave, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from server.running import Server, alive, ask, drained, post, streamed, until

LONG = {"model": "puff", "prompt": "Once upon a time", "max_tokens": 900, "temperature": 0, "ignore_eos": True}
SHORT = {**LONG, "max_tokens": 3}


def idle(server: Server) -> bool:
    """Nothing runs and nothing waits."""
    text = ask(server, "/metrics").body.decode()
    return "\nbise_slots_in_use 0.0\n" in text and "\nbise_queue_depth 0.0\n" in text


async def crowd(port: int, request: bytes, many: int) -> list[tuple[int | str, float, bytes]]:
    """Open `many` connections, then ask on all of them at once: status (or the name of an error), seconds, head."""
    gate = asyncio.Event()

    async def one() -> tuple[int | str, float, bytes]:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            ready.append(writer)
            await gate.wait()
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            seconds = time.perf_counter() - began
            await reader.read(100)
            writer.close()
            return int(head.split()[1]), seconds, head
        except (OSError, EOFError) as error:
            return type(error).__name__, 0.0, b""

    ready: list[asyncio.StreamWriter] = []
    tasks = [asyncio.create_task(one()) for _ in range(many)]
    while len(ready) < many:
        await asyncio.sleep(0.01)
    gate.set()
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("path", ["/v1/chat/completions", pytest.param("/v1/completions", marks=pytest.mark.slow)])
def test_a_thousand_at_once(start: Callable[..., Server], path: str) -> None:
    """As many as may are served; the rest are told when to come back, and nobody is reset. What a refusal costs is
    counted in processor time: others may compute beside this test."""
    server = start("--slots", "2", "--queue", "30", "--quiet")
    messages = [{"role": "user", "content": "Tell me a story."}]
    asked = {"messages": messages} if "chat" in path else {"prompt": "Once upon a time"}
    body = {"model": "puff", **asked, "max_tokens": 200, "ignore_eos": True}
    before = server.cpu()
    found = asyncio.run(asyncio.wait_for(crowd(server.port, post(path, body), 1000), 120))
    assert server.cpu() - before < 3, "connections, 968 refusals, and 32 answers of 200 tokens"
    counts = Counter(status for status, _, _ in found)
    assert counts.keys() == {200, 429} and counts[200] >= 32
    assert all(b"retry-after: " in head for status, _, head in found if status == 429)
    until(lambda: idle(server))
    assert ask(server, path, {**body, "max_tokens": 3}).status == 200


def test_a_refusal_has_the_apis_shape(start: Callable[..., Server]) -> None:
    server = start("--slots", "1", "--queue", "0")
    with streamed(server):
        found = ask(server, "/v1/completions", SHORT)
        assert found.status == 429 and int(found.headers["retry-after"]) >= 1
        assert (
            found.json["error"]["type"] == "rate_limit_error"
            and "1 requests are running" in found.json["error"]["message"]
        )
        unread = ask(server, "/v1/completions", b"{" * 100_000, content_type="application/json")
        assert unread.status == 429, "a full server parses nothing"
        assert ask(server, "/v1/models").status == 200 and ask(server, "/health").status == 200
    until(lambda: idle(server))
    assert ask(server, "/v1/completions", SHORT).status == 200


def test_a_thousand_idlers(server: Server) -> None:
    """They take nothing from anybody: /health answers as before."""
    lines = []
    try:
        for _ in range(1000):
            lines.append(server.connect())
        for line in lines[:500]:
            line.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: loc")
        seconds = []
        for _ in range(50):
            began = time.perf_counter()
            assert ask(server, "/health").status == 200
            seconds.append(time.perf_counter() - began)
        assert sorted(seconds)[-3] < 0.1, sorted(seconds)[-3:]
    finally:
        for line in lines:
            line.close()


def test_clients_that_leave_leave_nothing_behind(server: Server) -> None:
    """While they wait, while their prompt is read, while they are answered, streaming and not: slots, files and
    connections are what they were."""
    until(lambda: idle(server))
    ask(server, "/v1/completions", SHORT)
    before = server.files()
    prompt = "Once upon a time there was a fox. " * 60
    for round in range(4):
        lines = [streamed(server, 400, prompt[: 200 * (1 + i % 4)]) for i in range(6)]
        for i in range(8):
            line = server.connect()
            line.sendall(post("/v1/completions", {**LONG, "max_tokens": 400, "prompt": prompt[: 100 * i + 1]}))
            lines.append(line)
        time.sleep(0.02 * round)
        for i, line in enumerate(lines):
            if i % 2:  # a reset in the place of an end
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            line.close()
        began = time.monotonic()
        until(lambda: idle(server))
        assert time.monotonic() - began < 2
    until(lambda: server.files() <= before)


def test_twins_of_which_one_leaves(server: Server) -> None:
    """The same request twice at once, and one of them given up: the other is what it is alone."""
    alone = ask(server, "/v1/completions", {**LONG, "max_tokens": 200}).json["choices"][0]["text"]
    for _ in range(3):
        twin = streamed(server)
        kept = server.connect()
        kept.sendall(post("/v1/completions", {**LONG, "max_tokens": 200}, "connection: close"))
        twin.recv(100)
        twin.close()
        body = drained(kept).partition(b"\r\n\r\n")[2]
        assert json.loads(body)["choices"][0]["text"] == alone
        kept.close()


def test_a_client_that_does_not_read_holds_up_nobody(server: Server) -> None:
    """Its answer waits in a bounded buffer; the others are answered."""
    with streamed(server) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(5):
            assert ask(server, "/v1/completions", SHORT).status == 200
    until(lambda: idle(server))


def test_bodies_at_the_limit(server: Server) -> None:
    """8 MiB are read, one byte more is not, and a client that sends it all reads why."""
    size = 8 << 20
    fits = ask(server, "/v1/completions", b" " * size, content_type="application/json")
    assert fits.status == 400
    over = ask(server, "/v1/completions", b" " * (size + 1), content_type="application/json")
    assert over.status == 413 and "8,388,609" in over.json["error"]["message"]
    with server.connect(30) as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                     b"transfer-encoding: chunked\r\n\r\n")  # fmt: skip
        for _ in range(140):
            line.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert b" 413 " in drained(line)
    assert ask(server, "/v1/completions", SHORT).status == 200


def test_the_same_port_twice(server: Server) -> None:
    second = Server("--port", str(server.port), ready=False)
    assert second.process.wait(30) == 2
    assert second.log.startswith("bise: cannot listen on 127.0.0.1, port ") and second.log.count("\n") == 1
    second.close()
    assert ask(server, "/health").status == 200


def test_the_same_folder_twice(start: Callable[..., Server], tmp_path: Path) -> None:
    first = start("--data", str(tmp_path / "new" / "folder"))
    second = start("--data", str(tmp_path / "new" / "folder"), ready=False)
    assert second.process.wait(30) == 2 and "is served by another bise" in second.log
    first.end(signal.SIGKILL)
    assert start("--data", str(tmp_path / "new" / "folder")).url


def test_few_files(start: Callable[..., Server]) -> None:
    """With 64 open files there is a server, and more connections than it can hold are told so; with fewer there is none."""
    server = start(before="ulimit -n 64")
    lines = [server.connect() for _ in range(30)]
    answers = []
    for line in lines:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    for line in lines:
        answers.append(drained(line)[:12])
        line.close()
    counts = Counter(answers)
    assert counts.keys() <= {b"HTTP/1.1 200", b"HTTP/1.1 503"} and counts[b"HTTP/1.1 200"] >= 20
    until(lambda: ask(server, "/health").status == 200)
    assert ask(server, "/v1/completions", SHORT).status == 200
    refused = start(before="ulimit -n 50", ready=False)
    assert refused.process.wait(30) == 2 and "open files are limited to 50" in refused.log


def test_a_worker_that_is_killed(start: Callable[..., Server]) -> None:
    """Its requests get an error, in the stream too; another worker takes its place; nothing is left of the first."""
    server = start()
    (worker,) = server.children()
    line = streamed(server)
    os.kill(worker, signal.SIGKILL)
    rest = drained(line)
    line.close()
    last = [part for part in rest.split(b"\n") if part.startswith(b"data: ")][-1]
    assert "error" in json.loads(last[6:]) and b"[DONE]" not in rest
    assert ask(server, "/v1/completions", SHORT).status in (200, 503)
    until(lambda: ask(server, "/health").status == 200, 30)
    assert ask(server, "/v1/completions", SHORT).status == 200
    assert not alive(worker) and len(server.children()) == 1
    assert b"bise_worker_restarts 1.0" in ask(server, "/metrics").body
