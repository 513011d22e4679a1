"""Adapters in the engine: many beside one base, in one step; what a request says does not depend on the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise import gguf, lora
from bise.engine import Engine
from bise.errors import RequestError
from bise.lora.placed import Placed, grouped
from bise.request import Request
from bise.sampler import Sampler, Sampling
from bise.scheduler import Scheduler
from bise.session import Session
from test_cli import Cli, cli  # noqa: F401
from test_exact import CONFIG, tensors
from test_lora import random_adapter
from tiny import tiny_config, tiny_keys, tiny_tensors, tiny_weights

SMALL = tiny_config(dim=64, sliding_window=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of mixed k-quants with a window of 40, and four adapters for it."""
    folder = tmp_path_factory.mktemp("adapters")
    gguf.write(folder / "model.gguf", tiny_keys(CONFIG), tensors(tiny_weights(CONFIG), "mixture"))
    base = bise.load(folder / "model.gguf").weights.fingerprint
    lora.write_gguf(folder / "a.gguf", random_adapter(CONFIG, 4, 1, base))
    lora.write_gguf(folder / "b.gguf", random_adapter(CONFIG, 16, 2, base, of=lambda name: "attn" in name))
    lora.write_peft(folder / "dora", random_adapter(CONFIG, 3, 3, base, dora=True), CONFIG)
    lora.write_peft(
        folder / "late", random_adapter(CONFIG, 8, 4, base, of=lambda n: n in ("blk.1.ffn_up", "output")), CONFIG
    )
    return folder


NAMES = None, "a", "b", "dora", "late"


@pytest.fixture(scope="module")
def model(folder: Path) -> bise.Model:
    paths = {name: folder / name if (folder / name).is_dir() else folder / f"{name}.gguf" for name in NAMES if name}
    return bise.load(folder / "model.gguf", adapter=paths, threads=2)


def ids(length: int, seed: int) -> list[int]:
    return list(np.random.default_rng(seed).integers(3, CONFIG.vocab_size, length).tolist())


def request(model: bise.Model, adapter: str | None, length: int, seed: int, sequence: int = 0) -> Request:
    sampler = Sampler(Sampling(temperature=0.8, seed=seed), CONFIG.vocab_size)
    return Request(ids(length, seed), sampler, 24, sequence=sequence, adapter=model.placed(adapter), score=0)


def said(request: Request) -> tuple[Any, ...]:
    assert request.finish_reason == "length", request.error
    return request.tokens, request.logprobs, request.scores


def run(engine: Engine | Scheduler, requests: list[Request], every: int = 0) -> None:
    """Submit them, all at once or one every so many steps, and step until all have ended."""
    waiting = list(requests)
    for step in range(10_000):
        while waiting and (not every or step % every == 0):
            engine.submit(waiting.pop(0))
            if every:
                break
        engine.step()
        if not waiting and all(r.finish_reason for r in requests):
            return
    raise AssertionError("it does not end")


CASES = [(NAMES[i % 5], 5 + 37 * i % 120, i) for i in range(9)]  # adapter, tokens of the prompt, seed


@pytest.fixture(scope="module")
def alone(model: bise.Model) -> list[Any]:
    found = []
    for case in CASES:
        one = request(model, *case)
        run(model.engine(), [one])
        found.append(said(one))
    return found


@pytest.mark.parametrize("every", [0, 1, 3])
def test_among_others(model: bise.Model, alone: list[Any], every: int) -> None:
    """All in one engine, coming at once or one after the other: each is what it is alone, to the last bit."""
    together = [request(model, *case, sequence=s) for s, case in enumerate(CASES)]
    run(model.engine(len(CASES)), together, every)
    assert [said(r) for r in together] == alone
    assert len({tuple(r.tokens) for r in together}) == len(CASES)


def test_without_one_is_the_base(folder: Path, model: bise.Model, alone: list[Any]) -> None:
    """Beside adapters, a request without one is what an engine that knows of none makes of it; with one it is not."""
    plain = bise.load(folder / "model.gguf", threads=1)
    engine = Engine(plain.ops, plain.config, plain.parameters, plain.engine().cache)
    for (adapter, length, seed), want in zip(CASES, alone, strict=True):
        one = request(plain, None, length, seed)
        run(engine, [one])
        assert (said(one) == want) == (adapter is None)
    with pytest.raises(RequestError, match="has no adapters"):
        engine.submit(request(model, "a", 4, 0))


