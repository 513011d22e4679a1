"""What leaves out candidates before one is drawn: top-k, top-p, min-p, typical, XTC, mirostat's bound.

Every cut is a function of a vector x of n logits (float64) and returns the kept indices of x, ascending, at least one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
FEW, BINS = 256, 1024  # candidates that are sorted; more are sorted into so many bins first
WIDEST, TINY = 40.0, 1e-9  # nats between the first bin and the last; keys that are nearer than that are sorted
LEAST_LIKELY = 700.0  # nats of surprise, in place of infinity


def top_k(x: Logits, k: int) -> Indices:
    """The k largest; equal logits go to the lower index."""
    if k <= 0 or k >= len(x):
        return np.arange(len(x))
    least = x[np.argpartition(x, len(x) - k)[len(x) - k]]
    kept = np.flatnonzero(x >= least)
    surplus = len(kept) - k
    return np.delete(kept, np.flatnonzero(x[kept] == least)[-surplus:]) if surplus else kept


def top_p(x: Logits, p: float) -> Indices:
    """Nucleus (Holtzman et al. 2020, arXiv:1904.09751): the fewest most likely tokens whose probability reaches p."""
    if p >= 1:
        return np.arange(len(x))
    return _until(-x, softmax(x), p)


def typical(x: Logits, p: float) -> Indices:
    """Locally typical (Meister et al. 2023, arXiv:2202.00666): the tokens whose surprise is nearest to the entropy,
    until their probability reaches p."""
    if p >= 1:
        return np.arange(len(x))
    mass, surprise = softmax(x), np.minimum(log_sum_exp(x) - x, LEAST_LIKELY)
    return _until(np.abs(surprise - float((mass * surprise).sum())), mass, p)


def min_p(x: Logits, p: float) -> Indices:
    """Min-p (Nguyen et al. 2024, arXiv:2407.01082): tokens at least p times as likely as the most likely one."""
    return np.flatnonzero(x >= x.max() + math.log(p)) if p > 0 else np.arange(len(x))


def xtc(x: Logits, threshold: float) -> Indices:
    """XTC ("exclude top choices", p-e-w 2024): of the tokens of at least this probability the least likely stays."""
    likely = np.flatnonzero(softmax(x) >= threshold)
    if len(likely) < 2:
        return np.arange(len(x))
    stays = len(likely) - 1 - int(x[likely[::-1]].argmin())  # of equally unlikely ones the last, as after a stable sort
    keep = np.ones(len(x), bool)
    keep[np.delete(likely, stays)] = False
    return np.flatnonzero(keep)


def surprise_at_most(x: Logits, bits: float) -> Indices:
    """Tokens with -log2(probability) <= bits, or the most likely one where there is none."""
    kept = np.flatnonzero(x >= log_sum_exp(x) - bits * math.log(2))
    return kept if len(kept) else np.array([x.argmax()])


def _until(key: Logits, mass: Logits, target: float) -> Indices:
    """The indices with the smallest keys, as few as make their mass reach the target; equal keys in their order."""
    last = _threshold(key, mass, target)
    kept = np.flatnonzero(key <= last)
    ties = np.flatnonzero(key[kept] == last)
    if len(ties) == 1:
        return kept
    masses = mass[kept]
    reached = np.cumsum(masses[ties]) + float(masses.sum() - masses[ties].sum())
    return np.delete(kept, ties[int(np.searchsorted(reached, target)) + 1 :])


def _threshold(key: Logits, mass: Logits, target: float) -> float:
    """The largest key that `_until` keeps: by the mass in each of many bins, then within the bin where it is reached,
    so that only few keys are sorted."""
    while len(key) > FEW:
        least = float(key.min())
        span = min(float(key.max()) - least, WIDEST)
        if not span > TINY:
            break
        places = key - least
        np.minimum(places, span, out=places)
        places *= (BINS - 1) / span
        bins = places.astype(np.int64)
        masses = np.cumsum(np.bincount(bins, mass, BINS))
        found = min(int(np.searchsorted(masses, target)), int(bins.max()))
        target -= float(masses[found - 1]) if found else 0.0
        inside = np.flatnonzero(bins == found)
        key, mass = key[inside], mass[inside]
    order = np.argsort(key)
    found = int(np.searchsorted(np.cumsum(mass[order]), target))
    return float(key[order[min(found, len(order) - 1)]])


# --- arithmetic


def softmax(x: Logits) -> Logits:
    """Probabilities (n,) of logits (n,) with at least one finite one."""
    e = x - x.max()  # in place from here: fresh memory costs more than the arithmetic
    np.exp(e, out=e)
    e /= e.sum()
    return np.asarray(e)


def log_sum_exp(x: Logits) -> float:
    """The log of the softmax's denominator."""
    top = float(x.max())
    e = x - top
    return top + math.log(float(np.exp(e, out=e).sum()))


def pick(p: Logits, u: float) -> int:
    """The index that a uniform u in [0, 1) falls on when the probabilities p are laid end to end."""
    ends = np.cumsum(p)
    found = int(np.searchsorted(ends, u * ends[-1], side="right"))
    return found if found < len(p) else int(np.flatnonzero(p)[-1])
