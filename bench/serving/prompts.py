"""Prompts of a wanted length, each different from its first word on, so that nothing has been read before."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from .client import Target, send

STORY = """
    the little fox went to a river and saw big red ball under old tree where bird sang song about sun rain home day
    when mother said yes but friend was sad because his dog ran away into dark wood after cat then they all looked
    for it with small light until night came over hill near green garden so good boy found her at last
"""
WORDS = STORY.split()
EXAMPLES = (100, 300)  # words: two prompts tell how long a word is


@dataclass
class Prompts:
    """Random stories. tokens = fixed + words * per_word, as the server itself counts them."""

    fixed: float = 0.0
    per_word: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def words(self, count: int) -> str:
        return " ".join(self._chance.choices(WORDS, k=max(1, count)))

    def text(self, tokens: int) -> str:
        """About so many tokens with all that a chat format puts around it, to 2 % or so."""
        return self.words(round((tokens - self.fixed) / self.per_word))

    @staticmethod
    async def measured(target: Target, seed: int = 0) -> Prompts:
        """RuntimeError with the server's words if it does not answer."""
        prompts, counts = Prompts(seed=seed), []
        for words in EXAMPLES:
            reply = await send(target, "chat/completions", chat(target, prompts.words(words), 1, stream=False))
            if reply.status != 200:
                raise RuntimeError(f"{target.url} says {reply.status or reply.fault}: {reply.body[:300]!r}")
            counts.append(reply.json()["usage"]["prompt_tokens"])
        per_word = (counts[1] - counts[0]) / (EXAMPLES[1] - EXAMPLES[0])
        return Prompts(counts[0] - EXAMPLES[0] * per_word, per_word, seed)


def chat(target: Target, text: str, answer: int, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """The body of a chat of one message. Temperature 1: what OpenAI's API does where nothing is said."""
    body = {"model": target.model, "messages": [{"role": "user", "content": text}], "max_tokens": answer}
    body |= {"temperature": 1.0, "stream": stream} | ({"stream_options": {"include_usage": True}} if stream else {})
    return body | target.extra | fields
