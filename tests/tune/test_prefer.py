"""Preferences: losses and gradients against the formulas written out in float64, objectives against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bise.errors import FormatError, RequestError
from bise.tune import prefer
from bise.tune.sample import Pair, Sample, Verdict
from bise.tune.student import Student
from steps import one_torch_thread  # noqa: F401
from tiny import tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf

pytestmark = pytest.mark.usefixtures("one_torch_thread")


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
    for prompt, w, x in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        first = beta * torch.log(torch.exp(log_pi(policy, prompt, w)) / torch.exp(log_pi(reference, prompt, w)))
        second = beta * torch.log(torch.exp(log_pi(policy, prompt, x)) / torch.exp(log_pi(reference, prompt, x)))
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
    for i, (prompt, w, x) in enumerate(zip(PROMPTS, CHOSEN, REJECTED, strict=True)):
        wrong = 1 / (1 + torch.exp(beta * (ratio[0][i] - ratio[1][i])))
        (up,) = torch.autograd.grad(log_pi(policy, prompt, w), policy)
        (down,) = torch.autograd.grad(log_pi(policy, prompt, x), policy)
        expected -= beta * wrong.detach() * (up - down)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_orpo_is_equations_6_and_7() -> None:
    policy, weight = bigram(4), 0.25
    means = [read(policy, answers) / torch.tensor([float(len(a)) for a in answers]) for answers in (CHOSEN, REJECTED)]
    loss = prefer.orpo(*means, weight).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    written = torch.zeros((), dtype=torch.float64)
    for prompt, w, x in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        p = torch.exp(log_pi(policy, prompt, w)) ** (1 / len(w))
        q = torch.exp(log_pi(policy, prompt, x)) ** (1 / len(x))
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


# with a student

CONFIG = tiny_config()


def pairs(n: int, seed: int = 0) -> list[Pair]:
    """Prompts of 3 to 7 words, answers of 2 to 9."""
    chance = np.random.default_rng(seed)

    def words(low: int, high: int) -> list[int]:
        return chance.integers(3, CONFIG.vocab_size, chance.integers(low, high)).tolist()

    found = []
    for _ in range(n):
        prompt = [1, *words(3, 8)]
        found.append(Pair(made(prompt, words(2, 10)), made(prompt, words(2, 10))))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", CONFIG, tiny_weights(CONFIG))


def changed(student: Student, seed: int = 1) -> Student:
    """As if it had learnt something: without it, policy and reference are one."""
    chance = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in student.trained.items():
            if name.endswith(".b"):
                tensor.copy_(torch.tensor(chance.standard_normal(tensor.shape).astype(np.float32) / 8))
    return student


def test_dpo_is_what_transformers_logits_say(tmp_path: Path) -> None:
    """Reference: the base. Policy: the base with the adapter multiplied out, a model of its own for transformers."""
    transformers = pytest.importorskip("transformers")
    arrays, data, beta = tiny_weights(CONFIG), pairs(5), 0.3
    base = write_tiny_hf(tmp_path / "base", CONFIG, arrays)
    student = changed(Student.open(base, rank=4, alpha=8))
    for name, delta in student.adapter().deltas.items():
        arrays[name] = arrays[name] + delta.scale * delta.b @ delta.a
    merged = write_tiny_hf(tmp_path / "merged", CONFIG, arrays)

    networks = {
        folder: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (base, merged)
    }

    def theirs(folder: Path, sample: Sample) -> float:
        with torch.no_grad():
            scores = networks[folder](torch.tensor(sample.ids[None].astype(np.int64))).logits[0].double()
        rows = (scores - scores.logsumexp(1, keepdim=True)).numpy()
        return sum(rows[t - 1, sample.ids[t]] for t in np.flatnonzero(sample.learnt))

    margins = [
        beta * (theirs(merged, p.chosen) - theirs(base, p.chosen) - theirs(merged, p.rejected) + theirs(base, p.rejected))
        for p in data
    ]  # fmt: skip
    loss, count, figures = prefer.Dpo(beta=beta)(student, data)
    assert count == 5
    assert float(loss.detach()) == pytest.approx(sum(np.log1p(np.exp(-m)) for m in margins), abs=2e-5)
    assert figures["margin"] == pytest.approx(sum(margins), abs=1e-4)
    assert figures["accuracy"] == sum(m > 0 for m in margins)


@pytest.mark.parametrize("objective", [prefer.Dpo(), prefer.Orpo()], ids=["dpo", "orpo"])
def test_micro_batches_add_up_to_the_large_batch(model: Path, objective: prefer.Dpo | prefer.Orpo) -> None:
    student, data = changed(Student.open(model, rank=4)), pairs(6)
    whole = objective(student, data)
    expected = torch.autograd.grad(whole[0], list(student.trained.values()))
    parts = [objective(student, data[:1]), objective(student, data[1:4]), objective(student, data[4:])]
    torch.autograd.backward([loss for loss, _, _ in parts])
    assert sum(count for _, count, _ in parts) == whole[1]
    for name, value in whole[2].items():
        assert sum(p[2][name] for p in parts) == pytest.approx(value, abs=1e-4)
    for tensor, gradient in zip(student.trained.values(), expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-4, atol=1e-6)


def learn(student: Student, objective: object, data: list, steps: int, rate: float) -> list[prefer.Figures]:
    optimiser = torch.optim.AdamW(student.trained.values(), lr=rate)
    seen = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss, count, figures = objective(student, data)
        (loss / count).backward()
        optimiser.step()
        seen.append(figures)
    return seen


@pytest.mark.parametrize("objective", [prefer.Dpo(), prefer.Orpo()], ids=["dpo", "orpo"])
def test_the_margin_grows(model: Path, objective: prefer.Dpo | prefer.Orpo) -> None:
    seen = learn(Student.open(model, rank=4), objective, pairs(4), steps=12, rate=1e-2)
    first, last = seen[0], seen[-1]
    assert last["margin"] > first["margin"] + 1
    assert last["accuracy"] == 4


def test_kto_tells_good_from_bad(model: Path) -> None:
    data = [Verdict(answer, good) for p in pairs(3) for answer, good in ((p.chosen, True), (p.rejected, False))]
    seen = learn(Student.open(model, rank=4), prefer.Kto(), data, steps=12, rate=1e-2)
    first, last = seen[0], seen[-1]
    assert first["chosen"] == pytest.approx(0, abs=1e-5)  # the student is its own reference yet
    assert last["chosen"] > 0 > last["rejected"]
    assert (last["accuracy"], last["good"]) == (6, 3)
    assert last["margin"] > first["margin"] + 1


def test_the_reference_is_the_student_before_it_learnt(model: Path) -> None:
    samples = [pair.chosen for pair in pairs(3)]
    student = Student.open(model, rank=4)
    before = prefer.per_answer(student.logprobs(samples), samples)
    after = prefer.switched_off(changed(student), samples)
    torch.testing.assert_close(after, before.detach(), rtol=0, atol=1e-5)
    assert (prefer.per_answer(student.logprobs(samples), samples) - before).abs().max() > 0.1


def test_a_remembered_reference_survives_learning_and_a_restart(model: Path, tmp_path: Path) -> None:
    data = pairs(3)
    samples = [pair.chosen for pair in data] + [pair.rejected for pair in data]
    student = Student.open(model, method="full")
    expected = prefer.switched_off(student, samples)
    remembered = prefer.Remembered.of(student, samples, tmp_path, "the model")
    torch.testing.assert_close(remembered(student, samples), expected, rtol=0, atol=1e-5)
    objective = prefer.Dpo(remembered)
    assert learn(student, objective, data, steps=8, rate=1e-3)[-1]["margin"] > 1
    again = prefer.Remembered.of(student, samples, tmp_path, "the model")  # the student is another one by now
    assert again.sums == remembered.sums
    assert prefer.Remembered.of(student, samples, tmp_path, "another model").sums != remembered.sums
    with pytest.raises(RequestError, match="KTO and full fine-tuning"):
        remembered(student, prefer.mismatched(samples))


def test_a_damaged_memory_is_refused(model: Path, tmp_path: Path) -> None:
    samples = [pair.chosen for pair in pairs(2)]
    student = Student.open(model, method="full")
    prefer.Remembered.of(student, samples, tmp_path, "m")
    (file,) = tmp_path.glob("reference-*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(FormatError, match="reference-"):
        prefer.Remembered.of(student, samples, tmp_path, "m")