@pytest.mark.parametrize("chunk", [1, 7, 32, 100])
def test_whatever_the_chunks(model: bise.Model, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ids(130, 5)
    want = {name: model.logits(text, adapter=name) for name in NAMES}
    monkeypatch.setattr(Engine, "_room", staticmethod(lambda speaking, unread: chunk))
    together = [request(model, name, 1, 0, s) for s, name in enumerate(NAMES)]
    for r in together:
        r.prompt, r.text, r.max_tokens, r.score = text, list(text), 0, 1
    run(model.engine(len(NAMES)), together)
    for name, r in zip(NAMES, together, strict=True):
        likeliest = [best[0][0] for _, best in r.scores]
        assert likeliest == want[name][:-1].argmax(-1).tolist()
        rows = want[name][:-1].astype(np.float64)
        assert np.allclose([best[0][1] for _, best in r.scores], rows.max(1) - np.log(np.exp(rows).sum(1)), atol=1e-6)


def test_what_was_read_with_another_is_not_used(model: bise.Model) -> None:
    """One prompt under every adapter through one sequence and through blocks; twice, so that the second finds its own."""
    cases = [(name, 100, 7) for name in NAMES] * 2
    want = []
    for case in cases[:5]:
        one = replace_score(request(model, *case))
        run(model.engine(), [one])
        want.append(one.tokens)
    scheduler = Scheduler(model.engine(2, reuse=1 << 22))
    for i, case in enumerate(cases):
        one = replace_score(request(model, *case))
        run(scheduler, [one])
        assert one.tokens == want[i % 5]
        assert (one.reused or 0) >= 64 if i >= 5 else one.reused == 0


def replace_score(request: Request) -> Request:
    request.score = None
    return request


def test_the_sums_are_those_of_fused_weights(tmp_path: Path) -> None:
    """Against the definition: a model whose weights are W + scale * B A, with DoRA of that length, in float32."""
    arrays = tiny_weights(SMALL)
    gguf.write(tmp_path / "base.gguf", tiny_keys(SMALL), tiny_tensors(arrays))
    for dora in False, True:
        adapter = random_adapter(SMALL, dora=dora)
        fused = {n: adapter.deltas[n].fused(a) if n in adapter.deltas else a for n, a in arrays.items()}
        if dora:
            for name, delta in adapter.deltas.items():
                assert np.allclose(np.linalg.norm(fused[name], axis=1), delta.magnitude, rtol=1e-5)
        gguf.write(tmp_path / "fused.gguf", tiny_keys(SMALL), tiny_tensors(fused))
        text = np.random.default_rng(0).integers(3, 288, 60)
        for backend in "cpu", "reference", "torch":
            if backend == "torch":
                pytest.importorskip("torch", reason="PyTorch is not installed")
            base, want = (bise.load(tmp_path / f"{name}.gguf", kv="f32", backend=backend) for name in ("base", "fused"))
            base.adapters["x"] = base.beside.place(adapter, "x")
            got = base.logits(text, adapter="x")
            assert np.abs(got - want.logits(text)).max() < 2e-4 < 1 < np.abs(got - base.logits(text)).max()


def test_from_python(folder: Path, model: bise.Model, tmp_path: Path) -> None:
    """generate, a default, names that are not there, adding and removing; a session goes on with its adapter only."""
    one = bise.load(folder / "model.gguf", adapter=folder / "a.gguf")
    text = ids(20, 1)
    base, with_a = (model.generate(text, max_tokens=12, adapter=name).tokens for name in (None, "a"))
    assert base != with_a == one.generate(text, max_tokens=12).tokens
    assert base == one.generate(text, max_tokens=12, adapter=None).tokens == model.generate(text, max_tokens=12).tokens
    with pytest.raises(RequestError, match="'nobody' is not loaded; there is 'a'"):
        one.generate(text, adapter="nobody")
    with pytest.raises(RequestError, match="there already"):
        one.add_adapter(folder / "a.gguf")
    assert one.add_adapter(folder / "dora", "d") == "d"
    dora = one.generate(text, max_tokens=12, adapter="d").tokens
    assert dora == model.generate(text, max_tokens=12, adapter="dora").tokens not in (base, with_a)
    talk = one.session()
    first = talk.generate(text, max_tokens=5, adapter="d")
    talk.save(tmp_path / "talk")
    again = Session.load(tmp_path / "talk", one)
    assert again.generate([5], max_tokens=5, adapter="d").tokens == talk.generate([5], max_tokens=5, adapter="d").tokens
    assert again.last and again.last.reused_tokens >= 24 and first.reused_tokens == 0
    again = Session.load(tmp_path / "talk", one)
    assert again.generate([5], max_tokens=5).reused_tokens == 0
    one.remove_adapter("a")
    assert one.adapter is None and one.generate(text, max_tokens=12).tokens == base


def test_tied_output(tmp_path: Path) -> None:
    """An adapter of an output matrix that is the embedding."""
    arrays = tiny_weights(SMALL, tied=True)
    gguf.write(tmp_path / "tied.gguf", tiny_keys(SMALL), tiny_tensors(arrays))
    adapter = random_adapter(SMALL, dora=True, of=lambda name: name == "output")
    model = bise.load(tmp_path / "tied.gguf", kv="f32")
    model.adapters["x"] = model.beside.place(adapter)
    fused = {**arrays, "output": adapter.deltas["output"].fused(arrays["token_embd"])}
    gguf.write(tmp_path / "fused.gguf", tiny_keys(SMALL), tiny_tensors(fused))
    want = bise.load(tmp_path / "fused.gguf", kv="f32").logits([1, 5, 9])
    assert np.abs(model.logits([1, 5, 9], adapter="x") - want).max() < 1e-4


def test_runs_of_rows() -> None:
    a, b = (Placed(name, name, {}, 0) for name in "ab")
    parts = [(None, 2), (None, 1), (a, 3), (a, 1), (b, 0), (b, 2), (None, 1), (a, 1)]
    rows, placed = grouped(parts)
    assert rows.tolist() == [[3, 7], [7, 9], [10, 11]] and placed == [a, b, a]
    assert grouped([(None, 3)]).rows.shape == (0, 2)


def test_fingerprint_of_an_adapter(model: bise.Model, folder: Path) -> None:
    """Equal numbers, equal ids, whatever the file; any other number another one."""
    weights = model.weights
    a = lora.read(folder / "a.gguf", weights)
    lora.write_peft(folder / "again", a, CONFIG)
    assert lora.read(folder / "again", weights).id == a.id == model.adapters["a"].id
    name, delta = next(iter(a.deltas.items()))
    changed = delta.b.copy()
    changed[0, 0] += 1e-3
    assert replace(a, deltas={**a.deltas, name: replace(delta, b=changed)}).id != a.id


def test_from_the_command_line(cli: Cli, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """--adapter beside the model; two of them, or another model's, are refused in one line."""
    base = ["generate", "once upon", "--model", folder / "model.gguf", "-n", "12", "-q", "--json"]
    plain, tuned = (cli(*base, *more) for more in ([], ["--adapter", folder / "a.gguf"]))
    assert plain.code == tuned.code == 0 and plain.out != tuned.out, tuned.err
    named = cli(*base, "--adapter", f"some={folder / 'a.gguf'}")
    assert json.loads(named.out)["tokens"] == json.loads(tuned.out)["tokens"] != json.loads(plain.out)["tokens"]
    twice = cli(*base, "--adapter", folder / "a.gguf", "--adapter", folder / "b.gguf")
    assert twice.code == 2 and "given 2 times" in twice.err
    wrong = cli(*base, "--adapter", f"a/b={folder / 'a.gguf'}")
    assert wrong.code == 2 and "letters, digits" in wrong.err
    gguf.write(tmp_path / "other.gguf", tiny_keys(CONFIG), tensors(tiny_weights(CONFIG, seed=9), "Q8_0"))
    other = ["generate", "once", "--model", tmp_path / "other.gguf", "-n", "2", "-q", "--adapter", folder / "a.gguf"]
    refused = cli(*other)
    assert refused.code == 2 and "--any-base" in refused.err and len(refused.err.splitlines()) == 1
    assert cli(*other, "--any-base").code == 0
