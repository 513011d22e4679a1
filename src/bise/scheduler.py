"""Scheduler: requests of many clients; whose turn it is, and in which of the engine's sequences.

Fair shares by counting (virtual token counter, Sheng et al. 2024, arXiv:2401.00588): every client has a count of the
tokens that were computed for it, and a free sequence goes to the client that waits with the lowest. Who comes after a
pause starts at least from the lowest count of those who are here, so that nobody saves up.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

from .blocks import BLOCK
from .engine import Engine, common
from .errors import BusyError
from .request import Request

SAID = 2  # a token that is said counts as much as so many that are read
TURN = 256  # so much more than one who waits may a client have had before one of its requests is paused


class Scheduler:
    """The queue before an Engine. Not thread-safe: `submit`, `cancel` and `step` belong to one thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clients: dict[Request, str] = {}  # of all requests that wait or run
        self._waiting: dict[str, deque[Request]] = {}
        self._counts: dict[str, int] = {}  # of the clients that are here, or had more than they
        self._used = [0 for _ in engine.cache.lengths]  # when each sequence was last given to somebody
        self._clock = itertools.count(1)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def submit(self, request: Request, client: str = "") -> None:
        """Queue a request. RequestError or ContextError at once where it cannot be served."""
        self.engine.check(request)
        if client not in self._waiting:
            self._counts[client] = max(self._counts.get(client, 0), self._least())
        self._waiting.setdefault(client, deque()).append(request)
        self.clients[request] = client

    def cancel(self, request: Request) -> None:
        """Stop waiting for, or working on, a request."""
        client = self.clients.get(request)
        if client is not None:
            if request in self._waiting.get(client, ()):
                self._waiting[client].remove(request)
            self.engine.cancel(request)
            self._leave(request)

    def step(self) -> list[Request]:
        """Let in whom there is room for, then one step of the engine -> the requests that it has finished."""
        self._admit()
        before = [(r, r.read, len(r.tokens)) for r in self.engine.running]
        finished = self.engine.step() if before else []
        for request, read, said in before:
            self._counts[self.clients[request]] += request.read - read + (SAID - 1) * (len(request.tokens) - said)
        for request in finished:
            self._leave(request)
        return finished

    def idle(self) -> list[int]:
        """The sequences that nobody uses, the longest unused first."""
        busy = {r.sequence for r in self.engine.running}
        return sorted((s for s in range(len(self._used)) if s not in busy), key=self._used.__getitem__)

    def find(self, ids: list[int], salt: str) -> tuple[int, int]:
        """(sequence, tokens): where the most of `ids` is held. What only blocks have is put in an idle sequence."""
        engine = self.engine
        best = max(range(len(engine.history)), key=lambda s: engine.shared(s, ids, salt))
        held = engine.shared(best, ids, salt)
        if engine.blocks and engine.blocks.known(salt, ids) > held and self.idle():
            best = self.clear()
            held = engine.blocks.fill(salt, ids, best)
            engine.history[best], engine.salts[best] = ids[:held], salt
        return best, held

    def clear(self) -> int:
        """An idle sequence, emptied; what it held is kept in blocks. BusyError where there is none."""
        if not (idle := self.idle()):
            raise BusyError(f"all {len(self._used)} slots are speaking: try again when one is free")
        self._used[idle[0]] = next(self._clock)
        self.engine.empty(idle[0])
        return idle[0]

    def _admit(self) -> None:
        self._pause()
        while (idle := self.idle()) and (request := next(self._ready(), None)):
            self._waiting[self.clients[request]].remove(request)
            request.sequence = self._place(request, idle)
            self._used[request.sequence] = next(self._clock)
            try:
                self.engine.submit(request)
            except Exception as error:
                request.error, request.finish_reason = error, "error"
                self._leave(request)

    def _pause(self) -> None:
        """Where all sequences are taken and somebody waits who has had much less than another: pause one request of
        the one that has had most. It waits in front of its client's queue, and its keys and values in blocks."""
        engine = self.engine
        if engine.blocks is None or self.idle() or not (waiting := next(self._ready(), None)):
            return
        enough = self._counts[self.clients[waiting]] + TURN
        running = [r for r in engine.running if engine.blocks.fits(r.read) and not r.every_row]
        request = max(reversed(running), key=lambda r: self._counts[self.clients[r]], default=None)
        if request and self._counts[self.clients[request]] > enough:
            engine.cancel(request)
            self._waiting[self.clients[request]].appendleft(request)

    def _ready(self) -> Iterator[Request]:
        """The first request of every client that may start now, by the clients' counts."""
        for client in sorted(self._waiting, key=self._counts.__getitem__):
            first = next((r for r in self._waiting[client] if not self._is_being_read(r)), None)
            if first:
                yield first

    def _is_being_read(self, request: Request) -> bool:
        """Whether somebody is reading just now what this request begins with: it will wait for that."""
        return self.engine.blocks is not None and not request.every_row and any(
            not r.speaks and r.salt == request.salt
            and common(r.text, request.text) // BLOCK * BLOCK > max(r.read, BLOCK) for r in self.engine.running
        )  # fmt: skip

    def _place(self, request: Request, idle: list[int]) -> int:
        """The idle sequence that mostly holds what the prompt goes on from, or the one that was unused for longest;
        what others hold of the prompt is put where every sequence can take it up."""
        engine, wanted, salt = self.engine, request.known, request.salt
        best = max(idle, key=lambda s: engine.shared(s, wanted, salt))
        here = engine.shared(best, wanted, salt)
        if engine.blocks is None:
            return best if here else idle[0]
        for s, text in enumerate(engine.history):
            if engine.salts[s] == salt and common(text, wanted) // BLOCK > here // BLOCK:
                engine.keep(s)
        known = engine.blocks.known(salt, wanted)
        if known <= here and 2 * here >= len(engine.history[best]) > 0:
            return best
        engine.keep(best)
        return idle[0] if engine.blocks.known(salt, wanted) >= here // BLOCK * BLOCK else best

    def _least(self) -> int:
        """The lowest count of those who are here."""
        return min((self._counts[client] for client in self._waiting), default=0)

    def _leave(self, request: Request) -> None:
        client = self.clients.pop(request)
        if client not in self.clients.values():
            del self._waiting[client]
            least = self._least()
            self._counts = {
                c: n for c, n in self._counts.items() if self._waiting and (c in self._waiting or n > least)
            }
