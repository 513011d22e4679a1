"""The engine's process: `python -m bise.server.worker FD`. It takes asks from the socket FD and sends news.

It ends when the other end of the socket is closed, so no worker outlives its server.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from .. import machine, session
from ..api import Model, load
from ..engine import Engine
from ..errors import BiseError, BusyError, RequestError
from ..grammar import Grammar
from ..lora import Placed
from ..request import Request, adapter_of, salted
from ..sampler import Sampler, Sampling
from ..scheduler import Scheduler
from ..speech import Speech
from .shelf import Reader, Shelf, Source
from .wire import Ask, Inbox, News, frame, packed

log = logging.getLogger("bise.server")
NICE = 5  # so much less urgent than the front, which has to answer at once however many threads compute here (LOG.md)


@dataclass(eq=False)
class Ticket:
    """An ask at work, and how much of it has been told."""

    id: int
    request: Request
    speech: Speech
    alternatives: int | None
    born: float  # when it came in
    started: float = 0.0  # when its prompt began to be read
    spoke: float = 0.0  # when its first token came
    said: int = 0
    scored: int = 0
    read: int = -1  # of the prompt, when it was last told


class Worker:
    """The model, its scheduler, and the tickets of all asks."""

    def __init__(
        self, model: Model, slots: int, reuse: int, send: Callable[[dict[str, Any]], None], shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        self.model, self.send, self.shelf = model, send, shelf or Shelf(model, 0)
        self.reader = Reader(self.shelf.read)
        self.parked: list[tuple[Source, dict[str, Any]]] = []  # messages that wait for an adapter to be read
        self.engine: Engine = model.engine(slots, reuse)
        self.scheduler = Scheduler(self.engine)
        self.tickets: dict[int, Ticket] = {}
        self._grammar = Grammar(model.tokenizer) if model.maybe_tokenizer else None

    def take(self, message: dict[str, Any]) -> None:
        """Something came in. It waits where it is about an adapter that has to be read first, and only then."""
        message.setdefault("came", time.monotonic())
        if source := self._unread(message):
            self.reader.start(source)
            self.parked.append((source, message))
        elif "ask" in message:
            self._ask(message)
        elif "cancel" in message:
            self.parked = [(s, other) for s, other in self.parked if other.get("ask") != message["cancel"]]
            if ticket := self.tickets.get(message["cancel"]):
                self._drop(ticket)
        elif "call" in message:
            self._call(message["call"], message["what"], message["details"])

    def settle(self) -> None:
        """Adapters that have been read by now come in, between two steps, and what waited for them goes on."""
        for source, future in self.reader.ended():
            waiting = [message for s, message in self.parked if s == source]
            self.parked = [(s, message) for s, message in self.parked if s != source]
            try:
                read = future.result()
                if any(_adapts(message) for message in waiting) or self.shelf.paths.get(source.name) == source.path:
                    self.shelf.put(source, read.placed, self._used())
            except Exception as error:
                for message in waiting:
                    self._refuse(message, error)
                continue
            for message in waiting:
                if _adapts(message):
                    self.send({"answer": message["call"], "of": read.facts})
                else:
                    self.take(message)

    def _unread(self, message: dict[str, Any]) -> Source | None:
        """What has to be read before a message can be acted on."""
        if _adapts(message):
            return Source(**message["details"])
        return self.shelf.unread((message.get("of") or message.get("details") or {}).get("adapter", ""))

    def _refuse(self, message: dict[str, Any], error: Exception) -> None:
        failure = _failure(error)
        if "ask" in message:
            self.send({"news": [[message["ask"], packed(failure)]]})
        else:
            self.send({"answer": message["call"], "error": failure.error, "busy": failure.status == 429})

    def step(self) -> None:
        """One step for everybody, and the news of it."""
        began = time.monotonic()
        self.scheduler.step()
        now, told = time.monotonic(), []
        for ticket in list(self.tickets.values()):
            news = self._news(ticket, began, now)
            if news is not None:
                told.append([ticket.id, packed(news)])
                if news.finish:
                    self._drop(ticket)
        if told:
            self.send({"news": told})

    def _ask(self, message: dict[str, Any]) -> None:
        id = message["ask"]
        try:
            ask = Ask(**message["of"])
            ticket = Ticket(
                id,
                self._request(ask),
                Speech(self.model.maybe_tokenizer, ask.stop, ask.start),
                ask.alternatives,
                message["came"],
            )
            self.scheduler.submit(ticket.request, ask.client)
        except Exception as error:
            self._refuse(message, error)
            return
        self.tickets[id] = ticket

    def _request(self, ask: Ask) -> Request:
        settings = dict(ask.sampling)
        settings["logit_bias"] = {int(i): bias for i, bias in settings.get("logit_bias", {}).items()}
        settings["dry_breakers"] = frozenset(settings.get("dry_breakers", ()))
        match = self._grammar.match(ask.grammar, ask.start) if ask.grammar and self._grammar else None
        sampler = Sampler(Sampling(**settings), self.model.vocab_size, match)
        ends = frozenset() if ask.ignore_eos else self.model.stop_ids
        return Request(
            ask.prompt, sampler, ask.max_tokens, ends, salt=ask.salt, alternatives=ask.alternatives or 0,
            score=ask.score, embed=ask.embed, adapter=self._adapter(ask.adapter),
        )  # fmt: skip

    def _adapter(self, name: str) -> Placed | None:
        return self.shelf.take(name) if name else None

    def _used(self) -> set[Placed]:
        """The adapters of all that wait or run."""
        return {t.request.adapter for t in self.tickets.values() if t.request.adapter}

    def _drop(self, ticket: Ticket) -> None:
        self.scheduler.cancel(ticket.request)
        del self.tickets[ticket.id]

    def _news(self, ticket: Ticket, began: float, now: float) -> News | None:
        """What there is to tell of a ticket; None: nothing."""
        request, speech = ticket.request, ticket.speech
        if request not in self.engine.running and request.finish_reason is None:
            return None  # still waiting
        ticket.started = ticket.started or began
        news = News(read=min(request.read, len(request.prompt)), reused=request.reused or 0)
        if news.read == ticket.read and ticket.said == len(request.tokens) and request.finish_reason is None:
            return None
        if request.score is not None:
            self._tell_scores(ticket, news)
        pieces = []
        while ticket.said < len(request.tokens) and not speech.stopped:
            pieces.append(speech.push(request.tokens[ticket.said]))
            news.tokens.append(self._token(ticket, ticket.said))  # type: ignore[arg-type]  # written as a list
            ticket.said += 1
        ticket.read, ticket.spoke = news.read, ticket.spoke or (now if ticket.said else 0.0)
        if speech.stopped or request.finish_reason:
            pieces.append(speech.flush())
            self._tell_end(ticket, news, now)
        news.text = "".join(pieces)
        cache, s = self.engine.cache, request.sequence
        news.held, news.first = cache.lengths[s], cache.first_visible(cache.lengths[s])
        return news

    def _token(self, ticket: Ticket, i: int) -> list[Any]:
        request = ticket.request
        if ticket.alternatives is None:
            return [request.tokens[i]]
        return [request.tokens[i], request.logprobs[i], request.likely[i] if request.likely else []]

    def _tell_scores(self, ticket: Ticket, news: News) -> None:
        request = ticket.request
        if ticket.scored == 0 and request.read:
            news.scores.append([request.prompt[0], None, []])  # type: ignore[arg-type]
        first, ticket.scored = ticket.scored, len(request.scores)
        for i in range(first, ticket.scored):
            news.scores.append([request.prompt[i + 1], *request.scores[i]])  # type: ignore[arg-type]

    def _tell_end(self, ticket: Ticket, news: News, now: float) -> None:
        request = ticket.request
        if request.error is not None and not ticket.speech.stopped:
            failure = _failure(request.error)
            news.finish, news.error, news.status = failure.finish, failure.error, failure.status
        else:
            news.finish = "stop" if ticket.speech.stopped else request.finish_reason or "length"
            news.stop = ticket.speech.found
        if request.hidden is not None:
            news.embedding = (request.hidden / len(request.prompt)).tolist()
        spoke = ticket.spoke or now
        news.seconds = [ticket.started - ticket.born, spoke - ticket.started, now - spoke]

    def _call(self, id: int, what: str, details: dict[str, Any]) -> None:
        """Something asked of the engine itself, between two steps."""
        calls = {
            "stats": self._stats, "save": self._save, "restore": self._restore, "unload": self._unload,
        }  # fmt: skip
        try:
            answer = calls[what](**details)  # type: ignore[operator]
            self.send({"answer": id, "of": answer})
        except (BiseError, OSError) as error:
            self.send({"answer": id, "error": str(error), "busy": isinstance(error, BusyError)})

    def _unload(self, name: str) -> dict[str, Any]:
        self.shelf.remove(name)
        return {}

    def _save(
        self, path: str, ids: list[int], salt: str, messages: list[dict[str, Any]], adapter: str = ""
    ) -> dict[str, Any]:
        """Write what has been read of `ids`, with an adapter, to a session's file."""
        placed = self._adapter(adapter)
        salt = salted(salt, placed.id if placed else "")
        s, held = self.scheduler.find(ids, salt)
        if held == 0:
            raise RequestError("nothing of this conversation is held any more: send it once more, then save it")
        said = {"tokens": ids[:held], "messages": messages, "marks": []}
        session.write(path, self.model, self.engine.cache, s, ids[:held], said, adapter_of(salt))
        return {"tokens": held}

    def _restore(self, path: str, salt: str) -> dict[str, Any]:
        """Take up a session's file in a sequence that nobody uses."""
        s = self.scheduler.clear()
        about = session.read(path, self.model, self.engine.cache, s)
        self.engine.history[s], self.engine.salts[s] = list(about["held"]), salted(salt, about["adapter"])
        return {"tokens": len(about["held"])}

    def _stats(self) -> dict[str, Any]:
        engine = self.engine
        return {
            "running": len(engine.running), "waiting": self.scheduler.waiting + len(self.parked),
            "slots": len(engine.history),
            "held": [len(h) for h in engine.history], "cache_bytes": engine.cache.nbytes,
            "reuse_bytes": engine.blocks.nbytes if engine.blocks else 0,
            "adapter_bytes": self.shelf.nbytes(self._used()), "worker_resident_bytes": machine.resident(),
        }  # fmt: skip


