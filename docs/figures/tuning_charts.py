"""The pictures of docs/tuning.md and examples/tuning: where a step's memory goes, speed and memory measured, loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import paper
from paper import BLUE, GREY, ORANGE, PALE, PALE_INK, SOFT

Row = dict[str, Any]
WIDTH = 792  # points
PARTS = (BLUE, ORANGE, PALE)


def draw(name: str, shown: Any, folder: Path) -> Path:
    """tuning-NAME.svg from what it is to show."""
    with mpl.rc_context(paper.STYLE):
        return paper.save(DRAWN[name](shown), folder / f"tuning-{name}.svg", shown)


def memory(rows: Sequence[Row]) -> Any:
    """A bar for each case, its parts one after the other."""
    height = 112 + 34 * len(rows)
    figure = _sheet("Memory of a step of Mistral 7B, GiB", height, dict(zip(rows[0]["parts"], PARTS, strict=True)))
    axes = _frame(figure, 326, 20, WIDTH - 390, 34 * len(rows), height)
    most = max(sum(row["parts"].values()) for row in rows)
    for i, row in enumerate(rows):
        y, left = len(rows) - i, 0.0
        for value, color in zip(row["parts"].values(), PARTS, strict=True):
            axes.barh(y, value, 0.62, left, color=color)
            left += value
        axes.text(left + most / 80, y, f"{left:.1f}", va="center", size=12)
        words = f"{row['what']}, rank {row['rank']}, {row['tokens']:,} tokens"
        axes.text(-most / 80, y, words, va="center", ha="right", size=10.5, color=SOFT)
    axes.set(xlim=(0, most * 1.08), ylim=(0.4, len(rows) + 0.6), xticks=[], yticks=[])
    axes.spines["bottom"].set_visible(False)
    return figure


def speed(rows: Sequence[Row]) -> Any:
    """Lying bars: tokens/s on the left, peak memory on the right."""
    height = 128 + 30 * len(rows)
    figure = _sheet("A step of LoRA", height, {"bise": BLUE, "peft": PALE_INK})
    for left, key, title in ((150, "tokens/s", "tokens/s"), (490, "peak MiB", "peak memory, MiB")):
        axes = _frame(figure, left, 22, 230, 30 * len(rows), height)
        most = max(row[key] for row in rows)
        for i, row in enumerate(rows):
            y = len(rows) - i
            axes.barh(y, row[key], 0.62, color=BLUE if row["who"].startswith("bise") else PALE_INK)
            axes.text(row[key] + most / 60, y, f"{row[key]:,.0f}", va="center", size=10.5)
            if left == 150:
                words = f"{row['base']}{' checkpointed' if 'checkpointed' in row['who'] else ''}"
                axes.text(-most / 40, y, words, va="center", ha="right", size=10.5, color=SOFT)
        axes.set(xlim=(0, most * 1.2), ylim=(0.4, len(rows) + 0.6), xticks=[], yticks=[])
        axes.spines["bottom"].set_visible(False)
        axes.set_title(title, loc="left", color=SOFT, size=12)
    return figure


def loss(runs: dict[str, dict[str, list[list[float]]]]) -> Any:
    """A frame for each training: every step pale, held-out rows on top."""
    height = 320
    figure = _sheet("Loss", height, {"every step": PALE, "held-out rows": BLUE})
    each = (WIDTH - 36) / len(runs)
    for i, (name, found) in enumerate(runs.items()):
        axes = _frame(figure, 62 + i * each, 56, each - 76, height - 172, height)
        axes.plot(*zip(*found["loss"], strict=True), color=PALE, lw=1.6)
        axes.plot(*zip(*found["held_out"], strict=True), "-o", color=BLUE, lw=2.2, ms=4)
        axes.grid(axis="y", color=GREY)
        axes.set_axisbelow(True)
        axes.set_xlabel("step", size=11)
        axes.set_title(name, loc="left", color=SOFT, size=12)
    return figure


DRAWN: dict[str, Callable[[Any], Any]] = {"memory": memory, "speed": speed, "loss": loss}


def _sheet(title: str, height: float, colors: dict[str, str]) -> Any:
    """A card with a title, and a legend below it."""
    figure = paper.card(WIDTH, height)
    sheet = paper.panel(figure, 28, 0, WIDTH - 56, height)
    paper.title(sheet, height - 36, title)
    x = 0.0
    for name, color in colors.items():
        paper.box(sheet, x, height - 70, 14, 12, color)
        paper.text(sheet, x + 20, height - 64.5, name, 12)
        x += 46 + 7.2 * len(name)
    return figure


def _frame(figure: Any, left: float, bottom: float, width: float, height: float, whole: float) -> Any:
    """Axes at so many points, with a line below only."""
    axes = figure.add_axes((left / WIDTH, bottom / whole, width / WIDTH, height / whole))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=11)
    return axes
