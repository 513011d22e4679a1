"""Texts that models are judged by and measured on: read from files, tokenised whole, cut into chunks.

The cut is llama.cpp's (tools/perplexity), so that figures compare: BOS and the text's tokens in one row, cut into
chunks of `context` tokens; the rest that fills no chunk is dropped, and BOS takes the place of the first token of every
chunk, where the model wants one. Of each chunk the second half is scored, every token of it with at least half a
chunk before it: with 512, the 255 tokens at positions 257 to 511, predicted by the 255 rows 256 to 510.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .disk import looks_like, read_small
from .errors import FormatError, RequestError
from .tokenizer import Tokenizer

Ids = NDArray[np.int32]
MOST = 1 << 28  # bytes of a text, unpacked
WIKITEXT = ("wiki.test.raw", "wiki.test.tokens", "wiki.valid.raw", "wiki.valid.tokens")  # of a folder: the first there


@dataclass(frozen=True)
class Cut:
    """How a text becomes chunks, and which of their tokens are scored.

    context        tokens of a chunk
    stride         None: chunks follow each other, and the second half of each is scored. Otherwise one begins every
                   `stride` tokens, and of each the last `stride` tokens are scored
    all_positions  score every token but the first of each chunk
    most           no more than so many chunks
    """

    context: int = 512
    stride: int | None = None
    all_positions: bool = False
    most: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("context", self.context, 2), ("stride", self.stride, 1), ("chunks", self.most, 1)):
            if value is not None and value < least:
                raise RequestError(f"--{name} is {value}, expected {least} or more")
        if self.stride is not None and self.stride >= self.context:
            raise RequestError(f"--stride is {self.stride}, the context {self.context}: expected less than the context")
        if self.stride is not None and self.all_positions:
            raise RequestError("--stride scores the last tokens of each chunk, --all-positions all: choose one")

    @property
    def first(self) -> int:
        """The first row of a chunk whose logits count; the last is context - 2. A row predicts the token after it."""
        if self.all_positions:
            return 0
        return self.context // 2 if self.stride is None else self.context - 1 - self.stride

    @property
    def scored(self) -> int:
        """Tokens of a chunk that are scored."""
        return self.context - 1 - self.first

    def chunks(self, ids: Sequence[int] | np.ndarray, bos: int | None) -> Ids:
        """The ids of a text, without BOS -> (chunks, context). RequestError for fewer than one chunk."""
        row = np.asarray(ids, np.int32)
        if bos is not None:
            row = np.concatenate([[np.int32(bos)], row])
        if len(row) < self.context:
            raise RequestError(
                f"the text has {len(row):,} tokens, a chunk {self.context:,}: take a longer text or a smaller --context"
            )
        starts = np.arange(0, len(row) - self.context + 1, self.stride or self.context)[: self.most]
        chunks: Ids = row[starts[:, None] + np.arange(self.context)]
        if bos is not None:
            chunks[:, 0] = bos
        return chunks


def cut(tokenizer: Tokenizer, text: str, how: Cut) -> Ids:
    """A text -> (chunks, context) ids as this tokenizer makes them; BOS where it wants one."""
    return how.chunks(tokenizer.encode(text), tokenizer.bos if tokenizer.add_bos else None)


def digest(chunks: Ids) -> str:
    """Hex SHA-256 of the ids: of the text, its tokenisation and its cut."""
    return hashlib.sha256(np.ascontiguousarray(chunks, "<i4").tobytes() + repr(chunks.shape).encode()).hexdigest()


def read(paths: Sequence[str | Path]) -> str:
    """One text: the files' texts, a blank line between them. RequestError, FormatError.

    A file is plain text, or .jsonl, or .json with one list; rows are strings or have a "text". .gz is unpacked.
    A folder is WikiText's: its test split, otherwise the validation split.
    """
    if not paths:
        raise RequestError("no text: name one or more files")
    return "\n\n".join(_read(Path(path)) for path in paths)


def _read(path: Path) -> str:
    path = _of_folder(path) if path.is_dir() else path
    raw = read_small(path, MOST)
    if path.suffix == ".gz":
        raw = _unpacked(raw, path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = looks_like(raw[:64]) if error.start < 64 else f"byte {error.start:,} is no UTF-8"
        raise FormatError(f"{path}: not a text: {what}") from None
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind in (".jsonl", ".json"):
        text = "\n\n".join(_rows(text, path, kind))
    if not text.strip():
        raise FormatError(f"{path}: there is no text in it")
    return text


def _of_folder(folder: Path) -> Path:
    for name in WIKITEXT:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return path
    raise FormatError(f"{folder}: a folder without {', '.join(WIKITEXT)} (or .gz of these): name the text's file")


def _unpacked(raw: bytes, path: Path) -> bytes:
    """At most `MOST` bytes: a small file may unpack to a disk full."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            text = file.read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: cannot be unpacked: {error}") from None
    if len(text) > MOST:
        raise FormatError(f"{path}: unpacks to more than {MOST:,} bytes: take a part of it")
    return text

    return io.BytesIO(raw)


def _rows(text: str, path: Path, kind: str) -> list[str]:
    if kind == ".json":
        rows = _parsed(text, str(path))
        if not isinstance(rows, list):
            raise FormatError(f"{path}: {type(rows).__name__}, expected a list of texts, or .jsonl with one a line")
        numbered = list(enumerate(rows, 1))
    else:
        lines = enumerate(text.split("\n"), 1)
        numbered = [(n, _parsed(line, f"{path}: line {n}")) for n, line in lines if line.strip()]
    return [_text(row, path, number) for number, row in numbered]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: no JSON: {str(error)[:120]}") from None


def _text(row: Any, path: Path, number: int) -> str:
    found = row.get("text") if isinstance(row, dict) else row
    if not isinstance(found, str):
        has = f"has {', '.join(map(repr, list(row)[:6]))}" if isinstance(row, dict) else f"is {type(row).__name__}"
        raise FormatError(f'{path}: row {number:,} {has:.120}: expected a string, or an object with a "text"')
    return found
