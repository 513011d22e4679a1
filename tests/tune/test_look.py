"""What is shown is every token, with its id and whether it is learnt, on a page that needs nothing else."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bise.chat import ChatFormat
from bise.cli.look import look, show_faults
from bise.tune.data import BadData, Dataset, read
from bise.tune.look import chosen, page, parts, shared, tokens, visible
from bise.tune.sample import Pair
from test_tokenizer import tokenizer_of

NAUGHTY = "<img src=x onerror=alert(1)> & $model </s>\n\ttabs  🦙 日 \u001b[31m"
LINES = {
    "sft": [{"prompt": NAUGHTY, "completion": "An answer.\nTwo lines."}, *({"prompt": f"q{i}", "completion": f"a{i}"} for i in range(30))],
    "pairs": [{"prompt": NAUGHTY, "chosen": "Good one", "rejected": "Bad one"}] * 2,
    "verdicts": [{"prompt": "q", "completion": NAUGHTY, "label": False}],
}  # fmt: skip


def dataset(tmp_path: Path, kind: str, *more: Path) -> Dataset:
    path = tmp_path / f"{kind}<b>.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LINES[kind]), encoding="utf-8")
    return read([path, *more], tokenizer_of("v3"), ChatFormat.named("v3", tokenizer_of("v3")))


class Seen(HTMLParser):
    """(about, learnt, text) of every token span in the articles; every tag and attribute there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tokens: list[list] = []
        self.attributes: set[tuple[str, str]] = set()
        self._open = self._article = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes |= {(tag, name) for name, _ in attributes} | {(tag, "")}
        given = dict(attributes)
        self._article |= tag == "article"
        if tag == "span" and self._article:
            self._open = True
            self.tokens.append([given["data-about"], "l" in given["class"].split(), ""])

    def handle_endtag(self, tag):
        self._open &= tag != "span"

    def handle_data(self, data):
        if self._open:
            self.tokens[-1][2] += data


def test_tokens():
    data = tokenizer_of("v3").encode("a 🦙\n")
    shown = tokens(
        type("S", (), {"ids": [1, *data, 2], "learnt": [False, *[True] * len(data), True]}), tokenizer_of("v3")
    )  # type: ignore[arg-type]
    assert [(t.text, t.kind, t.learnt) for t in shown[:2]] == [("<s>", "control", False), (" a", "text", True)]
    assert [t.text for t in shown if t.kind == "byte"] == [f"{b:02X}" for b in "🦙".encode()]
    assert (
        shown[-2].text == "\n"
        and visible("\n\t\x1b\x9b\u200b a") == "⏎\n⇥␛‹009B›‹200B› a"
        and shown[-1].kind == "control"
    )


@pytest.mark.parametrize("kind", LINES)
def test_page_shows_every_token(tmp_path, kind):
    data = dataset(tmp_path, kind)
    examples = list(data.train)
    seen = Seen(page(examples, tokenizer_of("v3"), data.report, "model<x>"))
    expected = []
    for example in examples:
        sides = parts(example)
        common = shared(example)
        for at, side in enumerate(sides):
            shown = list(zip(side.ids.tolist(), side.learnt.tolist(), strict=True))
            expected += shown[common if at else 0 :]
    assert [(int(about.split()[0]), learnt) for about, learnt, _ in seen.tokens] == expected
    assert all((" learnt" in about) == learnt for about, learnt, _ in seen.tokens)
    for example in examples if kind == "sft" else []:
        assert not isinstance(example, Pair)
    text = "".join(text for _, _, text in seen.tokens)
    assert "<img src=x onerror=alert(1)>" in text and "$model" in text and "\x1b" not in text


def test_page_needs_nothing_and_runs_nothing(tmp_path):
    data = dataset(tmp_path, "sft")
    text = page(list(data.train), tokenizer_of("v3"), data.report, "m")
    seen = Seen(text)
    tags = {tag for tag, _ in seen.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "base"} and "://" not in text
    assert not {name for _, name in seen.attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert "default-src 'none'" in text and "light-dark(" in text


def test_chosen_in_turns_from_each_file(tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "x", "completion": "y"}\n' * 3, encoding="utf-8")
    data = dataset(tmp_path, "sft", other)
    drawn = [[(parts(e)[0].source, parts(e)[0].line) for e in chosen(data, 6, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == len(set(drawn[0])) == 6
    assert sum(source == str(other) for source, _ in drawn[0]) == 3
    assert len(chosen(data, 99)) == 34


@pytest.mark.parametrize("kind", LINES)
def test_look_on_the_terminal(tmp_path, capsys, kind):
    data = dataset(tmp_path, kind)
    look(data, tokenizer_of("v3"), "m", rows=40, out=tmp_path / "look.html")
    said = capsys.readouterr()
    assert "\x1b" not in said.out and "[INST]" in said.out and "learnt" in said.out and ".jsonl:1" in said.out
    assert "".join(said.out.split()).count("⏎") >= 1
    assert (tmp_path / "look.html").read_text(encoding="utf-8").startswith(
        "<!doctype html>"
    ) and "look.html" in said.err


def test_faults_are_shown(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n" * 25, encoding="utf-8")
    with pytest.raises(BadData) as bad:
        read([path], tokenizer_of("v1"), None)
    show_faults(bad.value)
    said = capsys.readouterr().err
    assert said.count("bad.jsonl:") == 20 and "... and 5 more" in said and "unknown keys" in said
