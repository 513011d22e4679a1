"""A real `bise serve` with puff, in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import bise

SOURCE = str(Path(bise.__file__).parents[1])


class Server:
    """Started with `bise serve --port 0 OPTIONS`, and ready when this returns. Its stderr is in `log`."""

    model = "puff"

    def __init__(
        self, *options: str, environment: dict[str, str] | None = None, before: str = "", ready: bool = True,
        stderr: int | None = None,
    ) -> None:  # fmt: skip
        """before: shell commands that run in the process first (ulimit -n 64)."""
        self._folder = tempfile.TemporaryDirectory(prefix="bise-")
        self.data = Path(self._folder.name)
        self._stderr = open(Path(self._folder.name) / "stderr", "wb")  # noqa: SIM115
        command = [sys.executable, "-m", "bise", "serve", "--port", "0", "--data", self._folder.name, *options]
        if before:
            command = ["sh", "-c", f'{before}\nexec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr or self._stderr, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": SOURCE, **(environment or {})},
        )  # fmt: skip
        self.url, self.port = "", 0
        if ready:
            self.wait()

    def wait(self, seconds: float = 60) -> None:
        """Until it says where it listens."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline().decode() if selector.select(seconds) else ""
        found = re.fullmatch(r"bise: serving (\S+) on (http://\S+:(\d+)) \(\d+ at once, \d+ may wait\)\n", line)
        assert found, (line, self.log, self.process.poll())
        self.url, self.port = found[2], int(found[3])

    @property
    def begun(self) -> bool:
        """Whether it has taken its folder: what comes next is the load."""
        return (Path(self._folder.name) / "lock").exists()

    @property
    def log(self) -> str:
        return (Path(self._folder.name) / "stderr").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its journal so far."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def children(self) -> list[int]:
        """The process ids of its workers."""
        return _children(self.process.pid)

    def files(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self) -> float:
        """Seconds of processor time that its front has taken."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number: int = signal.SIGTERM, seconds: float = 40) -> int:
        """Send a signal and wait; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        """End it, however it is."""
        workers = self.children() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
        assert self.process.stdout
        self.process.stdout.close()
        self._stderr.close()
        self._folder.cleanup()

    def connect(self, seconds: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """Send bytes and read until the server closes, or is silent for so long."""
        with self.connect(seconds) as line:
            line.sendall(data)
            return drained(line)


def drained(line: socket.socket) -> bytes:
    found = b""
    try:
        while data := line.recv(1 << 16):
            found += data
    except TimeoutError:
        pass
    return found


def alive(process: int) -> bool:
    """Whether there is such a process (one that is dead and not yet waited for does not count)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Any, seconds: float = 60) -> None:
    """Wait until true() is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def _children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(server: Server, path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
    """One request. body: bytes as they are, anything else as JSON; headers: x_api_key is x-api-key."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body, given = json.dumps(body).encode(), {"content-type": "application/json", **given}
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        line.putrequest(method or ("GET" if body is None else "POST"), path, skip_host="host" in given)
        if body is not None and "content-length" not in given:
            given["content-length"] = str(len(body))
        for name, value in given.items():
            line.putheader(name, value)
        line.endheaders(body)
        found = line.getresponse()
        return Reply(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
    finally:
        line.close()


def streamed(server: Server, max_tokens: int = 900, prompt: str = "Once upon a time", **more: Any) -> socket.socket:
    """A socket on which a completion is streaming: its head has been read."""
    body = {"model": "puff", "prompt": prompt, "max_tokens": max_tokens, "stream": True, "temperature": 0,
            "ignore_eos": True, **more}  # fmt: skip
    line = server.connect(30)
    line.sendall(post("/v1/completions", body, "connection: close"))
    head = b""
    while b"\r\n\r\n" not in head:
        data = line.recv(1)
        assert data, head
        head += data
    assert head.startswith(b"HTTP/1.1 200"), head
    return line


def post(path: str, body: Any, *headers: str) -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(data)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + data
