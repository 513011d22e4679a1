"""Who may come in, and how much they may send: the outermost layer of the server, around the app that app.py builds.

    uvicorn -> Connection (connection.py: bytes and seconds) -> Access -> the app (routes)

Access asks the cheap questions first, in this order: is the path one that could exist; are Host and Origin ours (a page
of a stranger can make a browser send requests here); is the server staying; whose key is it; is the body JSON, and not
too much. It reads the whole body, so that a refusal never resets the connection. Routes that generate are then refused
while the queue is full, before anybody parses anything.

What the routes find in the scope:

    scope["state"]["client"]   whose share of the machine it is: the tenant behind the key, or the address (Ask.client)
    scope["state"]["salt"]     what has been read is shared under the same salt only; "" without keys (Ask.salt)
    scope["state"]["id"]       the id of the request, as in the x-request-id of the response
    scope["state"]["leaving"]  the server ends and takes no new requests
    request.app.state.desk     the Desk, put there by app.build(desk)
    request.app.state.metrics  health.Metrics, put there by serve()

so `request.state.client` and `request.state.salt` in a route. Nothing here reads the text of a request.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache
from ipaddress import ip_address
from typing import Protocol

from .. import limits
from ..faults import Fault
from . import login
from .incoming import Gone, Incoming, Message, Receive, Scope, Send
from .journal import NOW, Journal, Record
from .keys import Guesses, Keys, Tenant

App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = {"/health"}  # needs no key
PRESENT = {"/health", "/metrics"}  # answered while the server ends, and not waited for
GENERATING = {
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
}  # fmt: skip
JSON_TYPE = re.compile(rb"application/json\s*(;\s*charset=\"?utf-8\"?\s*)?", re.I)
HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{0,5})?")  # RFC 3986, 3.2.2 and 3.2.3
ADDRESS = "*"  # stands for every address
STRANGE = re.compile(r"//|/\.{1,2}(/|$)|[\\\x00-\x1f\x7f]|.+/$", re.S)  # paths that no route has
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
PAGE = [  # of everything that a browser might show as a document
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
     b"font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
]  # fmt: skip
DATA = (b"application/json", b"text/event-stream")


class Engine(Protocol):
    """What Access has to know of the Desk."""

    state: str
    slots: int
    queue: int

    @property
    def taken(self) -> int: ...


class Access:
    """keys: those that open it; local: it listens on loopback only; names: hosts it is called by besides."""

    def __init__(
        self, app: App, desk: Engine, keys: Keys, journal: Journal, local: bool = True, names: Collection[str] = (),
        cookie: str = "bise",
    ) -> None:  # fmt: skip
        self.app, self.desk, self.keys, self.journal = app, desk, keys, journal
        self.local, self.names = local, {"localhost", *(name.lower() for name in names)}
        self.cookie = cookie
        self.leaving = False  # the server ends: no new requests
        self.open: set[str] = set()  # ids of the requests that are being served
        self._guesses = Guesses()
        self._slowed = 0  # clients that wait after a wrong key
        self._held = 0  # bytes of bodies
        self._coming: dict[int, Record | None] = {}  # requests that have found room, by the id of their scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(scope["method"])
        NOW.set(record)
        if id(scope) in self._coming:
            self._coming[id(scope)] = record
        say = _dressed(send, record, scope)
        if scope["path"] not in PRESENT:
            self.open.add(record.id)
        try:
            await self._serve(Incoming(scope, receive), receive, say, record)
        except Gone:
            record.status = record.status or 499
        except Exception as error:  # of ours: the app answers its own
            self.journal.trouble(error, record)
            if record.status:
                raise  # an answer has begun: it is cut off
            await _refuse(scope["path"], say, Fault(500, "the server failed on this request", code="internal_error"))
        finally:
            self.open.discard(record.id)
            self._coming.pop(id(scope), None)
            record.route = getattr(scope.get("route"), "path", "-")
            self.journal.end(record)

    async def _serve(self, request: Incoming, receive: Receive, send: Send, record: Record) -> None:
        held = 0
        try:
            self._look(request)
            if self.keys and request.path == "/login" and request.method == "POST":
                await self._log_in(request, send)
                return
            tenant = self._tenant(request)
            if tenant is None:
                await self._no_key(request, send)
                return
            request.scope["state"].update(client=tenant.name, salt=tenant.salt, id=record.id, leaving=self.leaving)
            if request.sends:
                _check_kind(request)
                parts: list[bytes] = []
                while part := await request.part():
                    held += len(part)
                    self._hold(len(part))
                    parts.append(part)
                receive = request.replayed(b"".join(parts))
                del parts
            self._check_room(request)
            await self.app(request.scope, receive, send)
        except Fault as fault:
            await request.discard()
            await _refuse(request.path, send, fault)
        finally:
            self._held -= held

    def _look(self, request: Incoming) -> None:
        """Refuse what nobody may ask, whoever it is."""
        if STRANGE.search(request.path):
            raise Fault(404, "there is no such path", code="not_found")
        hosts = request.all(b"host")
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        name = _name_of(host)
        if not name or (self.local and name != ADDRESS and name not in self.names):
            raise Fault(403, "this server is not called that: use its address, or start it with --allow-host NAME")
        for origin in request.all(b"origin"):
            if origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
                raise Fault(403, "requests from pages of other sites are refused")
        if self.leaving and request.path not in PRESENT:
            raise Fault(503, "the server is shutting down", code="shutting_down", retry_after=5)

    def _tenant(self, request: Incoming) -> Tenant | None:
        if not self.keys or request.path in OPEN:
            return Tenant(request.address)
        for value in request.all(b"authorization")[:1]:
            scheme, _, key = value.partition(b" ")
            return self.keys.tenant(key.strip()) if scheme.lower() == b"bearer" else None
        for value in request.all(b"x-api-key")[:1]:
            return self.keys.tenant(value)
        return next(filter(None, map(self.keys.visitor, request.cookies(self.cookie.encode()))), None)

    def _hold(self, n: int) -> None:
        self._held += n
        if self._held > limits.BODIES:
            raise Fault(503, "the server holds as many bodies as it may: try again", code="bodies", retry_after=1)

    def full(self, path: str, scope: Scope) -> Fault | None:
        """Why a POST to this path finds no room, if it does not. The connection asks before it reads on; of a crowd
        that comes at one moment, those count who have been let in and have not got as far as the desk."""
        if path not in GENERATING:
            return None
        running, waiting = self.desk.slots, self.desk.queue
        coming = sum(record is None or not record.asked for record in self._coming.values())
        if self.desk.taken + coming < running + waiting:
            self._coming[id(scope)] = None
            return None
        line = f"{running} requests are running and {waiting} wait, as many as may: try again"
        return Fault(429, line, code="rate_limit_exceeded", retry_after=1)

    def _check_room(self, request: Incoming) -> None:
        if request.path not in GENERATING or request.method != "POST":
            return
        if self.desk.state != "ready":
            raise Fault(503, f"the engine is {self.desk.state}: try again", code="engine_down", retry_after=5)
        if id(request.scope) not in self._coming and (fault := self.full(request.path, request.scope)):
            raise fault

    async def _no_key(self, request: Incoming, send: Send) -> None:
        """401: for a person a form, for a program a line. Who guesses waits."""
        await request.discard()
        if any(request.all(name) for name in (b"authorization", b"x-api-key", b"cookie")):
            await self._slow(request.address)
        if request.path == "/" and request.method == "GET" and b"text/html" in request.one(b"accept"):
            await login.ask(send)
        else:
            raise Fault(401, "this server wants a key: send Authorization: Bearer KEY", code="invalid_api_key")

    async def _slow(self, address: str) -> None:
        """After a wrong key: nothing at first, then a second of waiting, then a refusal to wait."""
        if not self._guesses.wrong(address):
            return
        if self._slowed >= limits.SLOWED:
            raise Fault(429, "too many wrong keys from this address", code="wrong_keys", retry_after=60)
        self._slowed += 1
        try:
            await asyncio.sleep(1)
        finally:
            self._slowed -= 1

    async def _log_in(self, request: Incoming, send: Send) -> None:
        """The form's answer, the one body that is no JSON: a cookie for a right key."""
        if not request.one(b"content-type").lower().startswith(b"application/x-www-form-urlencoded"):
            raise Fault(415, "the log-in form sends application/x-www-form-urlencoded")
        data = b""
        while part := await request.part():
            data = (data + part)[: login.LONGEST]
        key = login.key_of(data)
        if self.keys.tenant(key):
            await login.welcome(send, self.cookie, self.keys.cookie(key))
        else:
            await self._slow(request.address)
            await login.ask(send, "That is not a key of this server.")


