"""Logits to one token id.

The order is llama.cpp's default chain: logit bias, penalties, DRY, then what cuts the candidates down (top-k, typical,
top-p, min-p, XTC), temperature last, then one draw. Mirostat, where it is on, takes the place of the cuts, after
temperature. Temperature 0 takes the best token after bias, penalties and DRY; equal logits go to the lowest id.

Every step is a function of a vector x of n logits (float64); a cut returns the kept indices of x, ascending, at least
one.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BiseError, RequestError

Logits = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
FIRST_TRY = 256  # candidates that a nucleus is looked for in, before it is looked for in 8 times as many
DRY_LARGEST = 80.0  # log of the largest DRY penalty: longer matches than that all weigh the same

# field: (type, least, most)
RANGES: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 100),
    "top_k": (int, 0, 1 << 31),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "typical_p": (float, 0, 1),
    "repetition_penalty": (float, 0.01, 100),
    "presence_penalty": (float, -100, 100),
    "frequency_penalty": (float, -100, 100),
    "penalty_window": (int, -1, 1 << 31),
    "dry_multiplier": (float, 0, 100),
    "dry_base": (float, 1, 100),
    "dry_allowed_length": (int, 1, 1 << 31),
    "dry_window": (int, -1, 1 << 31),
    "xtc_probability": (float, 0, 1),
    "xtc_threshold": (float, 0, 1),
    "mirostat_tau": (float, 0, 100),
    "mirostat_eta": (float, 0, 1),
    "seed": (int, 0, (1 << 64) - 1),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose. The defaults are greedy and change nothing. RequestError names the field, the value and its range.

    Windows count the last tokens of prompt and answer that are looked at: 0 none, -1 all. `dry_breakers` are token ids
    that no repetition reaches across (see `breakers`). seed=None takes one from the system: `Sampler.seed` tells which.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = -1
    dry_breakers: frozenset[int] = frozenset()
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0  # bits of surprise per token; 0: off
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # -inf bans a token
    seed: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name in RANGES and not (f.name == "seed" and self.seed is None):
                _check(f.name, getattr(self, f.name), *RANGES[f.name])
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {type(self.logit_bias).__name__}, expected a map of token id to number")
        for i, bias in self.logit_bias.items():
            _check("logit_bias id", i, int, 0, 1 << 31)
            if bias != -math.inf:
                _check(f"logit_bias of {i}", bias, float, -1e6, 1e6)
        for i in self.dry_breakers:
            _check("dry_breakers id", i, int, 0, 1 << 31)


def _check(name: str, value: Any, kind: type, least: float, most: float) -> None:
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:  # NaN fails here
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} is {value!r}, expected {what} from {least:g} to {most:g}")


class Sampler:
    """One sequence's chooser: settings, a random stream of its own, and mirostat's running target.

    The same settings, seed and logits give the same ids: chance comes from one PCG64 stream, one draw a token
    (two with XTC).
    """

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        """Raises RequestError for ids in logit_bias outside the vocabulary."""
        self.sampling, self.vocab_size = sampling, vocab_size
        if wrong := [i for i in sampling.logit_bias if i >= vocab_size]:
            raise RequestError(f"logit_bias id {wrong[0]} is outside the vocabulary: expected 0 to {vocab_size - 1}")
        self.seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._mu = 2.0 * sampling.mirostat_tau
        self._bias_ids = np.array(list(sampling.logit_bias), np.int64)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float64)

    def sample(self, logits: npt.NDArray[np.float32], history: Sequence[int] = ()) -> tuple[int, float]:
        """logits (vocab_size,) and the ids so far (prompt and answer) -> (id, logprob).

        logprob: of that id under the softmax of the logits as they came, before any setting (as OpenAI's API has it).
        Raises BiseError where the logits are NaN or +inf, or no token is left.
        """
        raw = _checked(logits, self.vocab_size)
        s, x = self.sampling, raw
        if len(self._bias):
            x = x.copy()
            x[self._bias_ids] += self._bias
        x = penalise(x, _last(history, s.penalty_window), s)
        x = dry(x, _last(history, s.dry_window) if s.dry_multiplier else [], s)
        if not math.isfinite(x.max()):
            raise BiseError("no token is left to choose: logit_bias or the grammar bans all of them")
        chosen = int(x.argmax()) if s.temperature == 0 else self._draw(x)
        return chosen, float(raw[chosen] - log_sum_exp(raw))

    def _draw(self, x: Logits) -> int:
        if self.sampling.mirostat_tau:
            return self._draw_mirostat(x / self.sampling.temperature)
        kept = self._cut(x)
        p = softmax(x[kept] / self.sampling.temperature)
        return int(kept[pick(p, self._random.random())])

    def _cut(self, x: Logits) -> Indices:
        s = self.sampling
        kept = top_k(x, s.top_k)
        for cut, value in ((typical, s.typical_p), (top_p, s.top_p), (min_p, s.min_p)):
            kept = kept[cut(x[kept], value)]
        if s.xtc_probability and self._random.random() < s.xtc_probability:
            kept = kept[xtc(x[kept], s.xtc_threshold)]
        return kept

    def _draw_mirostat(self, x: Logits) -> int:
        """Mirostat 2 (Basu et al. 2021, arXiv:2007.14966, algorithm 2): keeps the surprise per token near tau bits."""
        s = self.sampling
        kept = surprise_at_most(x, self._mu)
        p = softmax(x[kept])
        chosen = pick(p, self._random.random())
        self._mu -= s.mirostat_eta * (-math.log2(p[chosen]) - s.mirostat_tau)
        return int(kept[chosen])


def top_logprobs(logits: npt.NDArray[np.float32], n: int) -> list[tuple[int, float]]:
    """The n most likely ids with their log-probabilities, best first, equal ones by id."""
    x = _checked(logits, len(logits))
    kept = top_k(x, n) if n else np.empty(0, np.int64)
    kept = kept[np.argsort(-x[kept], kind="stable")]
    total = log_sum_exp(x)
    return [(int(i), float(x[i] - total)) for i in kept]


def breakers(pieces: Sequence[bytes], strings: Sequence[str]) -> frozenset[int]:
    """The ids of the tokens that contain one of `strings`: DRY's sequence breakers, usually newline : " and *."""
    wanted = [s.encode() for s in strings]
    return frozenset(i for i, piece in enumerate(pieces) if any(w in piece for w in wanted))


# --- what changes logits


def penalise(x: Logits, recent: Sequence[int], s: Sampling) -> Logits:
    """Repetition penalty (Keskar et al. 2019, CTRL, section 4.1), then OpenAI's frequency and presence penalties."""
    if not len(recent) or (s.repetition_penalty == 1 and not s.presence_penalty and not s.frequency_penalty):
        return x
    ids, counts = np.unique(np.asarray(recent, np.int64), return_counts=True)
    seen = x[ids]
    seen = np.where(seen > 0, seen / s.repetition_penalty, seen * s.repetition_penalty)
    x = x.copy()
    x[ids] = seen - counts * s.frequency_penalty - s.presence_penalty
    return x


def dry(x: Logits, recent: Sequence[int], s: Sampling) -> Logits:
    """DRY ("don't repeat yourself", p-e-w 2024): a token that would prolong a repetition of n >= allowed_length tokens
    loses multiplier * base ** (n - allowed_length). Repetitions do not reach across a breaker."""
    if not s.dry_multiplier or len(recent) < 2:
        return x
    past = np.asarray(recent, np.int64)
    most = s.dry_allowed_length + int(DRY_LARGEST / max(math.log(s.dry_base), 1e-3))
    lengths: dict[int, int] = {}  # token -> longest repetition that it would prolong
    alive = np.arange(1, len(past))  # places i whose token followed what the text now ends with
    for n in range(min(most, len(past) - 1)):
        last = past[-1 - n]
        if int(last) in s.dry_breakers:
            break
        alive = alive[alive > n]
        alive = alive[past[alive - 1 - n] == last]
        if not len(alive):
            break
        if n + 1 >= s.dry_allowed_length:
            lengths.update(dict.fromkeys(np.unique(past[alive]).tolist(), n + 1))
    if not lengths:
        return x
    x = x.copy()
    for token, n in lengths.items():
        if token not in s.dry_breakers:
            x[token] -= s.dry_multiplier * s.dry_base ** (n - s.dry_allowed_length)
    return x


# --- what cuts the candidates down


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
    mass = softmax(x)
    surprise = -np.log(np.maximum(mass, np.finfo(np.float64).tiny))
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
    return np.delete(np.arange(len(x)), np.delete(likely, stays))


def surprise_at_most(x: Logits, bits: float) -> Indices:
    """Tokens with -log2(probability) <= bits, or the most likely one where there is none."""
    kept = np.flatnonzero(x >= log_sum_exp(x) - bits * math.log(2))
    return kept if len(kept) else np.array([x.argmax()])


def _until(key: Logits, mass: Logits, target: float) -> Indices:
    """The indices with the smallest keys, as few as make their mass reach the target. Sorts no more than it needs."""
    n, tried = len(key), FIRST_TRY
    while True:
        near = np.flatnonzero(key <= np.partition(key, tried)[tried]) if tried < n else np.arange(n)
        order = near[np.argsort(key[near], kind="stable")]
        total = np.cumsum(mass[order])
        if total[-1] >= target or tried >= n:
            return np.sort(order[: int(np.searchsorted(total, target)) + 1])
        tried *= 8


# --- arithmetic


def softmax(x: Logits) -> Logits:
    """Probabilities (n,) of logits (n,) with at least one finite one."""
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def log_sum_exp(x: Logits) -> float:
    """The log of the softmax's denominator."""
    top = float(x.max())
    return top + math.log(float(np.exp(x - top).sum()))


def pick(p: Logits, u: float) -> int:
    """The index that a uniform u in [0, 1) falls on when the probabilities p are laid end to end."""
    ends = np.cumsum(p)
    found = int(np.searchsorted(ends, u * ends[-1], side="right"))
    return found if found < len(p) else int(np.flatnonzero(p)[-1])


def _checked(logits: npt.NDArray[np.float32], vocab_size: int) -> Logits:
    if logits.shape != (vocab_size,):
        raise BiseError(f"logits have shape {logits.shape}, expected ({vocab_size},)")
    x = logits.astype(np.float64)
    if not math.isfinite(top := float(x.max())):  # a NaN anywhere is the maximum
        raise BiseError(f"the largest logit is {top}, expected a finite number: damaged weights, or all tokens banned")
    return x


def _last(history: Sequence[int], window: int) -> Sequence[int]:
    return history if window < 0 else history[max(0, len(history) - window) :]
