"""What is wrong with rows: found before training, named by file and line, counted by reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...disk import replacing
from ...errors import FormatError

SHOWN = 20  # faults that are printed with their lines


class BadRow(FormatError):
    """A row that nothing can be learnt from. reason: a few words, under which it is counted."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(" ".join((said or reason).split())[:300])
        self.reason = reason


class Fault(NamedTuple):
    """A row that is left out: its file, its line (from 1), a few words, and a sentence."""

    source: str
    line: int
    reason: str
    said: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.said}"


class Faults:
    """All faults of a data set, in the order of the files."""

    def __init__(self) -> None:
        self._all: list[Fault] = []

    def add(self, source: str, line: int, row: BadRow) -> None:
        """`row` is what was raised about this line."""
        self._all.append(Fault(source, line, row.reason, str(row)))

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._all)

    @property
    def first(self) -> list[Fault]:
        """The first 20."""
        return self._all[:SHOWN]

    @property
    def counts(self) -> dict[str, int]:
        """How many for each reason, the commonest first."""
        return dict(Counter(fault.reason for fault in self._all).most_common())

    def write(self, path: Path) -> None:
        """Every line that was left out, as JSON lines: {"source", "line", "reason", "said"}."""
        with replacing(path) as file:
            for fault in self._all:
                file.write(json.dumps(fault._asdict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


class BadData(FormatError):
    """Rows that cannot be learnt from, and nobody has said that they may be left out. faults: all of them."""

    def __init__(self, faults: Faults, rows: int) -> None:
        self.faults = faults
        counts = ", ".join(f"{count:,} {reason}" for reason, count in list(faults.counts.items())[:4])
        what = f"{len(faults):,} of {rows:,} rows cannot be learnt from ({counts}); the first is {faults.first[0]}"
        remedy = "none is left" if len(faults) == rows else "mend them, or leave them out with --skip-bad"
        super().__init__(f"{what}: {remedy}")
