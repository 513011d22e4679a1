"""Learning from preferences: DPO, ORPO and KTO, each loss beside its formula's number.

The losses are pure functions of log-probabilities of whole answers; the objectives read the answers with a student and
hand back sums, so that micro-batches, ranks and steps may add them up and divide once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import safetensors
from ..errors import FormatError, RequestError
from ..quant import QTensor
from .sample import Pair, Sample, Verdict
from .student import Student

BETA = 0.1  # of DPO and KTO: Rafailov et al. 2023, section 6; Ethayarajh et al. 2024, section 4
LAMBDA = 0.1  # of ORPO: Hong et al. 2024, section 5.2, for Mistral 7B
CERTAIN = -1e-6  # ORPO's log P is kept below it: the odds of an answer that is certain are infinite

Figures = dict[str, float]  # sums over examples: those of micro-batches and ranks add up
Reference = Callable[[Student, Sequence[Sample]], Tensor]  # (samples) -> (S,) log pi_ref(y | x)


# losses: float tensors (S,) -> (S,), one loss per example


def dpo(chosen: Tensor, rejected: Tensor, beta: float = BETA) -> Tensor:
    """Rafailov et al. 2023, equation 7: -log sigma(beta r_w - beta r_l), r = log pi(y|x) - log pi_ref(y|x)."""
    return -F.logsigmoid(beta * (chosen - rejected))


def orpo(chosen: Tensor, rejected: Tensor, weight: float = LAMBDA) -> Tensor:
    """Hong et al. 2024, equation 6: L_SFT + lambda L_OR, of log P, the MEAN log-probability of an answer's tokens
    (their equation 3). L_OR is equation 7: -log sigma(log odds_w - log odds_l)."""
    return -chosen - weight * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(log_p: Tensor) -> Tensor:
    """Hong et al. 2024, equation 4: log(P / (1 - P)), from log P."""
    log_p = log_p.clamp(max=CERTAIN)
    return log_p - torch.log(-torch.expm1(log_p))


def kto(ratio: Tensor, good: Tensor, point: Tensor, beta: float = BETA, wanted: float = 1.0,
        unwanted: float = 1.0) -> Tensor:  # fmt: skip
    """Ethayarajh et al. 2024, equation 8: lambda_y - v, v = lambda_D sigma(beta (r - z0)) of an answer that is wanted,
    lambda_U sigma(beta (z0 - r)) of one that is not.

    ratio  (S,) r = log pi(y|x) - log pi_ref(y|x);  good (S,) bool;  point () z0
    """
    value = torch.sigmoid(beta * torch.where(good, ratio - point, point - ratio))
    return torch.where(good, wanted * (1 - value), unwanted * (1 - value))


def reference_point(ratio: Tensor) -> Tensor:
    """z0 of KTO from mismatched answers' ratios (S,): their mean, at least 0, nothing learnt through it (section 4)."""
    return ratio.detach().mean().clamp(min=0)


# reading


def per_answer(logprobs: Tensor, samples: Sequence[Sample]) -> Tensor:
    """(targets,) of several samples -> (S,): log pi(y|x) of each."""
    return torch.stack([part.sum() for part in logprobs.split_with_sizes([sample.targets for sample in samples])])


def switched_off(student: Student, samples: Sequence[Sample]) -> Tensor:
    """The reference is the student without its adapter: it costs no memory."""
    with torch.no_grad(), student.reference():
        return per_answer(student.logprobs(samples), samples)


class Remembered:
    """The reference's log-probabilities of a data set, computed before the first step: for full fine-tuning, where what
    the student was is gone after it."""

    def __init__(self, sums: dict[bytes, float]) -> None:
        self.sums = sums

    @classmethod
    def of(cls, student: Student, samples: Sequence[Sample], folder: Path, model: str) -> Remembered:
        """From `folder` if these samples were read there by this model (its fingerprint), else read now and kept."""
        keys = [_digest(sample) for sample in samples]
        digest = hashlib.sha256(model.encode() + b"".join(keys)).hexdigest()
        path = folder / f"reference-{digest[:16]}.safetensors"
        if path.exists():
            return cls(dict(zip(keys, _read(path, len(keys)), strict=True)))
        sums = np.empty(len(samples), np.float32)
        with torch.no_grad():
            for i, sample in enumerate(samples):
                sums[i] = student.logprobs([sample]).sum()
        safetensors.write(path, {"sums": QTensor.of(sums)}, {"model": model})
        return cls(dict(zip(keys, sums.tolist(), strict=True)))

    def __call__(self, student: Student, samples: Sequence[Sample]) -> Tensor:
        """RequestError for a sample that was not read beforehand (KTO's mismatched answers never were)."""
        try:
            return torch.tensor([self.sums[_digest(sample)] for sample in samples])
        except KeyError:
            raise RequestError("the reference was computed for other answers: KTO and full fine-tuning do not go "
                               "together, take an adapter (--method lora) or DPO") from None  # fmt: skip


