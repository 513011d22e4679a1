"""Ids become text as they come: whole characters only, stop strings never shown, nothing held longer than needed."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import RequestError
from .tokenizer import Tokenizer


class Speech:
    """push(id) gives the text that is certain by now; `stopped` is set once a stop string has appeared."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), start: bool = True) -> None:
        """start: the ids begin a text of their own (a reply), so its first space is dropped; False: they continue one.
        Without a tokenizer all text is empty."""
        if any(not isinstance(s, str) or not s for s in stop):
            raise RequestError("stop holds an empty string: every stop string needs at least one character")
        self._stream, self._stop = tokenizer.stream(start) if tokenizer else None, tuple(stop)
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False
        self.found = ""  # the stop string that ended it

    def push(self, token: int) -> str:
        return self._release(self._stream.push(token) if self._stream else "")

    def flush(self) -> str:
        """The end: whatever was held back is text after all."""
        piece = self._release(self._stream.flush() if self._stream else "")
        rest, self._held = self._held, ""
        return piece + ("" if self.stopped else rest)

    def _release(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at, s) for at, s in ((text.find(s), s) for s in self._stop) if at >= 0]
        if found:
            at, self.found = min(found)
            self.stopped, self._held = True, ""
            return text[:at]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text with which stop begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
