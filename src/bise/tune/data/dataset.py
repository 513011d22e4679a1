"""Files to a data set: read once, every row checked, nothing left out in silence."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ...chat import ChatFormat
from ...errors import FormatError, RequestError
from ...template import Guest
from ...tokenizer import TURN_ENDS, Tokenizer
from ..sample import Example
from .faults import BadData, BadRow, Faults
from .files import Rows
from .ids import Encoded, Encoder, Long
from .mixture import Source, drawn, held_back, source_of
from .report import Report, Tally
from .rows import KINDS, Choice, Judged, Kind, Known, Talk, contents, kind_of, recognise
from .store import Picked, Store, pair_at, sample_at, verdict_at

Progress = Callable[[int, int], None]
Where = str | Path | Source
OFTEN = 256  # rows between two calls of progress
_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<|im_start|>", "<|user|>", "<|assistant|>", *TURN_ENDS)
_MAKE: dict[str, Callable[[Store, int], Any]] = {"sft": sample_at, "pairs": pair_at, "verdicts": verdict_at}


@dataclass(frozen=True)
class Dataset:
    """What a model is taught, as tokens.

    train, held_out  sequences of Sample ("sft"), Pair ("pairs") or Verdict ("verdicts"), in the order of the files,
                     each example made when it is asked for; held_out may be empty
    """

    kind: Kind
    train: Sequence[Example]
    held_out: Sequence[Example]
    report: Report
    faults: Faults


def read(
    sources: Sequence[Where], tokenizer: Tokenizer, chat: ChatFormat | None, *, kind: Kind | None = None,
    max_length: int | None = None, long: Long = "refuse", last: bool = False, append_eos: bool = True,
    held_out: float | Sequence[Where] = 0.0, seed: int = 0, skip_bad: bool = False, progress: Progress | None = None,
) -> Dataset:  # fmt: skip
    """Rows of files -> a data set.

    sources     files, each perhaps with a weight ("rows.jsonl:2")
    chat        how the model is spoken to; None: a base model, which reads texts, completions and Alpaca only
    kind        what the rows are for; None: as the first row looks
    max_length, long, last, append_eos   as `Encoder` has them
    held_out    the share of rows to hold out, or files
    seed        draws the rows of files whose weight is no whole number
    skip_bad    leave faulty rows out; else any raises BadData, after all have been looked at, and carries them
    progress    called with (bytes read, bytes in all)

    Raises BadData, FormatError for a file that is none, RequestError for options that cannot be.
    """
    if kind not in (None, *KINDS):
        raise RequestError(f"kind {kind!r:.40}, expected {', '.join(KINDS)}")
    if max_length is not None and max_length < 2:
        raise RequestError(f"max_length is {max_length}, expected at least 2")
    files = [source_of(source) for source in sources]
    held = [] if isinstance(held_out, int | float) else [source_of(source) for source in held_out]
    if not files:
        raise RequestError("no file to learn from: name at least one")
    began = time.perf_counter()
    with Guest() as guest:
        encoder = Encoder(tokenizer, chat, max_length, long, last, append_eos, guest)
        reading = _Reading(encoder, files, held, kind, progress)
        reading.all()
    if reading.faults and (not skip_bad or not len(reading.store)):
        raise BadData(reading.faults, sum(tally.rows for tally in reading.tallies))
    share = held_out if isinstance(held_out, int | float) else 0.0
    return reading.finish(share, seed, began)


class _Reading:
    """All files, one after the other, into one store."""

    def __init__(
        self, encoder: Encoder, files: list[Source], held: list[Source], kind: Kind | None, progress: Progress | None
    ) -> None:
        self.encoder, self.kind, self.progress = encoder, kind, progress
        self.opened = [Rows(source.path) for source in [*files, *held]]
        self.tallies = [Tally(s.path, s.weight, n >= len(files)) for n, s in enumerate([*files, *held])]
        self.store, self.faults = Store([str(tally.path) for tally in self.tallies]), Faults()
        self.seen: set[int] = set()

    def all(self) -> None:
        before, total = 0, sum(rows.size for rows in self.opened)
        for n, (rows, tally) in enumerate(zip(self.opened, self.tallies, strict=True)):
            for row in rows:
                tally.rows += 1
                if self.progress and tally.rows % OFTEN == 0:
                    self.progress(before + row.end, total)
                try:
                    self.row(n, tally, row.line, row.value)
                except BadRow as bad:
                    tally.skipped += 1
                    self.faults.add(str(tally.path), row.line, bad)
            if not tally.rows:
                raise FormatError(f"{tally.path}: no rows in it ({rows.size:,} bytes)")
            before += rows.size
            tally.nbytes, tally.sha256 = rows.size, rows.sha256
        if self.progress:
            self.progress(total, total)

    def row(self, n: int, tally: Tally, line: int, value: Any) -> None:
        if isinstance(value, BadRow):
            raise value
        self.kind = self.kind or kind_of(value)
        known = recognise(value, self.kind, self.encoder.chat is not None)
        if self.encoder.chat is None and _speaks(known.row):
            raise RequestError(
                f"{tally.path}:{line}: a conversation, and this model has no chat format: give it one (v1, v2 or v3)"
            )
        self._check(texts := contents(known.row))
        encoded = self.encoder.encode(known)
        tally.formats[known.format] += 1
        if found := {mark for text in texts for mark in self._literal.findall(text)}:
            tally.literal.update(found)
            tally.literal_rows += 1
        self._keep(encoded, n, tally, line, known)

    def _keep(self, encoded: list[Encoded], n: int, tally: Tally, line: int, known: Known) -> None:
        key = _key(known, 0)
        if key in self.seen:
            tally.duplicates += 1
        self.seen.add(key)
        good = not isinstance(known.row, Judged) or known.row.good
        for piece, one in enumerate(encoded):
            own = _key(known, piece) if piece and known.format == "text" else key
            self.store.add(one, n, line, own, good)

    @staticmethod
    def _check(texts: list[str]) -> None:
        if any("\0" in text for text in texts):
            raise BadRow("NUL byte", "a text has a NUL character in it")

    @cached_property
    def _literal(self) -> re.Pattern[str]:
        """Names of control tokens, of this vocabulary and of well-known formats: in a text they are text."""
        names = {name for name in (*self.encoder.tokenizer.control, *_MARKS) if len(name) > 1}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def finish(self, share: float, seed: int, began: float) -> Dataset:
        """What is trained on and what is held out."""
        assert self.kind
        store, make = self.store, _MAKE[self.kind]
        examples = np.arange(0, len(store), 2 if self.kind == "pairs" else 1)  # the first sequence of each
        keys, source = np.frombuffer(store.key, np.uint64)[examples], np.frombuffer(store.source, np.uint16)[examples]
        apart = np.array([tally.held for tally in self.tallies])[source]  # (examples,) bool: from a file to hold out
        overlap = np.isin(keys, keys[apart]) & ~apart
        held = apart | held_back(keys, share) if share else apart
        train = self._mixed(np.flatnonzero(~(held | overlap)), source, seed)
        if not len(train):
            raise RequestError(f"all {len(examples):,} rows are held out: nothing is left to train on")
        picked, kept = examples[train], examples[held]
        report = self._report(picked, len(kept), int(overlap.sum()), time.perf_counter() - began)
        return Dataset(self.kind, Picked(store, picked, make), Picked(store, kept, make), report, self.faults)

    def _mixed(self, rows: np.ndarray, source: np.ndarray, seed: int) -> np.ndarray:
        """Each file's rows as often as its weight says."""
        rng, mixed = np.random.default_rng(seed), []
        for n, tally in enumerate(self.tallies):
            mine = rows[source[rows] == n]
            mixed.append(mine[drawn(len(mine), tally.weight, rng)])
        return np.concatenate(mixed)

    def _report(self, picked: np.ndarray, held: int, overlap: int, seconds: float) -> Report:
        assert self.kind
        for n, tally in enumerate(self.tallies):
            tally.measure(self.store, n)
        each = np.concatenate([picked, picked + 1]) if self.kind == "pairs" else picked
        lengths, learnt = self.store.lengths()[each], np.frombuffer(self.store.targets, np.uint32)[each]
        digest = self.store.digest()
        digest.update(picked.tobytes())
        return Report(
            self.kind, self.tallies, len(picked), held, int(lengths.sum()), int(learnt.sum()), int(lengths.max()),
            overlap, self.encoder.cut, self.encoder.tails, self.encoder.unclosed, digest.hexdigest(),
            self.faults.counts, seconds,
        )  # fmt: skip


def _speaks(row: Any) -> bool:
    if isinstance(row, Choice):
        return _speaks(row.chosen)
    return isinstance(row.told if isinstance(row, Judged) else row, Talk)


def _key(known: Known, piece: int) -> int:
    """64 bits of a hash of what a row (or a piece of a text) says: its side depends on no tokenizer and no place."""
    said = json.dumps([known.row, piece], default=vars, sort_keys=True)
    return int.from_bytes(blake2b(said.encode(), digest_size=8).digest(), "little")
