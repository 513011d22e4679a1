"""Conversations: found, renamed, removed, taken out and in; two tabs; two keys."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from server.page.browser import TURNS, Page, answered, api, keep, kept, ready, say, wild
from server.running import Server


def test_search_rename_delete_undo_export_import(visit: Callable[..., Page], site: Server, tmp_path: Path) -> None:
    id = keep(site, "Where does the mistral blow?", "Down the Rhône, and it is a <b>cold</b> wind called zephyrette.")
    page = visit(f"/#{id}")
    page.locator(TURNS).wait_for()
    page.fill("#search", "ZEPHYRETTE")
    page.locator("#shelf-list h2").get_by_text("Found").wait_for()
    assert page.locator(".item").count() == 1
    assert (
        page.locator(".item .snippet").inner_text() == "Down the Rhône, and it is a <b>cold</b> wind called zephyrette."
    )
    assert page.locator(".item mark").inner_text() == "zephyrette"
    page.fill("#search", "")
    page.locator(".item.here").get_by_role("button", name="Rename").click()
    page.keyboard.type("Winds of France")
    page.keyboard.press("Enter")
    page.locator("#title").get_by_text("Winds of France").wait_for()
    with page.expect_download() as download:
        page.locator(".item.here").get_by_role("button", name="Export").click()
    path = tmp_path / "file.json"
    download.value.save_as(path)
    assert download.value.suggested_filename == "Winds-of-France.json"
    page.locator(".item.here").get_by_role("button", name="Delete").click()
    page.get_by_text("Deleted.").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.locator("#title").get_by_text("Winds of France").wait_for()
    assert page.url.rpartition("#")[2] != id
    before = len(api(site, "/api/conversations")["conversations"])
    page.locator("#import-file").set_input_files(path)
    page.get_by_text("Imported 1 conversation.").wait_for()
    assert len(api(site, "/api/conversations")["conversations"]) == before + 1
    (tmp_path / "bad.json").write_text(
        '{"format": "bise-conversations", "conversations": [{"messages": [{"id": "../x"}]}]}'
    )
    page.locator("#import-file").set_input_files(tmp_path / "bad.json")
    page.locator("#notice").get_by_text("messages").wait_for()
    page.expect_refusals()  # a 400 on the console


def test_two_tabs_keep_both(visit: Callable[..., Page], site: Server) -> None:
    id = keep(site, "A question", "An answer")
    one, two = visit(f"/#{id}"), visit(f"/#{id}")
    for page in (one, two):
        page.locator(TURNS).wait_for()
    say(one, "From the first tab")
    answered(one, 2)
    say(two, "From the second tab")
    answered(two, 2)
    two.get_by_text("Another tab had saved this conversation: both are kept.").wait_for()
    said = {m["content"]: m for m in kept(two, site)["messages"]}
    assert said["From the first tab"]["parent"] == said["From the second tab"]["parent"] == "m1"
    assert len(said) == 6
    two.expect_refusals()  # the 409 on the console


def test_a_tenant_has_a_shelf_of_its_own(
    visit: Callable[..., Page], start: Callable[..., Server], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("anna-anna-anna-anna\nben-ben-ben-ben-ben\n")
    keys.chmod(0o600)
    server = start("--key-file", str(keys))
    anna = visit(server=server)
    anna.fill("input[name=key]", "anna-anna-anna-anna")
    anna.keyboard.press("Enter")
    say(anna, "Tell me a secret story.")
    answered(anna)
    ben = visit(server=server)
    ben.fill("input[name=key]", "ben-ben-ben-ben-ben")
    ben.keyboard.press("Enter")
    ben.get_by_text("No conversations yet.").wait_for()
    ben.goto(anna.url)
    ben.get_by_text("there is no conversation").wait_for()
    ben.expect_refusals()  # the form's 401 and this 404 on the console


def test_an_answer_goes_on_while_another_conversation_is_read(visit: Callable[..., Page], site: Server) -> None:
    other = keep(site, "Something else", "Said before")
    page = visit()
    ready(page)
    wild(page)
    (worker,) = site.children()
    say(page, "Tell me a story that takes its time.")
    page.locator(".speaking").wait_for()
    os.kill(worker, signal.SIGSTOP)
    try:
        page.wait_for_function("() => location.hash")
        spoken = page.url
        page.evaluate("id => { location.hash = id; }", other)
        page.get_by_text("Said before").wait_for()
        assert page.locator("#send").inner_text() == "Send"
    finally:
        os.kill(worker, signal.SIGCONT)
    page.goto(spoken)
    assert answered(page)
    message = kept(page, site)["messages"][1]
    assert message["finish"] in ("length", "stop") and len(message["tokens"]) == message["usage"]["completion"]


def test_what_is_being_typed_stays(visit: Callable[..., Page], site: Server) -> None:
    """A system prompt, while an answer ends."""
    page = visit()
    ready(page)
    page.fill("#composer-text", "Tell me a story about rain.")
    page.click("#settings-toggle")
    (worker,) = site.children()
    os.kill(worker, signal.SIGSTOP)
    try:
        page.evaluate("document.querySelector('#composer').requestSubmit()")
        page.locator("#settings textarea").focus()
        page.keyboard.type("Be brief.")
    finally:
        os.kill(worker, signal.SIGCONT)
    answered(page)
    assert page.locator("#settings textarea").input_value() == "Be brief."
    page.locator("input[name=temperature]").focus()
    assert kept(page, site)["settings"]["system"] == "Be brief."
