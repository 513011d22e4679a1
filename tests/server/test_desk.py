"""The engine's process and the desk before it: news, cancelling, refusals, death and return."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import bise
from bise.errors import BiseError, BusyError, DownError, RequestError
from bise.server.desk import Desk
from bise.server.wire import Ask, Inbox, News, Token, frame, news_of, packed

STORY = "Once upon a time"


def with_desk(test: Callable[[Desk], Awaitable[None]], slots: int = 2, queue: int = 4) -> None:
    async def run() -> None:
        desk, _ = Desk.open(None, {}, "puff", slots, queue, 1 << 20)
        await desk.start()
        try:
            await asyncio.wait_for(test(desk), 60)
        finally:
            await desk.close()

    asyncio.run(run())


async def all_of(desk: Desk, ask: Ask) -> tuple[str, list[Token], News]:
    text, tokens, last = "", [], News()
    async for last in desk.listen(ask):
        text += last.text
        tokens += last.tokens
    return text, tokens, last


def story(desk: Desk, n: int = 40, **more: object) -> Ask:
    return Ask(desk.tokenizer.encode(STORY, bos=True), n, **more)  # type: ignore[arg-type]


def test_the_same_text_as_in_process() -> None:
    expected = bise.load().generate(STORY, max_tokens=40)

    async def test(desk: Desk) -> None:
        texts = await asyncio.gather(*(all_of(desk, story(desk, client=str(i), alternatives=2)) for i in range(6)))
        for text, tokens, last in texts:
            assert text == expected.text
            assert [t.id for t in tokens] == expected.tokens
            assert [t.logprob for t in tokens] == expected.logprobs
            assert all(t.top[0] == [t.id, t.logprob] for t in tokens)
            assert (last.finish, last.read) == ("length", 5)

    with_desk(test)


def test_a_stop_string_ends_it_and_is_not_said() -> None:
    async def test(desk: Desk) -> None:
        text, _, last = await all_of(desk, story(desk, stop=["Lily", "zebra"]))
        assert text == ", there was a little girl named "
        assert (last.finish, last.stop) == ("stop", "Lily")
        assert (await desk.call("stats"))["running"] == 0

    with_desk(test)


def test_bad_asks_are_refused_one_by_one() -> None:
    async def test(desk: Desk) -> None:
        for ask, word in (
            (Ask([], 5), "no tokens"),
            (Ask([5] * 2000, 5), "2,000 tokens"),
            (Ask([99999], 5), "outside the vocabulary"),
            (Ask([5], 5, {"temperature": -1}), "temperature"),
            (Ask([5], 5, {"logit_bias": {"4000": 1}}), "4000"),
            (Ask([5], 5, stop=[""]), "empty string"),
            (Ask([5], 0), "max_tokens"),
        ):
            _, _, last = await all_of(desk, ask)
            assert (last.finish, last.status) == ("error", 400)
            assert word in last.error
        assert (await all_of(desk, story(desk, 5)))[2].finish == "length"

    with_desk(test)


def test_a_bug_in_one_ask_is_ours_and_harms_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    async def test(desk: Desk) -> None:
        desk._send({"ask": 999, "of": {"prompt": ["x"], "max_tokens": 3}})
        good, (_, _, last) = await asyncio.gather(
            all_of(desk, story(desk)), all_of(desk, Ask([5], 3, {"no such field": 1}))
        )
        assert (last.finish, last.status) == ("error", 500)
        assert good[2].finish == "length"

    with_desk(test)
    assert "a request failed: TypeError" in capfd.readouterr().err


def test_the_queue_is_bounded_and_leaving_it_makes_room() -> None:
    async def test(desk: Desk) -> None:
        open_asks = [desk.listen(story(desk, 900, ignore_eos=True)) for _ in range(6)]
        assert desk.full
        with pytest.raises(BusyError, match="2 requests are running and 4 wait") as error:
            desk.listen(story(desk))
        assert error.value.retry_after >= 1
        for ask in open_asks:
            await ask.aclose()
        assert desk.taken == 0
        assert (await all_of(desk, story(desk, 5)))[2].finish == "length"
        stats = await desk.call("stats")
        assert (stats["running"], stats["waiting"]) == (0, 0)

    with_desk(test)


def test_who_leaves_in_the_middle_frees_the_slot() -> None:
    async def test(desk: Desk) -> None:
        async for news in desk.listen(story(desk, 900, ignore_eos=True)):
            if news.tokens:
                break
        task = asyncio.create_task(all_of(desk, story(desk, 900, ignore_eos=True)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        stats = await desk.call("stats")
        assert (stats["running"], stats["waiting"], desk.taken) == (0, 0, 0)

    with_desk(test)


def test_a_worker_that_dies_is_started_again() -> None:
    async def test(desk: Desk) -> None:
        talking = asyncio.create_task(all_of(desk, story(desk, 900, ignore_eos=True)))
        calling = asyncio.create_task(asyncio.sleep(0))
        await asyncio.sleep(0.1)
        pid = desk.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # so that the call is still open when it dies
        calling = asyncio.create_task(desk.call("stats"))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        _, _, last = await talking
        assert "signal 9" in last.error and last.status == 503
        with pytest.raises(DownError):
            await calling
        with pytest.raises(DownError, match="try again"):
            desk.listen(story(desk))
        while desk.state != "ready":
            await asyncio.sleep(0.01)
        assert desk.restarts == 1
        assert (await all_of(desk, story(desk, 5)))[2].finish == "length"

    with_desk(test)


def test_a_server_with_many_files_open_starts_its_worker() -> None:
    """The worker's end of the line then has a number that select() does not take."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most[1], 4096), most[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]

    async def test(desk: Desk) -> None:
        assert (await all_of(desk, story(desk, 5)))[2].finish == "length"

    try:
        with_desk(test)
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


