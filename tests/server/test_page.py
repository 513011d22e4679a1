"""What the server sends of the page. What the page does with it is in page/, in a real Chromium."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from server.running import Server


def test_only_known_files_under_a_strict_policy(server: Server) -> None:
    with urllib.request.urlopen(server.url + "/") as answer:
        policy = answer.headers["Content-Security-Policy"]
        tag = answer.headers["ETag"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
    request = urllib.request.Request(server.url + "/", headers={"If-None-Match": tag})
    assert status(request) == 304
    for path in (
        "/page/",
        "/page/..%2fpage.py",
        "/page/%2e%2e/access.py",
        "/page/page.py",
        "/page/index.htm",
        "/page/.",
        "/page/app.js%00",
    ):
        assert status(server.url + path) == 404, path


def status(request: Any) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    caught.value.close()
    return caught.value.code


def test_the_page_is_plain() -> None:
    """No markup from strings, no inline style or script, nothing from elsewhere, files one can read."""
    folder = Path(__file__).parents[2] / "src" / "bise" / "server" / "page" / "web"
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path.name
        if path.suffix == ".js":
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "DOMParser",
                "createContextualFragment",
                "srcdoc",
            ):
                assert word not in text, (path.name, word)
        if path.suffix in (".html", ".css"):
            assert not re.search(r"https?://|\sstyle=|\son\w+=|@import|url\(", text), path.name
