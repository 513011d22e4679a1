"""Which adapters a server has from its start, and how much room there is for all: said and checked before it loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import lora
from ..errors import RequestError
from ..weights import Weights

ROOM = 1 << 30  # bytes, where adapters may be loaded later


@dataclass(frozen=True)
class Shelved:
    """paths: by name. folder: from which more may be loaded. limit: bytes of all in memory; None: those of the start,
    and `ROOM` with a folder. any_base: see `lora.read`."""

    paths: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    limit: int | None = None
    any_base: bool = False

    def checked(self, weights: Weights) -> Shelved:
        """The same with its limit decided. BiseError for an adapter that does not fit the model."""
        if self.folder is not None and not self.folder.is_dir():
            raise RequestError(f"--adapters {self.folder}: there is no such folder")
        sizes = [lora.read(path, weights, self.any_base).parameters * 4 for path in self.paths.values()]
        limit = sum(sizes) + (ROOM if self.folder else 0) if self.limit is None else self.limit
        return replace(self, limit=limit)
