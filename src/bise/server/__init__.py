"""The door for other programs: `bise serve`, the API that they already speak, and a page.

serve() starts the engine's process, listens, and ends in good order. Two processes: this one speaks HTTP and never
computes; the worker holds the model. They talk in frames (wire.py).
"""

from __future__ import annotations

from .settings import Settings

__all__ = ["Settings", "serve"]


def serve(settings: Settings) -> int:
    """Serve until a signal comes; the exit code. BiseError, before anything is loaded, where that cannot be."""
    from .front import Front

    return Front(settings).run()
