"""Guesses about what comes next, read together with the token that would have been read alone.

The model keeps as many as it would have said itself: the text is exactly the text without them. A guess costs little
where what followed the last time the text said the same is taken (prompt lookup, Saxena 2023): a summary that quotes,
or code that is edited, goes several tokens a step. A second, smaller model may guess where the text is new (scout.py;
Leviathan et al. 2023). Either guesses as far as it pays, by how often it has lately been right (odds.py).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from .odds import Odds, worth
from .pace import Pace
from .scout import Scout

GRAMS = (1, 2, 3, 5, 8)  # tokens that agree with an earlier place: the longest of these that is found is believed
EXPECTED = (0.15, 0.3, 0.5, 0.7, 0.9)  # how often what followed there follows again (bench/lookup.py --count)


class Draft:
    """One sequence's guesser. `extend` tells it every token, `guess` asks it, `judge` tells what became of it."""

    def __init__(
        self,
        tokens: Sequence[int] = (),
        pace: Pace | None = None,
        lookup: bool = True,
        scout: Scout | None = None,
        sequence: int = 0,
    ) -> None:
        """pace: of the steps that test the guesses. lookup: guess from the text itself. scout: with this model too, in
        `sequence` of its cache."""
        self.tokens: list[int] = []
        self._pace = pace or Pace()
        self._lookup, self._scout, self._sequence = lookup, scout, sequence
        self._after: dict[int, int] = {}  # hash of a gram -> where its latest occurrence ended
        self._ends: list[int] = []  # hashes of the grams that the text ends with
        self._odds = Odds(EXPECTED)
        self._kinds: list[int] = []  # of the guesses made last
        self._scouted = False  # whether they are the scout's
        self.extend(tokens)
        if scout:
            scout.begin(sequence)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for gram in self._ends:
                self._after[gram] = len(self.tokens)
            self.tokens.append(token)
            if self._lookup:
                last = self.tokens[-GRAMS[-1] :]
                self._ends = [hash(tuple(last[-n:])) for n in GRAMS if n <= len(last)]
        self._odds.fade(len(tokens))
        if self._scout:
            self._scout.fade(len(tokens))

    def follow(self, tokens: Sequence[int]) -> bool:
        """Go on to a text that begins with all that is known; False where it does not."""
        known = len(self.tokens)
        if list(tokens[:known]) != self.tokens:
            return False
        self.extend(tokens[known:])
        return True

    def guess(self, most: int, sequences: int = 1) -> list[int]:
        """Up to `most` tokens that may follow; [] where nothing is worth it. `sequences` share the steps: a step that
        is saved for one of them saves that part of its cost."""
        tokens, kinds, saved = self._look(most, self._pace.row * sequences)
        self._scouted = False
        if self._scout and self._scout.worth(most, sequences) > saved:
            scouted = self._scout.guess(self._sequence, self.tokens, most, sequences)
            self._scouted = bool(scouted[0])
            if self._scouted:
                tokens, kinds = scouted
        self._kinds = kinds
        return tokens

    def judge(self, right: int) -> None:
        """Of the guesses made last, the first `right` were what the model said."""
        if self._scout and self._scouted:
            self._scout.judge(self._kinds, right)
        else:
            self._odds.judge(self._kinds, right)

    def _look(self, most: int, price: float) -> tuple[list[int], list[int], float]:
        """What followed the longest match -> tokens, their kinds, and the steps that they save on average."""
        matched = next((kind for kind in reversed(range(len(self._ends))) if self._ends[kind] in self._after), None)
        if matched is None:
            return [], [], 0.0
        at = self._after[self._ends[matched]]
        kinds = [_kind(GRAMS[matched] + i) for i in range(most)]  # each guess that comes true makes the match longer
        count, saved = worth(map(self._odds.rate, kinds), price)
        period = len(self.tokens) - at
        return [self.tokens[at + i % period] for i in range(count)], kinds[:count], saved


def _kind(matched: int) -> int:
    return bisect.bisect_right(GRAMS, matched) - 1
