"""The log-in form in a real browser: its policy lets it look as it should and send what it has to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.running import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium on the PATH, and CHROMIUM names none", allow_module_level=True)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
KEY = "a-key-of-sixteen-letters"


def test_a_person_logs_in(start: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    server = start("--key-file", str(file))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(server.url)
        assert page.evaluate("getComputedStyle(document.querySelector('form')).display") == "flex"
        page.keyboard.type("not the key")  # the field has the focus
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("not a key of this server").wait_for()
        page.get_by_label("This server wants a key.").fill(KEY)
        page.get_by_role("button").click()
        page.wait_for_url(f"{server.url}/")
        page.wait_for_load_state("networkidle")
        status = page.evaluate("fetch('/v1/models').then(reply => reply.status)")
        assert status == 200 and page.evaluate("document.cookie") == ""
        assert not [line for line in said if "Content Security Policy" in line]
        browser.close()
