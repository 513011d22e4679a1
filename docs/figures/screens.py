"""The pictures of the page: a server with puff, a real Chromium, the same seed every time.

python docs/figures/screens.py        # needs playwright, and a chromium on the PATH or in CHROMIUM
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SETTINGS = {"seed": 12, "temperature": 0.7}
QUESTIONS = ["Tell me a story about a little boat on a big lake.", "Tell me a story about the wind."]


def main() -> None:
    """page.png, page-tokens.png, page-phone.png"""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        command = [sys.executable, "-m", "bise", "serve", "--port", "0", "--quiet", "--data", data]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            url = re.search(r"http://\S+", server.stdout.readline())[0]  # type: ignore[index]
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            pictures(browser, url)
            browser.close()
        finally:
            server.terminate()
            server.wait()


def pictures(browser: Any, url: str) -> None:
    page = opened(browser, url, {"width": 1200, "height": 760}, "light")
    for i, question in enumerate(QUESTIONS):
        page.fill("#composer-text", question)
        page.keyboard.press("Enter")
        page.locator(".turn.assistant .tools button").nth(2 * i).wait_for()
    page.mouse.move(0, 0)
    kept = page.url
    shot(page, "page")
    tall = opened(browser, kept, {"width": 1200, "height": 760}, "dark")
    tall.locator(".turn.assistant").nth(1).wait_for()
    tall.click("#tokens-toggle")
    tall.locator(".strip").last.locator(".token").nth(28).click()
    tall.locator(".alternatives").wait_for()
    shot(tall, "page-tokens")
    phone = opened(browser, kept, {"width": 390, "height": 780}, "light", is_mobile=True, has_touch=True)
    phone.locator(".turn.assistant").nth(1).wait_for()
    shot(phone, "page-phone")


def opened(browser: Any, url: str, size: dict[str, int], scheme: str, **more: Any) -> Any:
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce", **more)
    context.add_init_script(f"localStorage.setItem('bise.defaults', {json.dumps(json.dumps(SETTINGS))})")
    page = context.new_page()
    page.goto(url)
    page.locator("#send:not([disabled])").wait_for()
    return page


def shot(page: Any, name: str) -> None:
    page.wait_for_timeout(300)
    page.screenshot(path=HERE / f"{name}.png")


if __name__ == "__main__":
    main()
