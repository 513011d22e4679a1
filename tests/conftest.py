"""Where the tests find real data made by others: a folder beside the checkout, never part of it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared, with data/ and tools/; tests that need it are skipped, by name, where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"the shared data folder {SHARED} is not here")
    return SHARED
