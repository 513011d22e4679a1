"""Draw the README's pictures: python docs/figures/draw.py writes heads, window, buffer and memory.svg beside this file.

content.py says what they show. Each picture carries the content that it was drawn from as JSON in its description, so
that a test can compute the content again and see whether the picture still tells the truth.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import content
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Affine2D

HERE = Path(__file__).parent
INK, SOFT, PALE_INK, LINE, CARD = "#1f2a37", "#6b7785", "#8b97a4", "#d5dbe1", "#ffffff"
BLUE, PALE, GREY, ORANGE = "#1c6e8c", "#b9d8e3", "#eff1f4", "#d9822b"
TINTS = (BLUE, ORANGE, "#5b8c5a", "#8a6fae", "#c0577a", "#3f7fbf", "#a88a2c", "#4d9a94")
STYLE = {
    "svg.hashsalt": "bise", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 13, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT,
}  # fmt: skip


def draw(name: str, folder: Path = HERE) -> Path:
    """Compute the content of one picture and draw it."""
    shown = content.CONTENT[name]()
    with mpl.rc_context(STYLE):
        figure = DRAWN[name](shown)
        path = folder / f"{name}.svg"
        about = {"Date": None, "Creator": None, "Description": json.dumps(shown, separators=(",", ":"))}
        figure.savefig(path, metadata=about)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path


def content_of(path: Path) -> Any:
    """What a picture was drawn from."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL)
    return json.loads(html.unescape(found[1])) if found else None


# ---- paper and pen: the unit is one point


def _card(width: float, height: float) -> Any:
    """An empty figure on a white card with round corners: legible on a light page and on a dark one."""
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    shape = {"boxstyle": "round,pad=0,rounding_size=10", "facecolor": CARD, "edgecolor": LINE}
    figure.add_artist(FancyBboxPatch((6, 6), width - 12, height - 12, transform=points, zorder=-5, **shape))
    return figure


