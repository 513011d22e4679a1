"""What the tests of the page do in a browser again and again."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from server.running import Server, until

Page = Any  # playwright's, which need not be installed
TURNS = ".turn.assistant"
SAMPLE = Path(__file__).with_name("sample.md")  # all the markdown that there is


def ready(page: Page) -> None:
    page.locator("#send:not([disabled])").wait_for()


def say(page: Page, text: str) -> None:
    ready(page)
    page.fill("#composer-text", text)
    page.press("#composer-text", "Enter")


def answered(page: Page, count: int = 1) -> str:
    """Wait for the answer under the last message; its text."""
    page.locator(TURNS).nth(count - 1).wait_for()
    page.wait_for_function("() => document.querySelector('#send').textContent === 'Send'")
    saved(page)
    return page.locator(f"{TURNS} .words").nth(count - 1).inner_text()


def saved(page: Page) -> None:
    """Wait until nothing is on its way to the server any more."""
    until(lambda: page.evaluate("async () => !(await import('/page/library.js')).saving()"))


def api(server: Server, path: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def kept(page: Page, server: Server) -> dict[str, Any]:
    saved(page)
    return api(server, "/api/conversations/" + page.url.rpartition("#")[2])


def keep(server: Server, *said: str, **more: Any) -> str:
    """A conversation that is there already; its id."""
    messages = [
        {
            "id": f"m{i}",
            "parent": f"m{i - 1}" if i else None,
            "role": ("user", "assistant")[i % 2],
            "content": text,
            "finish": "stop" if i % 2 else "",
        }
        for i, text in enumerate(said)
    ]
    return api(server, "/api/conversations", {"title": said[0][:60], "messages": messages, **more})["id"]


def wild(page: Page) -> None:
    """At temperature 2 puff does not end by itself before the context does: there is time to act."""
    page.click("#settings-toggle")
    page.locator("input[name=temperature]").fill("2")
    page.locator("input[name=min_p]").fill("0")
    page.keyboard.press("Escape")
