"""The loop: prompts in chunks, several sequences at once, nothing read twice, everything refused early."""

import numpy as np
import pytest

from bise.cache import CHUNK, Cache, whole
from bise.config import Config
from bise.engine import Engine, Request
from bise.errors import ContextError, RequestError
from bise.model import forward
from bise.ops.reference import Reference
from bise.quant import QTensor
from bise.sampler import Sampler, Sampling
from bise.weights import Layer, Parameters

OPS = Reference()
CONFIG = Config(32, 2, 4, 2, 8, 48, 40, sliding_window=24, context=700)


def random_parameters(config: Config, seed: int = 0) -> Parameters:
    rng = np.random.default_rng(seed)

    def w(*shape: int) -> np.ndarray:
        return OPS.weight(QTensor.of(rng.normal(size=shape).astype(np.float32) * 0.3))

    one = np.ones(config.dim, np.float32)
    heads, groups = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    dim, hidden = config.dim, config.hidden_dim
    layers = [
        Layer(
            one,
            w(heads, dim),
            w(groups, dim),
            w(groups, dim),
            w(dim, heads),
            one,
            w(hidden, dim),
            w(hidden, dim),
            w(dim, hidden),
        )
        for _ in range(config.n_layers)
    ]
    return Parameters(w(config.vocab_size, dim), layers, one, w(config.vocab_size, dim))


PARAMETERS = random_parameters(CONFIG)


def engine(sequences: int = 1, context: int = 700) -> Engine:
    return Engine(OPS, CONFIG, PARAMETERS, Cache(OPS, CONFIG, sequences, context, kv="f32"))


def request(prompt: list[int], max_tokens: int = 8, sequence: int = 0, **options: object) -> Request:
    stop = options.pop("stop_ids", frozenset())
    return Request(prompt, Sampler(Sampling(**options), CONFIG.vocab_size), max_tokens, stop, sequence)  # type: ignore[arg-type]


def run(e: Engine, *requests: Request) -> list[Request]:
    for r in requests:
        e.submit(r)
    while e.running:
        e.step()
    return list(requests)


def prompt(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).tolist()  # type: ignore[no-any-return]


def greedy(ids: list[int], n: int) -> list[int]:
    """The obvious loop: the whole forward pass again for every token."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(forward(OPS, CONFIG, PARAMETERS, np.array(ids), whole(OPS, CONFIG, [len(ids)]))[-1].argmax()))
    return ids[-n:]


@pytest.mark.parametrize("n", [1, 23, 24, 25, CHUNK - 1, CHUNK, CHUNK + 1, 600])
def test_greedy_equals_the_obvious_loop(n: int) -> None:
    (r,) = run(engine(), request(prompt(n)))
    assert r.tokens == greedy(prompt(n), 8)
    assert r.finish_reason == "length" and len(r.logprobs) == 8 and max(r.logprobs) <= 0


def test_requests_do_not_depend_on_their_neighbours() -> None:
    prompts = [prompt(n, n) for n in (300, 3, 40)]
    together = run(engine(3), *(request(p, 5 + i, sequence=i) for i, p in enumerate(prompts)))
    for i, p in enumerate(prompts):
        (alone,) = run(engine(), request(p, 5 + i))
        assert together[i].tokens == alone.tokens


def test_what_the_cache_holds_is_not_read_again() -> None:
    e = engine()
    (first,) = run(e, request(prompt(50)))
    (second,) = run(e, request([*prompt(50), *first.tokens, 7, 8]))
    assert (first.reused, second.reused) == (0, 57)  # the last sampled token has not been read yet
    (fresh,) = run(engine(), request([*prompt(50), *first.tokens, 7, 8]))
    assert second.tokens == fresh.tokens


def test_a_changed_past_is_read_again() -> None:
    e = engine()
    run(e, request(prompt(600)))
    (again,) = run(e, request([*prompt(600)[:10], 3, 4, 5]))  # long overwritten: from the start
    assert again.reused == 0 and again.tokens == greedy([*prompt(600)[:10], 3, 4, 5], 8)
    (same,) = run(e, request([*prompt(600)[:10], 3, 4, 5]))
    assert same.reused == 12 and same.tokens == again.tokens


def test_stop_ids_end_a_request_and_stay_out_of_it() -> None:
    free = greedy(prompt(5), 8)
    (r,) = run(engine(), request(prompt(5), stop_ids=frozenset({free[3]})))
    assert r.finish_reason == "stop" and r.tokens == free[: free.index(free[3])]


def test_the_end_of_the_context_ends_a_request() -> None:
    (r,) = run(engine(context=64), request(prompt(60), max_tokens=100))
    assert r.finish_reason == "length" and len(r.tokens) == 5  # the fifth is sampled after position 63


def test_a_cancelled_request_leaves_at_once() -> None:
    e = engine(2)
    kept, dropped = request(prompt(9), 6, 0), request(prompt(300), 6, 1)
    e.submit(kept)
    e.submit(dropped)
    e.step()
    e.cancel(dropped)
    while e.running:
        e.step()
    assert kept.tokens == greedy(prompt(9), 6) and dropped.tokens == []


def test_tap_reads_and_writes_what_layers_hand_on() -> None:
    seen = {}

    def tap(layer: int, x: np.ndarray) -> np.ndarray:
        seen[layer] = x.copy()
        return x + 1 if layer == 1 else x

    ids = np.array(prompt(6))
    plain = forward(OPS, CONFIG, PARAMETERS, ids, whole(OPS, CONFIG, [6]))
    changed = forward(OPS, CONFIG, PARAMETERS, ids, whole(OPS, CONFIG, [6]), tap)
    assert [seen[i].shape for i in (0, 1)] == [(6, 32)] * 2
    expected = OPS.linear(OPS.rms_norm(seen[1] + 1, PARAMETERS.output_norm, CONFIG.norm_eps), PARAMETERS.output)
    np.testing.assert_allclose(changed, expected, atol=1e-5)
    assert np.abs(changed - plain).max() > 0.1


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [([], RequestError, "no tokens"), ([40], RequestError, "40.*vocabulary"), ([-1], RequestError, "-1"),
     (list(range(40)) * 18, ContextError, "720.*700")],
)  # fmt: skip
def test_prompts_that_cannot_be_read(ids: list[int], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        engine().submit(request(ids))


def test_max_tokens_below_one() -> None:
    with pytest.raises(RequestError, match="max_tokens is 0"):
        engine().submit(request([1], max_tokens=0))
