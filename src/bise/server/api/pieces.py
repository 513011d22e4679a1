"""Tokens and their logprobs as the two APIs show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...tokenizer import Tokenizer
from ..wire import Token

LEAST = -9999.0  # what stands for a logprob of minus infinity, which JSON has not (OpenAI's choice)


class Pieces:
    """Names tokens as they come. start: the first one loses the space that the vocabulary puts before a text."""

    def __init__(self, tokenizer: Tokenizer, start: bool) -> None:
        self._tokenizer, self._stream = tokenizer, tokenizer.stream(start)
        self._first = start and tokenizer.vocab.space_prefix
        self._offset = 0  # characters before the next token

    def chat(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Chat's shape: each token with its logprob, its bytes, and the alternatives."""
        found = []
        for token in tokens:
            top = [self._chat_entry(i, logprob) for i, logprob in token.top]
            found.append({**self._chat_entry(token.id, token.logprob), "top_logprobs": top})
            self._pass(token.id)
        return found

    def legacy(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The completions API's shape. top_logprobs holds the token itself too; of two with one name, the likelier."""
        names, logprobs, tops, offsets = [], [], [], []
        for token in tokens:
            names.append(self._name(token.id))
            logprobs.append(_shown(token.logprob))
            top: dict[str, float] | None = None
            if token.logprob is not None:
                top = {}
                for i, logprob in [*token.top, (token.id, token.logprob)]:
                    top.setdefault(self._name(i), max(logprob, LEAST))
            tops.append(top)
            offsets.append(self._offset)
            self._pass(token.id)
        return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _chat_entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        data = self._bytes(id)
        return {
            "token": data.decode(errors="replace") if data else self._tokenizer.name(id), "logprob": _shown(logprob),
            "bytes": list(data),
        }  # fmt: skip

    def _name(self, id: int) -> str:
        """Its text; a control token's name; "bytes:\\xe2\\x80" for part of a character."""
        data = self._bytes(id)
        if not data and not self._first:
            return self._tokenizer.name(id)
        try:
            return data.decode() if self._tokenizer.piece(id) else self._tokenizer.name(id)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in data)

    def _bytes(self, id: int) -> bytes:
        data = self._tokenizer.piece(id)
        return data.removeprefix(b" ") if self._first else data

    def _pass(self, id: int) -> None:
        self._offset += len(self._stream.push(id))
        self._first = self._first and not self._tokenizer.piece(id)


def _shown(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
