"""Adapter and Delta: B A for some of a model's weights, and the checks that every file of them has to pass."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import Config
from ..errors import FormatError
from ..weights import Shapes, Weights, expected_shapes

log = logging.getLogger(__name__)

MOST_SCALE = 1000.0  # alpha 256 at rank 1 is 256; what is beyond this is a mistake in the file


@dataclass(frozen=True, eq=False)
class Delta:
    """What an adapter adds to one weight: y = W x + scale * B A x, rows and columns in bise's own order.

    a          (rank, in) float32
    b          (out, rank) float32
    scale      alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)
    magnitude  (out,) for DoRA (Liu et al. 2024): each row of W + scale * B A is given this length; else None
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def product(self) -> np.ndarray:
        """scale * B A, (out, in) float32."""
        return np.asarray(self.b * np.float32(self.scale) @ self.a)

    def fused(self, rows: np.ndarray, start: int = 0) -> np.ndarray:
        """The weight's rows from `start` on, (n, in) float32, as the adapter makes them."""
        b = self.b[start : start + len(rows)] * np.float32(self.scale)
        sums = rows + b @ self.a
        if self.magnitude is not None:
            sums *= (self.magnitude[start : start + len(rows)] / lengths(sums))[:, None]
        return np.asarray(sums)


@dataclass(frozen=True, eq=False)
class Adapter:
    """Deltas by canonical weight name ("blk.0.attn_q", ..., "output"), and what they were trained on.

    base   the `Weights.fingerprint` of the model that it belongs to; "" if the file does not say
    facts  what else its file says, as it stands there
    """

    deltas: Mapping[str, Delta]
    alpha: float
    base: str = ""
    name: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Names its numbers: hex, equal for equal adapters whatever file they came from."""
        digest = hashlib.sha256()
        for name, delta in sorted(self.deltas.items()):
            digest.update(repr((name, delta.a.shape, delta.b.shape, delta.scale)).encode())
            for part in (delta.a, delta.b, delta.magnitude):
                digest.update(b"" if part is None else np.ascontiguousarray(part, np.float32).tobytes())
        return digest.hexdigest()[:16]

    @property
    def parameters(self) -> int:
        return sum(d.a.size + d.b.size + (0 if d.magnitude is None else d.magnitude.size) for d in self.deltas.values())

    @property
    def ranks(self) -> list[int]:
        return sorted({delta.rank for delta in self.deltas.values()})


def named(path: str | os.PathLike[str]) -> str:
    """What an adapter is called if nobody says otherwise: its folder's name, or its file's without the ending."""
    path = Path(path)
    return path.name if path.is_dir() else path.stem


def lengths(rows: np.ndarray) -> np.ndarray:
    """(n, in) -> (n,): each row's Euclidean length, 1 where that is 0."""
    found = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)).astype(np.float32)
    return np.where(found > 0, found, np.float32(1))


def targets(config: Config) -> Shapes:
    """The weights that an adapter may change, with their shapes: every matrix but the embedding."""
    return {n: s for n, s in expected_shapes(config).items() if len(s) == 2 and n != "token_embd"}


def check_delta(delta: Delta, shape: tuple[int, ...], what: str) -> None:
    """FormatError unless A (r, in) and B (out, r) fit a weight of `shape`, and all numbers are usable ones."""
    a, b = delta.a.shape, delta.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        raise FormatError(f"{what}: A is {a} and B {b}: their ranks, A's rows and B's columns, have to agree")
    if (b[0], a[1]) != shape:
        raise FormatError(f"{what}: A is {a} and B {b}, the model's weight is {shape}: an adapter of another model")
    if delta.magnitude is not None and delta.magnitude.shape != shape[:1]:
        raise FormatError(f"{what}: the magnitude is {delta.magnitude.shape}, expected ({shape[0]},)")
    check_scale(delta.scale, what)
    for name, part in (("A", delta.a), ("B", delta.b), ("the magnitude", delta.magnitude)):
        if part is not None and not np.isfinite(part).all():
            bad = int(part.size - np.isfinite(part).sum())
            raise FormatError(f"{what}: {name} has {bad:,} NaN or infinite values: the training diverged, or the file "
                              "is damaged")  # fmt: skip


def check_scale(scale: float, what: str) -> None:
    if not math.isfinite(scale) or scale == 0 or abs(scale) > MOST_SCALE:
        raise FormatError(
            f"{what}: scale = {scale:g} (from alpha and rank), expected a number other than 0, at most {MOST_SCALE:g}"
        )


def check_base(adapter: Adapter, weights: Weights, any_base: bool = False) -> None:
    """FormatError where the adapter was trained on other weights than these: equal shapes prove nothing. any_base: it
    is meant so, as for one that was trained on the same model before it was quantised."""
    if not adapter.base:
        log.warning("%s: the adapter does not say which model it belongs to; its shapes fit", adapter.name)
    elif adapter.base != weights.fingerprint and not any_base:
        raise FormatError(
            f"{adapter.name}: the adapter was trained on weights {adapter.base[:16]}, {weights.path} is "
            f"{weights.fingerprint[:16]}: take that model, or say --any-base (any_base=True) if this is the same one "
            "in another type"
        )
    if not any(delta.b.any() for delta in adapter.deltas.values()):
        log.warning("%s: every B of the adapter is zero: it has not learnt anything", adapter.name)
