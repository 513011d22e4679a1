"""A response that comes as server-sent events (WHATWG HTML, section 9.2), and the end of work nobody waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import limits
from ..faults import Fault

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(data: dict[str, Any], name: str = "") -> bytes:
    """One event; with a name where the API names its events (Anthropic's, OpenAI's responses)."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {_dumps(data)}\n\n".encode()


class Events(Response):
    """Sends what `lines` yields. A comment goes out where it is silent for long; a client that leaves closes it; what
    it raises, after the status has been sent, becomes a last event."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._lines = lines
        self._last = 0.0  # when something was sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})
            self._last = asyncio.get_running_loop().time()

        speaking = asyncio.create_task(self._speak(scope, send, say))
        aside = [asyncio.create_task(self._ping(say)), asyncio.create_task(gone(receive))]
        try:
            await asyncio.wait([speaking, aside[1]], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (speaking, *aside):
                task.cancel()
            await asyncio.gather(speaking, *aside, return_exceptions=True)

    async def _speak(self, scope: Scope, send: Send, say: Any) -> None:
        async with aclosing(self._lines) as lines:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await say(b"")
            try:
                async for line in lines:
                    await say(line)
            except Exception as error:
                fault = Fault.of(error).said(scope["path"])
                await say(event(fault, "error" if "type" in fault else ""))
        await say(b"", more=False)

    async def _ping(self, say: Any) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        while True:
            silent = loop.time() - self._last
            if silent < limits.PING:
                await asyncio.sleep(limits.PING - silent)
            else:
                await say(PING)


async def gone(receive: Receive) -> None:
    """Returns when the client has left. (The body has been read: nothing else can come.)"""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; a client that leaves meanwhile cancels it (ClientDisconnect)."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
