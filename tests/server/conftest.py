"""The servers that the tests talk to: `server` for whoever changes nothing, `start` for one with other options."""

import signal
from collections.abc import Callable, Iterator

import pytest

from bise.api import BUILT_IN
from server.running import Server

for number in (signal.SIGINT, signal.SIGHUP):  # ignored in what a shell's & or nohup starts, and so in all its children
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server with puff, 4 slots, a queue of 64 and no key: .url .port .process .model .log"""
    if not BUILT_IN.exists():
        pytest.skip("the built-in model is not here")
    found = Server("--slots", "4")
    yield found
    found.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """start(*options) is a server that ends with the test."""
    if not BUILT_IN.exists():
        pytest.skip("the built-in model is not here")
    running: list[Server] = []

    def begin(*options: str, **more: object) -> Server:
        running.append(Server(*options, **more))  # type: ignore[arg-type]
        return running[-1]

    yield begin
    for found in running:
        found.close()
