"""Saved conversations: named, never paths; whole or not there; taken up by another server without being read again."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import bise
from server.running import Server

TALK = [
    {"role": "user", "content": "Tell me a story about a fox who lives in a wood and has many friends."},
]


def ask(server: Server, messages: list[dict[str, str]], n: int = 60) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": n, "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()  # type: ignore[no-any-return]


def test_a_conversation_outlives_the_server(tmp_path: Path) -> None:
    with closing(Server("--data", str(tmp_path))) as server:
        answer = ask(server, TALK)["choices"][0]["message"]["content"]
        talk = [*TALK, {"role": "assistant", "content": answer}]
        saved = httpx.post(f"{server.url}/v1/sessions", json={"name": "fox", "messages": talk}).json()
        assert saved["name"] == "fox" and saved["tokens"] > 60
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    more = [*talk, {"role": "user", "content": "And then?"}]
    with closing(Server("--data", str(tmp_path))) as server:
        assert [s["name"] for s in httpx.get(f"{server.url}/v1/sessions").json()["data"]] == ["fox"]
        restored = httpx.post(f"{server.url}/v1/sessions/fox/restore").json()
        assert restored["tokens"] == saved["tokens"]
        warm = ask(server, more)
        assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] == saved["tokens"]
        assert httpx.delete(f"{server.url}/v1/sessions/fox").status_code == 204
        assert httpx.delete(f"{server.url}/v1/sessions/fox").status_code == 404
    with closing(Server("--data", str(tmp_path))) as server:
        cold = ask(server, more)
        assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert cold["choices"] == warm["choices"]


def test_the_command_line_takes_it_up_too(server: Server, tmp_path: Path) -> None:
    answer = ask(server, TALK)["choices"][0]["message"]["content"]
    talk = [*TALK, {"role": "assistant", "content": answer}]
    httpx.post(f"{server.url}/v1/sessions", json={"name": "mine", "messages": talk}).raise_for_status()
    session = bise.Session.load(server.data / "sessions" / "local" / "mine.session")
    assert session.messages == talk
    assert session.chat("And then?", max_tokens=5).reused_tokens > 60


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "A", "x" * 65, "a\u0000b", "con:1"])
def test_a_name_is_never_a_path(server: Server, name: str) -> None:
    reply = httpx.post(f"{server.url}/v1/sessions", json={"name": name, "messages": TALK})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "name"
    assert httpx.post(f"{server.url}/v1/sessions/{quote(name, safe='')}/restore").status_code in (404, 405)


def test_what_was_never_read_cannot_be_saved(server: Server) -> None:
    body = {"name": "nothing", "prompt": [7, 8, 9, 10]}
    reply = httpx.post(f"{server.url}/v1/sessions", json=body)
    assert (reply.status_code, "nothing of this conversation" in reply.text) == (400, True)
    assert httpx.post(f"{server.url}/v1/sessions", json={"name": "two"}).status_code == 400


def test_a_damaged_file_is_refused_and_stays(server: Server) -> None:
    ask(server, TALK)
    httpx.post(f"{server.url}/v1/sessions", json={"name": "torn", "messages": TALK}).raise_for_status()
    path = server.data / "sessions" / "local" / "torn.session"
    path.write_bytes(path.read_bytes()[:1000])
    reply = httpx.post(f"{server.url}/v1/sessions/torn/restore")
    assert reply.status_code == 400
    assert path.exists()
    assert str(server.data) not in reply.text
