"""Which rows are trained on, how often, and which are held out: decided by the rows themselves and a seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import RequestError


class Source(NamedTuple):
    """A file, and how often each of its rows occurs in an epoch: 2: twice; 0.5: half of them, drawn by the seed."""

    path: Path
    weight: float = 1.0


def source_of(text: str | Path | Source) -> Source:
    """ "rows.jsonl", "rows.jsonl:2". A file whose very name ends so is meant itself. RequestError for odd weights."""
    if isinstance(text, Source):
        return _checked(text)
    path, colon, weight = str(text).rpartition(":")
    if isinstance(text, Path) or not colon or Path(text).exists():
        return Source(Path(text))
    try:
        return _checked(Source(Path(path), float(weight)))
    except ValueError:
        return Source(Path(text))  # C:\\rows.jsonl


def _checked(source: Source) -> Source:
    if not math.isfinite(source.weight) or not 0 < source.weight <= 1000:
        raise RequestError(f"{source.path}: weight {source.weight:g}, expected above 0 and up to 1000")
    return source


def drawn(count: int, weight: float, rng: np.random.Generator) -> np.ndarray:
    """`count` rows at this weight -> their numbers, sorted: each floor(weight) times, and a part of them once more."""
    whole, part = divmod(weight, 1.0)
    again = np.sort(rng.permutation(count)[: round(part * count)])
    return np.sort(np.concatenate([np.repeat(np.arange(count), int(whole)), again]))


def held_back(keys: np.ndarray, share: float) -> np.ndarray:
    """(rows,) bool: the rows to hold out, about `share` of them, by their keys alone.

    So a row stays on its side when others come or go, and rows that say the same are never on both. At least one row
    is held out.
    """
    if not 0 < share < 1:
        raise RequestError(f"a share of {share:g} to hold out, expected above 0 and below 1")
    held: np.ndarray = keys < np.uint64(share * 2.0**64)
    return held if held.any() else np.equal(keys, keys.min())
