"""How tokens are chosen and where a text ends, as every generating route takes it: OpenAI's fields, and Sampling's."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, StringConstraints

from ...errors import RequestError
from ...sampler import RANGES, breakers
from ...tokenizer import Tokenizer
from .. import limits
from .body import Strict

if TYPE_CHECKING:
    from ..desk import Desk

Stop = Annotated[str, StringConstraints(min_length=1, max_length=limits.STOP)]
Name = Annotated[str, StringConstraints(max_length=limits.NAME)]


def _within(name: str) -> Any:
    """The range that the sampler keeps to."""
    _, least, most = RANGES[name]
    return Field(ge=least, le=most)


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="A last chunk with empty choices carries usage and timings.")
    include_progress: bool | None = Field(
        None,
        description='Chunks with empty choices and "progress": {"read", "total", "reused"} while the prompt is read.',
    )
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is padded.")


class Settings(Strict):
    """Every field may be null, which is as good as not there."""

    model: Name | None = Field(None, description="The model's id; without it, the one that is served.")
    temperature: Annotated[float, _within("temperature")] | None = Field(1.0, description="0 is greedy.")
    top_p: Annotated[float, _within("top_p")] | None = None
    top_k: Annotated[int, _within("top_k")] | None = Field(None, description="0: all.")
    min_p: Annotated[float, _within("min_p")] | None = None
    typical_p: Annotated[float, _within("typical_p")] | None = None
    repetition_penalty: Annotated[float, _within("repetition_penalty")] | None = None
    presence_penalty: Annotated[float, _within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _within("frequency_penalty")] | None = None
    penalty_window: Annotated[int, _within("penalty_window")] | None = Field(
        None, description="Tokens of prompt and answer that penalties look at; -1: all. 64 unless given."
    )
    dry_multiplier: Annotated[float, _within("dry_multiplier")] | None = None
    dry_base: Annotated[float, _within("dry_base")] | None = None
    dry_allowed_length: Annotated[int, _within("dry_allowed_length")] | None = None
    dry_window: Annotated[int, _within("dry_window")] | None = None
    dry_breakers: Annotated[list[Stop], Field(max_length=limits.STOPS)] | None = Field(
        None, description="Strings that no repetition reaches across."
    )
    xtc_probability: Annotated[float, _within("xtc_probability")] | None = None
    xtc_threshold: Annotated[float, _within("xtc_threshold")] | None = None
    mirostat_tau: Annotated[float, _within("mirostat_tau")] | None = None
    mirostat_eta: Annotated[float, _within("mirostat_eta")] | None = None
    seed: Annotated[int, _within("seed")] | None = Field(
        None, description="The same seed gives the same text; answer i of n is sampled with seed + i."
    )
    logit_bias: (
        Annotated[
            dict[Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")],
                 Annotated[float, Field(ge=-limits.BIAS, le=limits.BIAS)]],
            Field(max_length=limits.BIASES),
        ] | None
    ) = Field(None, description="Added to the logits of these token ids.")  # fmt: skip
    stop: Stop | Annotated[list[Stop], Field(max_length=limits.STOPS)] | None = Field(
        None, description="Strings that end the text; they are not part of it."
    )
    ignore_eos: bool | None = Field(None, description="Go on past the end-of-text token.")
    n: Annotated[int, Field(ge=1, le=limits.CHOICES)] | None = Field(1, description="Answers to each prompt.")
    stream: bool | None = Field(False, description="Server-sent events; the last one is [DONE].")
    stream_options: StreamOptions | None = None
    cache_salt: Name | None = Field(
        None, description="What has been read is shared only with requests of the same salt."
    )
    user: Name | None = Field(None, description="Accepted; nothing is done with it.")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def options(self) -> StreamOptions:
        return self.stream_options or _PLAIN

    def sampling(self, desk: Desk) -> dict[str, Any]:
        """The fields of Sampling that are not as they are there. RequestError for ids outside the vocabulary."""
        given: dict[str, Any] = {name: v for name in RANGES if (v := getattr(self, name)) is not None}
        given.setdefault("temperature", 1.0)
        if self.logit_bias:
            given["logit_bias"] = {int(i): bias for i, bias in self.logit_bias.items()}
            if (most := max(given["logit_bias"])) >= desk.vocab_size:
                raise RequestError(
                    f"logit_bias id {most} is outside the vocabulary: expected 0 to {desk.vocab_size - 1}"
                )
        if self.dry_breakers:
            given["dry_breakers"] = _breakers(desk.tokenizer, tuple(self.dry_breakers))
        return given


_PLAIN = StreamOptions()  # type: ignore[call-arg]


@lru_cache(maxsize=64)
def _breakers(tokenizer: Tokenizer, strings: tuple[str, ...]) -> list[int]:
    return sorted(breakers([tokenizer.piece(i) for i in range(tokenizer.vocab_size)], strings))


def nth(sampling: dict[str, Any], i: int) -> dict[str, Any]:
    """The settings of answer i of n: with a seed, each has its own."""
    return sampling if "seed" not in sampling else {**sampling, "seed": (sampling["seed"] + i) % (1 << 64)}
