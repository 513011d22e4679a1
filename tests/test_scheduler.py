"""Turns: fair between clients, prompts beside answers, nobody's text changed by anybody."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import bise
from bise import Model
from bise.engine import BESIDE, CHUNK, Request, common, share
from bise.errors import BiseError, ContextError
from bise.sampler import Sampler, Sampling
from bise.scheduler import Scheduler


@pytest.fixture(scope="module")
def puff() -> Model:
    return bise.load()


def text(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 3000, n).tolist()  # type: ignore[no-any-return]


def ask(prompt: list[int], n: int = 8, **settings: object) -> Request:
    return Request(prompt, Sampler(Sampling(**settings), 3072), n)  # type: ignore[arg-type]


def finish(scheduler: Scheduler) -> None:
    while scheduler.clients:
        scheduler.step()


def test_the_same_text_alone_and_among_many_whenever_they_come(puff: Model) -> None:
    """40 requests, some alike, arriving at random over 5 slots that change hands, with blocks that are thrown out."""
    rng = random.Random(3)
    base = text(400)
    asks = []
    for i in range(40):
        prompt = [*base[: rng.randrange(1, 400)], *text(rng.randrange(1, 300), i % 7)]
        settings = {"temperature": 0.9, "seed": i} if i % 3 else {}
        asks.append((prompt, rng.randrange(1, 60), settings))
    alone = []
    for prompt, n, settings in asks:
        request = ask(prompt, n, **settings)
        engine = puff.engine(1)
        engine.submit(request)
        while engine.running:
            engine.step()
        alone.append((request.tokens, request.logprobs, request.finish_reason))
    scheduler, together = Scheduler(puff.engine(5, 3 << 20)), []
    for i, (prompt, n, settings) in enumerate(asks):
        together.append(ask(prompt, n, **settings))
        scheduler.submit(together[-1], f"client {i % 4}")
        for _ in range(rng.randrange(6)):
            scheduler.step()
    finish(scheduler)
    assert [(r.tokens, r.logprobs, r.finish_reason) for r in together] == alone
    assert sum(r.reused for r in together) > 1000


def test_a_hog_gets_its_share_and_no_more(puff: Model) -> None:
    """One client with 32 requests at once, seven with one each, who ask again as soon as they are answered."""
    scheduler, owner, said = Scheduler(puff.engine(4)), {}, Counter[str]()

    def submit(client: str) -> None:
        request = ask(text(20, len(owner)), 30, temperature=1.0, seed=len(owner))
        owner[request] = client
        scheduler.submit(request, client)

    for _ in range(32):
        submit("hog")
    for i in range(7):
        submit(f"polite {i}")
    for _ in range(3000):
        for request in scheduler.step():
            said[owner[request]] += len(request.tokens)
            submit(owner[request])
    shares = np.array(list(said.values()), float)
    assert len(shares) == 8
    assert shares.sum() ** 2 / (8 * (shares**2).sum()) > 0.98  # Jain's index


def test_a_hog_that_speaks_at_length_is_paused(puff: Model) -> None:
    """Four slots, all taken by one client's endless answers; who comes then does not wait for their end, and nobody's
    text is another for it."""
    scheduler = Scheduler(puff.engine(4, 8 << 20))
    long = [ask(text(200, i), 700, temperature=1.0, seed=i) for i in range(8)]
    for request in long:
        scheduler.submit(request, "hog")
    for _ in range(30):
        scheduler.step()
    polite = [ask(text(100, 50 + i), 60, temperature=1.0, seed=i) for i in range(3)]
    for i, request in enumerate(polite):
        scheduler.submit(request, f"polite {i}")
    steps = 0
    while any(r in scheduler.clients for r in polite):
        scheduler.step()
        steps += 1
    assert steps < 200
    assert sum(r.finish_reason is not None for r in long) == 0
    finish(scheduler)
    for request in (*long, *polite):
        alone = ask(list(request.prompt), request.max_tokens, temperature=1.0, seed=request.sampler.seed)
        engine = puff.engine(1)
        engine.submit(alone)
        while engine.running:
            engine.step()
        assert alone.tokens == request.tokens
        assert alone.logprobs == request.logprobs


def test_nine_take_turns_on_four(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(4, 16 << 20))
    asks = [ask(text(20, i), 900, temperature=1.0, seed=i) for i in range(9)]
    for i, request in enumerate(asks):
        scheduler.submit(request, f"client {i}")
    for _ in range(800):
        scheduler.step()
    said = [len(r.tokens) for r in asks]
    assert min(said) > 150
    assert max(said) - min(said) < 300


def test_who_waited_saves_nothing_up(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(1))
    for i in range(8):
        scheduler.submit(ask(text(20, i), 20), "busy")
    for _ in range(60):
        scheduler.step()
    scheduler.submit(ask(text(20, 50), 20), "late")
    assert scheduler._counts["late"] == scheduler._counts["busy"]


def test_nobody_waits_for_a_long_prompt(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(3))
    speaking = ask(text(10), 200, temperature=1.0, seed=1)
    scheduler.submit(speaking)
    scheduler.step()
    long = ask(text(1000, 2), 4)
    scheduler.submit(long)
    while long.read < 1000:
        said, read = len(speaking.tokens), long.read
        scheduler.step()
        assert len(speaking.tokens) > said
        assert long.read - read <= BESIDE
    finish(scheduler)


def test_a_prompt_alone_is_read_in_whole_chunks(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(2))
    request = ask(text(600), 1)
    scheduler.submit(request)
    scheduler.step()
    assert request.read == CHUNK


def test_who_asks_the_same_waits_for_it_to_be_read_once(puff: Model) -> None:
    """n = 4 choices for one prompt: it is read once."""
    scheduler = Scheduler(puff.engine(4, 8 << 20))
    requests = [ask(text(700), 10, temperature=1.0, seed=i) for i in range(4)]
    for request in requests:
        scheduler.submit(request)
    finish(scheduler)
    assert [r.reused for r in requests] == [0, 672, 672, 672]
    assert len({tuple(r.tokens) for r in requests}) == 4


def test_a_conversation_goes_on_in_its_place(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(3, 8 << 20))
    first = ask(text(100), 40)
    scheduler.submit(first)
    finish(scheduler)
    for i in range(3):  # two find an empty sequence, the third takes the one that was unused for longest
        scheduler.submit(ask(text(50, i + 5), 4))
        finish(scheduler)
    held = [*text(100), *first.tokens]
    again = ask([*held, 7, 8, 9], 4)
    scheduler.submit(again)
    finish(scheduler)
    assert again.reused == (len(held) - 1) // 32 * 32  # from blocks: its sequence had been given away
    more = ask([*again.prompt, *again.tokens, 5], 4)
    scheduler.submit(more)
    finish(scheduler)
    assert more.reused == len(more.prompt) - 2  # in place: all but what was said last, and what is new


def test_cancelled_while_waiting_reading_and_speaking(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(2))
    asks = [ask(text(600, i), 50) for i in range(5)]
    for request in asks:
        scheduler.submit(request, "c")
    scheduler.step()
    scheduler.cancel(asks[0])  # reading
    scheduler.cancel(asks[3])  # waiting
    scheduler.cancel(asks[3])  # twice
    finish(scheduler)
    assert [len(r.tokens) > 0 for r in asks] == [False, True, True, False, True]
    assert (scheduler.waiting, scheduler.clients, scheduler._counts, scheduler.idle()) == (0, {}, {}, [0, 1])


def test_an_error_ends_its_own_request(puff: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(puff.engine(3))
    good, banned, other = ask(text(10), 20), ask(text(10, 1), 20), ask(text(300, 2), 20)
    monkeypatch.setattr(banned.sampler, "sample", lambda *_: 1 / 0)
    for request in (good, banned, other):
        scheduler.submit(request)
    finish(scheduler)
    assert isinstance(banned.error, ZeroDivisionError)
    assert (good.finish_reason, other.finish_reason, banned.finish_reason) == ("length", "length", "error")
    alone = ask(text(10), 20)
    scheduler.submit(alone)
    finish(scheduler)
    assert alone.tokens == good.tokens


def test_an_error_on_the_way_in_is_its_own_too(puff: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(puff.engine(2))
    true, bad = scheduler.engine.submit, ask(text(10, 1), 20)

    def submit(request: Request) -> None:
        if request is bad:
            raise MemoryError
        true(request)

    monkeypatch.setattr(scheduler.engine, "submit", submit)
    good = ask(text(10), 20)
    scheduler.submit(bad)
    scheduler.submit(good)
    finish(scheduler)
    assert isinstance(bad.error, MemoryError) and good.finish_reason == "length"
    assert (scheduler.clients, scheduler.waiting) == ({}, 0)


def test_out_of_memory_in_the_model_ends_the_one_that_needs_it(puff: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is tried again for each alone; whose turn fails again is ended, and the others' texts are as ever."""
    import bise.engine as module

    scheduler, true = Scheduler(puff.engine(3)), module.forward

    def short_of_memory(*args: object) -> object:
        if len(args[3]) > 40:  # type: ignore[arg-type]
            raise MemoryError
        return true(*args)  # type: ignore[arg-type]

    good, big = ask(text(10), 20), ask(text(300, 2), 20)
    scheduler.submit(big)
    scheduler.submit(good)
    monkeypatch.setattr(module, "forward", short_of_memory)
    finish(scheduler)
    assert isinstance(big.error, MemoryError)
    alone = ask(text(10), 20)
    scheduler.submit(alone)
    finish(scheduler)
    assert good.tokens == alone.tokens


