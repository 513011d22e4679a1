"""Shelf: the adapters of a server, by name; as many of them in memory as may be, those that run in any case.

And Reader: a thread that reads them, so that nobody's step waits for a file.
"""

from __future__ import annotations

import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from .. import lora
from ..api import Model, gib
from ..errors import BiseError, BusyError, RequestError

WAIT = 2.0  # seconds after which somebody may ask again for whom there was no room


class Source(NamedTuple):
    """An adapter that is to be read."""

    name: str
    path: str


class Read(NamedTuple):
    """An adapter that has been read and placed, and what there is to say of it."""

    placed: lora.Placed
    facts: dict[str, Any]


class Shelf:
    """At most `limit` bytes of adapters beside the model, and those that are just being read. What was used longest ago
    goes first, and is read again when somebody asks for it; what a request uses stays, also after its name was removed,
    until that request has ended."""

    def __init__(self, model: Model, limit: int, any_base: bool = False) -> None:
        self.model, self.limit, self.any_base = model, limit, any_base
        self.paths: dict[str, str] = {}
        self.held: OrderedDict[str, lora.Placed] = OrderedDict()

    def read(self, source: Source) -> Read:
        """Read, check and place an adapter; nothing here changes, so any thread may do it. BiseError where that cannot
        be."""
        name, path = source
        try:
            adapter = lora.read(path, self.model.weights, self.any_base)
        except BiseError as error:
            raise type(error)(str(error).replace(path, name)) from None  # where files lie is nobody's business
        size = self.model.beside.nbytes(adapter)
        if size > self.limit:
            raise RequestError(
                f"adapter {name!r} takes {gib(size)}, all together may take {gib(self.limit)}: start with a larger "
                "--adapter-memory"
            )
        placed = self.model.beside.place(adapter, name)
        return Read(placed, {"rank": max(adapter.ranks), "bytes": placed.nbytes, "parameters": adapter.parameters,
                             "fingerprint": placed.id, "base": adapter.base or None})  # fmt: skip

    def put(self, source: Source, placed: lora.Placed, used: Collection[lora.Placed]) -> None:
        """Take in what was read. BusyError, and the name is as it was, where there is no room for it now. used: the
        adapters of all requests that wait or run."""
        for other in [n for n, one in self.held.items() if one not in used]:
            if self.nbytes(used) + placed.nbytes <= self.limit:
                break
            del self.held[other]
        if self.nbytes(used) + placed.nbytes > self.limit:
            raise BusyError(
                f"the adapters that are in use take {gib(self.nbytes(used))} of {gib(self.limit)}, "
                f"{source.name!r} takes {gib(placed.nbytes)} more: try again when requests have ended", WAIT,
            )  # fmt: skip
        self.paths[source.name], self.held[source.name] = source.path, placed

    def add(self, name: str, path: str) -> dict[str, Any]:
        """Read an adapter and take it in, at once -> what there is to say of it."""
        read = self.read(Source(name, path))
        self.put(Source(name, path), read.placed, ())
        return read.facts

    def remove(self, name: str) -> None:
        self.paths.pop(name, None)
        self.held.pop(name, None)

    def unread(self, name: str) -> Source | None:
        """What has to be read before `take` can give this adapter; None: nothing."""
        return Source(name, self.paths[name]) if name in self.paths and name not in self.held else None

    def take(self, name: str) -> lora.Placed:
        """An adapter for a request."""
        if name not in self.held:
            raise RequestError(f"adapter {name!r} is not loaded")
        self.held.move_to_end(name)
        return self.held[name]

    def nbytes(self, used: Collection[lora.Placed] = ()) -> int:
        return sum(placed.nbytes for placed in {*self.held.values(), *used})


class Reader:
    """Reads one adapter after the other in a thread of its own. bell: has something to receive when one has ended."""

    def __init__(self, read: Callable[[Source], Read]) -> None:
        self._read, self._thread = read, ThreadPoolExecutor(1, "adapters")
        self._under_way: dict[Source, Future[Read]] = {}
        self.bell, self._rope = socket.socketpair()
        self.bell.setblocking(False)

    def close(self) -> None:
        """Read nothing more."""
        self._thread.shutdown(cancel_futures=True)
        self.bell.close()
        self._rope.close()

    def start(self, source: Source) -> None:
        """Read it, unless that is under way."""
        if source not in self._under_way:
            self._under_way[source] = self._thread.submit(self._read, source)
            self._under_way[source].add_done_callback(lambda _: self._rope.send(b"!"))

    def ended(self) -> list[tuple[Source, Future[Read]]]:
        """What has been read, or could not be, since this was asked last."""
        with contextlib.suppress(BlockingIOError):
            self.bell.recv(1 << 12)
        found = [(source, future) for source, future in self._under_way.items() if future.done()]
        for source, _ in found:
            del self._under_way[source]
        return found
