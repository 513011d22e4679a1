"""A model that does not chat goes on with a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bise.api import BUILT_IN
from server.page.browser import Page, kept
from server.running import Server


def test_a_base_model_goes_on_with_a_text(
    visit: Callable[..., Page], start: Callable[..., Server], tmp_path: Path
) -> None:
    data = BUILT_IN.read_bytes()
    (tmp_path / "base.gguf").write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX"))
    server = start(str(tmp_path / "base.gguf"))
    page = visit(server=server)
    field = page.get_by_label("The text that is continued")
    field.fill("Once upon a time there was a wind")
    field.press("Control+Enter")
    page.get_by_role("button", name="Another way").wait_for()
    first = field.input_value()
    assert first.startswith("Once upon a time there was a wind") and len(first) > 60
    page.get_by_role("button", name="Another way").click()
    page.get_by_role("group", name="Branch 2 of 2").wait_for()
    assert field.input_value() != first
    page.get_by_role("button", name="Previous branch").click()
    assert field.input_value() == first
    field.fill(first + " The end was")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function(
        "n => document.querySelector('.manuscript').value.length > n && document.querySelector('#send').textContent === 'Send'",
        arg=len(first) + 14,
    )
    text = field.input_value()
    file = kept(page, server)
    assert file["kind"] == "text" and [m["role"] for m in file["messages"]] == [
        "user",
        "assistant",
        "assistant",
        "user",
        "assistant",
    ]
    assert file["messages"][3]["content"] == " The end was"
    page.reload()
    page.wait_for_function("text => document.querySelector('.manuscript')?.value === text", arg=text)
    page.click("#tokens-toggle")
    assert page.locator(".strip .token").count() == len(file["messages"][4]["tokens"])
