"""Figures from logits: against plain float64 formulas, against scipy-free closed forms, and at the edges of floats."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bise import score
from bise.errors import RequestError
from bise.score import Divergence, Estimate, Perplexity, compare

RNG = np.random.default_rng(0)
N, VOCAB = 700, 501  # more than one strip
P = RNG.normal(0, 3, (N, VOCAB)).astype(np.float32)
Q = (P + RNG.normal(0, 0.3, P.shape)).astype(np.float32)
TARGETS = RNG.integers(0, VOCAB, N).astype(np.int32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.longdouble))
    return powers / powers.sum(1, keepdims=True)


def test_perplexity_is_its_definition() -> None:
    p = softmax(P)[np.arange(N), TARGETS]
    found = Perplexity()
    for at in range(0, N, 97):  # in uneven pieces
        found.add(P[at : at + 97], TARGETS[at : at + 97])
    assert found.tokens == N
    np.testing.assert_allclose(found.losses, -np.log(p).astype(float), rtol=1e-12)
    expected = float(np.exp(-np.log(p).mean()))
    assert found.perplexity.value == pytest.approx(expected, rel=1e-12)
    assert found.perplexity.error == pytest.approx(expected * np.std(-np.log(p), ddof=1) / N**0.5, rel=1e-9)


def test_divergence_is_its_definition() -> None:
    p, q = softmax(P), softmax(Q)
    kl = (p * np.log(p / q)).sum(1).astype(float)
    i = np.arange(N)
    gap = (q[i, TARGETS] - p[i, TARGETS]).astype(float)
    found = compare(P, Q, TARGETS)
    assert found.kl.value == pytest.approx(kl.mean(), rel=1e-11)
    assert found.kl.error == pytest.approx(kl.std(ddof=1) / N**0.5, rel=1e-9)
    assert found.largest == pytest.approx(kl.max(), rel=1e-11)
    assert found.quantiles == {s: pytest.approx(np.quantile(kl, s), rel=1e-10) for s in (0.5, 0.9, 0.99, 0.999)}
    share = float((p.argmax(1) == q.argmax(1)).mean())
    assert found.same_top.value == share and 0.5 < share < 1
    assert found.same_top.error == pytest.approx((share * (1 - share) / (N - 1)) ** 0.5)
    assert found.change.value == pytest.approx(gap.mean(), abs=1e-14)
    assert found.change_rms.value == pytest.approx((gap**2).mean() ** 0.5, rel=1e-10)
    logs = np.log(p[i, TARGETS] / q[i, TARGETS]).astype(float)
    assert found.ratio.value == pytest.approx(np.exp(logs.mean()), rel=1e-10)
    assert found.ratio.error < found.full.error / found.full.value / 5  # paired: far less than either one's


def test_pieces_are_the_whole() -> None:
    pieces, positions = Divergence(), np.arange(N) % 256
    for at in range(0, N, 133):
        part = slice(at, at + 133)
        pieces.add(P[part], Q[part], TARGETS[part], positions[part])
    once = Divergence()
    once.add(P, Q, TARGETS, positions)
    assert pieces.facts() == once.facts()


def test_by_position() -> None:
    """Eight stretches of the chunk; what they say, weighted by their tokens, is the whole."""
    found, positions = Divergence(), 256 + np.arange(N) % 255
    found.add(P, Q, TARGETS, positions)
    rows = found.by_position()
    assert [(row["first"], row["last"]) for row in rows][:2] == [(256, 286), (287, 318)] and rows[-1]["last"] == 510
    assert sum(row["tokens"] for row in rows) == N and len(rows) == 8
    total = sum(row["tokens"] * row["kl"].value for row in rows)
    assert total / N == pytest.approx(found.kl.value)
    assert len(compare(P[:3], Q[:3], TARGETS[:3]).by_position()) == 3  # a stretch for each token, no empty one


def test_the_same_model_differs_in_nothing() -> None:
    found = compare(P, P, TARGETS)
    assert found.kl == (0, 0) and found.largest == 0 and found.same_top == (1, 0) and found.change_rms == (0, 0)
    shifted = compare(P, P.astype(np.float64) + 1000, TARGETS)  # logits mean the same wherever their zero is
    assert 0 <= shifted.largest < 1e-12


def test_small_divergences_survive() -> None:
    """A disturbance of size e leaves e^2/2 times its variance under p: true to several digits down to 1e-12."""
    p, noise = softmax(P), RNG.normal(0, 1, P.shape)
    for e in (1e-3, 1e-5):
        disturbed = P.astype(np.float64) + e * noise
        variance = (p * noise**2).sum(1) - (p * noise).sum(1) ** 2
        expected = float((variance * e * e / 2).mean())
        assert compare(P.astype(np.float64), disturbed, TARGETS).kl.value == pytest.approx(expected, rel=5e-3)


def test_large_logits_and_impossible_tokens() -> None:
    large = compare(np.array([[1e5, 0.0, -1e5]]), np.array([[1e5, 0.0, -1e5]]), np.array([0]))
    assert large.kl.value == 0 and large.full.value == 1
    masked = np.array([[0.0, 0.0, -np.inf]])
    assert compare(masked, np.zeros((1, 3)), np.array([0])).kl.value == pytest.approx(np.log(1.5))
    assert compare(masked, masked, np.array([0])).kl.value == 0
    never = compare(np.zeros((2, 3)), np.repeat(masked, 2, 0), np.array([0, 2]))
    assert never.kl.value == np.inf and never.other.value == np.inf
    json.dumps(never.facts(), allow_nan=False)


def test_nan_is_refused() -> None:
    bad = P[:4].copy()
    bad[2, 7] = np.nan
    with pytest.raises(RequestError, match="logits of 1 positions are NaN"):
        Perplexity().add(bad, TARGETS[:4])
    with pytest.raises(RequestError, match="1 positions are NaN"):
        compare(P[:4], bad, TARGETS[:4])
    bad[2, 7] = np.inf
    with pytest.raises(RequestError, match="1 positions are NaN"):
        compare(P[:4], bad, TARGETS[:4])


@pytest.mark.parametrize("targets", [np.array([0, VOCAB]), np.array([-1, 0]), np.array([0]), np.array([0.0, 1.0])])
def test_wrong_targets_are_refused(targets: np.ndarray) -> None:
    with pytest.raises(RequestError, match="targets"):
        compare(P[:2], Q[:2], targets)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(RequestError, match="two models of one vocabulary"):
        compare(P[:2], Q[:2, :-1], TARGETS[:2])


def test_one_token_has_no_error() -> None:
    one = compare(P[:1], Q[:1], TARGETS[:1])
    assert np.isnan(one.kl.error)
    json.dumps(one.facts(), allow_nan=False)
    assert Estimate.of(np.empty(0)).facts() == {"value": None, "error": None}


def test_the_error_bar_is_right() -> None:
    """Of many texts of the same model, two thirds lie within one error of the truth."""
    truth, hits = np.log(VOCAB), 0
    for seed in range(300):
        losses = np.random.default_rng(seed).exponential(truth, 200)
        estimate = Estimate.of(losses)
        hits += abs(estimate.value - truth) < estimate.error
    assert 0.6 < hits / 300 < 0.76


def test_strips_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(P, Q, TARGETS).facts()
    monkeypatch.setattr(score, "STRIP", 1)
    assert compare(P, Q, TARGETS).facts() == whole
