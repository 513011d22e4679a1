"""Requests become tokens: Engine.step() runs one flat batch, the prompts chunk by chunk, the rest token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .blocks import BLOCK, Blocks
from .cache import CHUNK, Cache
from .config import Config
from .draft import Draft
from .errors import ContextError, RequestError
from .model import Tap, forward
from .ops import Array, Ops
from .pace import Pace
from .sampler import Sampler, logprob_of, top_logprobs
from .scout import Scout
from .weights import Parameters

ROWS = 5  # tokens of one step that cost little more than one: the weights are read once for all of them
BESIDE = 16  # tokens of prompts that a step reads while others speak: it then takes at most twice as long (LOG.md)
MANY = 4  # so many times that where so many times as many read as speak

Likely = list[tuple[int, float]]  # ids and their logprobs, the likeliest first


@dataclass(eq=False)
class Request:
    """One sequence to be continued. The engine fills what stands below the line."""

    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int  # 0: the prompt is only read, for `score` or `embed`
    stop_ids: frozenset[int] = frozenset()
    sequence: int = 0  # which of the cache's sequences it lives in
    salt: str = ""  # what others have read is used only under the same one
    alternatives: int = 0  # so many of the likeliest tokens are noted at every place
    score: int | None = None  # the prompt's own tokens are rated, and so many alternatives noted
    embed: bool = False  # `hidden` is wanted
    # ---
    tokens: list[int] = field(default_factory=list)  # what was sampled, without the stop id
    logprobs: list[float] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)  # of each token, its alternatives
    scores: list[tuple[float, Likely]] = field(default_factory=list)  # of the prompt from its second token on
    hidden: np.ndarray | None = None  # (dim,) float64: the sum of the prompt's last hidden states, normed
    text: list[int] = field(default_factory=list)  # the prompt and what was sampled
    read: int = 0  # tokens of the text that are in the cache
    reused: int | None = None  # of the prompt, how many were there before; None: not begun
    finish_reason: str | None = None  # "stop" | "length" | "error"
    error: Exception | None = None
    draft: Draft | None = None  # None: no guessing

    def __post_init__(self) -> None:
        self.text = list(self.prompt)

    @property
    def unread(self) -> int:
        """1 for one that speaks: the token that was sampled last."""
        return len(self.text) - self.read

    @property
    def speaks(self) -> bool:
        return bool(self.tokens) and self.unread == 1

    @property
    def every_row(self) -> bool:
        """Whether the model's output is wanted after each token of the prompt."""
        return self.score is not None or self.embed

    @property
    def known(self) -> list[int]:
        """What of the text need not be read where it is held already: not its last token, whose logits are wanted, and
        nothing of a prompt all of whose rows are wanted."""
        return [] if self.every_row else self.text[:-1]


@dataclass
class Part:
    """What one step reads for a request: tokens that are certain, and guesses at what follows."""

    request: Request
    ids: list[int]
    guesses: list[int]

    @property
    def wanted(self) -> int:
        """The rows at its end whose logits are wanted."""
        return len(self.ids) if self.request.every_row and not self.request.tokens else 1 + len(self.guesses)


class Engine:
    """The loop around the forward pass. A request's tokens do not depend on the others in the batch, nor on `lookup`
    and `scout`: whether steps read guesses ahead, and whose (draft.py), nor on `blocks`: what was read before. That
    holds to the bit on the cpu backend."""

    def __init__(
        self, ops: Ops, config: Config, weights: Parameters, cache: Cache, tap: Tap | None = None,
        lookup: bool = False, scout: Scout | None = None, blocks: Blocks | None = None,
    ) -> None:  # fmt: skip
        self.ops, self.config, self.weights, self.cache = ops, config, weights, cache
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
        sizes = [(p.request.sequence, len(p.ids) + len(p.guesses)) for p in parts]
        self._keep_what_goes(sizes)
        batch = self.cache.batch(sizes)
        tokens = np.array([i for p in parts for i in p.ids + p.guesses], np.int32)
        ends = (batch.spans[:, 1] + batch.spans[:, 2]).tolist()
        batch.wanted = np.concatenate([np.arange(end - p.wanted, end) for end, p in zip(ends, parts, strict=True)])
        seen: list[Array] = []
        tap = partial(self._look, seen) if any(p.request.embed for p in parts) else self.tap
        started = time.perf_counter()
        logits = self.ops.numpy(forward(self.ops, self.config, self.weights, tokens, batch, tap))
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
