"""bise, as the bench drives it: the forward pass and the logits, without reading text or choosing tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..cache import CHUNK, Cache
from ..config import Config
from ..model import forward
from ..ops import Ops
from ..weights import Parameters, Weights
from .turn import ids


class Loaded(Protocol):
    """What is measured: a `bise.Model`, seen from below."""

    ops: Ops
    config: Config
    weights: Weights
    parameters: Parameters
    context: int
    kv: str
    path: Path


class Bise:
    """A `turn.Player` over a loaded model."""

    def __init__(self, model: Loaded) -> None:
        self.model = model

    def room(self, sequences: int, context: int) -> None:
        model = self.model
        self.cache = Cache(model.ops, model.config, sequences, context, model.kv)
        self.filled = False

    def fill(self, depth: int) -> None:
        if depth and not self.filled:
            self._fill_ring()
        cache = self.cache
        cache.lengths = [depth for _ in cache.lengths]
        cache.oldest = [max(0, depth - cache.size) for _ in cache.lengths]

    def _fill_ring(self) -> None:
        """Keys and values of the first tokens, over and over, in every slot of the first sequence."""
        self.cache.rewind(0, 0)
        some = min(CHUNK, self.cache.context)
        self.prefill(some)
        for ring in self.cache.rings:
            for array in (ring.k, ring.v, ring.k_scale, ring.v_scale):
                for slot in range(some, ring.size if array is not None else 0, some):
                    count = min(some, ring.size - slot)
                    array[0, :, slot : slot + count] = array[0, :, :count]
        self.filled = True

    def prefill(self, tokens: int) -> None:
        for done in range(0, tokens, CHUNK):
            self._step([(0, min(CHUNK, tokens - done))])

    def decode(self, steps: int) -> None:
        every = [(sequence, 1) for sequence in range(len(self.cache.lengths))]
        for _ in range(steps):
            self._step(every)

    def _step(self, parts: list[tuple[int, int]]) -> None:
        model, cache = self.model, self.cache
        tokens = [id for sequence, count in parts for id in ids(cache.lengths[sequence] + sequence, count)]
        batch = cache.batch(parts)
        vocab = model.config.vocab_size
        logits = forward(model.ops, model.config, model.parameters, np.array(tokens, np.int32) % vocab, batch)
        model.ops.numpy(logits)
        cache.advance(batch)

    def about(self) -> dict[str, Any]:
        from .. import __version__

        return {"version": __version__, "arithmetic": repr(self.model.ops)}
