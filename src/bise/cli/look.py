"""The exact tokens of some rows on the terminal, and as a page: what `bise tune --look` shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..disk import replacing
from .terminal import note, print_table

if TYPE_CHECKING:
    from rich.text import Text

    from ..tokenizer import Tokenizer
    from ..tune.data import BadData, Dataset
    from ..tune.look import Token
    from ..tune.sample import Example, Sample

MOST = 1500  # tokens of a sequence that a terminal shows; the page shows all
_STYLES = {"learnt": "bold bright_white on dark_blue", "read": "default", "chip": "black on bright_yellow"}


def look(
    dataset: Dataset, tokenizer: Tokenizer, model: str, rows: int = 5, seed: int = 0, out: Path | None = None
) -> None:
    """Print `rows` examples, their tokens coloured by whether they are learnt; write them to `out` as HTML too.

    model: what the reader calls it."""
    from rich.console import Console

    from ..tune.look import chosen, page

    examples = chosen(dataset, rows, seed)
    show_report(dataset)
    console = Console(highlight=False)
    console.print(_legend())
    for example in examples:
        for line in _shown(example, tokenizer):
            console.print(line, soft_wrap=False)
    if out:
        with replacing(out) as file:
            file.write(page(examples, tokenizer, dataset.report, model).encode())
        note(f"written to {out}")


def show_report(dataset: Dataset) -> None:
    """The files in numbers, and a line for each thing that one should know."""
    print_table(*dataset.report.table())
    for line in dataset.report.notes():
        print(line)
    if dataset.faults:
        print(f"{len(dataset.faults):,} rows left out: {_counts(dataset.faults.counts)}")


def show_faults(bad: BadData) -> None:
    """What is wrong, before it is refused: the counts, and the first 20 with their lines. On stderr."""
    print_table(["left out, if asked to", ">rows"], [[r, f"{n:,}"] for r, n in bad.faults.counts.items()], stderr=True)
    for fault in bad.faults.first:
        note(str(fault))
    if (more := len(bad.faults) - len(bad.faults.first)) > 0:
        note(f"... and {more:,} more")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _legend() -> Text:
    from rich.text import Text

    return Text.assemble(
        "\n", (" learnt ", _STYLES["learnt"]), "  read only  ", ("<s>", _STYLES["chip"]), " a control token  ",
        ("·", "dim"), " a space  ", ("⏎", "dim"), " a line end",
    )  # fmt: skip


def _shown(example: Example, tokenizer: Tokenizer) -> list[Text]:
    from rich.text import Text

    from ..tune.look import parts, tokens
    from ..tune.sample import Pair, Verdict

    sides = parts(example)
    names = ["chosen", "rejected"] if isinstance(example, Pair) else [""]
    if isinstance(example, Verdict):
        names = ["good" if example.good else "bad"]
    lines = []
    for name, side in zip(names, sides, strict=True):
        lines.append(_head(name, side))
        shown = tokens(side, tokenizer)
        text = Text()
        for token in shown[:MOST]:
            _put(text, token)
        if len(shown) > MOST:
            text.append(f" ... and {len(shown) - MOST:,} more tokens", "dim")
        lines.append(text)
    return lines


def _head(name: str, sample: Sample) -> Text:
    from rich.text import Text

    where = f"\n{Path(sample.source).name}:{sample.line}"
    counts = f"{len(sample):,} tokens, {sample.targets:,} learnt ({sample.targets / len(sample):.0%})"
    return Text.assemble((where, "bold"), "  ", (f"{name}  " if name else "", "bold cyan"), (counts, "dim"))


def _put(text: Text, token: Token) -> None:
    from ..tune.look import visible

    style = _STYLES["learnt" if token.learnt else "read"]
    if token.kind != "text":
        text.append(token.text, _STYLES["chip"] if token.kind == "control" else "dim " + style)
        if token.kind == "control" and token.learnt:
            text.stylize("underline bold", len(text) - len(token.text))
        return
    for part in visible(token.text).replace(" ", "·"):
        text.append(part, f"{style} dim" if part in "·⏎⇥" else style)
