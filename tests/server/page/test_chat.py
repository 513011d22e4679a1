"""Chatting with puff: what is said, stopped, branched, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.page.browser import TURNS, Page, answered, api, kept, ready, say, wild
from server.running import Server, alive, until


def test_a_chat_streams_is_kept_and_comes_back(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    page.get_by_text("Everything stays on this machine.").wait_for()
    say(page, "Tell me a story about a red boat.")
    first = answered(page)
    assert len(first.split()) > 20
    say(page, "Tell me a story about a dog named Tim.")
    second = answered(page, 2)
    page.locator(".context .figures").get_by_text("tokens/s").wait_for()
    file = kept(page, site)
    assert [m["role"] for m in file["messages"]] == ["user", "assistant"] * 2
    assert file["title"] == "Tell me a story about a red boat."
    answer = file["messages"][3]
    assert (
        answer["finish"] == "stop"
        and answer["usage"]["reused"] > 0
        and answer["usage"]["completion"] == len(answer["tokens"])
    )
    assert "".join(text for text, _, _ in answer["tokens"]) == answer["content"]
    page.reload()
    page.locator(TURNS).nth(1).wait_for()
    assert [page.locator(f"{TURNS} .words").nth(i).inner_text() for i in (0, 1)] == [first, second]
    assert page.locator("#shelf .item.here .name").inner_text() == "Tell me a story about a red boat."


def test_edit_regenerate_and_branches(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    say(page, "Tell me a story about a cat.")
    first = answered(page)
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_role("group", name="Branch 2 of 2").wait_for()
    second = answered(page)
    page.get_by_role("button", name="Previous branch").click()
    assert page.locator(f"{TURNS} .words").inner_text() == first
    page.locator(".turn.user").hover()
    page.get_by_role("button", name="Edit").click()
    page.locator("textarea.edit").fill("Tell me a story about a bird.")
    page.get_by_role("button", name="Send as a new branch").click()
    page.locator(".turn.user").get_by_role("group", name="Branch 2 of 2").wait_for()
    answered(page)
    page.locator(".turn.user").get_by_role("button", name="Previous branch").click()
    page.locator(TURNS).get_by_role("group", name="Branch 2 of 2").wait_for()
    assert page.locator(f"{TURNS} .words").inner_text() == second, "the youngest branch below is read"
    file = kept(page, site)
    assert [m["content"] for m in file["messages"] if m["role"] == "user"] == [
        "Tell me a story about a cat.",
        "Tell me a story about a bird.",
    ]
    assert len(file["messages"]) == 5


def test_stop_frees_the_slot_and_continue_goes_on(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    ready(page)
    wild(page)
    (worker,) = site.children()
    say(page, "Tell me a story about a long river.")
    page.locator(".speaking").wait_for()
    os.kill(worker, signal.SIGSTOP)  # so that the answer cannot end before it is stopped
    try:
        assert page.locator("#send").inner_text() == "Stop"
        page.keyboard.press("Escape")
        page.get_by_text("Stopped.").wait_for()
    finally:
        os.kill(worker, signal.SIGCONT)
    until(lambda: re.search(r"^bise_slots_in_use 0", metrics(site), re.M))
    half = answered(page)
    assert kept(page, site)["messages"][1]["finish"] == "stopped"
    page.locator(TURNS).get_by_role("button", name="Continue").click()
    page.wait_for_function("n => document.querySelector('.turn.assistant .words').innerText.length > n", arg=len(half))
    page.keyboard.press("Escape")
    assert answered(page)[: len(half) - 1] == half[:-1]
    assert len(kept(page, site)["messages"]) == 2, "it went on in its place"


def metrics(server: Server) -> str:
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_busy_is_waited_for(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    refused: list[int] = []

    def refuse(route: Any) -> None:
        if len(refused) >= 2:
            return route.continue_()
        refused.append(1)
        body = {
            "error": {
                "message": "2 requests are running and 2 wait, as many as may",
                "type": "x",
                "param": None,
                "code": None,
            }
        }
        route.fulfill(status=429 if len(refused) == 1 else 503, headers={"Retry-After": "1"}, json=body)

    page.route("**/v1/chat/completions", refuse)
    say(page, "Tell me a story about patience.")
    page.get_by_text("The server is busy. Asking again in 1 s.").wait_for()
    assert len(answered(page)) > 20 and len(refused) == 2
    page.expect_refusals()  # the browser reports each refusal on its console


def test_a_lost_connection_keeps_what_was_said(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    events = [
        {"choices": [], "progress": {"read": 5, "total": 9, "reused": 0}},
        {"choices": [{"delta": {"content": "It began"}}]},
    ]
    body = "".join(f"data: {json.dumps(e)}\n\n" for e in events)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    say(page, "Tell me a story about a storm.")
    page.get_by_role("alert").get_by_text("The connection was cut off.").wait_for()
    assert answered(page) == "It began"
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function("() => document.querySelector('.turn.assistant .words').innerText.length > 20")
    assert answered(page).startswith("It began")
    page.expect_refusals()


def test_an_error_in_the_stream_is_told(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    body = 'data: {"error": {"message": "the engine\'s process ended", "code": "internal_error"}}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    say(page, "Tell me a story.")
    page.get_by_role("alert").get_by_text("The engine's process ended.").wait_for()
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_function("() => document.querySelector('.turn.assistant .words').innerText.length > 20")
    assert len(kept(page, site)["messages"]) == 2


def test_a_prompt_that_does_not_fit_is_told(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    say(page, "word " * 1200)
    page.get_by_role("alert").get_by_text("maximum context length is 1,024").wait_for()
    page.expect_refusals()


def test_a_model_that_loads_is_waited_for(visit: Callable[..., Page], site: Server) -> None:
    page = visit("/page/icon.svg")
    states = ["loading", "loading", "down"]
    page.route(
        "**/health",
        lambda route: route.fulfill(status=503, json={"status": states.pop(0)}) if states else route.continue_(),
    )
    page.goto(site.url)
    page.get_by_placeholder("The model is loading").wait_for()
    assert page.locator("#send").is_disabled()
    page.get_by_placeholder("The engine is starting again").wait_for()
    ready(page)
    assert page.locator("#composer-text").get_attribute("placeholder") == "Say something"
    page.expect_refusals()


def test_reading_shows_how_far_it_is(visit: Callable[..., Page]) -> None:
    page = visit()
    shown = page.evaluate("""async () => {
      const { happening } = await import('/page/message.js');
      const [box] = happening({ finish: '' }, { state: 'reading', progress: { read: 1536, total: 12000, reused: 512 } });
      return [box.textContent, box.querySelector('progress').value, box.querySelector('progress').max];
    }""")
    assert shown == ["Reading: 1,536 of 12,000 tokens, 512 of them known from before", 1536, 12000]


def test_a_killed_server_comes_back(visit: Callable[..., Page], start: Callable[..., Server], tmp_path: Path) -> None:
    """kill -9 between two answers: what was said is there, and the page goes on by itself."""
    first = start("--data", str(tmp_path))
    page = visit(server=first)
    say(page, "Tell me a story about a lighthouse.")
    before = answered(page)
    id = page.url.rpartition("#")[2]
    (worker,) = first.children()
    first.end(signal.SIGKILL)
    until(lambda: not alive(worker))
    page.fill("#composer-text", "Are you there?")
    page.press("#composer-text", "Enter")
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
    page.get_by_placeholder("The server cannot be reached").wait_for()
    second = start("--data", str(tmp_path), "--port", str(first.port))
    ready(page)
    page.get_by_role("button", name="Try again").click()
    page.wait_for_function("() => document.querySelectorAll('.turn.assistant .words')[1]?.innerText.length > 20")
    after = answered(page, 2)
    page.reload()
    page.locator(TURNS).nth(1).wait_for()
    assert [page.locator(f"{TURNS} .words").nth(i).inner_text() for i in (0, 1)] == [before, after]
    assert len(api(second, f"/api/conversations/{id}")["messages"]) == 4
    page.expect_refusals()
