"""The run folder: everything that a training leaves behind, and the lock that keeps a second one out.

run.json           the card: what was asked for, on which data, with which versions, and what came of it
metrics.jsonl      one line a step, one line an evaluation
last.safetensors   the checkpoint that --resume goes on from
best.safetensors   the weights that had the lowest loss on the held-out rows
left-out.jsonl     the faulty rows, with --skip-bad
adapter/           what was learnt, as PEFT reads it; adapter.gguf, as llama.cpp does; or model.gguf, or model/
samples.md         answers to held-out prompts, before and after
loss.png           the loss, where matplotlib is installed; tensorboard/: the figures, where TensorBoard is
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..disk import replacing
from ..errors import FormatError, RequestError
from ..safetensors import load_json
from .board import Board

MOST = 64 << 20  # bytes of a card


class Run:
    """folder: where it lies. The card is written whole each time, the metrics line by line."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.card, self.metrics = self.folder / "run.json", self.folder / "metrics.jsonl"
        self.last, self.best = self.folder / "last.safetensors", self.folder / "best.safetensors"
        self.board: Board | None = None
        self._log: TextIO | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else may write here meanwhile. The lock is the process's own: it dies with it, even by kill -9."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RequestError(f"{self.folder}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 20).decode("ascii", "replace").strip()
            os.close(fd)
            raise RequestError(
                f"{self.folder}: process {owner} is training here: wait for it, or choose another folder with --out"
            ) from None
        try:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
            yield
        finally:
            self.close()
            os.close(fd)

    def write_card(self, facts: Mapping[str, Any]) -> None:
        with replacing(self.card) as file:
            file.write(json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n")

    def read_card(self) -> dict[str, Any]:
        """RequestError if there is no run here."""
        if not self.card.exists():
            raise RequestError(f"{self.folder}: there is no run here (no run.json): start one with --out {self.folder}")
        raw = self.card.read_bytes()
        if len(raw) > MOST:
            raise FormatError(f"{self.card}: {len(raw):,} bytes, expected at most {MOST:,}")
        return load_json(raw, str(self.card))

    def note(self, fact: Mapping[str, Any]) -> None:
        """Another line of the metrics."""
        if self._log is None:
            self._log = self.metrics.open("a", encoding="utf-8")
        self._log.write(json.dumps(fact) + "\n")
        self._log.flush()
        if self.board is not None:
            self.board.note(fact)

    def sync(self) -> None:
        """The metrics are on disk: a checkpoint must never be ahead of them."""
        if self._log is not None:
            os.fsync(self._log.fileno())

    def notes(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line that was cut off by a crash is left out."""
        if not self.metrics.exists():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def trim(self, step: int) -> None:
        """Forget the metrics after `step`: the steps that come will write them again."""
        self.close()
        lines = [json.dumps(fact) for fact in self.notes() if fact["step"] <= step]
        with replacing(self.metrics) as file:
            file.write("".join(line + "\n" for line in lines).encode())

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        if self._log is not None:
            self._log.close()
            self._log = None
