"""How well a model predicts a text, and how far another one strays from it: figures from logits, with standard errors.

Logits come in pieces and are forgotten; of every token a few numbers are kept (at most 48 bytes). All sums are float64,
and log softmax is taken as x - max - log sum exp(x - max), so that nothing overflows and small differences survive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError

Doubles = NDArray[np.float64]
STRIP = 1 << 18  # logits worked on at a time: their float64 copies stay in the cache
SHARES = (0.5, 0.9, 0.99, 0.999)  # of the tokens: the quantiles of the divergence that are told


class Estimate(NamedTuple):
    """A mean, and its standard error: the standard deviation over the square root of the count, tokens being taken as
    independent, as the field does. (Neighbours are not: between texts figures vary somewhat more.)"""

    value: float
    error: float

    @classmethod
    def of(cls, values: np.ndarray) -> Estimate:
        """NaN where there is nothing to say: the mean of no values, the error of one."""
        n = len(values)
        with np.errstate(invalid="ignore"):  # of an infinite loss
            mean = float(values.mean(dtype=np.float64)) if n else float("nan")
            return cls(mean, float(values.std(ddof=1, dtype=np.float64) / np.sqrt(n)) if n > 1 else float("nan"))

    def facts(self) -> dict[str, float | None]:
        """For JSON, which has neither NaN nor infinity."""
        return {name: value if np.isfinite(value) else None for name, value in self._asdict().items()}

    def __str__(self) -> str:
        """With as many digits as the error leaves: 5.731 ± 0.021."""
        if not np.isfinite(self.error) or self.error <= 0:
            return f"{self.value:.4g}"
        digits = max(0, 1 - int(np.floor(np.log10(self.error))))
        if digits > 6:
            return f"{self.value:.2e} ± {self.error:.0e}"
        return f"{self.value:,.{digits}f} ± {self.error:.{digits}f}"

    def percent(self) -> str:
        """The same of a share."""
        return f"{Estimate(100 * self.value, 100 * self.error)} %"

    def exp(self) -> Estimate:
        """exp of it; the error to first order."""
        return Estimate(float(np.exp(self.value)), float(np.exp(self.value) * self.error))

    def root(self) -> Estimate:
        """Its square root (of a mean square: the RMS); the error to first order."""
        root = float(np.sqrt(self.value))
        return Estimate(root, self.error / (2 * root) if root else 0.0)


@dataclass(frozen=True)
class Bin:
    """The tokens that stand at positions first to last of their chunks (a target's own position, from 0)."""

    first: int
    last: int
    which: NDArray[np.bool_]


class Perplexity:
    """Accumulates how likely the tokens of a text were: `add` pieces, then read `loss` and `perplexity`."""

    def __init__(self) -> None:
        self._losses, self._positions = _Column(np.float64), _Column(np.int32)

    def add(self, logits: np.ndarray, targets: np.ndarray, positions: np.ndarray | None = None) -> None:
        """logits (n, vocab), the row before each target; targets (n,) ids; positions (n,) of the targets, default
        0 to n - 1. RequestError for NaN."""
        targets = _checked(logits, targets)
        for rows in _strips(logits.shape):
            self._losses.add(-_logprobs(_shifted(logits[rows]), targets[rows]))
        self._positions.add(np.arange(len(targets)) if positions is None else positions)

    @property
    def tokens(self) -> int:
        return len(self._losses.values)

    @property
    def losses(self) -> Doubles:
        """(tokens,) -log p of each target, in nats."""
        return self._losses.values

    @property
    def loss(self) -> Estimate:
        """The mean of -log p, in nats."""
        return Estimate.of(self.losses)

    @property
    def perplexity(self) -> Estimate:
        """exp(loss): among how many equally likely tokens the model might as well have guessed."""
        return self.loss.exp()

    def by_position(self, bins: int = 8) -> list[dict[str, Any]]:
        """The same in at most so many stretches of the chunk, of equal width."""
        return [
            {**_where(b), "tokens": int(b.which.sum()), "perplexity": Estimate.of(self.losses[b.which]).exp()}
            for b in _bins(self._positions.values, bins)
        ]

    def facts(self) -> dict[str, Any]:
        """All figures, as JSON may have them."""
        return {
            "tokens": self.tokens, "loss": self.loss.facts(), "perplexity": self.perplexity.facts(),
            "by_position": [_plain(row) for row in self.by_position()],
        }  # fmt: skip


class Divergence:
    """Accumulates how far another model strays from the full one over the same tokens: `add` pieces, then read.

    kl          KL(full || other) = sum p log(p / q), in nats (Kullback & Leibler 1951): mean, `quantiles`, `largest`
    same_top    share of positions at which both find the same token likeliest
    change      mean of q - p, the probability of the text's own token; `change_rms` the root of its mean square
    full, other, ratio   both models' perplexity, and other / full, whose error is small because it is paired
    """

    def __init__(self) -> None:
        self._kl, self._same, self._change = _Column(np.float64), _Column(np.bool_), _Column(np.float64)
        self._p, self._q, self._positions = _Column(np.float64), _Column(np.float64), _Column(np.int32)

    def add(
        self, full: np.ndarray, other: np.ndarray, targets: np.ndarray, positions: np.ndarray | None = None
    ) -> None:
        """full and other (n, vocab) logits, or log-probabilities; targets (n,) the ids that followed; positions (n,)
        of the targets in their chunk, default 0 to n - 1. RequestError for NaN, or where shapes differ."""
        if full.shape != other.shape:
            raise RequestError(f"logits of shape {full.shape} and {other.shape}: two models of one vocabulary expected")
        targets = _checked(full, targets)
        for rows in _strips(full.shape):
            p, q = _shifted(full[rows]), _shifted(other[rows])
            self._kl.add(_divergences(p, q))
            self._same.add(p.values.argmax(axis=1) == q.values.argmax(axis=1))
            logp, logq = _logprobs(p, targets[rows]), _logprobs(q, targets[rows])
            self._p.add(-logp)
            self._q.add(-logq)
            self._change.add(np.exp(logq) - np.exp(logp))
        self._positions.add(np.arange(len(targets)) if positions is None else positions)

    @property
    def tokens(self) -> int:
        return len(self._kl.values)

    @property
    def kl(self) -> Estimate:
        return Estimate.of(self._kl.values)

    @property
    def quantiles(self) -> dict[float, float]:
        """Share of the tokens (`SHARES`) -> the divergence that they do not exceed."""
        with np.errstate(invalid="ignore"):  # between two infinite ones
            return {share: float(np.quantile(self._kl.values, share)) for share in SHARES}

    @property
    def largest(self) -> float:
        return float(self._kl.values.max())

    @property
    def same_top(self) -> Estimate:
        return Estimate.of(self._same.values)

    @property
    def change(self) -> Estimate:
        return Estimate.of(self._change.values)

    @property
    def change_rms(self) -> Estimate:
        return Estimate.of(self._change.values**2).root()

    @property
    def full(self) -> Estimate:
        return Estimate.of(self._p.values).exp()

    @property
    def other(self) -> Estimate:
        return Estimate.of(self._q.values).exp()

    @property
    def ratio(self) -> Estimate:
        return Estimate.of(self._q.values - self._p.values).exp()

    def by_position(self, bins: int = 8) -> list[dict[str, Any]]:
        """The same in at most so many stretches of the chunk, of equal width."""
        return [
            {
                **_where(b),
                "tokens": int(b.which.sum()),
                "kl": Estimate.of(self._kl.values[b.which]),
                "same_top": Estimate.of(self._same.values[b.which]),
                "ratio": Estimate.of((self._q.values - self._p.values)[b.which]).exp(),
            }
            for b in _bins(self._positions.values, bins)
        ]

    def facts(self) -> dict[str, Any]:
        """All figures, as JSON may have them."""
        points = {**{f"{100 * share:g}%": value for share, value in self.quantiles.items()}, "largest": self.largest}
        quantiles = {name: value if np.isfinite(value) else None for name, value in points.items()}
        return {
            "tokens": self.tokens, "kl": {**self.kl.facts(), **quantiles},
            "same_top": self.same_top.facts(), "change": self.change.facts(),
            "change_rms": self.change_rms.facts(), "perplexity": self.other.facts(),
            "perplexity_full": self.full.facts(), "perplexity_ratio": self.ratio.facts(),
            "by_position": [_plain(row) for row in self.by_position()],
        }  # fmt: skip


def compare(full: np.ndarray, other: np.ndarray, targets: np.ndarray) -> Divergence:
    """Two models' logits (n, vocab) over the same tokens, at once. `Divergence` takes them in pieces."""
    divergence = Divergence()
    divergence.add(full, other, targets)
    return divergence


class _Shifted(NamedTuple):
    values: Doubles  # (n, vocab) logits less their row's largest
    powers: Doubles  # exp of these
    total: Doubles  # (n,) their sum: log p = values - log total


def _shifted(logits: np.ndarray) -> _Shifted:
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        values -= values.max(axis=1, keepdims=True)
    powers = np.exp(values)
    total = powers.sum(axis=1)
    if not np.isfinite(total).all():
        raise RequestError(f"logits of {int((~np.isfinite(total)).sum())} positions are NaN: the model is damaged")
    return _Shifted(values, powers, total)


def _logprobs(rows: _Shifted, targets: np.ndarray) -> Doubles:
    found: Doubles = np.take_along_axis(rows.values, targets[:, None], axis=1)[:, 0] - np.log(rows.total)
    return found


def _divergences(p: _Shifted, q: _Shifted) -> Doubles:
    """(n,) KL(p || q), never below 0; infinite where q is 0 and p is not."""
    with np.errstate(invalid="ignore"):
        gap = p.values - q.values
    if not np.isfinite(gap).all():
        gap[p.powers == 0] = 0  # p = 0 adds nothing, whatever q says
    mean = np.einsum("nv,nv->n", p.powers, gap) / p.total
    divergences: Doubles = np.maximum(mean - np.log(p.total / q.total), 0)
    return divergences


def _checked(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    targets = np.asarray(targets)
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.dtype.kind not in "iu":
        raise RequestError(
            f"logits {logits.shape} and targets {targets.shape} {targets.dtype}: expected (n, vocab), (n,)"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise RequestError(f"targets hold {targets.min()}..{targets.max()}, the logits are of 0..{logits.shape[1] - 1}")
    return targets


def _strips(shape: Sequence[int]) -> Iterator[slice]:
    step = max(1, STRIP // shape[1])
    return (slice(at, at + step) for at in range(0, shape[0], step))


class _Column:
    """Numbers that come in pieces."""

    def __init__(self, dtype: Any) -> None:
        self._dtype, self._pieces = dtype, [np.empty(0, dtype)]

    def add(self, piece: np.ndarray) -> None:
        self._pieces.append(np.asarray(piece, self._dtype))

    @property
    def values(self) -> np.ndarray:
        if len(self._pieces) > 1:
            self._pieces = [np.concatenate(self._pieces)]
        return self._pieces[0]


def _bins(positions: np.ndarray, count: int) -> Iterator[Bin]:
    """Stretches of equal width from the lowest to the highest position; those without a token are left out."""
    if not len(positions):
        return
    low, high = int(positions.min()), int(positions.max()) + 1
    edges = [low + (high - low) * i // count for i in range(count + 1)]
    for first, end in pairwise(edges):
        which = (positions >= first) & (positions < end)
        if which.any():
            yield Bin(first, end - 1, which)


def _where(one: Bin) -> dict[str, int]:
    return {"first": one.first, "last": one.last}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value.facts() if isinstance(value, Estimate) else value for key, value in row.items()}
