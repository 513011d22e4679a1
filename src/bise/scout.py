"""Scout: a second, smaller model that guesses what the first will say (speculative decoding, Leviathan et al. 2023).

It reads what the first model has accepted, says greedily what it would say next, and goes on from its own words while
that pays: while the chance that they stand is larger than what they cost, both measured as the text goes on. Its
certainty about a token is the best sign of that, so tokens are sorted by it. Where it does not pay, it reads nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from .cache import CHUNK, Cache
from .config import Config
from .model import forward
from .odds import Odds, worth
from .ops import Ops
from .pace import Pace
from .weights import Parameters

CERTAIN = (0.9, 0.6, 0.3, 0.0)  # kinds of tokens: the scout gave them at least this probability
EXPECTED = (0.9, 0.7, 0.4, 0.2)  # how often each is right, until the text has shown it
HOPE = 0.6  # how often a token is right, whatever its certainty


class Scout:
    """The model, and its own cache with as many sequences as the engine's."""

    def __init__(self, ops: Ops, config: Config, weights: Parameters, cache: Cache, share: float) -> None:
        """share: its step's cost against the first model's, until both have been timed: the ratio of their bytes."""
        self.ops, self.config, self.weights, self.cache, self._share = ops, config, weights, cache, share
        self.history: list[list[int]] = [[] for _ in cache.lengths]  # the ids whose keys each sequence holds
        self._agreed = [0] * len(cache.lengths)  # of these, how many are known to be the text's
        self._odds, self._overall = Odds(EXPECTED), Odds((HOPE,))
        self.pace, self._own = Pace(), Pace()  # of the first model's steps, which the engine times, and of its own

    def begin(self, sequence: int) -> None:
        """Another text will be spoken of."""
        self._agreed[sequence] = 0

    def worth(self, most: int, sequences: int) -> float:
        """The steps that asking for up to `most` tokens will save on average."""
        return worth([self._overall.rate(0)] * most, self._price(sequences))[1]

    def guess(self, sequence: int, tokens: Sequence[int], most: int, sequences: int) -> tuple[list[int], list[int]]:
        """Tokens that may follow `tokens`, and their kinds. None past the end of its context, and none while
        it has more than a chunk to catch up with: it reads one a step, so that nobody waits long."""
        if len(tokens) + most > self.cache.context:
            return [], []
        start = self._agree(sequence, tokens)
        unread = list(tokens[start : start + CHUNK])
        if start + CHUNK < len(tokens):
            self._read(sequence, unread)
            return [], []
        guesses: list[int] = []
        kinds: list[int] = []
        chance = 1.0
        while len(guesses) < most and chance * self._overall.rate(0) > self._price(sequences):
            token, kind = self._say(sequence, unread)
            chance *= self._odds.rate(kind)
            if chance <= self.pace.row * sequences:
                self._overall.judge([0], 0)  # a step for nothing
                break
            guesses.append(token)
            kinds.append(kind)
            unread = [token]
        return guesses, kinds

    def judge(self, kinds: Sequence[int], right: int) -> None:
        """Of guesses of these kinds, the first `right` were what the model said."""
        self._odds.judge(kinds, right)
        self._overall.judge([0] * len(kinds), right)

    def fade(self, tokens: int) -> None:
        self._odds.fade(tokens)
        self._overall.fade(tokens)

    def _price(self, sequences: int) -> float:
        """What one more guess costs, in steps of one sequence: saying it, and testing it."""
        own, step = self._own.step, self.pace.step
        return sequences * ((own / step if own and step else self._share) + self.pace.row)

    def _agree(self, sequence: int, tokens: Sequence[int]) -> int:
        """Forget what the text does not say, and its last token, whose logits are wanted; how much stays."""
        held, n = self.history[sequence], self._agreed[sequence]
        end = min(len(held), len(tokens) - 1)
        while n < end and held[n] == tokens[n]:
            n += 1
        n = min(n, end)
        if not self.cache.rewind(sequence, n):  # overwritten: it reads again
            n = 0
            self.cache.rewind(sequence, 0)
        del held[n:]
        self._agreed[sequence] = n
        return n

    def _say(self, sequence: int, ids: list[int]) -> tuple[int, int]:
        """Read, and say the likeliest token -> its id, and its kind."""
        started = time.perf_counter()
        logits = self._read(sequence, ids)
        token = int(logits.argmax())
        certainty = 1.0 / float(np.exp(logits - logits[token]).sum())
        if len(ids) == 1:
            self._own.add(1, time.perf_counter() - started)
        return token, next(kind for kind, least in enumerate(CERTAIN) if certainty >= least)

    def _read(self, sequence: int, ids: list[int]) -> np.ndarray:
        """At most a chunk -> the logits after its last token (vocab_size,)."""
        batch = self.cache.batch([(sequence, len(ids))])
        logits = self.ops.numpy(forward(self.ops, self.config, self.weights, np.array(ids, np.int32), batch))
        self.cache.advance(batch)
        self.history[sequence] += ids
        return np.asarray(logits[-1])
