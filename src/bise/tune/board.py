"""Figures for TensorBoard, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Writes what metrics.jsonl says as scalars into a folder; nothing at all without the package tensorboard."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """step: what an earlier process wrote after it is forgotten."""
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step)

    def note(self, fact: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in fact.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, fact["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
