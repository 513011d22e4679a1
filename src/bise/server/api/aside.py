"""Work that may take long is done in a thread: the loop that everybody waits for has other things to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio

from .. import limits

T = TypeVar("T")
LONG = limits.INLINE + 1  # the size of what always goes to a thread


async def aside(size: int, work: Callable[..., T], *args: object) -> T:
    """What `work` returns. size: characters to be tokenised, or numbers to be written; a few are done at once, because
    going to a thread and back takes 0.1 ms."""
    if size <= limits.INLINE:
        return work(*args)
    return await anyio.to_thread.run_sync(work, *args)
