"""The door for other programs: `bise serve`, the API that they already speak, and a page.

Two processes: the front (front.py) speaks HTTP and never computes; the worker (worker.py) holds the model. They talk
in frames (wire.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Serving:
    """What `bise serve` was told. model, options: as Desk.open has them; slots, reuse (bytes) None: plan.py decides."""

    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None  # the model's id in the API
    format: str | None = None  # "v1", "v2" or "v3": how messages are written, whatever the files say
    host: str = "127.0.0.1"
    port: int = 8080  # 0: a free one
    slots: int | None = None
    queue: int = 64
    reuse: int | None = None
    key_file: Path | None = None
    hosts: list[str] = field(default_factory=list)  # names besides localhost that it is called by
    data: Path | None = None  # where conversations and sessions lie
    drain: float = 30.0  # seconds that running requests have when it ends
    quiet: bool = False  # no line per request
    adapters: dict[str, str] = field(default_factory=dict)  # paths by name, there from the start
    folder: Path | None = None  # from which requests may have more loaded, by name
    adapter_memory: int | None = None  # bytes of all adapters; None: of those from the start, 1 GiB with a folder
    any_base: bool = False


def serve(
    told: Serving, say: Callable[[str], None], note: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> int:  # fmt: skip
    """Serve until a signal comes; the exit code. BiseError, before anything is loaded, where that cannot be.

    say       is called with the address, once the model is there
    note      with everything else that a person may want to know
    progress  with the bytes of the weights that are placed, and in all
    """
    from .front import Front

    return Front(told, say, note, progress).run()
