"""Preferences: losses and gradients against the formulas written out in float64, objectives against transformers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import numpy as np

from bise.errors import RequestError
from bise.tune import prefer
from bise.tune.sample import Sample


def bigram(seed: int, words: int = 7) -> torch.Tensor:
    """A model of one table: row = word before, columns = scores of the next word."""
    return torch.tensor(np.random.default_rng(seed).standard_normal((words, words)), requires_grad=True)


def log_pi(table: torch.Tensor, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log of the product of softmaxes, written out: no function that the code under test uses."""
    product = torch.ones((), dtype=torch.float64)
    before = prompt[-1]
    for word in answer:
        product = product * torch.exp(table[before, word]) / torch.exp(table[before]).sum()
        before = word
    return torch.log(product)


PROMPTS = [[1, 2], [3], [0, 4, 5]]
CHOSEN = [[2, 3, 4], [1, 1], [6]]
REJECTED = [[5], [0, 2, 6, 3], [1, 5, 5]]


def read(table: torch.Tensor, answers: list[list[int]]) -> torch.Tensor:
    return torch.stack([log_pi(table, prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)])


def test_dpo_is_equation_7() -> None:
    policy, reference, beta = bigram(0), bigram(1).detach(), 0.3
    ratio = [read(policy, answers) - read(reference, answers) for answers in (CHOSEN, REJECTED)]
    loss = prefer.dpo(*ratio, beta).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    written = torch.zeros((), dtype=torch.float64)
    for prompt, w, l in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        first = beta * torch.log(torch.exp(log_pi(policy, prompt, w)) / torch.exp(log_pi(reference, prompt, w)))
        second = beta * torch.log(torch.exp(log_pi(policy, prompt, l)) / torch.exp(log_pi(reference, prompt, l)))
        written = written - torch.log(1 / (1 + torch.exp(-(first - second))))
    (expected,) = torch.autograd.grad(written, policy)
    torch.testing.assert_close(loss, written, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_dpo_gradient_is_the_papers() -> None:
    """Section 4, what does the DPO update do: -beta sigma(r_l - r_w) (grad log pi(y_w) - grad log pi(y_l))."""
    policy, reference, beta = bigram(2), bigram(3).detach(), 0.2
    ratio = [read(policy, answers) - read(reference, answers) for answers in (CHOSEN, REJECTED)]
    (gradient,) = torch.autograd.grad(prefer.dpo(*ratio, beta).sum(), policy, retain_graph=True)
    expected = torch.zeros_like(policy)
    for i, (prompt, w, l) in enumerate(zip(PROMPTS, CHOSEN, REJECTED, strict=True)):
        wrong = 1 / (1 + torch.exp(beta * (ratio[0][i] - ratio[1][i])))
        (up,) = torch.autograd.grad(log_pi(policy, prompt, w), policy)
        (down,) = torch.autograd.grad(log_pi(policy, prompt, l), policy)
        expected -= beta * wrong.detach() * (up - down)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_orpo_is_equations_6_and_7() -> None:
    policy, weight = bigram(4), 0.25
    means = [
        read(policy, answers) / torch.tensor([float(len(a)) for a in answers]) for answers in (CHOSEN, REJECTED)
    ]
    loss = prefer.orpo(*means, weight).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    written = torch.zeros((), dtype=torch.float64)
    for prompt, w, l in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        p = torch.exp(log_pi(policy, prompt, w)) ** (1 / len(w))
        q = torch.exp(log_pi(policy, prompt, l)) ** (1 / len(l))
        ratio = (p / (1 - p)) / (q / (1 - q))
        written = written - torch.log(p) - weight * torch.log(1 / (1 + 1 / ratio))
    (expected,) = torch.autograd.grad(written, policy)
    torch.testing.assert_close(loss, written, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_orpo_of_a_certain_answer_is_finite() -> None:
    certain = torch.zeros(1, requires_grad=True)
    loss = prefer.orpo(certain, torch.tensor([-3.0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(certain.grad).all()


def test_kto_is_equation_8() -> None:
    policy, reference, beta = bigram(6), bigram(5).detach(), 0.4
    good = torch.tensor([True, False, True])
    ratio = read(policy, CHOSEN) - read(reference, CHOSEN)
    shifted = CHOSEN[1:] + CHOSEN[:1]
    point = prefer.reference_point(read(policy, shifted) - read(reference, shifted))
    loss = prefer.kto(ratio, good, point, beta, wanted=1.5, unwanted=0.75).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    z0 = max(0.0, float(sum((read(policy, shifted) - read(reference, shifted)).tolist()) / 3))
    assert z0 > 0  # else this would not test the point
    written = torch.zeros((), dtype=torch.float64)
    for prompt, y, wanted in zip(PROMPTS, CHOSEN, good.tolist(), strict=True):
        r = torch.log(torch.exp(log_pi(policy, prompt, y)) / torch.exp(log_pi(reference, prompt, y)))
        value = 1.5 / (1 + torch.exp(-beta * (r - z0))) if wanted else 0.75 / (1 + torch.exp(-beta * (z0 - r)))
        written = written + (1.5 if wanted else 0.75) - value
    (expected,) = torch.autograd.grad(written, policy)
    torch.testing.assert_close(loss, written, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_ktos_point_is_never_below_zero() -> None:
    assert prefer.reference_point(torch.tensor([-2.0, 1.0])) == 0
    assert prefer.reference_point(torch.tensor([-1.0, 2.0])) == 0.5


def made(prompt: list[int], answer: list[int]) -> Sample:
    ids = np.array([*prompt, *answer], np.int32)
    return Sample(ids, np.arange(len(ids)) >= len(prompt))


def test_mismatched_answers_stand_after_other_prompts() -> None:
    wrong = prefer.mismatched([made(p, a) for p, a in zip(PROMPTS, CHOSEN, strict=True)])
    assert [w.ids.tolist() for w in wrong] == [[1, 2, 1, 1], [3, 6], [0, 4, 5, 2, 3, 4]]
    assert [w.learnt.tolist() for w in wrong] == [[False, False, True, True], [False, True], [False] * 3 + [True] * 3]
    with pytest.raises(RequestError, match="micro-batch of 1"):
        prefer.mismatched([made([1], [2])])
