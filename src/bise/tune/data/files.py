"""Rows out of files, one at a time: JSON lines, a JSON array, or plain text. The file is read once, in small pieces."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...disk import PICKLE, looks_like, opened
from ...errors import FormatError
from .faults import BadRow

MAX_ROW = 16 << 20  # bytes; a row that is longer has lost its line ends
DOCUMENT = 1 << 20  # characters; a text is cut here at the end of a line, whatever follows
DOCUMENT_END = "<|endoftext|>"  # alone on a line of a .txt file, as TinyStories and GPT-2's texts have it
_TEXTS = (".txt", ".text", ".md")
_PANDAS = "import pandas; pandas.read_{0}({1!r}).to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)"
_REFUSED = {
    ".parquet": "a Parquet file", ".arrow": "an Arrow file", ".feather": "an Arrow file", ".csv": "a CSV file",
    ".tsv": "a TSV file", ".xlsx": "a spreadsheet", ".py": "a program, and bise runs none to get at data",
    ".pkl": PICKLE, ".pickle": PICKLE, ".pt": PICKLE, ".pth": PICKLE, ".bin": PICKLE,
    ".gz": "compressed: unpack it first", ".zst": "compressed: unpack it first", ".zip": "compressed: unpack it first",
}  # fmt: skip
_READERS = {".parquet": "parquet", ".arrow": "feather", ".feather": "feather", ".csv": "csv", ".tsv": "table"}
_BLANK = re.compile(r"[ \t\r\n]*")
_MAGICS = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}


class Row(NamedTuple):
    """line: where it begins, from 1. value: what JSON makes of it, or what is wrong with it. end: bytes read so far."""

    line: int
    value: Any
    end: int


class Rows:
    """The rows of one file, to be read once. After that: sha256 (of all its bytes) and size."""

    def __init__(self, path: str | Path) -> None:
        """Raises FormatError for a file of another kind, with the way out."""
        self.path = Path(path)
        with opened(self.path) as file:
            head = file.read(4096)
            self.size = file.seek(0, 2)
        self.layout = _layout(self.path, head)
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of the bytes that have been read."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Row]:
        read = {"lines": _json_lines, "array": _json_array, "text": _documents}[self.layout]
        with opened(self.path) as self._file:
            yield from read(self)
            while rest := self._file.read(MAX_ROW):  # where reading ended early, the digest is still the whole file's
                self._digest.update(rest)

    def lines(self) -> Iterator[tuple[int, bytes | BadRow]]:
        """(number, line with its end); what is too long is passed over."""
        at = 0
        while line := self.take(self._file.readline(MAX_ROW)):
            at += 1
            if len(line) < MAX_ROW or line.endswith(b"\n"):
                yield at, line
                continue
            while (rest := self.take(self._file.readline(MAX_ROW))) and not rest.endswith(b"\n"):
                pass
            yield at, BadRow("row too large", f"the line has more than {MAX_ROW:,} bytes: one row a line")

    def take(self, data: bytes) -> bytes:
        """Counts bytes into the digest."""
        self._digest.update(data)
        return data

    def more(self, size: int) -> bytes:
        return self.take(self._file.read(size))

    @property
    def end(self) -> int:
        return self._file.tell()


def _layout(path: Path, head: bytes) -> str:
    """ "lines", "array" or "text"; raises FormatError for anything else."""
    ending = next((_MAGICS[m] for m in _MAGICS if head.startswith(m)), path.suffix.lower())
    if ending in _REFUSED:
        reader = _READERS.get(ending)
        out = f': convert it to JSON lines, python -c "{_PANDAS.format(reader, path.name)}"' if reader else ""
        raise FormatError(f"{path}: {_REFUSED[ending]}{out}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FormatError(f"{path}: UTF-16 text: save it as UTF-8")
    if ending in _TEXTS:
        return "text"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start == b"[":
        return "array"
    if start == b"{" or ending in (".jsonl", ".ndjson", ".json"):
        return "lines"
    what = looks_like(head) if head else "empty"
    raise FormatError(f"{path}: {what}, expected rows as .jsonl or .json, or .txt for plain text")


def _decode(line: bytes) -> str | BadRow:
    if b"\0" in line:
        return BadRow("NUL byte", f"a NUL byte at byte {line.index(0) + 1} of the line: the file is damaged")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the line is 0x{line[error.start]:02X}"
        return BadRow("not UTF-8", f"not UTF-8 ({found}): save the file as UTF-8")


def _json_lines(rows: Rows) -> Iterator[Row]:
    for at, line in rows.lines():
        text = line if isinstance(line, BadRow) else _decode(line.removeprefix(codecs.BOM_UTF8) if at == 1 else line)
        if isinstance(text, str) and not text.strip():
            continue
        yield Row(at, text if isinstance(text, BadRow) else _parse(text), rows.end)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow("not JSON", f"not JSON: {error.msg} at column {error.colno}, expected one row a line")
    except (ValueError, RecursionError) as error:
        return BadRow("not JSON", f"not JSON that can be read: {error}")


def _json_array(rows: Rows) -> Iterator[Row]:
    """The elements of an array, each parsed as soon as it is there; nothing after a fault can be read."""
    window = _Window(rows)
    try:
        window.step("[")
        while window.next() != "]" or window.count:
            line, value = window.line, window.value()
            yield Row(line, value, rows.end)
            if window.next() == "]":
                break
            window.step(",")
        window.step("]")
        if window.next():
            raise BadRow("not JSON", "not JSON: something stands after the array's end")
    except UnicodeDecodeError as error:
        said = f"byte 0x{error.object[error.start]:02X} is not UTF-8: save the file as UTF-8"
        yield Row(window.line, BadRow("not UTF-8", said), rows.end)
    except BadRow as fault:
        yield Row(window.line, fault, rows.end)


class _Window:
    """The part of an array's text that is being read. line: where it begins; count: values so far."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._text, self._at = rows, "", 0
        self._utf8, self._json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self.line, self.count = 1, 0

    def next(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            self._go(_BLANK.match(self._text, self._at).end())  # type: ignore[union-attr]  # it matches anything
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def step(self, wanted: str) -> None:
        """Over one character, which has to be this one."""
        if (found := self.next()) != wanted:
            what = f"{found!r}" if found else "the file's end"
            raise BadRow("not JSON", f"not JSON: {what}, expected {wanted!r}; nothing after it was read")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_ROW:
                    raise BadRow("row too large", f"more than {MAX_ROW:,} characters, or not JSON: {error}") from None
                if not self._more():
                    raise BadRow("not JSON", f"not JSON: {error}; nothing after it was read") from None
                continue
            self._go(end)
            self.count += 1
            return value

    def _go(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        size = max(1 << 20, len(self._text) - self._at)  # doubled, because a value is parsed from its start each time
        data = self._rows.more(size)
        self._text, self._at = self._text[self._at :] + self._utf8.decode(data, final=not data), 0
        return bool(data)


def _documents(rows: Rows) -> Iterator[Row]:
    """Texts between lines of <|endoftext|>; where there are none, the file is one text."""
    lines: list[str] = []
    begin, size = 1, 0
    for at, raw in rows.lines():
        text = raw if isinstance(raw, BadRow) else _decode(raw.removeprefix(codecs.BOM_UTF8) if at == 1 else raw)
        if isinstance(text, BadRow):
            yield Row(at, text, rows.end)
            continue
        ends = text.strip() == DOCUMENT_END
        if not ends:
            begin = begin if lines else at
            lines.append(text.removesuffix("\n").removesuffix("\r"))
            size += len(text)
        if ends or size > DOCUMENT:
            yield from _document(lines, begin, rows.end)
            lines, size = [], 0
    yield from _document(lines, begin, rows.end)


def _document(lines: list[str], begin: int, end: int) -> Iterator[Row]:
    blank = next((i for i, line in enumerate(lines) if line.strip()), None)
    if blank is not None:
        yield Row(begin + blank, "\n".join(lines[blank:]).rstrip(), end)
