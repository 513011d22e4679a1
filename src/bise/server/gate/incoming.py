"""A request as it comes in, before anybody has asked what it wants: its headers and its body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .keys import neighbourhood

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gone(Exception):
    """The client has left."""


class Incoming:
    """The request of an ASGI scope. Header names are lower-case there, by the specification."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope, self._receive = scope, receive
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        length = self.one(b"content-length", b"0")
        self.sends = length.strip(b"0") != b"" or bool(self.all(b"transfer-encoding"))  # it has a body
        self._ended = not self.sends

    @property
    def address(self) -> str:
        """Where it comes from, as far as that tells one client from another."""
        client = self.scope.get("client")
        return neighbourhood(client[0]) if client else ""

    def all(self, name: bytes) -> list[bytes]:
        return [value for known, value in self._headers if known == name]

    def one(self, name: bytes, default: bytes = b"") -> bytes:
        return next((value for known, value in self._headers if known == name), default)

    def cookies(self, name: bytes) -> list[bytes]:
        pairs = (part.strip().partition(b"=") for value in self.all(b"cookie") for part in value.split(b";"))
        return [value for known, _, value in pairs if known == name]

    async def part(self) -> bytes:
        """The next part of its body, b"" at the end. Gone where it ends too soon."""
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            self._ended = not message.get("more_body")
            if message["body"]:
                return bytes(message["body"])
        return b""

    async def discard(self) -> None:
        """Read on to its end: a connection that is closed with bytes unread is reset, and the answer is lost."""
        while await self.part():
            pass

    def replayed(self, body: bytes) -> Receive:
        """What the app receives: the whole body in one message, then whatever comes."""
        waiting = [body]

        async def receive() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await self._receive()

        return receive
