"""Request: one sequence to be continued; and Part, what one step reads of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .draft import Draft
from .lora import Placed
from .sampler import Sampler

Likely = list[tuple[int, float]]  # ids and their logprobs, the likeliest first


@dataclass(eq=False)
class Request:
    """One sequence to be continued. The engine fills what stands below the line."""

    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int  # 0: the prompt is only read, for `score` or `embed`
    stop_ids: frozenset[int] = frozenset()
    sequence: int = 0  # which of the cache's sequences it lives in
    salt: str = ""  # what others have read is used only under the same one
    alternatives: int = 0  # so many of the likeliest tokens are noted at every place
    score: int | None = None  # the prompt's own tokens are rated, and so many alternatives noted
    embed: bool = False  # `hidden` is wanted
    adapter: Placed | None = None  # what was read with another one, or with none, is not used
    # ---
    tokens: list[int] = field(default_factory=list)  # what was sampled, without the stop id
    logprobs: list[float] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)  # of each token, its alternatives
    scores: list[tuple[float, Likely]] = field(default_factory=list)  # of the prompt from its second token on
    hidden: np.ndarray | None = None  # (dim,) float64: the sum of the prompt's last hidden states, normed
    text: list[int] = field(default_factory=list)  # the prompt and what was sampled
    read: int = 0  # tokens of the text that are in the cache
    reused: int | None = None  # of the prompt, how many were there before; None: not begun
    finish_reason: str | None = None  # "stop" | "length" | "error"
    error: Exception | None = None
    draft: Draft | None = None  # None: no guessing

    def __post_init__(self) -> None:
        self.text = list(self.prompt)
        self.salt = salted(self.salt, self.adapter.id if self.adapter else "")

    @property
    def unread(self) -> int:
        """1 for one that speaks: the token that was sampled last."""
        return len(self.text) - self.read

    @property
    def speaks(self) -> bool:
        return bool(self.tokens) and self.unread == 1

    @property
    def every_row(self) -> bool:
        """Whether the model's output is wanted after each token of the prompt."""
        return self.score is not None or self.embed

    @property
    def known(self) -> list[int]:
        """What of the text need not be read where it is held already: not its last token, whose logits are wanted, and
        nothing of a prompt all of whose rows are wanted."""
        return [] if self.every_row else self.text[:-1]


@dataclass
class Part:
    """What one step reads for a request: tokens that are certain, and guesses at what follows."""

    request: Request
    ids: list[int]
    guesses: list[int]

    @property
    def size(self) -> int:
        """Rows in the step."""
        return len(self.ids) + len(self.guesses)

    @property
    def wanted(self) -> int:
        """The rows at its end whose logits are wanted."""
        return len(self.ids) if self.request.every_row and not self.request.tokens else 1 + len(self.guesses)


def salted(salt: str, adapter: str) -> str:
    """The salt of what is read with an adapter (Adapter.id; "": none): keys and values are other ones then."""
    return f"{salt}\0{adapter}" if adapter else salt


def adapter_of(salt: str) -> str:
    """The other way."""
    return salt.partition("\0")[2]
