"""A browser and a server for the tests of the page; they are skipped where there is no Chromium or no playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bise.api import BUILT_IN
from server.page.browser import Page
from server.running import Server

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
REFUSED = "Failed to load resource"  # what Chromium says on the console about every 4xx and 5xx


@pytest.fixture(scope="package")
def site() -> Iterator[Server]:
    if not BUILT_IN.exists():
        pytest.skip("the built-in model is not here")
    found = Server("--slots", "2", "--queue", "2", "--threads", "1")
    yield found
    found.close()


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH, and CHROMIUM names none")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, site: Server, start: Any) -> Iterator[Callable[..., Page]]:
    """visit(path, server=..., **context) -> a page, closed before any server that `start` started. In the end: nothing
    was asked of anybody but the server, and the browser had nothing to complain about (a violation of the policy would
    be an error on the console)."""
    contexts, complaints, strangers = [], [], []

    def begin(path: str = "/", server: Server = site, **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((server.url + "/", "blob:")) else strangers.append(r.url))
        page.goto(server.url + path)
        page.expect_refusals = lambda: complaints.__setitem__(slice(None), [c for c in complaints if REFUSED not in c])
        return page

    yield begin
    for context in contexts:
        context.close()
    assert strangers == []
    assert complaints == []
