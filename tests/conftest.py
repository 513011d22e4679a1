"""Where the tests find real data made by others: a folder beside the checkout, never part of it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also what takes minutes, or gigabytes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked slow wait for --slow or -m slow."""
    if not config.getoption("--slow") and "slow" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared, with data/ and tools/; tests that need it are skipped, by name, where it is missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"the shared data folder {SHARED} is not here")
    return SHARED


@pytest.fixture(autouse=True)
def quiet_library() -> Iterator[None]:
    """The command line, tried in this process, listens to the library's log: the next test finds it as it was."""
    log = logging.getLogger("bise")
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before