def _panel(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes without a frame; (0, 0) is its lower left corner."""
    w, h = figure.get_size_inches() * 72
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def _text(
    axes: Any, x: float, y: float, text: str, size: float = 12, color: str = INK, ha: str = "left", bold: bool = False
) -> None:
    axes.text(x, y, text, fontsize=size, color=color, ha=ha, va="center", weight="bold" if bold else "normal")


def _title(axes: Any, y: float, title: str, note: str = "") -> None:
    _text(axes, 0, y, title, 16, bold=True)
    _text(axes, 0, y - 22, note, 11.5, SOFT)


def _box(axes: Any, x: float, y: float, width: float, height: float, color: str, edge: str = "none") -> None:
    shape = {"boxstyle": "round,pad=0,rounding_size=2.5", "facecolor": color, "edgecolor": edge}
    axes.add_patch(FancyBboxPatch((x, y), width, height, zorder=2, **shape))


# ---- the pictures


def heads(models: list[dict[str, Any]]) -> Any:
    figure = _card(792, 342)
    axes = _panel(figure, 24, 14, 744, 312)
    for model, top in zip(models, (292, 130), strict=True):
        _text(axes, 0, top, model["name"], 16, bold=True)
        _text(axes, 134, top - 32, f"{len(model['reads'])} query heads", 13, SOFT, "right")
        _text(axes, 134, top - 84, f"{model['kv_heads']} key/value heads", 13, SOFT, "right")
        for group in range(model["kv_heads"]):
            _group(axes, 148, top, group, [h for h, kv in enumerate(model["reads"]) if kv == group])
        ours, theirs = (f"{model[key] / 1024:g} KiB" for key in ("token_bytes", "multi_head_token_bytes"))
        saving = f"{ours} of keys and values per token; {theirs} if every query head had its own"
        _text(axes, 148, top - 118, saving, 13)
    return figure


def _group(axes: Any, left: float, top: float, group: int, members: list[int]) -> None:
    """One key/value head below the query heads that read it."""
    step, width, color = 18.5, 16, TINTS[group % len(TINTS)]
    middle, wide = left + np.mean(members) * step + width / 2, (len(members) - 1) * step + width
    for head in members:
        x = left + head * step
        axes.plot([x + width / 2, middle], [top - 41, top - 74], color=color, linewidth=1.3, zorder=1)
        _box(axes, x, top - 40, width, 16, color)
        _text(axes, x + width / 2, top - 32.6, str(head), 9, CARD, "center")
    _box(axes, middle - wide / 2, top - 94, wide, 20, color)
    _text(axes, middle, top - 84.6, str(group), 11, CARD, "center")


def window(shown: dict[str, Any]) -> Any:
    figure = _card(792, 367)
    axes, cell = _panel(figure, 28, 18, 320, 330), 17
    _title(axes, 316, f"One layer, window {shown['size']}", "measured: token i (row) sees token j (column)")
    for i, row in enumerate(shown["sees"]):
        for j, seen in enumerate(row):
            color = GREY if not seen else BLUE if i == j else PALE
            _box(axes, 4 + j * cell, 262 - i * cell, cell - 2.4, cell - 2.4, color)
    _draw_reach(_panel(figure, 360, 18, 410, 330), shown["reach"], shown["size"])
    return figure


def _draw_reach(axes: Any, reach: list[list[int]], size: int) -> None:
    note = "measured: hidden states that change when token 0 is another one"
    _title(axes, 316, f"{len(reach)} layers: how far a token is felt", note)
    length, cell = len(reach[0]), 15
    for i, changed in enumerate([[1] + [0] * (length - 1), *reach]):
        y, far = 68 + i * 38, max(p for p, mark in enumerate(changed) if mark)
        _text(axes, 0, y + 10, f"layer {i}" if i else "tokens", 12, SOFT)
        for p, mark in enumerate(changed):
            strong = BLUE if i else ORANGE
            _box(axes, 62 + p * cell, y, cell - 2.2, 20, strong if p == far else PALE if mark else GREY)
        if i:
            _text(axes, 66 + length * cell, y + 10, f"+{far}", 12.5, BLUE, bold=True)
    layers, whole = content.MISTRAL.n_layers, content.MISTRAL.sliding_window
    _text(axes, 0, 40, f"Each layer carries it {size} − 1 tokens further.")
    _text(axes, 0, 20, f"Mistral 7B: {layers} layers × ({whole} − 1) = {layers * (whole - 1):,} tokens.")


def buffer(shown: dict[str, Any]) -> Any:
    steps, slots = shown["steps"], len(shown["steps"][0]["slots"])
    height, left, cell = 28 * len(steps) + 137, 104, 20
    axes, top = _panel(figure := _card(792, height), 24, 16, 744, height - 32), height - 52
    note = "each line is the buffer when a chunk, later a single token, has been written and is about to attend"
    _title(axes, top, f"A prompt in chunks of {shown['chunk']}, window {shown['size']}, {slots} slots", note)
    _text(axes, 0, top - 46, "positions", 9.5, SOFT)
    _text(axes, left - 10, top - 46, "slot", 9.5, SOFT, "right")
    for slot in range(0, slots, 4):
        _text(axes, left + slot * cell + 9, top - 46, str(slot), 9.5, SOFT, "center")
    for i, step in enumerate(steps):
        first, last, y = step["first"], step["last"], top - 76 - i * 28
        _text(axes, 0, y + 11, f"{first} … {last}" if first < last else f"{first}", 12, SOFT)
        for slot, position in enumerate(step["slots"]):
            color, ink, edge = _slot_colors(position, step)
            _box(axes, left + slot * cell, y, cell - 2, 22, color, edge)
            _text(axes, left + slot * cell + 9, y + 10.4, str(position) if position >= 0 else "", 9.5, ink, "center")
    legend = {
        "just written": (0, BLUE),
        "the old window, still seen": (135, PALE),
        "seen by nobody any more": (355, GREY),
    }
    for text, (x, color) in legend.items():
        _box(axes, left + x, 6, 16, 16, color)
        _text(axes, left + x + 23, 13.5, text)
    return figure


def _slot_colors(position: int, step: dict[str, Any]) -> tuple[str, str, str]:
    """(face, ink, edge) of a slot: empty, just written, in the old window, or out of sight."""
    if position < 0:
        return CARD, CARD, LINE
    if position >= step["first"]:
        return BLUE, CARD, "none"
    return (PALE, INK, "none") if position >= step["oldest_seen"] else (GREY, PALE_INK, "none")


def memory(shown: dict[str, Any]) -> Any:
    w, h = 792, 317
    figure = _card(w, h)
    axes = figure.add_axes((66 / w, 62 / h, (w - 300) / w, (h - 122) / h))
    title = "Memory for the keys and values of one Mistral 7B v0.1 conversation"
    _title(_panel(figure, 28, 20, 700, h - 40), h - 56, title)
    thousands = [n / 1024 for n in shown["contexts"]]
    for name, color, lift in zip(shown["lines"], (PALE_INK, BLUE, ORANGE), (0, 0.07, -0.07), strict=True):
        gib = [n / 2**30 for n in shown["lines"][name]]
        axes.plot(thousands, gib, color=color, linewidth=2.6, solid_capstyle="round")
        _text(axes, 32.6, gib[-1] + lift, f"{gib[-1]:.2f} GiB", 13, color, bold=True)
        _text(axes, 38, gib[-1] + lift, name, 12, SOFT)
    axes.set(xlim=(0, 32), ylim=(0, 4.2), xlabel="tokens in context", ylabel="GiB")
    axes.set_xticks(range(0, 33, 4), [f"{n}k" if n else "0" for n in range(0, 33, 4)])
    axes.set_yticks(range(1, 5))
    axes.grid(axis="y", color=GREY)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


DRAWN = {"heads": heads, "window": window, "buffer": buffer, "memory": memory}

if __name__ == "__main__":
    for each in DRAWN:
        print(draw(each).name)
