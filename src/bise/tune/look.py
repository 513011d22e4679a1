"""The exact tokens of some rows: which are learnt, where BOS, EOS and control tokens stand, what is only white space.

`chosen` draws the rows, `tokens` says what there is to see of one, `page` makes a page of them that needs nothing else:
no network, no script. (For the terminal: cli/look.py.)
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

from ..tokenizer import Tokenizer
from .data.dataset import Dataset
from .data.report import Report
from .sample import Example, Pair, Sample, Verdict

_PAGE = Path(__file__).with_name("look.html")
_HIDDEN = {"\n": "⏎\n", "\t": "⇥"}  # what takes their place where they are to be seen


class Token(NamedTuple):
    """kind: "text", "control" (a name, which no text can spell) or "byte" (a part of a character, in hexadecimal)."""

    id: int
    text: str
    kind: str
    learnt: bool


def chosen(dataset: Dataset, rows: int, seed: int = 0) -> list[Example]:
    """`rows` examples to look at, drawn by the seed, in turns from each file; all there are, where that is fewer."""
    order = np.random.default_rng(seed).permutation(len(dataset.train))[: max(64, 8 * rows)]
    drawn = [dataset.train[int(i)] for i in order]
    by_file = sorted(drawn, key=lambda e: parts(e)[0].source)
    turns = [list(group) for _, group in groupby(by_file, key=lambda e: parts(e)[0].source)]
    return [group[n] for n in range(rows) for group in turns if n < len(group)][:rows]


def parts(example: Example) -> list[Sample]:
    """The sequences of an example: one, or the chosen and the rejected."""
    if isinstance(example, Pair):
        return [example.chosen, example.rejected]
    return [example.answer if isinstance(example, Verdict) else example]


def tokens(sample: Sample, tokenizer: Tokenizer) -> list[Token]:
    """What there is to see of each token, in order."""
    return [_token(int(i), bool(told), tokenizer) for i, told in zip(sample.ids, sample.learnt, strict=True)]


def _token(id: int, learnt: bool, tokenizer: Tokenizer) -> Token:
    if tokenizer.is_control(id):
        return Token(id, tokenizer.name(id), "control", learnt)
    data = tokenizer.piece(id)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Token(id, data.hex(" ").upper(), "byte", learnt)
    return Token(id, text, "text", learnt) if text else Token(id, tokenizer.name(id), "control", learnt)


def visible(text: str) -> str:
    """What is not to be seen as signs, all but the space: line ends (which also end the line), tabs, control
    characters, and by their number odd spaces and characters without width."""
    return "".join(c if c.isprintable() else _sign(c) for c in text)


def _sign(c: str) -> str:
    if c in _HIDDEN:
        return _HIDDEN[c]
    return chr(0x2400 + ord(c)) if c < " " else f"‹{ord(c):04X}›"  # U+2400: pictures of controls


def shared(example: Example) -> int:
    """How many tokens the two sides of a pair begin with alike, up to the first that is learnt; otherwise 0."""
    if not isinstance(example, Pair):
        return 0
    return int(min(side.learnt.argmax() for side in parts(example)))


def page(examples: Sequence[Example], tokenizer: Tokenizer, report: Report, model: str) -> str:
    """A page in HTML. model: what the reader calls the model."""
    heads, rows = report.table()
    head = "".join(f"<th{_right(h)}>{escape(h.removeprefix('>'))}</th>" for h in heads)
    body = "".join(
        f"<tr>{''.join(f'<td{_right(h)}>{escape(cell)}</td>' for h, cell in zip(heads, row, strict=True))}</tr>"
        for row in rows
    )
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        model=escape(model),
        notes="".join(f"<li>{escape(note)}</li>" for note in report.notes()),
        table=f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        rows="\n".join(_article(example, tokenizer) for example in examples),
    )


def _right(head: str) -> str:
    return ' class="r"' if head.startswith(">") else ""


def _article(example: Example, tokenizer: Tokenizer) -> str:
    sides = parts(example)
    where = f"{escape(Path(sides[0].source).name)}<b>:{sides[0].line}</b>"
    verdict = ""
    if isinstance(example, Verdict):
        verdict = f'<em class="{"good" if example.good else "bad"}">{"good" if example.good else "bad"}</em>'
    head = f"<header><h2>{where}</h2>{verdict}<p>{' · '.join(_counts(side) for side in sides)}</p></header>"
    if not isinstance(example, Pair):
        return f'<article>{head}<div class="text">{_spans(tokens(sides[0], tokenizer))}</div></article>'
    common = shared(example)
    prompt = f'<div class="text">{_spans(tokens(sides[0], tokenizer)[:common])}</div>'
    answers = "".join(
        f'<section class="{name}"><h3>{name}</h3>'
        f'<div class="text">{_spans(tokens(side, tokenizer)[common:])}</div></section>'
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    )
    return f'<article>{head}{prompt}<div class="pair">{answers}</div></article>'


def _counts(sample: Sample) -> str:
    return f"{len(sample):,} tokens, <strong>{sample.targets:,} learnt</strong> ({sample.targets / len(sample):.0%})"


def _spans(shown: Sequence[Token]) -> str:
    return "".join(map(_span, shown))


def _span(token: Token) -> str:
    about = f"{token.id} · {'learnt' if token.learnt else 'read only'}"
    kind = {"text": "t", "control": "t c", "byte": "t h"}[token.kind] + (" l" if token.learnt else "")
    text = escape(visible(token.text)) if token.kind == "text" else escape(token.text)
    if token.kind == "text":
        text = text.replace(" ", "<i> </i>").replace("⏎\n", "<u>⏎</u>\n").replace("⇥", "<u>⇥</u>")
    return f'<span class="{kind}" data-about="{about}">{text}</span>'
