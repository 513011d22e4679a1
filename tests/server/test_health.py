"""What a server says of itself: /health asks the engine, /metrics counts what was answered."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from bise.server.gate import health
from bise.server.gate.health import Pulse
from server.running import Server, ask, drained, post, streamed, until

SHORT = {"model": "puff", "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0, "ignore_eos": True}


def metrics(server: Server) -> dict[str, float]:
    """Every number by its name and labels."""
    lines = ask(server, "/metrics").body.decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_health(server: Server) -> None:
    found = ask(server, "/health")
    assert (found.status, found.json) == (200, {"status": "ok"})
    head = ask(server, "/health", method="HEAD")
    assert head.status == 200 and head.body == b""


def test_health_while_it_ends(start: Callable[..., Server]) -> None:
    """503 with the reason, for as long as it waits for its last request."""
    server = start()
    with server.connect() as line:
        asked = post("/v1/completions", SHORT, "connection: close")
        line.sendall(asked[:-5])  # a request that is being sent is one that runs
        until(lambda: b"\nprocess" in ask(server, "/metrics").body)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: ask(server, "/health").status == 503)
        assert ask(server, "/health").json == {"status": "draining"}
        assert ask(server, "/metrics").status == 200
        line.sendall(asked[-5:])
        assert b" 200 OK" in drained(line)
    assert server.process.wait(60) == 0


def test_health_of_an_engine_that_has_stopped(start: Callable[..., Server]) -> None:
    """It is asked, and is well only as long as its silence may be that of a long step."""
    server = start()
    (worker,) = server.children()
    os.kill(worker, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = ask(server, "/health")
        assert found.status == 200 and 1 < time.monotonic() - began < 4
        began = time.monotonic()
        assert ask(server, "/v1/models").status == 200 and time.monotonic() - began < 1
    finally:
        os.kill(worker, signal.SIGCONT)
    assert ask(server, "/health").status == 200


class Engine:
    """A desk that answers after `seconds`, or never."""

    def __init__(self, seconds: float) -> None:
        self.state, self.seconds, self.asked = "ready", seconds, 0

    async def call(self, what: str) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return {"cache_bytes": 7}


def test_a_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is well, silent is ill, and a crowd that asks is one question."""
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    monkeypatch.setattr(health, "STUCK", 0.3)

    async def feel() -> None:
        quick = Engine(0.001)
        pulse = Pulse(quick)  # type: ignore[arg-type]
        assert await asyncio.gather(*(pulse.feel() for _ in range(100))) == ["ok"] * 100
        assert quick.asked == 1 and pulse.stats == {"cache_bytes": 7}
        quick.state = "down"
        assert await pulse.feel() == "down"
        silent = Pulse(Engine(60))  # type: ignore[arg-type]
        assert await silent.feel() == "ok"
        await asyncio.sleep(0.3)
        assert await silent.feel() == "down"
        assert silent._question
        silent._question.cancel()

    asyncio.run(feel())


def test_metrics_count_what_was_answered(server: Server) -> None:
    """The counters are the sums of what the responses say."""
    before = metrics(server)
    prompt = said = 0
    for stream in (False, False, True):
        if stream:
            with streamed(server, 7) as line:
                while line.recv(1 << 16):
                    pass
            said += 7
        else:
            usage = ask(server, "/v1/completions", SHORT).json["usage"]
            prompt, said = prompt + usage["prompt_tokens"], said + usage["completion_tokens"]
    assert ask(server, "/v1/nothing-of-the-kind").status == 404
    after = metrics(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("bise_said_tokens_total") == said == 17
    assert grown("bise_prompt_tokens_total") == prompt * 3 / 2
    assert grown('bise_requests_total{method="POST",route="/v1/completions",status="200"}') == 3
    assert grown('bise_requests_total{method="GET",route="-",status="404"}') == 1
    assert grown("bise_first_token_seconds_count") == 3
    assert 3 <= grown("bise_between_tokens_seconds_count") <= said - 3
    assert grown("bise_reused_tokens_total") <= grown("bise_prompt_tokens_total")
    assert after["bise_slots"] == 4 and after["bise_queue_limit"] == 64 and after["bise_engine_ready"] == 1
    assert after["bise_cache_bytes"] > 1e6 and after["process_resident_memory_bytes"] > 1e7
    assert all(value == value and abs(value) != float("inf") for value in after.values())


def test_metrics_see_who_runs_and_who_waits(start: Callable[..., Server]) -> None:
    server = start("--slots", "1")
    with streamed(server), server.connect() as waiting:
        waiting.sendall(post("/v1/completions", SHORT))
        until(lambda: metrics(server)["bise_queue_depth"] == 1, 2)
        assert metrics(server)["bise_slots_in_use"] == 1
    until(lambda: metrics(server)["bise_slots_in_use"] == metrics(server)["bise_queue_depth"] == 0)


def test_one_line_per_request(server: Server) -> None:
    """JSON with the same fields each time; a route is told by its template."""
    id = ask(server, "/v1/completions?x=1", SHORT).headers["x-request-id"]
    gone = ask(server, "/v1/models/no%0aline").headers["x-request-id"]
    until(lambda: {id, gone} <= {line["id"] for line in server.lines()})
    (line,) = (line for line in server.lines() if line["id"] == id)
    assert line.keys() == {"time", "id", "method", "route", "status", "prompt", "said", "ms"}
    assert (line["method"], line["route"], line["status"], line["said"]) == ("POST", "/v1/completions", 200, 5)
    assert (
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) and line["prompt"] > 3 and line["ms"] > 0
    )


def test_quiet(start: Callable[..., Server]) -> None:
    server = start("--quiet")
    ask(server, "/v1/completions", SHORT)
    assert server.end() == 0 and server.lines() == []