def _check_kind(request: Incoming) -> None:
    """A form of a stranger's page can send text, but not this type; and what is packed may be endless."""
    if request.one(b"content-encoding", b"identity").lower() != b"identity":
        raise Fault(415, "the body is compressed: send it as it is")
    if not JSON_TYPE.fullmatch(request.one(b"content-type")):
        raise Fault(415, "the body has to be JSON: send content-type: application/json")


@lru_cache(1024)
def _name_of(host: str) -> str:
    """Of HOST:PORT the name, ADDRESS for every address, "" for what is neither."""
    if not HOST.fullmatch(host):
        return ""
    name = re.sub(r":\d*$", "", host)
    try:
        ip_address(name[1:-1] if name.startswith("[") else name)
    except ValueError:
        return "" if name.startswith("[") else name
    return ADDRESS


def _dressed(send: Send, record: Record, scope: Scope) -> Send:
    """`send` with the headers that every response has; the status goes into the record."""

    async def say(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers: list[tuple[bytes, bytes]] = list(message.get("headers", []))
            names = {name.lower(): value for name, value in headers}
            more = [(b"x-request-id", record.id.encode()), (b"cache-control", b"no-store"), *SAFE]
            if scope["path"].startswith("/v1/messages"):
                more.append((b"request-id", record.id.encode()))  # where Anthropic's client looks
            if not names.get(b"content-type", b"").startswith(DATA):
                more += PAGE
            message["headers"] = headers + [(name, value) for name, value in more if name not in names]
        await send(message)

    return say


@lru_cache(256)
def _written(status: int, line: str, code: str | None, anthropic: bool) -> bytes:
    fault = Fault(status, line, code=code)
    return json.dumps(fault.anthropic() if anthropic else fault.openai()).encode()


async def _refuse(path: str, send: Send, fault: Fault) -> None:
    body = _written(fault.status_code, fault.message, fault.code, path.startswith("/v1/messages"))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in (fault.headers or {}).items()]
    if fault.status_code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if fault.code == "shutting_down":
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": fault.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