def test_no_memory_at_all_for_one_request() -> None:
    """A process that may not grow: who needs megabytes gets an error, who needs little gets the same text as ever."""
    program = """
import resource, bise
from bise.engine import Request
from bise.sampler import Sampler, Sampling
from bise.scheduler import Scheduler
from pathlib import Path

model = bise.load(threads=2)
scheduler = Scheduler(model.engine(3, 1 << 20))
def ask(n, **more):
    request = Request([5] * n, Sampler(Sampling(), 3072), 12, **more)
    scheduler.submit(request)
    return request
def finish():
    while scheduler.clients:
        scheduler.step()
first = ask(20)
finish()
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), -1))
small, big = ask(20), ask(900, score=2)  # 256 rows of 3,072 logits: 3 MB
finish()
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
again = ask(900, score=2)
finish()
print(type(big.error).__name__, small.tokens == first.tokens, again.finish_reason, len(again.scores))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["MemoryError", "True", "length", "899"], done.stderr


def test_refused_before_it_waits(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(1))
    with pytest.raises(ContextError, match="1,025 tokens"):
        scheduler.submit(ask(text(1025)))
    with pytest.raises(BiseError, match="no tokens"):
        scheduler.submit(ask([]))
    assert (scheduler.waiting, scheduler.clients) == (0, {})


def test_scores_are_the_model_s_own_logits(puff: Model) -> None:
    prompt = text(300)
    request = Request(prompt, Sampler(Sampling(), 3072), 0, score=3)
    scheduler = Scheduler(puff.engine(2, 1 << 20))
    for r in (ask(prompt, 3), request, ask(text(100, 4), 20)):
        scheduler.submit(r)
    finish(scheduler)
    x = puff.logits(prompt).astype(np.float64)
    x = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    assert len(request.scores) == 299
    for i, (logprob, likely) in enumerate(request.scores):
        assert logprob == pytest.approx(x[i, prompt[i + 1]], abs=1e-12)
        assert [t for t, _ in likely] == np.argsort(-x[i], kind="stable")[:3].tolist()


def test_embedding_is_the_mean_of_the_last_hidden_states(puff: Model) -> None:
    prompt, seen = text(300), {}

    def look(layer: int, x: np.ndarray) -> np.ndarray:
        seen[layer] = x.copy()
        return x

    puff.logits(prompt, tap=look)
    last = seen[puff.config.n_layers - 1]
    expected = puff.ops.rms_norm(last, puff.parameters.output_norm, puff.config.norm_eps).astype(np.float64).mean(0)
    request = Request(prompt, Sampler(Sampling(), 3072), 0, embed=True)
    scheduler = Scheduler(puff.engine(3))
    for r in (ask(text(50, 1), 40), request):
        scheduler.submit(r)
    finish(scheduler)
    assert request.hidden is not None
    np.testing.assert_allclose(request.hidden / 300, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "room, wishes, given",
    [
        (32, [100], [32]),
        (32, [5], [5]),
        (256, [1000], [256]),
        (32, [100, 100, 4], [28, 0, 4]),
        (32, [100, 60, 100], [8, 24, 0]),
        (32, [100, 4, 3], [25, 4, 3]),
        (300, [1000, 1000], [256, 44]),
        (2, [9, 9, 9], [2, 0, 0]),
        (32, [], []),
    ],
)
def test_the_shortest_prompt_first_and_the_oldest_never_last(room: int, wishes: list[int], given: list[int]) -> None:
    assert share(room, wishes) == given


def test_many_prompts_at_once_are_answered_one_after_the_other(puff: Model) -> None:
    scheduler = Scheduler(puff.engine(8))
    asks = [ask(text(200, i), 100, temperature=1.0, seed=i) for i in range(8)]
    for request in asks:
        scheduler.submit(request)
    began: list[int] = []
    for _ in range(200):
        scheduler.step()
        began += [i for i, r in enumerate(asks) if r.tokens and i not in began]
    assert sorted(began) == list(range(8))
    assert began[0] == 0


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 99, 100])
def test_common(n: int) -> None:
    a = list(range(100))
    assert common(a, a[:n]) == common(a[:n], a) == n
    assert common(a, [*a[:n], -1, *a[n:]]) == n
