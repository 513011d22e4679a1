"""Requests become tokens: Engine.step() runs one flat batch, the prompts chunk by chunk, the rest token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from .blocks import BLOCK, Blocks
from .cache import CHUNK, Cache
from .config import Config
from .draft import Draft
from .errors import ContextError, RequestError
from .lora import Adapters
from .lora.placed import grouped
from .model import Tap, forward
from .ops import Array, Ops
from .pace import Pace
from .request import Part, Request
from .sampler import logprob_of, top_logprobs
from .scout import Scout
from .weights import Parameters

ROWS = 5  # tokens of one step that cost little more than one: the weights are read once for all of them
BESIDE = 16  # tokens of prompts that a step reads while others speak: it then takes at most twice as long (LOG.md)
MANY = 4  # so many times that where so many times as many read as speak


class Engine:
    """The loop around the forward pass. A request's tokens do not depend on the others in the batch and their adapters,
    nor on `lookup` and `scout`: whether steps read guesses ahead, and whose (draft.py), nor on `blocks`: what was read
    before. That holds to the bit on the cpu backend."""

    def __init__(
        self, ops: Ops, config: Config, weights: Parameters, cache: Cache, tap: Tap | None = None,
        lookup: bool = False, scout: Scout | None = None, blocks: Blocks | None = None,
        adapters: Adapters | None = None,
    ) -> None:  # fmt: skip
        """adapters: of the same weights on the same backend, for requests that name one."""
        self.ops, self.config, self.weights, self.cache, self.adapters = ops, config, weights, cache, adapters
        self.tap, self.lookup, self.scout, self.blocks = tap, lookup, scout, blocks
        self.pace = scout.pace if scout else Pace()
        self._drafts: list[Draft | None] = [None for _ in cache.lengths]
        self.history: list[list[int]] = [[] for _ in cache.lengths]  # the ids whose keys each sequence holds
        self.salts = ["" for _ in cache.lengths]  # under which each was read
        self._kept = [0 for _ in cache.lengths]  # up to where `blocks` has been offered what each holds
        self.running: list[Request] = []

    def submit(self, request: Request) -> None:
        """Take a request, or go on with one that was paused; what its sequence already holds of the text, or `blocks`,
        is not read again."""
        self.check(request)
        s, wanted = request.sequence, request.known
        here = self.shared(s, wanted, request.salt)
        if self.blocks:
            if here < len(self.history[s]):
                self.keep(s)
            if self.blocks.known(request.salt, wanted) > here:
                here = self.blocks.fill(request.salt, wanted, s)
                self.history[s] = list(wanted[:here])
        self.cache.rewind(s, here)
        del self.history[s][here:]
        self.salts[s], self._kept[s] = request.salt, min(self._kept[s], here)
        request.read = here
        if request.reused is None:
            request.reused = here
        request.draft = self._draft(request)
        self.running.append(request)

    def step(self) -> list[Request]:
        """One forward pass for all running requests; the finished ones are returned and leave. An error ends the
        request that it comes from: `finish_reason` is "error"."""
        parts = self._parts()
        if not self._try(parts) and len(parts) > 1:  # whose fault was it? What was written is written again
            for part in parts:
                part.request.error, part.request.finish_reason = None, None
                self._try([part])
        finished = [r for r in self.running if r.finish_reason]
        self.running = [r for r in self.running if not r.finish_reason]
        return finished

    def cancel(self, request: Request) -> None:
        """Stop working on a request, or pause it; what it has read stays for the next one."""
        if request in self.running:
            self.running.remove(request)

    def shared(self, sequence: int, ids: Sequence[int], salt: str) -> int:
        """How many of `ids` a sequence holds and could go on from."""
        if salt != self.salts[sequence]:
            return 0
        n = common(self.history[sequence], ids)
        return n if self.cache.can_rewind(sequence, n) else 0

    def keep(self, sequence: int, end: int | None = None) -> None:
        """Offer `blocks` what a sequence holds, up to position `end`: it may be overwritten."""
        if self.blocks:
            history, start = self.history[sequence], self._kept[sequence]
            end = min(len(history), end or len(history))
            self.blocks.keep(self.salts[sequence], history, sequence, start, end)
            self._kept[sequence] = max(start, end // BLOCK * BLOCK)

    def empty(self, sequence: int) -> None:
        """Forget what a sequence holds, once `blocks` has it."""
        self.keep(sequence)
        self.cache.rewind(sequence, 0)
        self.history[sequence], self._kept[sequence] = [], 0

    def check(self, request: Request) -> None:
        """RequestError or ContextError where a request cannot be served."""
        n, context, vocab = len(request.prompt), self.cache.context, self.config.vocab_size
        if n == 0:
            raise RequestError("the prompt has no tokens: give at least one")
        if n > context:
            raise ContextError(f"prompt has {n:,} tokens, context is {context:,}: shorten it or pass --context")
        least = 0 if request.every_row else 1
        if request.max_tokens < least:
            raise RequestError(f"max_tokens is {request.max_tokens}, expected {least} or more")
        if request.adapter is not None and self.adapters is None:
            raise RequestError(f"adapter {request.adapter.name!r}: this engine has no adapters")
        outside = next((i for i in request.prompt if not 0 <= i < vocab), None)
        if outside is not None:
            raise RequestError(f"token id {outside} is outside the vocabulary of {vocab:,}")

    def _parts(self) -> list[Part]:
        """Parts of the prompts that are not read yet, the last token and guesses of the others."""
        reading = [r for r in self.running if not r.speaks]
        room = self._room(len(self.running) - len(reading), [r.unread for r in reading])
        chunks = iter(share(room, [r.unread for r in reading]))
        parts = []
        for request in self.running:
            if request.speaks:
                parts.append(Part(request, request.tokens[-1:], self._guesses(request)))
            elif chunk := next(chunks):
                parts.append(Part(request, request.text[request.read : request.read + chunk], []))
        return parts

    @staticmethod
    def _room(speaking: int, unread: Sequence[int]) -> int:
        """How many tokens of prompts a step reads: few while somebody speaks, so that nobody has to wait for a long
        prompt, and more where many wait for few; else as many as let the shortest prompt be spoken to at once."""
        if speaking:
            return BESIDE * min(MANY, max(1, len(unread) // speaking))
        return CHUNK if len(unread) == 1 else min(CHUNK, max(BESIDE * MANY, min(unread) * 4 // 3))

    def _try(self, parts: Sequence[Part]) -> bool:
        try:
            self._run(parts)
        except Exception as error:
            for part in parts:
                part.request.error, part.request.finish_reason = error, "error"
                self.cache.lengths[part.request.sequence] = len(self.history[part.request.sequence])
            return False
        return True

    def _run(self, parts: Sequence[Part]) -> None:
        parts = sorted(parts, key=lambda p: p.request.adapter.id if p.request.adapter else "")  # its rows lie together
        sizes = [(p.request.sequence, p.size) for p in parts]
        self._keep_what_goes(sizes)
        batch = self.cache.batch(sizes)
        tokens = np.array([i for p in parts for i in p.ids + p.guesses], np.int32)
        ends = (batch.spans[:, 1] + batch.spans[:, 2]).tolist()
        batch.wanted = np.concatenate([np.arange(end - p.wanted, end) for end, p in zip(ends, parts, strict=True)])
        seen: list[Array] = []
        tap = partial(self._look, seen) if any(p.request.embed for p in parts) else self.tap
        ops, weights = self._spoken(parts)
        started = time.perf_counter()
        logits = self.ops.numpy(forward(ops, self.config, weights, tokens, batch, tap))
        if all(len(p.ids) == 1 for p in parts):
            self.pace.add(len(tokens), time.perf_counter() - started)
        self.cache.advance(batch)
        row = 0
        for part in parts:
            rows = slice(row, row + part.wanted)
            row = rows.stop
            if part.request.embed:
                self._add_hidden(part.request, seen[0][rows])
            self._take(part, logits[rows])

    def _spoken(self, parts: Sequence[Part]) -> tuple[Ops, Parameters]:
        """The verbs and weights of a step: the base's own, or with adapters beside them."""
        placed = [p.request.adapter for p in parts]
        if self.adapters is None or not any(placed):
            return self.ops, self.weights
        sizes, wanted = [p.size for p in parts], [p.wanted for p in parts]
        rows, last = (grouped(zip(placed, counts, strict=True)) for counts in (sizes, wanted))
        return self.adapters.beside(rows, sum(sizes), last, sum(wanted))

    def _keep_what_goes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Offer `blocks` what the next step's tokens will overwrite, a chunk at a time."""
        for sequence, n in sizes:
            goes = self.cache.lengths[sequence] + n - self.cache.size  # everything before this position
            if goes > self._kept[sequence]:
                self.keep(sequence, goes + CHUNK)

    def _look(self, seen: list[Array], layer: int, x: Array) -> Array:
        """A tap that notes the last layer's output, after the engine's own tap."""
        x = self.tap(layer, x) if self.tap else x
        if layer == self.config.n_layers - 1:
            seen.append(x)
        return x

    def _add_hidden(self, request: Request, x: Array) -> None:
        normed = self.ops.numpy(self.ops.rms_norm(x, self.weights.output_norm, self.config.norm_eps))
        total = normed.astype(np.float64).sum(0)
        request.hidden = total if request.hidden is None else request.hidden + total

    def _draft(self, request: Request) -> Draft | None:
        """The guesser of the request's sequence; it knows the text so far where that is the prompt's beginning."""
        if not self.lookup and self.scout is None:
            return None
        draft = self._drafts[request.sequence]
        if draft is None or not draft.follow(request.text):
            draft = Draft(request.text, self.pace, self.lookup, self.scout, request.sequence)
            self._drafts[request.sequence] = draft
        return draft

    def _guesses(self, request: Request) -> list[int]:
        """What may follow the token that the request is about to read, where reading it ahead is nearly free."""
        if request.draft is None:
            return []
        room = self.cache.context - len(self.history[request.sequence]) - 1
        most = min(ROWS // len(self.running) - 1, request.max_tokens - len(request.tokens) - 1, room)
        return request.draft.guess(most, len(self.running)) if most > 0 else []

    def _take(self, part: Part, rows: np.ndarray) -> None:
        """The step has read a part; rows are the logits after its last ids, one for each wanted. A guess stands as long
        as it is what the model says; the rest is forgotten. An error here is this request's alone."""
        request, history = part.request, self.history[part.request.sequence]
        history += part.ids
        request.read += len(part.ids)
        right = 0
        try:
            if request.score is not None and not request.tokens:
                self._rate(request, len(part.ids), rows)
            if request.unread == 0 and request.max_tokens == 0:
                request.finish_reason = "length"
            elif request.unread == 0:
                rows = rows[-1 - len(part.guesses) :]
                while self._sample(request, rows[right]):
                    if right == len(part.guesses) or request.tokens[-1] != part.guesses[right]:
                        break
                    history.append(part.guesses[right])
                    request.read += 1
                    right += 1
        except Exception as error:
            request.error, request.finish_reason = error, "error"
        if part.guesses and request.draft:
            request.draft.judge(right)
            self.cache.rewind(request.sequence, len(history))

    def _rate(self, request: Request, n: int, rows: np.ndarray) -> None:
        """How likely the prompt's tokens are that follow the last n that were read."""
        follow = request.prompt[request.read - n + 1 : request.read + 1]
        for token, row in zip(follow, rows):  # noqa: B905  # the last token of the prompt is followed by none
            row = row[: request.sampler.vocab_size]
            request.scores.append((logprob_of(row, token), top_logprobs(row, request.score or 0)))

    def _sample(self, request: Request, logits: np.ndarray) -> bool:
        """Add one token, or end the request; True if it goes on."""
        history = self.history[request.sequence]
        logits = logits[: request.sampler.vocab_size]
        token, logprob = request.sampler.sample(logits, history)
        if token in request.stop_ids:
            request.finish_reason = "stop"
            return False
        request.tokens.append(token)
        request.text.append(token)
        request.logprobs.append(logprob)
        if request.alternatives:
            request.likely.append(top_logprobs(logits, request.alternatives))
        if request.draft:
            request.draft.extend([token])
        if request.sampler.ended:
            request.finish_reason = "stop"
        elif len(history) >= self.cache.context or len(request.tokens) >= request.max_tokens:
            request.finish_reason = "length"
        return request.finish_reason is None


def share(room: int, wishes: Sequence[int]) -> list[int]:
    """Room for so many tokens, dealt out to prompts in the order of their arrival: a quarter for the first, so that a
    long one is never forgotten, the rest to the shortest, so that most are read soon."""
    given = [min(wish, room // 4) if i == 0 else 0 for i, wish in enumerate(wishes)]
    room -= sum(given)
    for i in sorted(range(len(wishes)), key=wishes.__getitem__):
        more = min(room, wishes[i] - given[i], CHUNK - given[i])
        given[i] += more
        room -= more
    return given


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids the two have in common from the start."""
    least, most = 0, min(len(a), len(b))
    if list(a[:most]) == list(b[:most]):
        return most
    while most - least > 1:  # a[:least] agrees, a[:most] does not
        middle = (least + most) // 2
        if list(a[least:middle]) == list(b[least:middle]):
            least = middle
        else:
            most = middle
    return least
