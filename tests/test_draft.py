"""Guesses: right where a text repeats itself, silent where it does not, and never a change of a single token."""

import random

import numpy as np
import pytest

from bise.cache import Cache
from bise.config import Config
from bise.draft import Draft
from bise.engine import Engine, Request
from bise.model import Parameters
from bise.ops import load_ops
from bise.quant import QTensor
from bise.sampler import Sampler, Sampling
from bise.weights import Layer

CONFIG = Config(64, 2, 4, 2, 16, 96, 24, sliding_window=40, context=900)  # a small vocabulary: it soon repeats itself


def parameters(seed: int) -> Parameters:
    ops, rng, c = load_ops("cpu", threads=1), np.random.default_rng(seed), CONFIG

    def w(*shape: int) -> object:
        return ops.weight(QTensor.of(rng.normal(size=shape).astype(np.float32) * 0.2))

    one = np.ones(c.dim, np.float32)
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    layers = []
    for _ in range(c.n_layers):
        q, k, v, o, gate, up, down = (w(*shape) for shape in shapes)
        layers.append(Layer(one, q, k, v, o, one, gate, up, down))
    table = ops.table(QTensor.of(rng.normal(size=(c.vocab_size, c.dim)).astype(np.float32)))
    return Parameters(table, layers, one, w(c.vocab_size, c.dim))


def run(lookup: bool, prompts: list[list[int]], **options: float) -> tuple[list[Request], int]:
    """All prompts at once, each in a sequence of its own -> the requests, and how many steps they took."""
    ops = load_ops("cpu", threads=1)
    cache = Cache(ops, CONFIG, len(prompts), CONFIG.context)
    engine = Engine(ops, CONFIG, parameters(0), cache, lookup=lookup)
    requests = [
        Request(p, Sampler(Sampling(seed=5, **options), CONFIG.vocab_size), 80, frozenset({23}), i)
        for i, p in enumerate(prompts)
    ]
    for request in requests:
        engine.submit(request)
    steps = 0
    while engine.running:
        engine.step()
        steps += 1
    return requests, steps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 0.8, "mirostat_tau": 2.0},
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_text_is_the_text_without_guesses(options: dict[str, float], count: int) -> None:
    chance = random.Random(count)
    prompts = [chance.choices(range(23), k=chance.randint(1, 300)) for _ in range(count)]
    plain, slow = run(False, prompts, **options)
    ahead, quick = run(True, prompts, **options)
    for a, b in zip(plain, ahead, strict=True):
        assert (a.tokens, a.logprobs, a.finish_reason) == (b.tokens, b.logprobs, b.finish_reason)
    assert quick <= slow


def test_a_text_that_repeats_itself_takes_fewer_steps() -> None:
    """Two layers of window 40 see 78 tokens back: after the same 100 tokens the model says the same again."""
    said = random.Random(0).choices(range(23), k=100)
    (request,), slow = run(False, [said])
    (again,), quick = run(True, [[*said, *request.tokens, *said]])
    assert again.tokens == request.tokens and quick < 0.4 * slow


def test_what_followed_the_last_time_is_guessed() -> None:
    draft = Draft([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3])
    assert draft.guess(4) == [4, 5, 6, 7][: len(draft.guess(4))] != [] and draft.guess(1) == [4]
    draft.extend([8])
    assert draft.guess(4) == []
    draft.extend([1, 2, 3])
    assert draft.guess(1) == [8]  # the latest time counts


def test_the_longest_match_counts_more_than_the_latest() -> None:
    assert Draft([1, 2, 3, 4, 9, 3, 7, 1, 2, 3]).guess(1) == [4]


def test_a_short_period_is_continued() -> None:
    assert Draft([1, 2] * 10).guess(4) == [1, 2, 1, 2]


def test_a_long_match_dares_more_than_a_short_one() -> None:
    long, short = Draft([*range(20, 60), *range(20, 40)]), Draft([1, 2, 3, 4, 5, 6, 1])
    assert 4 == len(long.guess(4)) > len(short.guess(4)) > 0


def test_wrong_guesses_silence_and_time_heals() -> None:
    draft, made, text = Draft(), [], random.Random(2).choices(range(40), k=1200)  # nothing in it foretells anything
    for token in text:
        guess = draft.guess(4)
        made.append(len(guess))
        if guess:
            draft.judge(0)
        draft.extend([token])
    assert sum(made[:100]) > sum(made[-100:]) and 0 < sum(made[-400:]) < 120
    draft.extend(text[300:380])
    assert len(draft.guess(4)) > 1


def test_right_guesses_make_it_bolder() -> None:
    draft = Draft([1, 2, 3, 4, 5, 6, 7, 8, 1])
    first = len(draft.guess(4))
    for _ in range(12):
        draft.guess(4)
        draft.judge(4)
    assert len(draft.guess(4)) > first


def test_where_sequences_share_the_steps_guesses_must_be_surer() -> None:
    draft = Draft([1, 2, 3, 4, 5, 6, 7, 8, 1])
    assert draft.guess(1, sequences=1) == [2] and draft.guess(1, sequences=4) == []


def test_it_follows_a_text_that_goes_on_and_no_other() -> None:
    draft = Draft([1, 2, 3])
    assert draft.follow([1, 2, 3, 4]) and draft.tokens == [1, 2, 3, 4]
    assert not draft.follow([1, 2, 4, 4, 5]) and not draft.follow([1, 2, 3]) and draft.tokens == [1, 2, 3, 4]


def test_guesses_never_leave_the_context() -> None:
    prompt = [1, 2, 3, 4] * ((CONFIG.context - 6) // 4)
    (plain,), _ = run(False, [prompt])
    (ahead,), _ = run(True, [prompt])
    assert (plain.tokens, plain.finish_reason) == (ahead.tokens, ahead.finish_reason)
