"""The pictures of docs/speed.md, drawn from the points that bench/speed.py measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import paper
from paper import BLUE, GREY, PALE_INK, SOFT

Point = dict[str, Any]
COLORS = {"bise": BLUE, "llama.cpp": PALE_INK}
GIB = 1 << 30
WIDTH = 792  # points


def draw(name: str, points: Sequence[Point], folder: Path) -> Path:
    """speed-NAME.svg from one series' points."""
    with mpl.rc_context(paper.STYLE):
        return paper.save(DRAWN[name](points), folder / f"speed-{name}.svg", points)


def context(points: Sequence[Point]) -> Any:
    figure, frames = _frames("Context", 3)
    for axes, (key, title, scale) in zip(
        frames,
        (
            ("prefill", "prefill, tokens/s", 1),
            ("decode", "decode, tokens/s", 1),
            ("kv_f16", "keys and values, GiB", GIB),
        ),
        strict=True,
    ):
        _lines(axes, points, "context", key, title, scale)
        axes.set_xlabel("tokens of context; each step doubles")
    return figure


def sequences(points: Sequence[Point]) -> Any:
    figure, (axes,) = _frames("Sequences at once", 1)
    _lines(axes, points, "sequences", "decode", "decode, tokens/s of all together")
    axes.set_xlabel("sequences at once")
    return figure


def threads(points: Sequence[Point]) -> Any:
    return _bars("Threads", points, "threads", lambda n: f"{n} thread{'s' * (n > 1)}")


def types(points: Sequence[Point]) -> Any:
    return _bars("Types of weights", points, "type", str)


def window(points: Sequence[Point]) -> Any:
    """With and without, beside each other: seconds of attention, and memory."""
    figure, frames = _frames("With the window and without", 2, {"window 4096": BLUE, "no window": PALE_INK})
    kinds = {size: f"window {size}" if size else "no window" for size in dict.fromkeys(p["window"] for p in points)}
    contexts = sorted({point["context"] for point in points})
    for axes, (key, title, scale) in zip(
        frames, (("attention", "attention of one layer, s", 1), ("kv_f16", "keys and values, GiB", GIB)), strict=True
    ):
        for i, size in enumerate(kinds):
            values = [p[key] / scale for n in contexts for p in points if (p["context"], p["window"]) == (n, size)]
            places = [j + (i - 0.5) * 0.36 for j in range(len(contexts))]
            axes.bar(places, values, 0.33, color=(BLUE, PALE_INK)[i])
            for x, value in zip(places, values, strict=True):
                axes.text(
                    x, value, f" {value:.2g}" if value < 10 else f"{value:.0f}", ha="center", va="bottom", size=10.5
                )
        axes.set_xticks(range(len(contexts)), [_thousands(n) for n in contexts])
        axes.set_title(title, loc="left", color=SOFT, size=12)
        axes.set_xlabel("tokens of context")
    return figure


DRAWN: dict[str, Callable[[Sequence[Point]], Any]] = {
    "context": context, "sequences": sequences, "threads": threads, "types": types, "window": window,
}  # fmt: skip


def _frames(title: str, count: int, colors: dict[str, str] = COLORS, height: float = 300) -> tuple[Any, list[Any]]:
    """A card with a title, a legend, and `count` charts side by side."""
    figure = paper.card(WIDTH, height)
    sheet = paper.panel(figure, 28, 0, WIDTH - 56, height)
    paper.title(sheet, height - 36, title)
    x = WIDTH - 56 - sum(34 + 7.6 * len(name) for name in colors)
    for name, color in colors.items():
        paper.box(sheet, x, height - 42, 14, 12, color)
        paper.text(sheet, x + 20, height - 36.5, name, 12)
        x += 34 + 7.6 * len(name)
    each = (WIDTH - 36) / count
    frames = [figure.add_axes(_place(58 + i * each, 58, each - 64, height - 150, height)) for i in range(count)]
    for axes in frames:
        axes.grid(axis="y", color=GREY)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelsize=11)
        axes.xaxis.label.set_size(11)
    return figure, frames


def _place(left: float, bottom: float, width: float, height: float, whole: float) -> tuple[float, float, float, float]:
    """Points -> fractions of a card of height `whole`."""
    return left / WIDTH, bottom / whole, width / WIDTH, height / whole


def _lines(axes: Any, points: Sequence[Point], x: str, y: str, title: str, scale: float = 1) -> None:
    """One line an engine; the x values stand at equal distances."""
    values = sorted({point[x] for point in points})
    for engine, color in COLORS.items():
        mine = [point for point in points if point["engine"] == engine]
        axes.plot([values.index(p[x]) for p in mine], [p[y] / scale for p in mine], "-o", color=color, lw=2.4, ms=4.5)
    axes.set_xticks(range(len(values)), [_thousands(value) for value in values])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_title(title, loc="left", color=SOFT, size=12)


def _bars(title: str, points: Sequence[Point], label: str, said: Callable[[Any], str]) -> Any:
    """Lying bars, prefill on the left and decode on the right, a pair for each value of `label`."""
    values = list(dict.fromkeys(point[label] for point in points))
    height = 120 + 44 * len(values)
    figure, frames = _frames(title, 2, height=height)
    for i, (axes, what) in enumerate(zip(frames, ("prefill", "decode"), strict=True)):
        axes.set_position(_place(100 + i * 378, 26, 270, 16 + 44 * len(values), height))
        most = max(point[what] for point in points)
        for row, value in enumerate(values):
            pair = [
                point for engine in COLORS for point in points if (point["engine"], point[label]) == (engine, value)
            ]
            for j, point in enumerate(pair):
                y = len(values) - row - 0.37 * j
                axes.barh(y, point[what], 0.33, color=COLORS[point["engine"]])
                axes.text(point[what] + most / 60, y, _short(point[what]), va="center", size=10.5)
        axes.set(xlim=(0, most * 1.14), xticks=[])
        axes.set_yticks([len(values) - row - 0.18 for row in range(len(values))], [said(value) for value in values])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_title(f"{what}, tokens/s", loc="left", color=SOFT, size=12)
    return figure


def _thousands(n: int) -> str:
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n)


def _short(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
