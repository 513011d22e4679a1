"""Guesses that cost nothing: what followed the last time the text said the same (prompt lookup, Saxena 2023).

The model reads the guesses together with the token that it would have read alone, and keeps as many as it would have
said itself: the text is exactly the text without them. A summary that quotes, or code that is edited, goes several
tokens a step; prose seldom repeats itself, so a run of wrong guesses silences the guesser for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3  # tokens that must agree before what followed them is guessed
MOST = 4  # guesses in a step
LONGEST_SILENCE = 64  # tokens


class Draft:
    """One sequence's guesser. `extend` tells it every token, `guess` asks it, `judge` tells what became of it."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a gram -> where its latest occurrence ended
        self._size, self._silent, self._silence = MOST, 0, 1
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self._tokens) >= GRAM:
                self._after[tuple(self._tokens[-GRAM:])] = len(self._tokens)
            self._tokens.append(token)
        self._silent = max(0, self._silent - len(tokens))

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow; [] where there is nothing to go by."""
        if self._silent:
            return []
        at = self._after.get(tuple(self._tokens[-GRAM:]))
        return [] if at is None else self._tokens[at : at + min(most, self._size)]

    def judge(self, guessed: int, right: int) -> None:
        """Of `guessed` guesses, the first `right` were what the model said."""
        if right == guessed:
            self._size, self._silence = min(MOST, self._size + 1), 1
        else:
            self._size = max(1, right + 1)
        if right == 0:
            self._silent = self._silence
            self._silence = min(LONGEST_SILENCE, 2 * self._silence)
