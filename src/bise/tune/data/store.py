"""All sequences of a data set in one piece of memory: 5 bytes a token, and 33 a sequence."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import numpy as np

from ..sample import Example, Pair, Sample, Verdict
from .ids import Encoded

E = TypeVar("E", bound=Example)


class Store:
    """Grows while rows are read; `sample(i)` is a view, no copy. Columns have a value for each sequence."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = list(sources)
        self._ids, self._learnt, self._ends = array("i"), bytearray(), array("q", [0])
        self.source, self.line, self.targets, self.key = array("H"), array("I"), array("I"), array("Q")
        self.good = bytearray()

    def add(self, one: Encoded, source: int, line: int, key: int, good: bool = True) -> None:
        """key: what rows have in common if and only if they say the same (64 bits)."""
        begin = len(self._learnt)
        self._ids.extend(one.ids)
        self._learnt.extend(bytes(len(one.ids)))
        for first, end in one.spans:
            self._learnt[begin + first : begin + end] = b"\1" * (end - first)
        self.targets.append(sum(end - first for first, end in one.spans))
        self._ends.append(len(self._learnt))
        self.source.append(source)
        self.line.append(line)
        self.key.append(key)
        self.good.append(good)

    def __len__(self) -> int:
        return len(self.line)

    def sample(self, i: int) -> Sample:
        """Sequence i."""
        begin, end = self._ends[i], self._ends[i + 1]
        ids = np.frombuffer(self._ids, np.int32)[begin:end]
        learnt = np.frombuffer(self._learnt, np.bool_)[begin:end]
        ids.flags.writeable = learnt.flags.writeable = False
        return Sample(ids, learnt, self.sources[self.source[i]], self.line[i])

    def lengths(self) -> np.ndarray:
        """(sequences,) int64: tokens of each"""
        return np.diff(np.frombuffer(self._ends, np.int64))

    def digest(self) -> hashlib._Hash:
        """SHA-256 of all ids, of what is learnt, and where each begins."""
        found = hashlib.sha256()
        for part in (self._ids, self._learnt, self._ends, self.good):
            found.update(part)
        return found


def sample_at(store: Store, i: int) -> Sample:
    """Sequence i."""
    return store.sample(i)


def pair_at(store: Store, i: int) -> Pair:
    """Sequence i is the chosen one, the next the rejected one."""
    return Pair(store.sample(i), store.sample(i + 1))


def verdict_at(store: Store, i: int) -> Verdict:
    """Sequence i with its verdict."""
    return Verdict(store.sample(i), bool(store.good[i]))


class Picked(Sequence[E]):
    """Some examples of a store in an order of their own; one may occur several times. Made when they are asked for."""

    def __init__(self, store: Store, picked: np.ndarray, make: Callable[[Store, int], E]) -> None:
        """picked: (n,) numbers of sequences; make: what is made of a number."""
        self.store, self.picked, self._make = store, picked, make

    def __len__(self) -> int:
        return len(self.picked)

    @overload
    def __getitem__(self, i: int) -> E: ...
    @overload
    def __getitem__(self, i: slice) -> Picked[E]: ...
    def __getitem__(self, i: int | slice) -> E | Picked[E]:
        if isinstance(i, slice):
            return Picked(self.store, self.picked[i], self._make)
        return self._make(self.store, int(self.picked[i]))
