"""What a model can do, asked the same way after every step.

feelings      of held-out situations, in how many it says the right one of six feelings, to the letter
instructions  perplexity of the answers to held-out instructions
polite        of its own answers to them, how many have a word that polite answers have and rude ones have not
rude          the other way round
margin        of held-out pairs of answers, by how many nats the polite one is likelier than the rude one: the mean
stories       perplexity of stories that it was never trained on: what it has forgotten shows here
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from data import Row, read

import bise
from bise.score import Perplexity

CHUNK = 256  # tokens of stories that are read at once
LONG, SHORT = 48, 8  # tokens that an answer may have: to an instruction, to a situation
OFTEN = 10  # a word is polite, or rude, that so many answers have, and so many times more than of the other kind
Ask = Callable[[str, int], str]  # (prompt, tokens at most) -> what the model says, the likeliest token every time
Scores = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """What is asked: the held-out rows in `work`, all of them or every `each`-th."""

    work: Path
    each: int = 1

    def rows(self, name: str) -> list[Row]:
        return read(self.work / f"{name}-test.jsonl")[:: self.each]

    @cached_property
    def prompts(self) -> list[tuple[str, int]]:
        """Everything that is asked, and how many tokens the answer may have."""
        return [(row["prompt"], SHORT) for row in self.rows("feelings")] + [
            (row["prompt"], LONG) for row in self.rows("pairs")
        ]

    @cached_property
    def marks(self) -> tuple[set[str], set[str]]:
        """(polite words, rude words), from the pairs that are learnt from."""
        rows = read(self.work / "pairs.jsonl")
        polite, rude = (Counter(word for row in rows for word in words(row[key])) for key in ("chosen", "rejected"))
        return _marks(polite, rude), _marks(rude, polite)

    def said(self, answers: Sequence[str]) -> Scores:
        """Of the answers to `prompts`, whoever gave them."""
        rows = self.rows("feelings")
        right = [said == row["completion"] for said, row in zip(answers, rows, strict=False)]
        spoken = [words(said) for said in answers[len(rows) :]]
        polite, rude = (mean(bool(said & marks) for said in spoken) for marks in self.marks)
        return {"feelings": mean(right), "polite": polite, "rude": rude}

    def likely(self, model: bise.Model) -> Scores:
        """What the model thinks of texts that others wrote; but for `margins`."""
        asked = Perplexity()
        for row in self.rows("instructions"):
            read_answer(asked, model, row["prompt"], row["completion"])
        return {"instructions": asked.perplexity.value, "stories": self.stories(model)}

    def margins(self, model: bise.Model) -> list[float]:
        """Of every held-out pair log p(polite) - log p(rude), of whole answers."""
        return [
            loss(model, row["prompt"], row["rejected"]) - loss(model, row["prompt"], row["chosen"])
            for row in self.rows("pairs")
        ]

    def stories(self, model: bise.Model) -> float:
        text = (self.work / "stories.txt").read_text(encoding="utf-8")
        ids, seen = np.array(model.tokenizer.encode(text)), Perplexity()
        for at in range(0, len(ids) - CHUNK, CHUNK * self.each):
            chunk = np.concatenate([[model.tokenizer.bos], ids[at : at + CHUNK]])
            seen.add(model.logits(chunk.tolist())[:-1], chunk[1:])
        return seen.perplexity.value


def asking(model: bise.Model) -> Ask:
    def ask(prompt: str, most: int) -> str:
        return model.chat([{"role": "user", "content": prompt}], max_tokens=most, temperature=0).text.strip()

    return ask


def loss(model: bise.Model, prompt: str, answer: str) -> float:
    """Minus the log-probability of the whole answer."""
    seen = Perplexity()
    return read_answer(seen, model, prompt, answer) * seen.loss.value


def read_answer(seen: Perplexity, model: bise.Model, prompt: str, answer: str) -> int:
    """The answer's tokens, and that it ends there -> how many."""
    asked = model.chat_format.encode([{"role": "user", "content": prompt}])
    ids = np.array([*asked, *model.tokenizer.encode(answer), model.tokenizer.eos])
    seen.add(model.logits(ids.tolist())[len(asked) - 1 : -1], ids[len(asked) :])
    return len(ids) - len(asked)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def _marks(mine: Counter[str], theirs: Counter[str]) -> set[str]:
    return {word for word, n in mine.items() if n >= OFTEN * max(1, theirs[word])}


def mean(found: Iterable[float]) -> float:
    return float(np.mean(list(found)))
