"""What the two processes of a server say to each other: asks go to the engine, news come back, as frames of JSON.

A frame is the length of its body (4 bytes, big-endian) and the body: one JSON object. Never a pickle.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError

LENGTH = struct.Struct(">I")
MOST = 1 << 28  # bytes of a frame: 32k scored tokens with 20 alternatives each are 30 MB


@dataclass
class Ask:
    """One text to be continued, scored or embedded; checked by whoever made it."""

    prompt: list[int] = field(default_factory=list)
    max_tokens: int = 16  # 0: only read the prompt, for `score` or `embed`
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of sampler.Sampling
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False
    start: bool = False  # what comes is a text of its own (a reply), not the continuation of one: see Speech
    alternatives: int | None = None  # with each token its logprob, and so many of the likeliest at its place
    score: int | None = None  # the same for the prompt's own tokens
    grammar: str | None = None  # what the text must match, as grammar.py writes it
    embed: bool = False  # the mean of the prompt's last hidden states is wanted
    client: str = ""  # whose share of the machine it takes
    salt: str = ""  # what has been read is shared only under the same salt
    adapter: str = ""  # its name; "": the model alone


@dataclass
class Token:
    """One token and how likely it was: logprob None where nothing came before it. top: [id, logprob], best first."""

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class News:
    """What became of an ask since the last news. The last of an ask has `finish`."""

    read: int = 0  # tokens of the prompt that have been read
    reused: int = 0  # of these, those that did not have to be: their keys were still there
    held: int = 0  # tokens whose keys the sequence holds now, and the first that the next token can see
    first: int = 0
    text: str = ""  # certain by now, whole characters, no stop string
    tokens: list[Token] = field(default_factory=list)  # what was said, stop id left out
    scores: list[Token] = field(default_factory=list)  # with Ask.score: the prompt, in order, as it is read
    embedding: list[float] | None = None  # (dim,), not normalised
    finish: str = ""  # "stop" | "length" | "error"
    stop: str = ""  # the stop string that ended it, "" for the model's own end
    seconds: list[float] = field(default_factory=list)  # with finish: waiting, reading the prompt, speaking
    error: str = ""  # one line, with finish "error"
    status: int = 0  # whose fault it was, as HTTP says it: 400 the ask's own, 429 no room now, 500 ours, 503 it may


def frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return LENGTH.pack(len(body)) + body


def packed(thing: Ask | News) -> dict[str, Any]:
    """The fields that are not as they are by default."""
    fields, usual = vars(thing), vars(_USUAL[type(thing)])
    return {name: value for name, value in fields.items() if value != usual[name]}


def news_of(fields: dict[str, Any]) -> News:
    """What `packed` made of news whose tokens were written as [id, logprob, top]."""
    news = News(**fields)
    news.tokens, news.scores = ([Token(*t) for t in ts] for ts in (news.tokens, news.scores))  # type: ignore[misc]
    return news


class Inbox:
    """Bytes as they come in, whole frames out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def push(self, data: bytes) -> Iterator[dict[str, Any]]:
        self._bytes += data
        while len(self._bytes) >= LENGTH.size:
            (n,) = LENGTH.unpack_from(self._bytes)
            if n > MOST:
                raise FormatError(f"a frame of {n:,} bytes between the server's processes, expected at most {MOST:,}")
            end = LENGTH.size + n
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[LENGTH.size : end])
            del self._bytes[:end]
            yield json.loads(body)


_USUAL: dict[type, Ask | News] = {Ask: Ask(), News: News()}
