"""What was read, in numbers: for a person as a small table, for the run card as a dict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .store import Store


@dataclass
class Tally:
    """One file. rows: all that it has; skipped: of these, faulty ones; literal: rows that spell a control token."""

    path: Path
    weight: float
    held: bool
    nbytes: int = 0
    sha256: str = ""
    rows: int = 0
    skipped: int = 0
    duplicates: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    literal: Counter[str] = field(default_factory=Counter)
    literal_rows: int = 0
    sequences: int = 0
    tokens: int = 0
    learnt: int = 0
    longest: int = 0
    median: float = 0.0

    def measure(self, store: Store, at: int) -> None:
        """Fill in what the sequences of source number `at` come to."""
        mine = np.frombuffer(store.source, np.uint16) == at
        lengths = store.lengths()[mine]
        self.sequences, self.tokens = len(lengths), int(lengths.sum())
        self.learnt = int(np.frombuffer(store.targets, np.uint32)[mine].sum())
        if len(lengths):
            self.longest, self.median = int(lengths.max()), float(np.median(lengths))

    def card(self) -> dict[str, Any]:
        """All of it, as JSON knows it."""
        return {**vars(self), "path": str(self.path), "formats": dict(self.formats), "literal": dict(self.literal)}


@dataclass
class Report:
    """All files, and what was decided about their rows.

    train, held_out    examples (samples, pairs or verdicts) on each side; train counts each as often as its weight says
    tokens, learnt     of the examples to train on
    overlap            rows to train on that were left out because the held-out file has them too
    cut                rows shortened to max_length; tails: conversations whose unanswered end was dropped
    unclosed           conversations behind which eos was put, because the chat format ends an answer with nothing
    digest             SHA-256 of every token, of what is learnt and in which order: what a resumed run compares
    """

    kind: str
    files: list[Tally]
    train: int = 0
    held_out: int = 0
    tokens: int = 0
    learnt: int = 0
    longest: int = 0
    overlap: int = 0
    cut: int = 0
    tails: int = 0
    unclosed: int = 0
    digest: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """In all files."""
        return sum(tally.rows for tally in self.files)

    def card(self) -> dict[str, Any]:
        """For the run card, as JSON knows it."""
        return {**vars(self), "rows": self.rows, "files": [tally.card() for tally in self.files]}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads (">": on the right) and rows, one for each file; columns that would say nothing are left out."""
        columns: dict[str, list[str]] = {
            "file": [t.path.name for t in self.files],
            "format": [", ".join(t.formats) for t in self.files],
            ">weight": ["held out" if t.held else f"{t.weight:g}" for t in self.files],
            ">rows": [f"{t.rows:,}" for t in self.files],
            ">left out": [f"{t.skipped:,}" for t in self.files],
            ">tokens": [f"{t.tokens:,}" for t in self.files],
            ">learnt": [f"{t.learnt / t.tokens:.0%}" if t.tokens else "" for t in self.files],
            ">median": [f"{t.median:,.0f}" for t in self.files],
            ">longest": [f"{t.longest:,}" for t in self.files],
        }
        if set(columns[">weight"]) == {"1"}:
            del columns[">weight"]
        if set(columns[">left out"]) == {"0"}:
            del columns[">left out"]
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]

    def notes(self) -> list[str]:
        """A line for each thing that one should know and the table does not say."""
        unit = {"sft": "sequences", "pairs": "pairs", "verdicts": "verdicts"}[self.kind]
        lines = [f"{self.train:,} {unit} to train on, {self.held_out:,} held out; {self.learnt:,} tokens are learnt"]
        literal = sum((t.literal for t in self.files), Counter[str]())
        named = ", ".join(name for name, _ in literal.most_common(3))
        for count, what in (
            (sum(t.duplicates for t in self.files), "rows that say what another one says"),
            (self.overlap, "rows not trained on, because they are held out as well"),
            (self.cut, "rows shortened to the length allowed, between exchanges"),
            (self.tails, "conversations without their last message, which nobody answers"),
            (self.unclosed, "answers that the chat format does not end: eos was put there"),
            (sum(t.literal_rows for t in self.files), f"rows that spell control tokens, read as plain text ({named})"),
        ):
            if count:
                lines.append(f"{what}: {count:,}")
        return lines
