"""Logits to one token id.

The order is llama.cpp's default chain: logit bias, penalties, DRY, the grammar, then what cuts the candidates down
(top-k, typical, top-p, min-p, XTC), temperature last, then one draw. Mirostat, where it is on, takes the place of the
cuts, after temperature. Temperature 0 takes the best token after bias, penalties and DRY; equal logits go to the lowest
id.

The cuts are in cuts.py; all that is here works on a vector x of n logits (float64).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .cuts import (
    Indices,
    Logits,
    log_sum_exp,
    min_p,
    pick,
    softmax,
    surprise_at_most,
    top_k,
    top_p,
    typical,
    xtc,
)
from .errors import BiseError, RequestError
from .grammar import Match

SHORT = 1024  # ids of a history that are converted anew for every token
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

    def __init__(self, sampling: Sampling, vocab_size: int, match: Match | None = None) -> None:
        """match: what the text must match (a fresh one); it is told every id that is chosen.

        Raises RequestError for ids in logit_bias outside the vocabulary."""
        self.sampling, self.vocab_size, self.match = sampling, vocab_size, match
        if wrong := [i for i in sampling.logit_bias if i >= vocab_size]:
            raise RequestError(f"logit_bias id {wrong[0]} is outside the vocabulary: expected 0 to {vocab_size - 1}")
        self.seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._mu = 2.0 * sampling.mirostat_tau
        self._known: list[int] = []  # a long history, and the same as an array
        self._past = np.empty(0, np.int64)
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
        if s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty:
            x = penalise(x, self._last(history, s.penalty_window), s)
        if s.dry_multiplier:
            x = dry(x, self._last(history, s.dry_window), s)
        if self.match:
            x = np.where(self.match.allowed(), x, -np.inf)
        if not math.isfinite(x.max()):
            raise BiseError("no token is left to choose: logit_bias or the grammar bans all of them")
        chosen = int(x.argmax()) if s.temperature == 0 else self._draw(x)
        if self.match:
            self.match.accept(chosen)
        return chosen, float(raw[chosen] - log_sum_exp(raw))

    @property
    def ended(self) -> bool:
        """Whether the text matches what it has to, and nothing can follow."""
        return self.match is not None and self.match.stopped

    def _last(self, history: Sequence[int], window: int) -> Indices:
        """The last `window` ids, all for -1. Of a long text, what was there the last time is not converted again."""
        if 0 <= window <= SHORT:
            return np.array(history[max(0, len(history) - window) :], np.int64)
        known = len(self._known)
        if list(history[:known]) != self._known:
            known = 0
        new = history[known:]
        self._known[known:], self._past = new, np.append(self._past[:known], np.array(new, np.int64))
        return self._past if window < 0 else self._past[max(0, len(history) - window) :]

    def _draw(self, x: Logits) -> int:
        if self.sampling.mirostat_tau:
            return self._draw_mirostat(x / self.sampling.temperature)
        kept: Indices | None = None  # None: all
        for cut, value in self._cuts():
            found = cut(x, value)
            x, kept = x[found], found if kept is None else kept[found]
        chosen = pick(softmax(x / self.sampling.temperature), self._random.random())
        return chosen if kept is None else int(kept[chosen])

    def _cuts(self) -> Iterator[tuple[Callable[[Logits, Any], Indices], Any]]:
        """Those that are on for this token, with their settings; one that is off would still cost a copy."""
        s = self.sampling
        if s.top_k:
            yield top_k, s.top_k
        if s.typical_p < 1:
            yield typical, s.typical_p
        if s.top_p < 1:
            yield top_p, s.top_p
        if s.min_p:
            yield min_p, s.min_p
        if s.xtc_probability and self._random.random() < s.xtc_probability:
            yield xtc, s.xtc_threshold

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


def logprob_of(logits: npt.NDArray[np.float32], token: int) -> float:
    """The log-probability of one id under the softmax of all."""
    x = _checked(logits, len(logits))
    return float(x[token] - log_sum_exp(x))


def breakers(pieces: Sequence[bytes], strings: Sequence[str]) -> frozenset[int]:
    """The ids of the tokens that contain one of `strings`: DRY's sequence breakers, usually newline : " and *."""
    wanted = [s.encode() for s in strings]
    return frozenset(i for i, piece in enumerate(pieces) if any(w in piece for w in wanted))


# --- what changes logits


def penalise(x: Logits, recent: Sequence[int] | Indices, s: Sampling) -> Logits:
    """Repetition penalty (Keskar et al. 2019, CTRL, section 4.1), then OpenAI's frequency and presence penalties."""
    counts = np.bincount(np.asarray(recent, np.int64), minlength=len(x))[: len(x)]
    ids = np.flatnonzero(counts)
    seen = x[ids]
    seen = np.where(seen > 0, seen / s.repetition_penalty, seen * s.repetition_penalty)
    x = x.copy()
    x[ids] = seen - counts[ids] * s.frequency_penalty - s.presence_penalty
    return x


def dry(x: Logits, recent: Sequence[int] | Indices, s: Sampling) -> Logits:
    """DRY ("don't repeat yourself", p-e-w 2024): a token that would prolong a repetition of n >= allowed_length tokens
    loses multiplier * base ** (n - allowed_length). Repetitions do not reach across a breaker."""
    past = np.asarray(recent, np.int64)
    lengths = {token: n for token, n in _repetitions(past, s).items() if token not in s.dry_breakers}
    if not lengths:
        return x
    x = x.copy()
    for token, n in lengths.items():
        x[token] -= s.dry_multiplier * s.dry_base ** (n - s.dry_allowed_length)
    return x


def _repetitions(past: Indices, s: Sampling) -> dict[int, int]:
    """token -> the longest repetition that it would prolong, where that is long enough."""
    lengths: dict[int, int] = {}
    if len(past) < 2 or int(past[-1]) in s.dry_breakers:
        return lengths
    alive = np.flatnonzero(past[:-1] == past[-1]) + 1  # places whose token followed what the text now ends with
    most = s.dry_allowed_length + int(DRY_LARGEST / max(math.log(s.dry_base), 1e-3))
    n = 1
    while len(alive):
        last = past[-1 - n] if n < min(most, len(past) - 1) else None
        ended = last is None or int(last) in s.dry_breakers
        still = alive[:0] if ended else alive[alive > n]
        still = still[past[still - 1 - n] == last]
        if len(still) < len(alive) and n >= s.dry_allowed_length:
            lengths.update(dict.fromkeys(past[alive].tolist(), n))  # those that go on are longer, and come later
        alive, n = still, n + 1
    return lengths


def _checked(logits: npt.NDArray[np.float32], vocab_size: int) -> Logits:
    if logits.shape != (vocab_size,):
        raise BiseError(f"logits have shape {logits.shape}, expected ({vocab_size},)")
    x = logits.astype(np.float64)
    if not math.isfinite(top := float(x.max())):  # a NaN anywhere is the maximum
        raise BiseError(f"the largest logit is {top}, expected a finite number: damaged weights, or all tokens banned")
    return x
