"""Adapters of a server: chosen by a request's `model`, loaded and unloaded while it serves, never more than there is
room for, and never by a path."""

from __future__ import annotations

import json
import re
import select
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import bise
from bise import lora
from bise.api import BUILT_IN
from bise.errors import BusyError, FormatError, RequestError
from bise.lora import Adapter, Delta, Placed
from bise.server.desk import Desk
from bise.server.shelf import Read, Shelf, Source
from bise.server.shelved import Shelved
from bise.server.worker import Worker
from bise.weights import Weights
from server.running import Server, ask, streamed, until
from test_lora import random_adapter


def gentle(seed: int, rank: int = 4, base: str | None = None) -> Adapter:
    """One that changes what puff says, and leaves it words."""
    weights = Weights.open(BUILT_IN)
    made = random_adapter(weights.config, rank, seed, of=lambda name: "attn" in name)
    deltas = {n: Delta(d.a, d.b / 4, d.scale) for n, d in made.deltas.items()}
    return Adapter(deltas, made.alpha, weights.fingerprint if base is None else base, f"tune{seed}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an operator has: one and two, and files that are no adapters of puff."""
    folder = tmp_path_factory.mktemp("tunes")
    config = Weights.open(BUILT_IN).config
    lora.write_peft(folder / "one", gentle(1), config)
    lora.write_gguf(folder / "two.gguf", gentle(2))
    lora.write_gguf(folder / "three.gguf", gentle(3, rank=12))
    lora.write_gguf(folder / "stranger.gguf", gentle(4, base="0" * 64))
    (folder / "broken.gguf").write_bytes(b"GGUF and then nothing")
    (folder / ".hidden").mkdir()
    lora.write_gguf(folder.parent / "outside.gguf", gentle(5))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    found = Server("--slots", "4", "--adapter", f"first={folder / 'one'}", "--adapters", str(folder))
    yield found
    found.close()


PROMPT = "Once upon a time there was a"


def text(server: Server, model: str | None, **more: Any) -> str:
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, **({"model": model} if model else {}), **more}
    answer = ask(server, "/v1/completions", body)
    assert answer.status == 200 and answer.json["model"] == (model or "puff"), answer
    return str(answer.json["choices"][0]["text"])


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    """What each says, from Python."""
    paths = {"first": folder / "one", "two": folder / "two.gguf", "three": folder / "three.gguf"}
    model = bise.load(adapter=paths, threads=1)
    return {name or "puff": model.generate(PROMPT, max_tokens=24, adapter=name).text for name in (None, *paths)}