def test_no_worker_outlives_its_desk() -> None:
    pids = []

    async def test(desk: Desk) -> None:
        pids.append(desk.worker_pid)
        asking = asyncio.create_task(all_of(desk, story(desk, 900, ignore_eos=True)))
        await asyncio.sleep(0.1)
        await desk.close()
        assert "shutting down" in (await asking)[2].error

    with_desk(test)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(BiseError, match="no such file"):
        Desk.open(tmp_path / "none.gguf", {})

    async def damaged() -> None:
        desk, _ = Desk.open(None, {"context": 1 << 24, "kv": "f32"}, slots=1, reuse=0)
        desk._first["load"]["path"] = str(tmp_path / "gone.gguf")
        with pytest.raises(BiseError, match=r"gone\.gguf"):
            await desk.start()
        await desk.close()

    asyncio.run(damaged())


def test_more_memory_than_there_is() -> None:
    with pytest.raises(RequestError, match="pass a smaller --context"):
        Desk.open(None, {"window": "none", "context": 1 << 28}, slots=8)


def test_a_session_is_saved_and_taken_up(tmp_path: Path) -> None:
    path = str(tmp_path / "fox.session")
    ids: list[int] = []

    async def first(desk: Desk) -> None:
        ask = story(desk, 200, ignore_eos=True)
        _, tokens, _ = await all_of(desk, ask)
        ids.extend([*ask.prompt, *(t.id for t in tokens)])
        assert (await desk.call("save", path=path, ids=ids, salt="", messages=[]))["tokens"] == 204
        with pytest.raises(RequestError, match="nothing of this conversation"):
            await desk.call("save", path=path, ids=ids, salt="other", messages=[])

    async def second(desk: Desk) -> None:
        assert (await desk.call("restore", path=path, salt=""))["tokens"] == 204
        _, tokens, last = await all_of(desk, Ask([*ids, 5], 10, alternatives=0))
        assert last.reused == 204
        expected = bise.load().generate([*ids, 5], max_tokens=10)
        assert [(t.id, t.logprob) for t in tokens] == list(zip(expected.tokens, expected.logprobs, strict=True))
        with pytest.raises(RequestError, match="no such file"):
            await desk.call("restore", path=path + "x", salt="")

    with_desk(first)
    with_desk(second)
    assert bise.Session.load(path).generate([5], max_tokens=3).reused_tokens == 204


def test_frames_come_whole_however_they_are_cut() -> None:
    messages = [{"a": "é\ud800"}, {"b": list(range(50))}, {}]
    data = b"".join(frame(m) for m in messages)
    for cut in (1, 3, 7, 1000):
        inbox, got = Inbox(), []
        for at in range(0, len(data), cut):
            got += inbox.push(data[at : at + cut])
        assert got == messages
    with pytest.raises(BiseError, match="expected at most"):
        list(Inbox().push(b"\xff\xff\xff\xff"))


def test_only_what_is_unusual_is_written() -> None:
    assert packed(News()) == {}
    assert packed(Ask([1], score=0)) == {"prompt": [1], "score": 0}
    news = News(text="a", tokens=[[5, -0.5, [[5, -0.5]]]], finish="stop")  # type: ignore[list-item]
    assert news_of(packed(news)).tokens == [Token(5, -0.5, [[5, -0.5]])]  # type: ignore[list-item]
