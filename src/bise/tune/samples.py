"""What the model answers to held-out prompts, before and after: for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..cache import CHUNK, Cache
from ..disk import replacing
from ..engine import Engine
from ..request import Request
from ..sampler import Sampler, Sampling
from .sample import Example, Pair, Sample, Verdict
from .student import Student

OPENING = 12  # tokens of a text that is learnt from its beginning, given as its prompt
MOST = 128  # tokens of an answer


def sample_of(example: Example) -> Sample:
    """The sequence whose prompt and answer are shown: of a pair, the better one."""
    if isinstance(example, Pair):
        return example.chosen
    return example.answer if isinstance(example, Verdict) else example


def chosen(examples: Sequence[Example], n: int) -> list[Sample]:
    """The first n whose prompts differ."""
    found: dict[bytes, Sample] = {}
    for example in examples:
        if len(found) == n:
            break
        sample = sample_of(example)
        found.setdefault(sample.ids[: cut(sample)].tobytes(), sample)
    return list(found.values())


def cut(sample: Sample) -> int:
    """Where the prompt ends: before the last stretch that is learnt, or after the opening of a plain text."""
    begins = np.flatnonzero(sample.learnt & ~np.roll(sample.learnt, 1))
    return max(int(begins[-1]) if len(begins) else len(sample), min(OPENING, len(sample) - 1))


@torch.no_grad()
def answers(student: Student, samples: Sequence[Sample]) -> list[list[int]]:
    """Greedy, about as long as what the data have there, at most 128 tokens and within the context."""
    found: list[list[int]] = []
    stop, size = frozenset[int](), student.config.vocab_size
    if student.tokenizer:
        stop, size = student.tokenizer.stop_ids, student.tokenizer.vocab_size
    for sample in samples:
        begin = cut(sample)
        room = min(MOST, 2 * (len(sample) - begin) + 8, student.config.context - begin)
        if room < 1:
            found.append([])
            continue
        cache = Cache(student.ops, student.config, 1, max(CHUNK, begin + room), "f32")
        engine = Engine(student.ops, student.config, student.parameters, cache)
        request = Request(sample.ids[:begin].tolist(), Sampler(Sampling(), size), room, stop)
        engine.submit(request)
        while engine.running:
            engine.step()
        if request.error:
            raise request.error
        found.append(request.tokens)
    return found


def write(path: Path, student: Student, samples: Sequence[Sample], before: list[list[int]], after: list[list[int]],
          held_out: str) -> None:  # fmt: skip
    """samples.md. held_out: a sentence on the loss."""
    said = student.tokenizer.decode if student.tokenizer else str
    lines = ["# Samples", "", f"Held-out prompts, answered greedily. {held_out}", ""]
    for sample, old, new in zip(samples, before, after, strict=True):
        begin = cut(sample)
        parts = {"Prompt": sample.ids[:begin].tolist(), "As the data have it": sample.ids[begin:].tolist(),
                 "Before": old, "After": new}  # fmt: skip
        lines += [f"## {Path(sample.source).name}, line {sample.line}", ""]
        for title, ids in parts.items():
            lines += [f"**{title}**", "", *(f"> {line}" for line in (said(ids).strip() or "(nothing)").split("\n")), ""]
    with replacing(path) as file:
        file.write("\n".join(lines).encode())
