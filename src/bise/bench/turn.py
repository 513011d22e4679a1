"""One turn: one engine, in a process of its own, times a list of runs. Both engines show the same face to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

from ..errors import RequestError

WARM_UP = 16  # tokens that are read before anything is timed: pages and threads wake up
LEAST, MOST = 0.5, 30.0  # seconds: shorter runs are done again and their median counts, longer ones are cut off
Report = Callable[[str], None]


def under(report: Report, heading: str) -> Report:
    """The same, with a heading before the words."""
    return lambda words: report(f"{heading}: {words}")


@dataclass(frozen=True)
class Run:
    """What is timed: `tokens` tokens are read ("prefill"), or written by each of `sequences` at once ("decode"), after
    `depth` tokens of context. once: in the first round only, because it may take minutes."""

    what: Literal["prefill", "decode"]
    tokens: int
    depth: int = 0
    sequences: int = 1
    once: bool = False

    def __post_init__(self) -> None:
        if self.sequences > 1 and (self.depth or self.what == "prefill"):
            raise RequestError(f"{self.sequences} sequences at once are timed in decode, from an empty context")

    @property
    def name(self) -> str:
        many = f", {self.sequences} sequences" if self.sequences > 1 else ""
        return f"{self.what} {self.tokens}{f' after {self.depth:,}' if self.depth else ''}{many}"

    @property
    def room(self) -> int:
        """Tokens of context that it takes, with those that wake the engine up."""
        return self.depth + max(self.tokens, WARM_UP) + 2


@dataclass(frozen=True)
class Turn:
    """engine is a key of `rounds.ENGINES`; isa, window and kv are what `bise.load` calls so, for bise alone."""

    engine: str
    file: str
    runs: tuple[Run, ...]
    threads: int
    isa: str = ""
    window: int | str | None = None
    kv: str = "f16"

    @staticmethod
    def of(fields: dict[str, Any]) -> Turn:
        """From what `dataclasses.asdict` made of one."""
        return Turn(**{**fields, "runs": tuple(Run(**run) for run in fields["runs"])})


class Player(Protocol):
    """An engine with a model loaded."""

    def room(self, sequences: int, context: int) -> None:
        """Forget everything; make place for so many sequences of `context` tokens each."""

    def fill(self, depth: int) -> None:
        """Every sequence stands at `depth`: what comes next sees so many tokens. Only the first may stand above 0.
        What these tokens were does not matter to the time, so few are read and the rest are copies."""

    def prefill(self, tokens: int) -> None:
        """The first sequence reads them; the last one's logits are there when this returns."""

    def decode(self, steps: int) -> None:
        """Each sequence writes one token a step; the logits of all are there after each."""

    def about(self) -> dict[str, Any]:
        """Version and instruction set."""


def perform(player: Player, runs: Sequence[Run], report: Report = lambda _: None) -> list[dict[str, Any]]:
    """Each run as a dict with "speed" in tokens/s, all sequences together, and "timed", tokens of it that were timed.

    Runs of one number of sequences that follow one another share a cache; those from an empty context have a small one.
    """
    found = []
    for (sequences, _), group in groupby(runs, lambda run: (run.sequences, run.depth > 0)):
        shared = list(group)
        player.room(sequences, max(run.room for run in shared))
        player.prefill(WARM_UP)
        for run in shared:
            report(run.name)
            found.append(asdict(run) | time_one(player, run))
    return found


def time_one(player: Player, run: Run) -> dict[str, Any]:
    """Speed of one run, warmed up by a step at its depth. Decoding at a depth gets as many tokens as MOST seconds
    allow, at the pace of the first: attention to 32k tokens can take seconds a token. (A prefill is not cut: engines
    read few tokens at once in another, slower way.)"""
    player.fill(run.depth)
    player.decode(1)
    tokens = run.tokens
    if run.depth and run.what == "decode":
        tokens = max(1, min(tokens, int(MOST / _seconds(player, run, 1))))
    spent: list[float] = []
    while sum(spent) < LEAST:
        spent.append(_seconds(player, run, tokens))
    return {"timed": tokens, "speed": tokens * run.sequences / statistics.median(spent)}


def _seconds(player: Player, run: Run, tokens: int) -> float:
    """So many tokens of a run, once."""
    player.fill(run.depth)
    start = time.perf_counter()
    (player.prefill if run.what == "prefill" else player.decode)(tokens)
    return time.perf_counter() - start


def ids(start: int, count: int) -> Iterable[int]:
    """Tokens to feed: arbitrary, the same for every engine, all below 1,010."""
    return (10 + 7 * i % 1000 for i in range(start, start + count))
