"""What the two processes of a server say to each other: asks go to the engine, news come back, as frames of JSON.

A frame is the length of its body (4 bytes, big-endian) and the body: one JSON object. Never a pickle.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

LENGTH = struct.Struct(">I")
MOST = 1 << 28  # bytes of a frame: 32k scored tokens with 20 alternatives each are 30 MB


@dataclass
class Ask:
    """One text to be continued, scored or embedded; checked by whoever made it."""

    prompt: list[int]
    max_tokens: int = 16  # 0: only read the prompt
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
    error: str = ""  # one line, with finish "error"
    refused: bool = False  # the error is the ask's own (400), not the engine's (500)


def frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body
