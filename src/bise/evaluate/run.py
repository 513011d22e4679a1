"""A model reads the chunks of a text, and what it makes of them is scored or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from .. import moments
from ..cache import whole
from ..errors import RequestError
from ..model import forward
from ..ops import Ops
from ..score import Divergence, Perplexity
from ..texts import Cut, Ids
from ..weights import Parameters
from .kept import Kept, write

Watch = Callable[[int, int, str], None]  # tokens read, tokens in all, the figures so far
STEP = 512  # tokens that are read at once: short chunks several at a time


class Loaded(moments.Loaded, Protocol):
    """What is judged: a `bise.Model`, seen from below."""

    path: Path

    def spoken(self) -> tuple[Ops, Parameters]:
        """The verbs and the weights, with an adapter beside them if the model was loaded with one."""


class Part(NamedTuple):
    """What some chunks came to: logits (n, vocab), the ids that followed (n,), and where those stand in their chunk."""

    logits: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    read: int  # tokens read so far


def perplexity(model: Loaded, chunks: Ids, cut: Cut, watch: Watch | None = None) -> Perplexity:
    """How well the model predicts the scored tokens of chunks (n, context)."""
    found = Perplexity()
    for part in parts(model, chunks, cut):
        found.add(part.logits, part.targets, part.positions)
        if watch:
            watch(part.read, chunks.size, f"perplexity {found.perplexity}")
    return found


def keep(model: Loaded, chunks: Ids, cut: Cut, path: Path, about: str, watch: Watch | None = None) -> None:
    """Write the full model's logits at the scored tokens to `path`, whole or not at all. about: see `identity`."""
    each = parts(model, chunks, cut)

    def next_part() -> np.ndarray:
        part = next(each)
        if watch:
            watch(part.read, chunks.size, "")
        return part.logits

    shapes = [(cut.scored * len(group), model.config.vocab_size) for group in _groups(chunks)]
    write(path, about, shapes, next_part)


def divergence(model: Loaded, full: Kept, chunks: Ids, cut: Cut, watch: Watch | None = None) -> Divergence:
    """How far the model strays from the full one, whose logits over the same chunks and cut were kept."""
    if full.vocab != model.config.vocab_size:
        raise RequestError(
            f"{model.path} gives {model.config.vocab_size:,} logits a token, the full model {full.vocab:,}: "
            "models of one vocabulary expected"
        )
    found = Divergence()
    for i, part in enumerate(parts(model, chunks, cut)):
        found.add(full[i], part.logits, part.targets, part.positions)
        if watch:
            watch(part.read, chunks.size, f"KL {found.kl}")
    return found


def parts(model: Loaded, chunks: Ids, cut: Cut) -> Iterator[Part]:
    """Read the chunks, each a sequence of its own, as many at once as make `STEP` tokens."""
    rows = np.arange(cut.first, cut.context - 1)
    read = 0
    ops, weights = model.spoken()
    for group in _groups(chunks):
        batch = whole(ops, model.config, [cut.context] * len(group), model.kv)
        batch.wanted = (np.arange(len(group))[:, None] * cut.context + rows).reshape(-1)
        logits = ops.numpy(forward(ops, model.config, weights, group.reshape(-1), batch))
        read += group.size
        yield Part(logits, group[:, cut.first + 1 :].reshape(-1), np.tile(rows + 1, len(group)), read)


def _groups(chunks: Ids) -> list[Ids]:
    step = max(1, STEP // chunks.shape[1])
    return [chunks[at : at + step] for at in range(0, len(chunks), step)]