def _digest(sample: Sample) -> bytes:
    return hashlib.sha256(sample.ids.astype("<i4").tobytes() + sample.learnt.tobytes()).digest()


def _read(path: Path, expected: int) -> list[float]:
    sums = safetensors.Safetensors(path).get("sums")
    if sums is None or (sums.type, sums.shape) != ("F32", (expected,)):
        raise FormatError(f"{path}: expected F32 ({expected},) in `sums`: delete the file, it is computed again")
    return [float(value) for value in sums.dequantise()]


# objectives: (student, examples) -> (sum of the losses, number of examples, figures)


@dataclass(frozen=True)
class Dpo:
    reference: Reference = switched_off
    beta: float = BETA

    def __call__(self, student: Student, pairs: Sequence[Pair]) -> tuple[Tensor, int, Figures]:
        samples = _both(pairs)
        reference = self.reference(student, samples)  # first: nothing is kept for the way back yet
        ratio = per_answer(student.logprobs(samples), samples) - reference
        chosen, rejected = ratio.chunk(2)
        return dpo(chosen, rejected, self.beta).sum(), len(pairs), _compared(self.beta * ratio)


@dataclass(frozen=True)
class Orpo:
    weight: float = LAMBDA

    def __call__(self, student: Student, pairs: Sequence[Pair]) -> tuple[Tensor, int, Figures]:
        samples = _both(pairs)
        sums = per_answer(student.logprobs(samples), samples)
        mean = sums / torch.tensor([sample.targets for sample in samples], device=sums.device)
        chosen, rejected = mean.chunk(2)
        return orpo(chosen, rejected, self.weight).sum(), len(pairs), _compared(log_odds(mean))


@dataclass(frozen=True)
class Kto:
    """wanted, unwanted: lambda_D and lambda_U, to be chosen so that good and bad examples weigh alike (section 4)."""

    reference: Reference = switched_off
    beta: float = BETA
    wanted: float = 1.0
    unwanted: float = 1.0

    def __call__(self, student: Student, verdicts: Sequence[Verdict]) -> tuple[Tensor, int, Figures]:
        answers = [verdict.answer for verdict in verdicts]
        point, reference = self.point(student, answers), self.reference(student, answers)
        ratio = per_answer(student.logprobs(answers), answers) - reference
        good = torch.tensor([verdict.good for verdict in verdicts], device=ratio.device)
        losses = kto(ratio, good, point, self.beta, self.wanted, self.unwanted)
        return losses.sum(), len(verdicts), _judged(self.beta * ratio.detach(), self.beta * point, good)

    def point(self, student: Student, answers: Sequence[Sample]) -> Tensor:
        """z0, from each prompt with the next one's answer."""
        wrong = mismatched(answers)
        with torch.no_grad():
            ratio = per_answer(student.logprobs(wrong), wrong) - self.reference(student, wrong)
        return reference_point(ratio)


def mismatched(answers: Sequence[Sample]) -> list[Sample]:
    """Each one's prompt, with the answer of the one after it (the last one's with the first's)."""
    if len(answers) < 2:
        raise RequestError(
            "KTO compares with the answers to other prompts and got a micro-batch of 1: give it more tokens, or a "
            "shorter --context"
        )
    begin = [int(sample.learnt.argmax()) for sample in answers]
    found = []
    for (sample, start), (other, at) in zip(
        zip(answers, begin, strict=True), [*zip(answers[1:], begin[1:], strict=True), (answers[0], begin[0])],
        strict=True,
    ):  # fmt: skip
        ids = np.concatenate([sample.ids[:start], other.ids[at:]])
        learnt = np.concatenate([np.zeros(start, bool), other.learnt[at:]])
        found.append(Sample(ids, learnt, sample.source, sample.line))
    return found


def _both(pairs: Sequence[Pair]) -> list[Sample]:
    """All chosen answers, then all rejected ones."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def _compared(rewards: Tensor) -> Figures:
    """rewards (2S,): of the chosen, then of the rejected."""
    chosen, rejected = rewards.detach().chunk(2)
    return {
        "accuracy": float((chosen > rejected).sum()),
        "margin": float((chosen - rejected).sum()),
        "chosen": float(chosen.sum()),
        "rejected": float(rejected.sum()),
    }


def _judged(rewards: Tensor, point: Tensor, good: Tensor) -> Figures:
    """rewards (S,): chosen and rejected are sums over the good and over the bad answers; good: how many those are."""
    right = torch.where(good, rewards - point, point - rewards)
    return {
        "accuracy": float((right > 0).sum()),
        "margin": float(right.sum()),
        "chosen": float(rewards[good].sum()),
        "rejected": float(rewards[~good].sum()),
        "good": float(good.sum()),
    }
