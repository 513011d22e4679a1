"""The picture of docs/quantising.md: what each type loses, by whom it was made and with what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import paper
from paper import BLUE, CARD, GREY, ORANGE, PALE_INK, SOFT, TINTS

NAME = "quantising-kl.svg"
WIDTH, STEP = 792, 25  # points; from type to type
# way -> (colour, filled): a ring without importance, a disc with it
LOOKS = {
    "llama.cpp": (PALE_INK, False), "llama.cpp, importance": (PALE_INK, True), "bise": (BLUE, False),
    "bise, importance": (BLUE, True), "bise, compensated": (ORANGE, True), "bise, --bits": (TINTS[2], False),
}  # fmt: skip


def draw(points: Sequence[dict[str, Any]], folder: Path) -> Path:
    """quantising-kl.svg from points {type, way, kl}."""
    with mpl.rc_context(paper.STYLE):
        return paper.save(shown(points), folder / NAME, list(points))


def shown(points: Sequence[dict[str, Any]]) -> Any:
    """On the left KL, on the right the same as a part of llama.cpp's without importance."""
    types = list(dict.fromkeys(point["type"] for point in points))
    height = 168 + STEP * len(types)
    figure = paper.card(WIDTH, height)
    sheet = paper.panel(figure, 28, 0, WIDTH - 56, height)
    paper.title(sheet, height - 36, "What quantising loses", "KL from the full model's predictions: less is better")
    _legend(sheet, height - 84, ways(points))
    bases = {point["type"]: point["kl"] for point in points if point["way"] == "llama.cpp"}
    frames = [figure.add_axes((x / WIDTH, 44 / height, 300 / WIDTH, STEP * len(types) / height)) for x in (100, 452)]
    parts = [{**p, "kl": p["kl"] / bases[p["type"]]} for p in points if bases.get(p["type"])]
    for axes, some, words in zip(
        frames, (points, parts), ("nats a token", "as a part of llama.cpp's without importance"), strict=True
    ):
        _dots(axes, [point for point in some if point["kl"] > 0], types)
        axes.set_xlabel(words, size=11)
    frames[0].set_xscale("log")
    frames[0].set_yticks(range(len(types)), types)
    frames[1].set_yticks([])
    frames[1].axvline(1, color=PALE_INK, linewidth=1, zorder=1)
    return figure


def ways(points: Sequence[dict[str, Any]]) -> list[str]:
    """Those that there are, always in the same order."""
    found = {point["way"] for point in points}
    return [way for way in LOOKS if way in found]


def _dots(axes: Any, points: Sequence[dict[str, Any]], types: list[str]) -> None:
    for y in range(len(types)):
        axes.axhline(y, color=GREY, linewidth=1, zorder=0)
    for point in points:
        _dot(axes, point["kl"], types.index(point["type"]), point["way"])
    axes.set_ylim(len(types) - 0.5, -0.5)
    axes.grid(axis="x", color=GREY)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=11, which="both")


def _dot(axes: Any, x: float, y: float, way: str) -> None:
    color, full = LOOKS[way]
    look = {"markersize": 7.5, "markeredgewidth": 1.8, "zorder": 3}
    axes.plot(x, y, "o", markerfacecolor=color if full else CARD, markeredgecolor=color, **look)


def _legend(sheet: Any, y: float, names: Sequence[str]) -> None:
    x = 6.0
    for way in names:
        _dot(sheet, x, y, way)
        paper.text(sheet, x + 10, y - 0.5, way, 11.5, SOFT)
        x += 34 + 6.7 * len(way)
