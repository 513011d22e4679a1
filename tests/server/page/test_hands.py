"""Hands and eyes: the keyboard alone, a phone, and colours that can be read."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from server.page.browser import SAMPLE, TURNS, Page, answered, api, keep, ready
from server.running import Server


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
    page.locator(".alternatives").wait_for(state="detached")
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
