"""Streams: what is sent, when it is silent, when the client leaves, when something fails half-way."""

import asyncio
import contextlib
import json

import pytest
from starlette.requests import ClientDisconnect

from bise.errors import BusyError, DownError
from bise.server import limits
from bise.server.api.answers import Answers
from bise.server.api.events import DONE, Events, event, unless_gone
from bise.server.faults import Fault
from bise.server.wire import Ask, News


class Client:
    """The other end of an ASGI app; `leave` is what a closed connection looks like."""

    def __init__(self) -> None:
        self.sent: list[dict] = []
        self.left = asyncio.Event()

    async def receive(self) -> dict:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)


def play(lines, path="/v1/chat/completions", leave_after=None):
    """What a client gets of `lines`, an async generator."""

    async def main():
        client = Client()
        if leave_after is not None:
            asyncio.get_running_loop().call_later(leave_after, client.left.set)
        await asyncio.wait_for(Events(lines)({"type": "http", "path": path}, client.receive, client.send), 10)
        return client

    return asyncio.run(main())


def test_an_event_is_one_line_of_json():
    assert event({"a": "\n🇫🇷"}) == 'data: {"a":"\\n🇫🇷"}\n\n'.encode()
    assert event({}, "ping") == b"event: ping\ndata: {}\n\n"


def test_all_lines_and_the_end():
    async def lines():
        yield event({"a": 1})
        yield DONE

    client = play(lines())
    start, *_, end = client.sent
    headers = dict(start["headers"])
    assert start["status"] == 200 and headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store" and b"content-length" not in headers
    assert client.body == b'data: {"a":1}\n\ndata: [DONE]\n\n' and end["more_body"] is False


def test_silence_is_filled(monkeypatch):
    monkeypatch.setattr(limits, "PING", 0.05)

    async def lines():
        await asyncio.sleep(0.3)
        yield event({"a": 1})

    client = play(lines())
    assert 3 <= client.body.count(b": ping\n\n") <= 7 and client.body.endswith(b'data: {"a":1}\n\n')


def test_a_busy_stream_has_no_pings(monkeypatch):
    monkeypatch.setattr(limits, "PING", 0.1)

    async def lines():
        for _ in range(20):
            await asyncio.sleep(0.02)
            yield event({})

    assert b"ping" not in play(lines()).body


@pytest.mark.parametrize(
    ("path", "begins"), [("/v1/completions", b'data: {"error":'), ("/v1/messages", b"event: error\n")]
)
def test_an_error_half_way_is_an_event_and_the_end(path, begins):
    async def lines():
        yield event({"a": 1})
        raise Fault(500, "the engine failed")

    client = play(lines(), path)
    last = client.body.split(b"\n\n")[-2]
    assert last.startswith(begins) and b"[DONE]" not in client.body and client.sent[-1]["more_body"] is False
    assert json.loads(last.split(b"data: ")[1])["error"]["message"] == "the engine failed"


def test_leaving_closes_what_is_spoken():
    closed = []

    async def lines():
        try:
            while True:
                await asyncio.sleep(0.01)
                yield event({})
        finally:
            closed.append(True)

    play(lines(), leave_after=0.05)
    assert closed == [True]


def test_leaving_before_anything_came():
    closed = []

    async def lines():
        try:
            await asyncio.sleep(60)
            yield b""
        finally:
            closed.append(True)

    play(lines(), leave_after=0.05)
    assert closed == [True]


def test_leaving_ends_work_that_is_not_streamed():
    cancelled = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(True)

    async def main():
        client = Client()
        asyncio.get_running_loop().call_later(0.05, client.left.set)
        with pytest.raises(ClientDisconnect):
            await unless_gone(client.receive, work())
        assert await unless_gone(Client().receive, asyncio.sleep(0, "done")) == "done"

    asyncio.run(main())
    assert cancelled == [True]


# --- several asks at once


class Listening:
    def __init__(self, news, ended=lambda: None):
        self._news, self.cancelled, self._ended = news, False, ended

    def cancel(self):
        self.cancelled = True

    async def __aiter__(self):
        for item in self._news:
            await asyncio.sleep(0)
            if isinstance(item, Exception):
                raise item
            if item.finish:
                self._ended()
            yield item


class Desk:
    """Plays news, one list for each ask; an exception in a list's place refuses the ask."""

    def __init__(self, *script, slots=8):
        self.script, self.opened, self.slots, self.running, self.most = list(script), [], slots, 0, 0

    def listen(self, ask):
        item = self.script.pop(0)
        if isinstance(item, Exception):
            raise item
        self.running += 1
        self.most = max(self.most, self.running)
        self.opened.append(Listening(item, self._ended))
        return self.opened[-1]

    def _ended(self):
        self.running -= 1


async def whole(desk, n):
    return await Answers(desk, [Ask([1])] * n).whole()


def test_all_or_none_are_accepted():
    desk = Desk([], [], BusyError("full"))
    with pytest.raises(BusyError):
        asyncio.run(whole(desk, 3))
    assert [o.cancelled for o in desk.opened] == [True, True]


def test_answers_interleave():
    said = [[News(text=f"{i}{k}") for k in range(3)] + [News(finish="stop")] for i in range(2)]
    desk = Desk(*said)
    answers = asyncio.run(whole(desk, 2))
    assert [(a.text, a.finish) for a in answers] == [("000102", "stop"), ("101112", "stop")]


@pytest.mark.parametrize("status", [400, 500, 503])
def test_one_error_ends_all(status):
    desk = Desk([News(text="a")], [News(finish="error", error="no", status=status)])

    async def main():
        with pytest.raises(Fault, match="no") as caught:
            await Answers(desk, [Ask([1])] * 2).whole()
        return caught.value.status_code

    assert asyncio.run(main()) == status and all(o.cancelled for o in desk.opened)


def test_one_request_takes_no_more_than_the_slots():
    said = [[News(text=str(i)), News(finish="stop")] for i in range(20)]
    desk = Desk(*said, slots=3)
    answers = asyncio.run(whole(desk, 20))
    assert [a.text for a in answers] == [str(i) for i in range(20)] and desk.most == 3


def test_where_others_have_taken_the_room_the_rest_waits():
    desk = Desk([News(finish="stop")], BusyError("full", 0.05), BusyError("full", 0.05), [News(finish="stop")], slots=1)
    assert len(asyncio.run(whole(desk, 2))) == 2


def test_the_engine_dies_before_the_rest():
    desk = Desk([News(finish="stop")], DownError("down"), slots=1)
    with pytest.raises(DownError):
        asyncio.run(whole(desk, 2))


def test_closing_cancels_all():
    desk = Desk([News(text="a")], [News(text="b")])

    async def main():
        async with contextlib.aclosing(Answers(desk, [Ask([1])] * 2).each()) as each:
            await anext(each)

    asyncio.run(main())
    assert all(o.cancelled for o in desk.opened)
