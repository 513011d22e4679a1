"""Requests become tokens: Engine.step() runs one flat batch, the prompts chunk by chunk, the rest token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .cache import CHUNK, Cache
from .config import Config
from .draft import Draft
from .errors import ContextError, RequestError
from .model import Tap, forward
from .ops import Ops
from .pace import Pace
from .sampler import Sampler
from .scout import Scout
from .weights import Parameters

ROWS = 5  # tokens of one step that cost little more than one: the weights are read once for all of them


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
    draft: Draft | None = None  # None: no guessing

    @property
    def pending(self) -> Sequence[int]:
        """What the next step reads for this request: a chunk of the prompt, or the token sampled last."""
        if self.read < len(self.prompt):
            return self.prompt[self.read : self.read + CHUNK]
        return self.tokens[-1:]


class Engine:
    """The loop around the forward pass. A request's tokens do not depend on the others in the batch, nor on `lookup`
    and `scout`: whether steps read guesses ahead, and whose (draft.py). That holds to the bit on the cpu backend."""

    def __init__(
        self, ops: Ops, config: Config, weights: Parameters, cache: Cache, tap: Tap | None = None,
        lookup: bool = False, scout: Scout | None = None,
    ) -> None:  # fmt: skip
        self.ops, self.config, self.weights, self.cache = ops, config, weights, cache
        self.tap, self.lookup, self.scout = tap, lookup, scout
        self.pace = scout.pace if scout else Pace()
        self._drafts: list[Draft | None] = [None for _ in cache.lengths]
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
        request.draft = self._draft(request)
        self.running.append(request)

    def step(self) -> list[Request]:
        """One forward pass for all running requests; the finished ones are returned and leave."""
        parts = [(r, list(r.pending), self._guesses(r)) for r in self.running]
        batch = self.cache.batch([(r.sequence, len(ids) + len(guesses)) for r, ids, guesses in parts])
        tokens = np.array([i for _, ids, guesses in parts for i in ids + guesses], np.int32)
        ends = (batch.spans[:, 1] + batch.spans[:, 2]).tolist()
        batch.wanted = np.concatenate(
            [np.arange(end - 1 - len(g), end) for end, (_, _, g) in zip(ends, parts, strict=True)]
        )
        started = time.perf_counter()
        logits = iter(self.ops.numpy(forward(self.ops, self.config, self.weights, tokens, batch, self.tap)))
        if all(len(ids) == 1 for _, ids, _ in parts):
            self.pace.add(len(tokens), time.perf_counter() - started)
        self.cache.advance(batch)
        for request, ids, guesses in parts:
            self._take(request, ids, guesses, [next(logits) for _ in (0, *guesses)])
        finished = [r for r in self.running if r.finish_reason]
        self.running = [r for r in self.running if not r.finish_reason]
        return finished

    def cancel(self, request: Request) -> None:
        """Stop working on a request; what it has read stays for the next one."""
        if request in self.running:
            self.running.remove(request)

    def _draft(self, request: Request) -> Draft | None:
        """The guesser of the request's sequence; it knows the text so far where that is the prompt's beginning."""
        if not self.lookup and self.scout is None:
            return None
        draft = self._drafts[request.sequence]
        if draft is None or not draft.follow(request.prompt):
            draft = Draft(request.prompt, self.pace, self.lookup, self.scout, request.sequence)
            self._drafts[request.sequence] = draft
        return draft

    def _guesses(self, request: Request) -> list[int]:
        """What may follow the token that the request is about to read, where reading it ahead is nearly free."""
        if request.draft is None or request.read < len(request.prompt):
            return []
        room = self.cache.context - len(self.history[request.sequence]) - 1
        most = min(ROWS // len(self.running) - 1, request.max_tokens - len(request.tokens) - 1, room)
        return request.draft.guess(most, len(self.running)) if most > 0 else []

    def _take(self, request: Request, ids: list[int], guesses: list[int], rows: list[np.ndarray]) -> None:
        """The step has read `ids` and `guesses`; rows are the logits after the last id and after each guess. A guess
        stands as long as it is what the model says; the rest is forgotten."""
        history = self.history[request.sequence]
        history += ids
        request.read = min(request.read + len(ids), len(request.prompt))
        if request.read < len(request.prompt):
            return
        right = 0
        while self._sample(request, rows[right]) and right < len(guesses) and request.tokens[-1] == guesses[right]:
            history.append(guesses[right])
            right += 1
        if guesses and request.draft:
            request.draft.judge(right)
            self.cache.rewind(request.sequence, len(history))

    def _sample(self, request: Request, logits: np.ndarray) -> bool:
        """Add one token, or end the request; True if it goes on."""
        history = self.history[request.sequence]
        token, logprob = request.sampler.sample(logits[: request.sampler.vocab_size], history)
        if token in request.stop_ids:
            request.finish_reason = "stop"
            return False
        request.tokens.append(token)
        request.logprobs.append(logprob)
        if request.draft:
            request.draft.extend([token])
        if len(history) >= self.cache.context or len(request.tokens) >= request.max_tokens:
            request.finish_reason = "length"
        return request.finish_reason is None

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
