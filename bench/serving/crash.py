"""kill -9: of the engine's process under load, again and again; then of the whole server, which is started anew with
the same data.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from .checks import Check
from .client import Reply, Target, send
from .processes import children, tree
from .prompts import Prompts, chat
from .servers import Server
from .tally import Answer, outcomes, spread

STREAMS = 4
TOLD = 1.0  # seconds in which every open stream has to hear of it
WHO = "Tell me a story about a little fox."


async def crash_worker(server: Server, target: Target, kills: int) -> tuple[dict[str, Any], list[Check]]:
    """Streams are open when the engine's process is killed. -> how long until they were told, and until one that asks
    is answered again. The server leaves an engine that dies often alone for longer and longer; that is waited for."""
    prompts = await Prompts.measured(target)
    told: list[float] = []
    again: list[float] = []
    ended: list[Reply] = []
    for _ in range(kills):
        streams = [_stream(target, prompts) for _ in range(STREAMS)]
        await asyncio.sleep(0.3)
        died = time.perf_counter()
        os.kill(children(server.id)[0], signal.SIGKILL)
        replies = await asyncio.gather(*streams)
        ended += replies
        told += [reply.done - died for reply in replies]
        again.append(await _answered(target, prompts) - died)
        await asyncio.sleep(1)
    errors = sum(bool(Answer(reply).error) and not reply.complete for reply in ended)
    figures = {
        "kills": kills, "streams_told_ms": spread(told), "answered_again_s": [round(s, 2) for s in again],
        "loaded_s": round(server.loaded, 2), "outcomes": outcomes(ended),
    }  # fmt: skip
    return figures, [
        Check("streams that ended with an error event", errors, "==", len(ended)),
        Check("the last stream to be told", figures["streams_told_ms"]["most"], "<=", 1000 * TOLD, "ms"),  # type: ignore[index]
        Check("recovery after the first kill", again[0], "<=", round(server.loaded + 1, 2), "s"),
    ]


def _stream(target: Target, prompts: Prompts) -> asyncio.Task[Reply]:
    return asyncio.create_task(send(target, "chat/completions", chat(target, prompts.text(32), 900)))


async def _answered(target: Target, prompts: Prompts) -> float:
    while True:
        reply = await send(target, "chat/completions", chat(target, prompts.text(16), 1, stream=False))
        if reply.status == 200:
            return time.perf_counter()
        await asyncio.sleep(0.02)


async def keep(target: Target) -> dict[str, Any]:
    """A conversation on the page, and a session on disk: what has to be there after the crash."""
    talk: dict[str, Any] = {"title": "The fox", "current": "a"}
    talk["messages"] = [{"id": "a", "parent": None, "role": "user", "content": WHO}]
    kept = await send(target, "/api/conversations", talk)
    body = {"messages": [{"role": "user", "content": WHO}], "max_tokens": 40, "temperature": 0}
    reply = (await send(target, "chat/completions", body)).json()["choices"][0]["message"]["content"]
    messages = [*body["messages"], {"role": "assistant", "content": reply}]  # type: ignore[misc]
    saved = await send(target, "sessions", {"name": "crash", "messages": messages})
    for done in (kept, saved):
        if done.status not in (200, 201):
            raise RuntimeError(f"{target.url} says {done.status}: {done.body[:300]!r}")
    return {"conversation": kept.json()["id"], "session": saved.json()["tokens"], "messages": messages}


async def found(target: Target, kept: dict[str, Any]) -> dict[str, bool]:
    """What of it is there, whole."""
    conversation = await send(target, f"/api/conversations/{kept['conversation']}")
    restored = await send(target, "sessions/crash/restore", b"{}")
    messages = [*kept["messages"], {"role": "user", "content": "And then?"}]
    body = {"messages": messages, "max_tokens": 1, "temperature": 0, "stream": False}
    usage = (await send(target, "chat/completions", body)).json().get("usage", {})
    reused = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "conversation": conversation.status == 200 and WHO in conversation.body.decode(),
        "session": restored.status == 200 and restored.json()["tokens"] == kept["session"],
        "not read again": reused >= kept["session"] - 1,
    }


async def crash_server(start: Callable[[], Any], server: Server, target: Target) -> tuple[dict[str, Any], list[Check]]:
    """start: what starts the same server again, on the same port and data."""
    kept, below = await keep(target), tree(server.id)[1:]
    prompts = await Prompts.measured(target)
    streams = [_stream(target, prompts) for _ in range(STREAMS)]
    await asyncio.sleep(0.3)
    os.kill(server.id, signal.SIGKILL)
    died = time.perf_counter()
    await asyncio.gather(*streams)
    while any(_alive(id) for id in below) and time.perf_counter() < died + 5:
        await asyncio.sleep(0.02)
    orphans = sum(map(_alive, below))
    async with start() as anew:
        there = await found(anew.target(), kept)
        figures = {"orphans": orphans, "started_again_s": round(anew.loaded, 2), "after_the_crash": there}
    return figures, [
        Check("processes left behind by the dead server", orphans, "==", 0),
        *(Check(f"after kill -9 and restart: {what}", held, "==", True) for what, held in there.items()),
    ]


def _alive(id: int) -> bool:
    try:
        with open(f"/proc/{id}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
