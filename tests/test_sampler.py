"""Every step against a specification that is slow and obvious, llama.cpp's samplers, and chance itself."""

import ctypes
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bise import cuts
from bise import sampler as steps
from bise.errors import BiseError, RequestError
from bise.sampler import Sampler, Sampling, breakers, top_logprobs


def logits(n: int, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


vectors = st.lists(st.integers(-40, 40).map(lambda v: v / 4), min_size=1, max_size=30).map(
    lambda v: np.array(v, np.float64)
)
fractions = st.floats(0.01, 0.99)


def plain_softmax(x) -> list[float]:
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


# --- cuts, each against its definition in plain Python; quarter logits make ties common


def best_first(keys) -> list[int]:
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


def until(order: list[int], p: list[float], target: float) -> set[int]:
    kept, mass = set(), 0.0
    for i in order:
        kept.add(i)
        mass += p[i]
        if mass >= target - 1e-12:
            break
    return kept


def agree(found: np.ndarray, wanted: set[int], order: list[int], p: list[float], target: float) -> None:
    """The same set; where the mass meets the target to the last bits, one more or less is the same too."""
    if set(found.tolist()) != wanted:
        n = min(len(found), len(wanted))
        assert abs(len(found) - len(wanted)) == 1 and abs(sum(p[i] for i in order[:n]) - target) < 1e-9
    assert found.tolist() == sorted(found.tolist()) and len(found)


@settings(max_examples=200, deadline=None)
@given(vectors, st.integers(0, 35))
def test_top_k(x, k):
    wanted = best_first(-x)[:k] if k else range(len(x))
    assert cuts.top_k(x, k).tolist() == sorted(wanted)


@settings(max_examples=200, deadline=None)
@given(vectors, fractions)
def test_top_p(x, p):
    mass, order = plain_softmax(x), best_first(-x)
    agree(cuts.top_p(x, p), until(order, mass, p), order, mass, p)


@settings(max_examples=200, deadline=None)
@given(vectors, fractions)
def test_typical(x, p):
    mass = plain_softmax(x)
    entropy = -sum(m * math.log(m) for m in mass if m)
    found = cuts.typical(x, p)
    kept = {i: round(abs(-math.log(mass[i]) - entropy), 9) for i in found}
    rest = [round(abs(-math.log(mass[i]) - entropy), 9) for i in range(len(x)) if i not in kept]
    assert max(kept.values()) <= min(rest, default=math.inf) + 2e-9  # the nearest to the entropy ...
    total = sum(mass[i] for i in found)
    assert total >= p - 1e-9 or len(found) == len(x)  # ... enough of them ...
    assert total - max(mass[i] for i in found if kept[i] == max(kept.values())) <= p + 1e-9  # ... and none too many


@settings(max_examples=200, deadline=None)
@given(vectors, fractions)
def test_min_p(x, p):
    mass = plain_softmax(x)
    kept = set(cuts.min_p(x, p).tolist())
    for i, m in enumerate(mass):
        if abs(m - p * max(mass)) > 1e-9:
            assert (i in kept) == (m >= p * max(mass))


@settings(max_examples=200, deadline=None)
@given(vectors, st.floats(0.02, 0.6))
def test_xtc(x, threshold):
    mass = plain_softmax(x)
    if any(abs(m - threshold) < 1e-9 for m in mass):
        return
    likely = [i for i in best_first(-x) if mass[i] >= threshold]
    dropped = set(likely[:-1])
    assert cuts.xtc(x, threshold).tolist() == [i for i in range(len(x)) if i not in dropped]


@settings(max_examples=200, deadline=None)
@given(vectors, st.floats(0.1, 12))
def test_surprise_at_most(x, bits):
    mass = plain_softmax(x)
    if any(abs(-math.log2(m) - bits) < 1e-9 for m in mass):
        return
    wanted = [i for i, m in enumerate(mass) if -math.log2(m) <= bits] or [int(np.argmax(x))]
    assert cuts.surprise_at_most(x, bits).tolist() == wanted


def test_cuts_of_a_whole_vocabulary():
    """Where the nucleus is larger than the first try, and where it is nearly all."""
    for scale in (0.01, 1.0, 4.0):
        x = logits(20_000, scale).astype(np.float64)
        mass = cuts.softmax(x)
        order = np.argsort(-x, kind="stable")
        for p in (0.1, 0.9, 0.9999):
            n = int(np.searchsorted(np.cumsum(mass[order]), p)) + 1
            assert cuts.top_p(x, p).tolist() == sorted(order[:n].tolist())


@pytest.mark.parametrize("seed", range(40))
def test_until_equals_sorting(seed):
    """Thousands of keys at any scale, with ties, a few infinities, or all alike."""
    chance = np.random.default_rng(seed)
    x = chance.standard_normal(int(chance.integers(250, 6000))) * 10 ** chance.uniform(-4, 2)
    if seed % 3 == 0:
        x = np.round(x * 4) / 4
    if seed % 5 == 0:
        x[chance.random(len(x)) < 0.3], x[0] = -np.inf, 0
    if seed % 13 == 0:
        x[:] = 1
    mass = cuts.softmax(x)
    for p in (0.0, 0.01, 0.5, 0.999, 1 - 1e-15):
        for key in (-x, np.abs(np.minimum(-x, 500) - 1)):
            order = np.argsort(key, kind="stable")
            ends = np.cumsum(mass[order])
            n = int(np.searchsorted(ends, p)) + 1
            found = cuts._until(key, mass, p)
            if found.tolist() != sorted(order[:n].tolist()):  # the last one is as good as not there
                assert abs(mass[found].sum() - ends[min(n, len(ends)) - 1]) < 1e-12


# --- what changes logits


@settings(max_examples=200, deadline=None)
@given(vectors, st.lists(st.integers(0, 29), max_size=40), st.floats(0.5, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_penalise(x, recent, repetition, presence, frequency):
    recent = [i for i in recent if i < len(x)]
    s = Sampling(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    wanted = x.tolist()
    for i, count in Counter(recent).items():
        wanted[i] = wanted[i] / repetition if wanted[i] > 0 else wanted[i] * repetition
        wanted[i] -= count * frequency + presence
    before = x.copy()
    np.testing.assert_allclose(steps.penalise(x, recent, s), wanted, atol=1e-12)
    assert (x == before).all(), "the caller's logits were changed"


def plain_dry(n_vocab: int, recent: list[int], s: Sampling) -> list[float]:
    """For each token: the longest text end that the token has followed before, without a breaker in it."""
    penalty = [0.0] * n_vocab
    for token in range(n_vocab):
        longest = 0
        for i in range(1, len(recent)):
            if recent[i] == token:
                n = 0
                while i - 1 - n >= 0 and recent[i - 1 - n] == recent[-1 - n] and recent[-1 - n] not in s.dry_breakers:
                    n += 1
                longest = max(longest, n)
        if longest >= s.dry_allowed_length and token not in s.dry_breakers:
            penalty[token] = s.dry_multiplier * s.dry_base ** (longest - s.dry_allowed_length)
    return penalty


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.integers(1, 4),
    st.floats(1.1, 3),
    st.frozensets(st.integers(0, 3), max_size=2),
)
def test_dry(recent, allowed, base, marks):
    s = Sampling(dry_multiplier=0.8, dry_base=base, dry_allowed_length=allowed, dry_breakers=marks)
    x = np.zeros(4)
    np.testing.assert_allclose(steps.dry(x, recent, s), [-p for p in plain_dry(4, recent, s)], rtol=1e-9)
    assert not x.any()


def test_dry_stays_finite_and_quick():
    recent = [5] * 20_000
    start = time.perf_counter()
    x = steps.dry(np.zeros(9), recent, Sampling(dry_multiplier=5.0, dry_base=4.0))
    assert time.perf_counter() - start < 2
    assert np.isfinite(x).all() and x[5] < -1e30


def test_windows():
    x = np.ones(10, np.float32)
    history = [1, 2, 3, 4]
    for window, changed in ((0, []), (2, [3, 4]), (-1, [1, 2, 3, 4]), (99, [1, 2, 3, 4])):
        seen = []
        for i in range(10):
            bias = {i: 0.5}
            s = Sampler(Sampling(presence_penalty=1.0, penalty_window=window, logit_bias=bias), 10)
            seen += [i] if s.sample(x, history)[0] != i else []
        assert seen == changed


def test_breakers():
    pieces = [b"a", b"\n", b" :", b"x\ny", b'"', b""]
    assert breakers(pieces, ["\n", ":", '"', "*"]) == {1, 2, 3, 4}


# --- llama.cpp's samplers


def llama_applied(x: np.ndarray, init, *arguments, history=()) -> dict[int, float]:
    """What one of llama.cpp's samplers leaves of the logits: id -> logit."""
    llama_cpp = pytest.importorskip("llama_cpp").llama_cpp
    data = (llama_cpp.llama_token_data * len(x))(*[(i, float(v), 0.0) for i, v in enumerate(x)])
    array = llama_cpp.llama_token_data_array(data=data, size=len(x), selected=-1, sorted=False)
    one = getattr(llama_cpp, init)(*arguments)
    for token in history:
        llama_cpp.llama_sampler_accept(one, token)
    llama_cpp.llama_sampler_apply(one, ctypes.byref(array))
    llama_cpp.llama_sampler_free(one)
    return {array.data[i].id: array.data[i].logit for i in range(array.size)}


@pytest.mark.parametrize("n", [5, 1000])
@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize(
    ("cut", "init", "value"),
    [
        ("top_k", "llama_sampler_init_top_k", 3), ("top_k", "llama_sampler_init_top_k", 40),
        ("top_p", "llama_sampler_init_top_p", 0.5), ("top_p", "llama_sampler_init_top_p", 0.95),
        ("min_p", "llama_sampler_init_min_p", 0.05), ("min_p", "llama_sampler_init_min_p", 0.3),
        ("typical", "llama_sampler_init_typical", 0.3), ("typical", "llama_sampler_init_typical", 0.9),
    ],
)  # fmt: skip
def test_cuts_of_llama_cpp(n, scale, cut, init, value):
    x = logits(n, scale, seed=n)
    left = llama_applied(x, init, *((value,) if cut == "top_k" else (value, 1)))
    assert getattr(cuts, cut)(x.astype(np.float64), value).tolist() == sorted(left)


def test_xtc_of_llama_cpp():
    for seed in range(20):
        x = logits(12, 1.0, seed)
        left = llama_applied(x, "llama_sampler_init_xtc", 1.0, 0.1, 1, 7)
        assert cuts.xtc(x.astype(np.float64), 0.1).tolist() == sorted(left)


def test_penalties_of_llama_cpp():
    x, history = logits(20), [3, 4, 3, 9, 3, 15, 4]
    theirs = llama_applied(x, "llama_sampler_init_penalties", 20, 5, 1.3, 0.2, 0.4, history=history)
    s = Sampling(repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.4)
    ours = steps.penalise(x.astype(np.float64), history[-5:], s)
    np.testing.assert_allclose(ours, [theirs[i] for i in range(20)], rtol=1e-5, atol=1e-5)


def test_dry_of_llama_cpp(shared):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = shared / "data/llama_cpp_vectors/ggml-vocab-llama-spm.gguf"
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model._model.model)
    chance, x = np.random.default_rng(5), np.zeros(20, np.float32)
    for n in (3, 10, 40, 100):
        history = chance.integers(0, 3, n).tolist()
        arguments = (vocab, 0.8, 1.75, 2, 512, None, 0)
        theirs = llama_applied(x, "llama_sampler_init_dry", *arguments, history=history)
        ours = steps.dry(np.zeros(20), history, Sampling(dry_multiplier=0.8, dry_base=1.75, dry_allowed_length=2))
        np.testing.assert_allclose(ours, [theirs[i] for i in range(20)], rtol=1e-4)


# --- one token


def test_greedy_takes_the_best_and_the_lowest_of_equals():
    x = np.array([0, 5, 1, 5, -2], np.float32)
    chosen, logprob = Sampler(Sampling(), 5).sample(x)
    assert chosen == 1
    assert logprob == pytest.approx(math.log(plain_softmax(x)[1]), abs=1e-6)


def test_greedy_ignores_cuts_and_seeds():
    x = logits(50)
    for kw in (
        {},
        {"top_k": 3},
        {"top_p": 0.1},
        {"seed": 9},
        {"xtc_probability": 1.0},
        {"mirostat_tau": 5.0},
        {"typical_p": 0.1},
    ):
        assert Sampler(Sampling(**kw), 50).sample(x)[0] == int(x.argmax())


def test_logprob_is_of_the_raw_logits():
    x = logits(40)
    wanted = np.log(np.array(plain_softmax(x.tolist())))
    s = Sampler(Sampling(temperature=2.0, top_k=5, presence_penalty=1.0, logit_bias={3: 9.0}, seed=1), 40)
    for _ in range(20):
        chosen, logprob = s.sample(x, [1, 2, 3])
        assert logprob == pytest.approx(wanted[chosen], abs=1e-6)


def test_top_logprobs():
    x = np.array([1, 3, 3, -1], np.float32)
    wanted = np.log(np.array(plain_softmax(x)))
    found = top_logprobs(x, 3)
    assert [i for i, _ in found] == [1, 2, 0]
    np.testing.assert_allclose([p for _, p in found], wanted[[1, 2, 0]], atol=1e-6)
    assert len(top_logprobs(x, 9)) == 4 and top_logprobs(x, 0) == []


def test_logit_bias():
    x = np.array([5, 4, 3], np.float32)
    assert Sampler(Sampling(logit_bias={2: 3.0}), 3).sample(x)[0] == 2
    assert Sampler(Sampling(logit_bias={0: -math.inf}), 3).sample(x)[0] == 1
    with pytest.raises(BiseError, match="bans all"):
        Sampler(Sampling(logit_bias=dict.fromkeys(range(3), -math.inf)), 3).sample(x)
    with pytest.raises(RequestError, match="logit_bias id 3"):
        Sampler(Sampling(logit_bias={3: 1.0}), 3)
    assert x.tolist() == [5, 4, 3]


def test_extremes():
    one = np.full(30, -np.inf, np.float32)
    one[7] = -3.0
    warm = {"temperature": 1.0}
    for kw in (
        {}, warm, {"temperature": 100.0}, {"temperature": 1e-6}, {**warm, "typical_p": 0.5},
        {**warm, "mirostat_tau": 3.0}, {**warm, "top_p": 0.0}, {**warm, "min_p": 1.0}, {**warm, "xtc_probability": 1.0},
        {**warm, "repetition_penalty": 1.5},
    ):  # fmt: skip
        assert Sampler(Sampling(seed=3, **kw), 30).sample(one, [7, 7, 7]) == (7, 0.0)
    huge = np.array([3e38, -3e38, 0], np.float32)
    assert Sampler(Sampling(temperature=1e-6, seed=0), 3).sample(huge)[0] == 0
    same = np.zeros(10, np.float32)
    assert Sampler(Sampling(), 10).sample(same)[0] == 0
    assert Sampler(Sampling(temperature=1.0, top_k=1, seed=5), 10).sample(same)[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sick_logits(bad):
    x = logits(100)
    x[50] = bad
    for kw in ({}, {"temperature": 1.0}):
        with pytest.raises(BiseError, match="largest logit"):
            Sampler(Sampling(**kw), 100).sample(x)
    with pytest.raises(BiseError, match="largest logit is -inf"):
        Sampler(Sampling(), 4).sample(np.full(4, -np.inf, np.float32))
    with pytest.raises(BiseError, match="shape"):
        Sampler(Sampling(), 4).sample(np.zeros(5, np.float32))


# --- chance


def chi_square(counts: Counter, p: np.ndarray, n: int) -> float:
    """Pearson's statistic, as standard deviations above its mean: about normal for many degrees of freedom."""
    expected = p[p > 0] * n
    found = np.array([counts[i] for i in np.flatnonzero(p > 0)])
    degrees = max(len(expected) - 1, 1)
    return (((found - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    "kw",
    [{}, {"top_k": 6}, {"top_p": 0.7}, {"min_p": 0.1}, {"typical_p": 0.6}, {"temperature": 2.5},
     {"top_k": 8, "top_p": 0.9, "min_p": 0.05}],
)  # fmt: skip
def test_frequencies(kw):
    x = logits(12, 1.0, seed=4)
    given = {"temperature": 0.7, **kw}
    order = [("top_k", "top_k"), ("typical", "typical_p"), ("top_p", "top_p"), ("min_p", "min_p")]
    kept = np.arange(12)
    for cut, name in order:
        if name in given:
            kept = kept[getattr(cuts, cut)(x.astype(np.float64)[kept], given[name])]
    p = np.zeros(12)
    p[kept] = plain_softmax([float(v) / given["temperature"] for v in x[kept]])
    n, s = 20_000, Sampler(Sampling(seed=2, **given), 12)
    counts = Counter(s.sample(x)[0] for _ in range(n))
    assert set(counts) <= set(kept.tolist())
    assert abs(chi_square(counts, p, n)) < 5


def test_xtc_happens_as_often_as_asked():
    x = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    n, s = 20_000, Sampler(Sampling(temperature=1.0, xtc_probability=0.4, xtc_threshold=0.1, seed=3), 4)
    counts = Counter(s.sample(x)[0] for _ in range(n))
    whole, cut = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0, 0, 0.75, 0.25])
    assert abs(chi_square(counts, 0.6 * whole + 0.4 * cut, n)) < 5


@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_mirostat_keeps_its_surprise(tau):
    """Over a long text the mean surprise, among the tokens that were left, is tau bits, however flat the logits are."""
    for scale in (1.0, 2.0):
        s = Sampler(Sampling(temperature=1.0, mirostat_tau=tau, mirostat_eta=0.1, seed=1), 2000)
        first, n = s._mu, 1000
        for i in range(n):
            s.sample(logits(2000, scale, seed=i % 20))
        mean_error = (first - s._mu) / 0.1 / n  # every step moves mu by eta times its error
        assert abs(mean_error) < 0.1
        assert tau < s._mu < 2000**0.5


def test_mirostat_step_for_step():
    """Algorithm 2 of the paper, written out with the same stream of chance."""
    tau, eta, chance = 3.0, 0.2, np.random.Generator(np.random.PCG64(8))
    s = Sampler(Sampling(temperature=0.9, mirostat_tau=tau, mirostat_eta=eta, seed=8), 50)
    mu = 2 * tau
    for i in range(60):
        x = logits(50, 2.0, seed=i)
        p = plain_softmax([float(v) / 0.9 for v in x])
        kept = [j for j in range(50) if -math.log2(p[j]) <= mu] or [int(x.argmax())]
        q = [p[j] / sum(p[k] for k in kept) for j in kept]
        u, ends = chance.random(), np.cumsum(q)
        chosen = int(np.searchsorted(ends, u * ends[-1], side="right"))
        assert s.sample(x)[0] == kept[chosen]
        mu -= eta * (-math.log2(q[chosen]) - tau)


def test_seeds():
    x = [logits(500, 1.0, seed=i) for i in range(30)]

    def text(seed: int | None) -> list[int]:
        s = Sampler(Sampling(temperature=1.0, top_p=0.9, xtc_probability=0.5, seed=seed), 500)
        return [s.sample(v)[0] for v in x]

    assert text(1) == text(1) != text(2)
    one = Sampler(Sampling(temperature=1.0), 500)
    again = Sampler(Sampling(temperature=1.0, seed=one.seed), 500)
    assert [one.sample(v)[0] for v in x] == [again.sample(v)[0] for v in x]
    assert Sampler(Sampling(), 5).seed != Sampler(Sampling(), 5).seed


def test_pick_lays_probabilities_end_to_end():
    p = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    assert [cuts.pick(p, u) for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999999999999999)] == [1, 1, 3, 3, 4, 4]
    assert cuts.pick(p, 1.0) == 4


# --- settings


@pytest.mark.parametrize("name", list(steps.RANGES))
def test_ranges(name):
    kind, least, most = steps.RANGES[name]
    for good in (least, most):
        Sampling(**{name: kind(good)})
    for bad in (
        float("nan"),
        math.inf,
        -math.inf,
        least - 1,
        most * 2 + 1,
        "1",
        None if name != "seed" else "x",
        True,
        [1],
    ):
        with pytest.raises(RequestError, match=f"^{name} is .*expected a "):
            Sampling(**{name: bad})
    if kind is int:
        with pytest.raises(RequestError, match="whole number"):
            Sampling(**{name: 1.5})


@pytest.mark.parametrize("bias", [[1], {1: float("nan")}, {1: math.inf}, {-1: 1.0}, {"a": 1.0}, {1: "b"}, {1.5: 1.0}])
def test_bad_bias(bias):
    with pytest.raises(RequestError, match="logit_bias"):
        Sampling(logit_bias=bias)


def test_defaults_are_greedy_and_frozen():
    assert Sampling().temperature == 0
    with pytest.raises(AttributeError):
        Sampling().temperature = 1.0
    with pytest.raises(TypeError):
        Sampling(warmth=1)


FLAT_OUT = [
    {}, {"repetition_penalty": 1.1}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 0.8, "top_p": 0.95}, {"temperature": 0.8, "typical_p": 0.95}, {"temperature": 0.8, "mirostat_tau": 5.0},
    {"temperature": 0.8, "xtc_probability": 1.0}, {"temperature": 0.8, "typical_p": 0.9, "top_p": 0.95, "min_p": 0.05},
]  # fmt: skip


@pytest.mark.parametrize("options", FLAT_OUT, ids=str)
def test_no_way_of_choosing_costs_as_much_as_sorting(options):
    """32,000 tokens, all about equally likely: a stable sort takes 2.5 ms where the slowest way takes 0.95."""
    np.ones(1 << 21)  # as a prompt's activations do, it teaches malloc to keep memory of that size
    x, history, s = logits(32_000, 0.3), list(range(4000)), Sampler(Sampling(seed=1, **options), 32_000)
    doubles, best = x.astype(np.float64), {"sample": math.inf, "sort": math.inf}
    for _ in range(25):
        for name, work in (("sample", lambda: s.sample(x, history)), ("sort", lambda: doubles.argsort(kind="stable"))):
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    assert best["sample"] < best["sort"]
