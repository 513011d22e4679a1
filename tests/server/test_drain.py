"""How a server ends: signals, in every phase, and what its clients see of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.running import Server, alive, ask, drained, post, streamed, until

SHORT = {"model": "puff", "prompt": "Once", "max_tokens": 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_running_finish(start: Callable[..., Server], number: int) -> None:
    """New requests are told to come back; running ones end as they would have; exit code 0, and nothing is left."""
    server = start()
    (worker,) = server.children()
    line, slow = streamed(server), server.connect()
    asked = post("/v1/completions", SHORT, "connection: close")
    slow.sendall(asked[:-5])
    server.process.send_signal(number)
    until(lambda: ask(server, "/v1/models").status == 503)
    refused = ask(server, "/v1/completions", SHORT)
    assert refused.status == 503 and refused.headers["retry-after"] and refused.headers["connection"] == "close"
    assert refused.json["error"]["code"] == "shutting_down"
    slow.sendall(asked[-5:])
    assert drained(slow).startswith(b"HTTP/1.1 200 OK")
    assert drained(line).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    line.close()
    slow.close()
    assert server.process.wait(60) == 0
    assert not alive(worker) and "Traceback" not in server.log


def test_what_takes_too_long_is_broken_off(start: Callable[..., Server]) -> None:
    """With an error in the stream, without [DONE], and in time."""
    server = start("--drain", "0", "--slots", "2")
    (worker,) = server.children()
    lines = [streamed(server) for _ in range(6)]
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for line in lines:
        rest = drained(line)
        line.close()
        assert b"[DONE]" not in rest
        last = [part for part in rest.split(b"\n") if part.startswith(b"data: ")][-1]
        assert "shutting down" in json.loads(last[6:])["error"]["message"]
    assert server.process.wait(10) == 0 and time.monotonic() - began < 5
    assert not alive(worker)


def test_a_second_signal_ends_at_once(start: Callable[..., Server]) -> None:
    server = start("--drain", "600")
    (worker,) = server.children()
    line = streamed(server)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(2) in (130, 0)  # 0 where the stream had ended
    until(lambda: not alive(worker))
    line.close()


def test_an_idle_server_ends_at_once(start: Callable[..., Server]) -> None:
    server = start()
    began = time.monotonic()
    with server.connect():
        assert server.end() == 0 and time.monotonic() - began < 3
    assert server.process.stdout and server.process.stdout.read() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("seconds", [0.0, pytest.param(0.2, marks=pytest.mark.slow), 0.4])
def test_signals_before_it_is_ready(start: Callable[..., Server], number: int, seconds: float) -> None:
    """Also while the model loads: it ends soon, says nothing odd, and leaves no process."""
    server = start(ready=False)
    until(lambda: server.begun)
    time.sleep(seconds)
    workers = server.children()
    assert server.end(number, 10) in (0, 130, -number)
    assert "Traceback" not in server.log and not any(map(alive, workers))


def test_the_port_is_free_at_once(start: Callable[..., Server]) -> None:
    """kill -9, and start again on the same port; the worker of the first ends by itself."""
    server = start()
    (worker,) = server.children()
    line = streamed(server)
    server.end(signal.SIGKILL)
    again = start("--port", str(server.port))
    assert again.port == server.port and ask(again, "/v1/completions", SHORT).status == 200
    until(lambda: not alive(worker))
    line.close()


def test_nobody_reads_what_it_says(start: Callable[..., Server]) -> None:
    """stdout is closed later, and both from the start: no connection ever becomes stdout, and serving goes on."""
    later = start()
    assert later.process.stdout
    later.process.stdout.close()
    assert ask(later, "/v1/completions", SHORT).status == 200
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    closed = start("--port", str(port), before="exec 0<&- 1>&- 2>&-", ready=False)
    closed.port = port
    until(lambda: answers(closed), 30)
    for _ in range(3):
        assert ask(closed, "/v1/completions", SHORT).status == 200
    links = [os.readlink(f"/proc/{closed.process.pid}/fd/{fd}") for fd in range(3)]
    assert links == ["/dev/null"] * 3
    assert closed.end() == 0


def answers(server: Server) -> bool:
    try:
        return ask(server, "/health").status == 200
    except OSError:
        return False


def test_whoever_reads_slowly_stops_nothing(start: Callable[..., Server]) -> None:
    """stderr is a pipe that nobody reads, and it is full."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, bytes(1 << 16))
        os.set_blocking(write, True)
        os.read(read, 1 << 16)  # room for the plan, which comes before it serves
        server = start(stderr=write)
        for _ in range(50):
            assert ask(server, "/v1/models").status == 200
        assert server.end() == 0
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_clients_of_a_server_that_is_started_again(start: Callable[..., Server], number: int) -> None:
    """Thirty-two streams: each sees its end or an error within a second, and a client that tries again succeeds."""
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    server = start("--drain", "0")
    lines = [streamed(server) for _ in range(32)]
    server.process.send_signal(number)
    began = time.monotonic()
    for line in lines:
        line.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert b"[DONE]" not in drained(line)
        line.close()
    assert time.monotonic() - began < 2
    server.process.wait(10)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=8)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.completions.create, **SHORT)
        start("--port", str(server.port))
        assert asked.result(30).choices[0].text
    client.close()
