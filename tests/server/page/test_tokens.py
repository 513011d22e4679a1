"""Tokens, their alternatives, forks, and the bar that shows the context."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from server.page.browser import Page, answered, api, kept, say
from server.running import Server


def test_tokens_alternatives_and_a_fork(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    say(page, "Tell me a story about a green frog.")
    answered(page)
    page.click("#tokens-toggle")
    page.get_by_text("How likely each token was").wait_for()
    tokens = page.locator(".strip .token")
    answer = kept(page, site)["messages"][1]
    assert tokens.count() == len(answer["tokens"])
    doubts = page.evaluate(
        "() => [...document.querySelectorAll('.strip .token')].map(t => +t.style.getPropertyValue('--doubt'))"
    )
    assert doubts == pytest.approx([1 - math.exp(t[1]) for t in answer["tokens"]], abs=2e-3)
    at = next(
        i
        for i, (text, _, others) in enumerate(answer["tokens"])
        if i > 4 and others[0][0] == text and others[1][0].strip()
    )
    tokens.nth(at).click()
    popover = page.locator(".alternatives")
    popover.wait_for()
    assert popover.locator(".choice").count() == 8
    assert popover.locator(".choice.chosen .piece").inner_text().replace("␣", " ") == answer["tokens"][at][0]
    chosen = answer["tokens"][at][2][1][0]
    popover.locator(".choice").nth(1).click()
    page.get_by_role("group", name="Branch 2 of 2").wait_for()
    answered(page)
    fork = kept(page, site)["messages"][2]
    before = "".join(text for text, _, _ in answer["tokens"][:at])
    assert fork["content"].startswith(before + chosen) and len(fork["content"]) > len(before + chosen)
    assert fork["parent"] == answer["parent"] and fork["tokens"][at][0] == chosen
    assert "".join(text for text, _, _ in fork["tokens"]) == fork["content"]
    assert fork["usage"]["prompt"] == pytest.approx(answer["usage"]["prompt"], abs=3), (
        "the fork's beginning counts as answer"
    )


def test_the_context_bar_tells_what_is_where(visit: Callable[..., Page], site: Server) -> None:
    usage = {"prompt": 300, "completion": 100, "reused": 250, "first": 0.4, "rate": 12.5}
    old = {"prompt": 100, "completion": 150}
    messages = [
        {"id": "a", "parent": None, "role": "user", "content": "1"}, {"id": "b", "parent": "a", "role": "assistant", "content": "2", "usage": old},
        {"id": "c", "parent": "b", "role": "user", "content": "3"}, {"id": "d", "parent": "c", "role": "assistant", "content": "4", "usage": usage},
    ]  # fmt: skip
    id = api(site, "/api/conversations", {"messages": messages, "settings": {"system": "Be brief and kind."}})["id"]
    page = visit(f"/#{id}")
    page.locator(".context .part.answer").wait_for()
    labels = [part.get_attribute("aria-label") for part in page.locator(".context .part").all()]
    system = int(re.match(r"System prompt: (\d+) tokens, 1 to", labels[0])[1])
    assert 3 < system < 20
    assert labels[1:] == [
        f"History: {250 - system} tokens, {system + 1} to 250; rolled out of the window",
        "Your message: 50 tokens, 251 to 300; 22 of them rolled out of the window",  # puff sees 128: 273 to 400
        "The answer: 100 tokens, 301 to 400", "Room left: 624 tokens",
    ]  # fmt: skip
    page.locator(".part.answer").focus()
    assert page.locator(".context .caption").inner_text() == "The answer: 100 tokens, 301 to 400"
    assert page.locator(".context .figures").inner_text() == "13 tokens/s · first after 0.4 s · 250 reused"
    bar, gone = (page.locator(s).bounding_box() for s in (".context .bar", ".mark.gone"))
    assert gone["width"] / bar["width"] == pytest.approx(272 / 1024, abs=0.005)
