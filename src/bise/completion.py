"""What is asked for when a text is to be continued (Options), and what comes of it (Completion)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from .request import Request


class Options(TypedDict, total=False):
    """What generate, stream and chat take by name. The second half are the fields of `Sampling`."""

    max_tokens: int  # 512 unless told otherwise; the end of the context ends a text too
    stop: Sequence[str]  # strings at which the text ends; they are not part of it
    ignore_eos: bool  # go on past the end-of-text token
    adapter: str | None  # a name that `Model.add_adapter` gave; None: the base alone; "": the model's own choice
    progress: Callable[[int, int], None]  # called with (tokens read, tokens of the prompt) while it is read

    temperature: float  # 0, the default, always takes the likeliest token
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int
    dry_breakers: frozenset[int]  # see sampler.breakers
    xtc_probability: float
    xtc_threshold: float
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float]
    seed: int


@dataclass
class Completion:
    """What came of a prompt. finish_reason is "stop" (end of text, or a stop string) or "length"."""

    text: str
    tokens: list[int]
    logprobs: list[float]  # natural logarithm, of the model's own distribution before any sampling setting
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int  # of the prompt, those whose keys were still in the cache
    prefill_seconds: float
    decode_seconds: float


class Clock:
    """Seconds spent on the prompt (up to its first token) and on the rest."""

    def __init__(self) -> None:
        self.prefill = self.decode = 0.0
        self._since = time.perf_counter()

    def tick(self, request: Request) -> None:
        now = time.perf_counter()
        if len(request.tokens) <= 1 and self.decode == 0:
            self.prefill += now - self._since
        else:
            self.decode += now - self._since
        self._since = now
