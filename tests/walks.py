"""Two vocabularies, and what can be said in them under a grammar."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bise.api import BUILT_IN
from bise.grammar import Grammar, Match
from bise.tokenizer import Tokenizer
from bise.weights import Weights


@cache
def mistral() -> Tokenizer:
    """Mistral 7B v0.3's vocabulary: 32,768 tokens."""
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    return Tokenizer.from_file(data / "mistral_instruct_tokenizer_240323.model.v3")


@cache
def puff() -> Tokenizer:
    found = Tokenizer.of(Weights.open(BUILT_IN))
    assert found
    return found


@cache
def ready(tokenizer: Tokenizer) -> Grammar:
    return Grammar(tokenizer)


def fits(text: str, said: str, tokenizer: Tokenizer | None = None, start: bool = True) -> bool:
    """Whether the grammar lets the text through, token by token as the vocabulary cuts it, and lets it end there."""
    tokenizer = tokenizer or mistral()
    match = ready(tokenizer).match(text, start)
    for i in tokenizer.encode(said):
        if not match.allowed()[i]:
            return False
        match.accept(i)
    return bool(match.allowed()[tokenizer.eos])


class Walker:
    """Says anything that a grammar allows: tokens drawn uniformly, with a liking for those that close something."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        pieces = [tokenizer.piece(i).strip() for i in range(tokenizer.vocab_size)]
        self.closing = np.array([p in (b'"', b"}", b"]", b'"}', b'"]') for p in pieces])

    def ids(self, match: Match, seed: int, most: int = 300) -> list[int] | None:
        rng, ids = np.random.default_rng(seed), []
        for n in range(most):
            allowed = match.allowed()
            if allowed[self.tokenizer.eos] and (rng.random() < 0.3 or allowed.sum() == 1):
                return ids
            allowed = allowed & (np.arange(len(allowed)) != self.tokenizer.eos)
            closing = allowed & self.closing
            if closing.any() and rng.random() < min(0.9, 0.3 + n / 50):
                allowed = closing
            ids.append(int(rng.choice(np.flatnonzero(allowed))))
            match.accept(ids[-1])
        return None

    def text(self, match: Match, seed: int) -> str | None:
        ids = self.ids(match, seed)
        return None if ids is None else self.tokenizer.decode(ids)
