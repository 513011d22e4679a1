"""What people say to a server stays between them: nothing of it in its log or its metrics, and nothing leaves."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from server.running import Server, ask, drained, post, streamed, until

WORD = "Xylophonquark"
KEY = "a-key-that-nobody-must-see-7"


def test_no_word_of_anybody_is_written_down(start: Callable[..., Server], tmp_path: Path) -> None:
    """Said in every place where a request can say something, on every way that it can go wrong; also when the engine
    dies of it."""
    file = tmp_path / "keys"
    file.write_text(KEY)
    file.chmod(0o600)
    server = start("--key-file", str(file))
    key = {"authorization": f"Bearer {KEY}"}
    asked = {"model": "puff", "prompt": f"Once {WORD} said", "max_tokens": 5}
    assert ask(server, "/v1/completions", asked, **key).status == 200
    messages = [{"role": "user", "content": f"Do you know {WORD}?"}]
    assert (
        ask(server, "/v1/chat/completions", {"model": "puff", "messages": messages, "max_tokens": 5}, **key).status
        == 200
    )
    refused = [
        ask(server, "/v1/completions", {**asked, "max_tokens": WORD}, **key),
        ask(server, "/v1/completions", {**asked, WORD: 1}, **key),
        ask(server, "/v1/completions", {**asked, "model": WORD}, **key),
        ask(server, "/v1/completions", {**asked, "prompt": f"{WORD} " * 2000}, **key),
        ask(server, "/v1/completions", f'{{"prompt": "{WORD}'.encode(), content_type="application/json", **key),
        ask(server, "/v1/completions", asked, content_type=WORD, **key),
        ask(server, f"/{WORD}?{WORD}=1%1b%5b2J", **key),
        ask(server, f"/v1/models/{WORD}", **key),
        ask(server, f"/v1/models?{WORD}", **key, user_agent=WORD, cookie=WORD, host="localhost"),
        ask(server, "/v1/models", host=f"{WORD}.com", **key),
        ask(server, "/v1/models", origin=f"https://{WORD}.com", **key),
        ask(server, "/v1/models", authorization=f"Bearer {WORD}-{WORD}"),
        ask(server, "/login", f"key={WORD}".encode(), content_type="application/x-www-form-urlencoded"),
        ask(server, "/tokenize", {"content": WORD}, **key),
    ]
    assert all(reply.status < 500 for reply in refused)
    server.raw(f"{WORD} / HTTP/1.1\r\n{WORD}\r\n\r\n".encode())
    (worker,) = server.children()
    line = streamed_with(server, key["authorization"], asked)
    os.kill(worker, signal.SIGKILL)
    drained(line)
    line.close()
    until(lambda: ask(server, "/health").status == 200, 30)
    counted = ask(server, "/metrics", **key).body.decode()
    assert server.end() == 0
    for text in (server.log, counted):
        assert (
            len(text) > 500 and WORD not in text and KEY not in text and "127.0.0.1" not in text.replace(server.url, "")
        )
        assert not re.search(r"[^\n -~]", text), "a control character"


def streamed_with(server: Server, key: str, asked: dict[str, object]) -> object:
    line = server.connect()
    more = {**asked, "max_tokens": 900, "ignore_eos": True, "stream": True}
    line.sendall(post("/v1/completions", more, f"authorization: {key}", "connection: close"))
    assert line.recv(100).startswith(b"HTTP/1.1 200")
    return line


def test_nothing_leaves(server: Server) -> None:
    """Its sockets are the port that it listens on, what came in there, and the one between its two processes."""
    with streamed(server):
        for process in (server.process.pid, *server.children()):
            for remote in connections(process):
                assert remote[0] == server.port, remote


def connections(process: int) -> list[tuple[int, int]]:
    """(local port, remote port) of every TCP socket of a process."""
    sockets = set()
    for fd in os.listdir(f"/proc/{process}/fd"):
        try:
            sockets.add(os.readlink(f"/proc/{process}/fd/{fd}"))
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in sockets:
                local, remote = (int(words[i].rpartition(":")[2], 16) for i in (1, 2))
                found.append((local, remote))
    return found
