"""Servers to put load on, each in a process of its own on a free port, with the same file."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .client import Target, send

LOADING = 600.0  # seconds
LEAVING = 30.0
PATIENT = ("--interrupt_requests", "False")  # or a new request ends the one before it


@dataclass(frozen=True)
class Kind:
    """How a server is started: what it is, whether it answers, and the fields that only it knows."""

    name: str
    ready: str  # a route that says 200 when requests can be answered
    extra: dict[str, Any]
    about: str

    def command(self, file: Path, port: int, clients: int, context: int, threads: int, data: str) -> list[str]:
        """context: tokens for each of `clients` at once. data: a folder for what it keeps."""
        at = ["--host", "127.0.0.1", "--port", str(port)]
        if self.name == "llama-server":
            binary = shutil.which("llama-server") or "llama-server"
            slots = ["-np", str(clients), "-c", str(clients * context), "-t", str(threads)]
            return [binary, "-m", str(file), *at, *slots, "--metrics", "--no-webui", "--log-disable"]
        if self.name == "llama-cpp-python":
            size = ["--n_ctx", str(context), "--n_threads", str(threads), "--n_threads_batch", str(threads)]
            return [sys.executable, "-m", "llama_cpp.server", "--model", str(file), *at, *size, *PATIENT]
        slots = ["--slots", str(clients), "--context", str(context), "--threads", str(threads)]
        more = ["--format", "v1", "--data", data]
        return [sys.executable, "-m", "bise", "serve", str(file), "--port", str(port), *more, *slots]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("bise", "/health", {"ignore_eos": True}, "continuous batching, fair shares"),
        Kind("llama-server", "/health", {"ignore_eos": True}, "llama.cpp's own server, with continuous batching"),
        Kind("llama-cpp-python", "/v1/models", {"logit_bias": {"2": -100}}, "serves one request at a time"),
    )
}


@dataclass
class Server:
    """One that runs. id: of its first process."""

    kind: Kind
    process: subprocess.Popen[bytes]
    port: int
    loaded: float = 0.0  # seconds from start to ready
    model: str = ""

    @property
    def id(self) -> int:
        return self.process.pid

    def target(self, key: str = "") -> Target:
        return Target(f"http://127.0.0.1:{self.port}/v1", self.model, key, self.kind.extra)


@contextlib.asynccontextmanager
async def running(command: Sequence[str], kind: Kind, port: int) -> AsyncIterator[Server]:
    """Until the block ends. RuntimeError with its last words if it does not come up."""
    with tempfile.TemporaryFile("w+b") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        server = Server(kind, process, port)
        try:
            await wait_ready(server, said)
            server.loaded = time.perf_counter() - started
            yield server
        finally:
            await asyncio.to_thread(stop, process)


async def wait_ready(server: Server, said: Any = None, patience: float = LOADING) -> None:
    """Also finds out the model's name."""
    until = time.perf_counter() + patience
    target = server.target()
    while time.perf_counter() < until:
        if server.process.poll() is not None:
            if said:
                said.seek(0)
            words = said.read().decode(errors="replace").strip()[-2000:] if said else ""
            raise RuntimeError(f"{server.kind.name} ended with code {server.process.returncode}: {words}")
        if (await send(target, server.kind.ready, patience=10)).status == 200:
            models = (await send(target, "models", patience=10)).json()["data"]
            server.model = models[0]["id"]
            return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"{server.kind.name} was not ready after {patience:.0f} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LEAVING)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def start(
    name: str, file: Path, clients: int, context: int, threads: int, data: str = "", port: int = 0
) -> AsyncIterator[Server]:
    """A server until the block ends; with a folder and a port of its own where none are given."""
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="bise-") as own:
        command = KINDS[name].command(file, port, clients, context, threads, data or own)
        async with running(command, KINDS[name], port) as server:
            yield server