def test_models_are_listed_and_chosen(server: Server, said: dict[str, str]) -> None:
    """openai's client sees the adapter as a model, and each says what it says alone."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list().data][:2] == ["puff", "first"]
    assert client.models.retrieve("first").parent == "puff"  # type: ignore[attr-defined]
    assert len(set(said.values())) == 4
    for name in "puff", "first":
        done = client.completions.create(model=name, prompt=PROMPT, max_tokens=24, temperature=0)
        assert (done.model, done.choices[0].text) == (name, said[name])
    assert text(server, None) == said["puff"]
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Tell me a story."}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Tell me a story."}]}),
        ("/v1/responses", {"input": "Tell me a story."}),
    ):
        more = {"max_output_tokens": 60} if "input" in body else {"max_tokens": 60}
        plain, tuned = (
            ask(server, path, {"model": name, **body, **more, "temperature": 0}).json for name in ("puff", "first")
        )
        assert (plain["model"], tuned["model"]) == ("puff", "first")
        assert shown(plain) != shown(tuned)
    vectors = [ask(server, "/v1/embeddings", {"model": n, "input": "wind"}).json["data"][0] for n in ("puff", "first")]
    assert vectors[0] != vectors[1]
    wrong = ask(server, "/v1/completions", {"model": "nobody", "prompt": "x"})
    assert (
        wrong.status == 404
        and wrong.json["error"]["code"] == "model_not_found"
        and "'first'" in wrong.json["error"]["message"]
    )


def shown(answer: dict[str, Any]) -> str:
    return json.dumps([answer.get(key) for key in ("choices", "content", "output")]).replace(answer["id"], "")


def test_loaded_and_unloaded_while_it_serves(server: Server, said: dict[str, str]) -> None:
    found = ask(server, "/v1/adapters").json
    assert [card["id"] for card in found["data"]] == ["first"] and found["data"][0]["rank"] == 4
    assert found["available"] == ["broken", "one", "stranger", "three", "two"]
    made = ask(server, "/v1/adapters", {"name": "two"})
    assert made.status == 201 and made.json["id"] == "two" and made.json["bytes"] > 1000
    assert text(server, "two") == said["two"] and text(server, "first") == said["first"]
    assert ask(server, "/v1/adapters", {"name": "two"}).status == 409
    assert ask(server, "/v1/models/two").status == 200
    gone = ask(server, "/v1/adapters/two", method="DELETE")
    assert gone.status == 200 and gone.json == {"id": "two", "object": "adapter", "deleted": True}
    assert ask(server, "/v1/adapters/two", method="DELETE").status == 404
    assert ask(server, "/v1/completions", {"model": "two", "prompt": "x"}).status == 404
    assert text(server, "first") == said["first"]


@pytest.mark.parametrize(
    ("name", "status"),
    [("nobody", 404), ("../outside", 400), ("..", 400), ("/etc/passwd", 400), (".hidden", 400), ("two.gguf", 404),
     ("broken", 400), ("stranger", 400), ("", 400), ("x" * 65, 400), (7, 400)],
)  # fmt: skip
def test_by_name_only(server: Server, folder: Path, name: Any, status: int) -> None:
    """No name leads out of the folder, and no answer says where the folder is."""
    answer = ask(server, "/v1/adapters", {"name": name})
    assert answer.status == status, answer
    assert str(folder) not in answer.body.decode() and str(folder) not in server.log.split("{")[-1]
    assert [card["id"] for card in ask(server, "/v1/adapters").json["data"]] == ["first"]


def test_unloaded_while_it_speaks(server: Server, said: dict[str, str]) -> None:
    """Who runs ends as it would have; who comes is refused; and under the same name another one can be loaded."""
    assert ask(server, "/v1/adapters", {"name": "two"}).status == 201
    line = streamed(server, 120, PROMPT, model="two")
    assert ask(server, "/v1/adapters/two", method="DELETE").status == 200
    assert ask(server, "/v1/completions", {"model": "two", "prompt": "x"}).status == 404
    received = b""
    while data := line.recv(1 << 16):
        received += data
    line.close()
    chunks = [json.loads(part) for part in re.findall(rb"data: (\{.*\})", received)]
    told = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    assert told.startswith(said["two"]) and b"[DONE]" in received
    assert ask(server, "/v1/adapters", {"name": "two"}).status == 201 and text(server, "two") == said["two"]
    assert ask(server, "/v1/adapters/two", method="DELETE").status == 200


def test_many_at_once_say_what_each_says_alone(server: Server, said: dict[str, str]) -> None:
    assert {ask(server, "/v1/adapters", {"name": name}).status for name in ("two", "three")} == {201}
    wanted, got = [*said] * 5, {}

    def one(i: int, name: str) -> None:
        got[i] = text(server, name)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: said[name] for i, name in enumerate(wanted)}
    for name in "two", "three":
        ask(server, f"/v1/adapters/{name}", method="DELETE")


def test_a_session_belongs_to_its_adapter(server: Server) -> None:
    """What was read with an adapter is taken up again with it, and not without."""
    prompt, body = PROMPT * 20, {"max_tokens": 8, "temperature": 0}
    first = ask(server, "/v1/completions", {**body, "prompt": prompt, "model": "first"}).json
    assert ask(server, "/v1/sessions", {"name": "tuned", "prompt": prompt, "model": "first"}).status == 200
    without = ask(server, "/v1/sessions", {"name": "plain", "prompt": prompt})
    assert without.status == 400 or without.json["tokens"] < 20  # its beginning, where others read that without one
    assert ask(server, "/v1/sessions/tuned/restore", {}, "POST").status == 200
    again = ask(server, "/v1/completions", {**body, "prompt": prompt, "model": "first"}).json
    plain = ask(server, "/v1/completions", {**body, "prompt": prompt, "model": "puff"}).json
    assert again["choices"] == first["choices"] and again["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_there_again_after_a_crash(start: Callable[..., Server], folder: Path, said: dict[str, str]) -> None:
    import os
    import signal

    server = start("--adapters", str(folder), "--slots", "1")
    assert ask(server, "/v1/adapters", {"name": "two"}).status == 201
    (worker,) = server.children()
    os.kill(worker, signal.SIGKILL)
    until(lambda: ask(server, "/health").status != 200)
    until(lambda: ask(server, "/health").status == 200)
    assert text(server, "two") == said["two"]


@pytest.fixture(scope="module")
def model() -> bise.Model:
    return bise.load(threads=1)


def test_the_longest_unused_makes_room(model: bise.Model, folder: Path) -> None:
    """Two of three fit: the third pushes out the one unused for longest, which comes back when it is asked for; what is
    in use stays, also after it was removed, and then there is no room."""
    one, two = str(folder / "one"), str(folder / "two.gguf")
    size = model.beside.nbytes(gentle(1))
    shelf = Shelf(model, 2 * size)

    def take(name: str, *used: Placed) -> Placed:
        if source := shelf.unread(name):
            shelf.put(source, shelf.read(source).placed, used)
        return shelf.take(name)

    for name, path in (("a", one), ("b", two)):
        assert shelf.add(name, path)["bytes"] == size
    a = take("a")
    shelf.add("c", one)
    assert list(shelf.held) == ["a", "c"] and shelf.nbytes() == 2 * size
    assert take("b", a).pairs.keys() == a.pairs.keys() and list(shelf.held) == ["a", "b"]
    shelf.remove("a")
    b = shelf.held["b"]
    with pytest.raises(BusyError, match="in use"):
        take("c", a, b)
    assert take("c", a).name == "c" and list(shelf.held) == ["c"]
    with pytest.raises(RequestError, match="'a' is not loaded"):
        take("a")
    with pytest.raises(RequestError, match="--adapter-memory"):
        shelf.add("large", str(folder / "three.gguf"))
    with pytest.raises(FormatError) as error:
        shelf.add("broken", str(folder / "broken.gguf"))
    assert str(folder) not in str(error.value) and list(shelf.paths) == ["b", "c"]


class Slow(Shelf):
    """A shelf whose files are read when they may be."""

    may = threading.Event()

    def read(self, source: Source) -> Read:
        assert self.may.wait(60)
        return super().read(source)


def test_nobody_waits_for_a_file_but_who_asked_for_it(model: bise.Model, folder: Path, said: dict[str, str]) -> None:
    """While one adapter is being read others speak. Who waits for it may leave; it may be unloaded before it is there;
    what cannot be read is an error of those that wait. Nothing holds an adapter that nobody uses any more."""
    told: dict[int, list[dict[str, Any]]] = {}
    answers: dict[int, dict[str, Any]] = {}

    def send(message: dict[str, Any]) -> None:
        for id, news in message.get("news", []):
            told.setdefault(id, []).append(news)
        if "answer" in message:
            answers[message["answer"]] = message

    def ask(id: int, adapter: str, most: int = 24) -> None:
        prompt = model.tokenizer.encode(PROMPT, bos=True)
        of = {"prompt": prompt, "max_tokens": most, "sampling": {"temperature": 0.0}, "adapter": adapter}
        worker.take({"ask": id, "of": of})

    def call(id: int, what: str, **details: str) -> None:
        worker.take({"call": id, "what": what, "details": details})

    def let(*done: int) -> None:
        """Go on until these have ended."""
        for _ in range(10_000):
            if all(id in answers or told.get(id, [{}])[-1].get("finish") for id in done):
                return
            if worker.tickets:
                worker.step()
            else:
                assert select.select([worker.reader.bell], [], [], 60)[0]
            worker.settle()
        raise AssertionError(told)

    size = model.beside.nbytes(gentle(1))
    worker = Worker(model, 3, 0, send, Slow(model, size))
    Slow.may.clear()
    call(1, "adapt", name="two", path=str(folder / "two.gguf"))
    ask(2, "", 40)
    let(2)
    assert not answers and told[2][-1]["finish"] == "length"  # somebody spoke 40 tokens meanwhile
    Slow.may.set()
    let(1)
    assert answers[1]["of"]["rank"] == 4 and list(worker.shelf.held) == ["two"]
    gone = weakref.ref(worker.shelf.held["two"])
    call(3, "adapt", name="first", path=str(folder / "one"))
    let(3)
    assert list(worker.shelf.held) == ["first"] and gone() is None
    Slow.may.clear()
    ask(4, "two"), ask(5, "two"), ask(6, "first")
    worker.take({"cancel": 4})
    let(6)
    assert 5 not in told and worker._stats()["waiting"] == 1
    Slow.may.set()
    let(5)
    for id, name in ((5, "two"), (6, "first")):
        assert "".join(news.get("text", "") for news in told[id]) == said[name]
    assert 4 not in told and told[5][-1]["seconds"][0] > 0
    Slow.may.clear()
    ask(7, "first"), call(8, "unload", name="first"), call(9, "adapt", name="bad", path=str(folder / "broken.gguf"))
    Slow.may.set()
    let(7, 8, 9)
    assert "'first' is not loaded" in told[7][-1]["error"] and told[7][-1]["status"] == 400
    assert "error" in answers[9] and not answers[9]["busy"] and list(worker.shelf.paths) == ["two"]
    assert not worker.parked and not worker.tickets
    worker.reader.close()


def test_no_room_is_429(start: Callable[..., Server], folder: Path) -> None:
    """Both are in use and a third is asked for: try again later; when one has ended it is served."""
    size = Weights.open(BUILT_IN) and bise.load(threads=1).beside.nbytes(gentle(1))
    server = start("--adapters", str(folder), "--slots", "2", "--adapter-memory", str(size * 1.5 / (1 << 30)))
    assert ask(server, "/v1/adapters", {"name": "one"}).status == 201
    assert ask(server, "/v1/adapters", {"name": "two"}).status == 201  # and one makes room
    line = streamed(server, 900, PROMPT, model="two")
    refused = ask(server, "/v1/completions", {"model": "one", "prompt": PROMPT, "max_tokens": 2})
    line.close()
    assert refused.status == 429 and "in use" in refused.json["error"]["message"], refused
    until(lambda: ask(server, "/v1/completions", {"model": "one", "prompt": PROMPT, "max_tokens": 2}).status == 200)


def test_refused_before_it_serves(folder: Path) -> None:
    cases = (
        ({"x": str(folder / "stranger.gguf")}, None, "--any-base"), ({"x": str(folder / "nothing")}, None, "no such file"),
        ({"puff": str(folder / "one")}, None, "like the model"), ({}, folder / "one.gguf", "no such folder"),
    )  # fmt: skip
    for paths, where, says in cases:
        with pytest.raises((FormatError, RequestError), match=says):
            Desk.open(None, {}, shelf=Shelved(paths, where))
    desk, plan = Desk.open(None, {}, shelf=Shelved({"a": str(folder / "one")}))
    assert list(desk.adapters) == ["a"] and "for adapters" in plan.line
