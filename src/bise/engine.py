"""Requests become tokens: Engine.step() runs one flat batch, the prompts chunk by chunk, the rest token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .cache import CHUNK, Cache
from .config import Config
from .errors import ContextError, RequestError
from .model import Tap, forward
from .ops import Ops
from .sampler import Sampler
from .weights import Parameters


@dataclass
class Request:
    """One sequence to be continued. The engine fills what stands below the line."""

    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sequence: int = 0  # which of the cache's sequences it lives in
    # ---
    tokens: list[int] = field(default_factory=list)  # what was sampled, without the stop id
    logprobs: list[float] = field(default_factory=list)
    read: int = 0  # tokens of the prompt that are in the cache
    reused: int = 0  # of these, how many were there before
    finish_reason: str | None = None  # "stop" | "length"

    @property
    def pending(self) -> Sequence[int]:
        """What the next step reads for this request: a chunk of the prompt, or the token sampled last."""
        if self.read < len(self.prompt):
            return self.prompt[self.read : self.read + CHUNK]
        return self.tokens[-1:]


class Engine:
    """The loop around the forward pass. A request's tokens do not depend on the others in the batch."""

    def __init__(self, ops: Ops, config: Config, weights: Parameters, cache: Cache, tap: Tap | None = None) -> None:
        self.ops, self.config, self.weights, self.cache, self.tap = ops, config, weights, cache, tap
        self.history: list[list[int]] = [[] for _ in cache.lengths]  # the ids whose keys each sequence holds
        self.running: list[Request] = []

    def submit(self, request: Request) -> None:
        """Take a request; what its sequence already holds of the prompt is not read again."""
        self._check(request)
        history = self.history[request.sequence]
        shared = _shared(history, request.prompt[:-1])  # the last token is always read: its logits are wanted
        if not self.cache.rewind(request.sequence, shared):
            shared = 0
            self.cache.rewind(request.sequence, 0)
        del history[shared:]
        request.read = request.reused = shared
        self.running.append(request)

    def step(self) -> list[Request]:
        """One forward pass for all running requests; the finished ones are returned and leave."""
        parts = [(r, list(r.pending)) for r in self.running]
        batch = self.cache.batch([(r.sequence, len(ids)) for r, ids in parts])
        tokens = np.array([i for _, ids in parts for i in ids], np.int32)
        logits = self.ops.numpy(forward(self.ops, self.config, self.weights, tokens, batch, self.tap))
        self.cache.advance(batch)
        for (request, ids), row in zip(parts, logits, strict=True):
            self.history[request.sequence] += ids
            request.read = min(request.read + len(ids), len(request.prompt))
            if request.read == len(request.prompt):
                self._sample(request, row)
        finished = [r for r in self.running if r.finish_reason]
        self.running = [r for r in self.running if not r.finish_reason]
        return finished

    def cancel(self, request: Request) -> None:
        """Stop working on a request; what it has read stays for the next one."""
        if request in self.running:
            self.running.remove(request)

    def _sample(self, request: Request, logits: np.ndarray) -> None:
        token, logprob = request.sampler.sample(logits[: request.sampler.vocab_size], self.history[request.sequence])
        if token in request.stop_ids:
            request.finish_reason = "stop"
            return
        request.tokens.append(token)
        request.logprobs.append(logprob)
        full = self.cache.lengths[request.sequence] >= self.cache.context
        if full or len(request.tokens) >= request.max_tokens:
            request.finish_reason = "length"

    def _check(self, request: Request) -> None:
        n, context, vocab = len(request.prompt), self.cache.context, self.config.vocab_size
        if n == 0:
            raise RequestError("the prompt has no tokens: give at least one")
        if n > context:
            raise ContextError(f"prompt has {n:,} tokens, context is {context:,}: shorten it or pass --context")
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens}, expected 1 or more")
        outside = next((i for i in request.prompt if not 0 <= i < vocab), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary of {vocab:,}")


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids the two have in common from the start."""
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)  # noqa: B905
    return min(len(a), len(b)) if n is None else n
