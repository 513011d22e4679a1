"""For tests of clients that leave sockets and loops to the garbage collector: it comes when nobody is blamed for it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def swept() -> Iterator[None]:
    """Import it into a module: what its tests leave behind is collected with the last of them."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):  # what a finaliser lets go
            gc.collect()
