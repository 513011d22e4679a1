"""The full model's logits on disk, so that every model that is made of it can be judged without running it again.

A row is kept in 16 bits a token: codes 0 to 65,535 between its largest log-probability and its smallest, but at most
`DEPTH` nats below (what lies deeper has no weight in any figure). The largest alone has the code 65,535, so the
likeliest token stays the likeliest. tests/test_evaluate.py says what the rounding costs.

The file is a GGUF of its own kind: it is mapped, and checked like any stranger's. Its name and a key in it are the
digest of what the logits depend on; where one of these differs, it is another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf
from ..errors import BiseError, FormatError, RequestError
from ..panels import folder
from ..quant import Planned, QTensor

log = logging.getLogger(__name__)

KIND = "bise-logits-1"  # the architecture in such a file; the number counts changes of its layout
ABOUT = f"{KIND}.about"
DEPTH, TOP = 40.0, 65_535  # nats, codes
MOST = 16 << 30  # bytes of all such files together
ABANDONED = 3600  # seconds without a change after which an unfinished file has no writer any more
Shape = tuple[int, int]


class Kept:
    """Kept logits: `kept[i]` is the i-th part, (rows, vocab) float32 log-probabilities up to a constant."""

    def __init__(self, path: Path, about: str) -> None:
        """FormatError where the file is damaged, or holds the logits of something else than `about`."""
        file = gguf.GGUF(path)
        if file.keys.get("general.architecture") != KIND or file.keys.get(ABOUT) != about:
            raise FormatError(f"{path}: the logits of another model, text or cut")
        self.path, self._tensors = path, file.tensors
        self.vocab = self._tensors["0"].shape[1] if "0" in self._tensors else 0

    def __len__(self) -> int:
        return len(self._tensors) // 2

    def __getitem__(self, part: int) -> np.ndarray:
        codes, scales = self._tensors[str(part)], self._tensors[f"{part}.scale"]
        found = codes.data.view(np.uint16).reshape(codes.shape).astype(np.float32)
        found -= TOP
        found *= scales.data.view(np.float32)[:, None]
        return found


def packed(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, vocab) float32 -> codes (n, vocab) uint16, and the nats of one code (n,) float32."""
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise RequestError("the full model gives logits that are NaN or infinite: the model is damaged")
    depth = np.minimum(top - logits.min(axis=1, keepdims=True), np.float32(DEPTH))
    scale = np.maximum(depth, np.float32(1e-6)) / np.float32(TOP)
    steps = np.minimum((top - logits) / scale, TOP)
    np.rint(steps, out=steps)
    best = logits.argmax(axis=1)
    np.maximum(steps, 1, out=steps)
    steps[np.arange(len(logits)), best] = 0
    return (TOP - steps).astype(np.uint16), scale[:, 0]


def write(path: Path, about: str, shapes: Sequence[Shape], part: Callable[[], np.ndarray]) -> None:
    """Write the parts, asked for one after the other, whole or not at all."""
    tensors: dict[str, QTensor | Planned] = {}
    for i, shape in enumerate(shapes):
        tensors |= _planned(i, shape, part)
    gguf.write(path, {"general.architecture": KIND, ABOUT: about}, tensors)


def _planned(index: int, shape: Shape, part: Callable[[], np.ndarray]) -> dict[str, QTensor | Planned]:
    """F16 stands for "two bytes each", the plainest such type that GGUF readers take. The codes are asked for first."""
    scales: list[np.ndarray] = []

    def codes() -> QTensor:
        found, scale = packed(part())
        scales.append(scale)
        return QTensor("F16", found.shape, found.reshape(-1).view(np.uint8))

    return {
        str(index): Planned("F16", shape, codes),
        f"{index}.scale": Planned("F32", shape[:1], lambda: QTensor.of(scales.pop())),
    }


def identity(facts: Mapping[str, Any]) -> str:
    """All that the logits depend on, as one line: the model's fingerprint, the ids' digest, the cut, the arithmetic."""
    return json.dumps(dict(facts), sort_keys=True)


def path_of(name: str, about: str) -> Path:
    return folder() / f"{name[:40]}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.logits"


def find(path: Path, about: str) -> Kept | None:
    """What was kept of exactly this, or None; a file that is damaged is as good as none."""
    if not path.exists():
        return None
    try:
        kept = Kept(path, about)
        os.utime(path)
    except (BiseError, OSError) as error:
        log.info("%s: reading the text again", error)
        return None
    return kept


def make_room(nbytes: int, chunks: int) -> None:
    """Delete what was unused for longest until `nbytes` more fit into `MOST`. RequestError where they never will, or
    where the disk is full."""
    room = folder()
    remedy = f"pass --chunks with less than {chunks:,}"
    if nbytes > MOST:
        raise RequestError(f"logits of {chunks:,} chunks take {nbytes:,} bytes, at most {MOST:,} are kept: {remedy}")
    try:
        room.mkdir(parents=True, exist_ok=True)
        for part in room.glob(".*.logits.*.part"):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
        files = sorted(
            (status.st_mtime, path, status.st_size) for path in room.glob("*.logits") for status in [path.stat()]
        )
        held = sum(size for _, _, size in files)
        for _, path, size in files:
            if held + nbytes > MOST:
                path.unlink()
                held -= size
        free = shutil.disk_usage(room).free
    except OSError as error:
        raise BiseError(f"{room}: {error.strerror}: set BISE_CACHE to a folder for logits") from None
    if free < 1.05 * nbytes:
        raise RequestError(f"{room} has {free:,} bytes free, logits take {nbytes:,}: {remedy}, or set BISE_CACHE")