def _failure(error: Exception) -> News:
    """The end of an ask that went wrong: by its own fault, or by ours, which goes to the log."""
    if isinstance(error, BusyError):
        return News(finish="error", error=str(error), status=429)
    if isinstance(error, BiseError):
        return News(finish="error", error=str(error), status=400)
    if isinstance(error, MemoryError):
        return News(finish="error", error="there was not enough memory for this request: try again", status=503)
    frame = traceback.extract_tb(error.__traceback__)[-1:]  # the error's own words may hold a prompt: they are not told
    log.error("a request failed: %s at %s", type(error).__name__, [f"{f.filename}:{f.lineno}" for f in frame])
    return News(finish="error", error=f"the engine failed: {type(error).__name__}", status=500)


def main() -> None:
    os.nice(NICE)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the server decides when to end
        signal.signal(number, signal.SIG_IGN)
    line = socket.socket(fileno=int(sys.argv[1]))
    inbox = Inbox()

    def send(message: dict[str, Any]) -> None:
        line.sendall(frame(message))

    while not (came := _receive(line, inbox, [line])):
        pass
    first = came[0]
    try:
        try:
            model = load(**first["load"], progress=lambda done, all: send({"loading": [done, all]}))
            shelf = Shelf(model, first["adapter_memory"], first["any_base"])
            worker = Worker(model, first["slots"], first["reuse"], send, shelf)
            told = _shelved(shelf, first["adapters"])
        except (BiseError, MemoryError) as error:
            send({"fatal": str(error) or "not enough memory"})
            return
        send({"ready": worker._stats(), "adapters": told})
        while True:
            for message in _receive(line, inbox, [] if worker.tickets else [line, worker.reader.bell]):
                worker.take(message)
            worker.settle()
            if worker.tickets:
                worker.step()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _shelved(shelf: Shelf, paths: dict[str, str]) -> dict[str, Any]:
    """Put the adapters there -> what there is to say of each. One that fails now did not when the server began: it is
    left out, and the rest goes on."""
    told = {}
    for name, path in paths.items():
        try:
            told[name] = shelf.add(name, path)
        except BiseError as error:
            log.error("%s", error)
    return told


def _adapts(message: dict[str, Any]) -> bool:
    return message.get("what") == "adapt"


def _receive(line: socket.socket, inbox: Inbox, until: list[socket.socket]) -> list[dict[str, Any]]:
    """What has come in. until: where there is any, wait for one that has something. EOFError at the end."""
    if until:
        wait(until)  # (select knows no descriptor beyond 1,023)
    messages: list[dict[str, Any]] = []
    line.setblocking(False)
    try:
        while True:
            if not (data := line.recv(1 << 20)):
                raise EOFError
            messages += inbox.push(data)
    except BlockingIOError:
        return messages
    finally:
        line.setblocking(True)


if __name__ == "__main__":
    main()
