"""Driving the forward pass by hand: several texts through one cache, cut in any way, every logit kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from bise import Model
from bise.cache import Cache
from bise.model import forward

Step = list[tuple[int, int]]  # (sequence, tokens) that one forward pass reads


def read(model: Model, cache: Cache, texts: Sequence[np.ndarray], steps: Iterable[Step]) -> list[np.ndarray]:
    """Read texts[s], ids (n,), on from where sequence s stands. -> logits (rows, vocab_size) of each sequence."""
    got: list[list[np.ndarray]] = [[] for _ in texts]
    for step in steps:
        batch = cache.batch(step, wanted="all")
        tokens = np.concatenate([texts[s][cache.lengths[s] : cache.lengths[s] + n] for s, n in step])
        logits = model.ops.numpy(
            forward(model.ops, model.config, model.parameters, np.asarray(tokens, np.int32), batch)
        )
        cache.advance(batch)
        for s, row, n, _ in batch.spans.tolist():
            got[s].append(logits[row : row + n].copy())
    return [np.concatenate(parts) if parts else np.empty((0, model.config.vocab_size), np.float32) for parts in got]


def alone(length: int, chunk: int, sequence: int = 0) -> list[Step]:
    """One sequence in chunks of the same size; the last may be shorter."""
    return [[(sequence, min(chunk, length - at))] for at in range(0, length, chunk)]


def mixed(lengths: Sequence[int], most: int, seed: int) -> list[Step]:
    """All sequences together, in parts of 1 to `most` tokens and in random order; some sit a step out."""
    rng = np.random.default_rng(seed)
    left, steps = list(lengths), []
    while any(left):
        step = [
            (int(s), int(min(left[s], rng.integers(1, most + 1))))
            for s in rng.permutation(len(left))
            if left[s] and rng.random() < 0.8
        ]
        for s, n in step:
            left[s] -= n
        steps += [step] if step else []
    return steps


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """The tests' matrices are too small to be worth waking a second core for."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
