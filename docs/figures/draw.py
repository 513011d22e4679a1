"""Draw the pictures of the README and of docs/quantising.md: python docs/figures/draw.py writes heads, window, buffer,
memory and block.svg beside this file.

content.py says what they show. Each picture carries the content that it was drawn from as JSON in its description, so
that a test can compute the content again and see whether the picture still tells the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import content
import matplotlib as mpl
import numpy as np
import paper
from paper import BLUE, CARD, GREY, LINE, ORANGE, PALE, PALE_INK, SOFT, TINTS, content_of

HERE = Path(__file__).parent
__all__ = ["DRAWN", "content_of", "draw"]


def draw(name: str, folder: Path = HERE) -> Path:
    """Compute the content of one picture and draw it."""
    shown = content.CONTENT[name]()
    with mpl.rc_context(paper.STYLE):
        return paper.save(DRAWN[name](shown), folder / f"{name}.svg", shown)


def heads(models: list[dict[str, Any]]) -> Any:
    figure = paper.card(792, 342)
    axes = paper.panel(figure, 24, 14, 744, 312)
    for model, top in zip(models, (292, 130), strict=True):
        paper.text(axes, 0, top, model["name"], 16, bold=True)
        paper.text(axes, 134, top - 32, f"{len(model['reads'])} query heads", 13, SOFT, "right")
        paper.text(axes, 134, top - 84, f"{model['kv_heads']} key/value heads", 13, SOFT, "right")
        for group in range(model["kv_heads"]):
            _group(axes, 148, top, group, [h for h, kv in enumerate(model["reads"]) if kv == group])
        ours, theirs = (f"{model[key] / 1024:g} KiB" for key in ("token_bytes", "multi_head_token_bytes"))
        saving = f"{ours} of keys and values per token; {theirs} if every query head had its own"
        paper.text(axes, 148, top - 118, saving, 13)
    return figure


def _group(axes: Any, left: float, top: float, group: int, members: list[int]) -> None:
    """One key/value head below the query heads that read it."""
    step, width, color = 18.5, 16, TINTS[group % len(TINTS)]
    middle, wide = left + np.mean(members) * step + width / 2, (len(members) - 1) * step + width
    for head in members:
        x = left + head * step
        axes.plot([x + width / 2, middle], [top - 41, top - 74], color=color, linewidth=1.3, zorder=1)
        paper.box(axes, x, top - 40, width, 16, color)
        paper.text(axes, x + width / 2, top - 32.6, str(head), 9, CARD, "center")
    paper.box(axes, middle - wide / 2, top - 94, wide, 20, color)
    paper.text(axes, middle, top - 84.6, str(group), 11, CARD, "center")


def window(shown: dict[str, Any]) -> Any:
    figure = paper.card(792, 367)
    axes, cell = paper.panel(figure, 28, 18, 320, 330), 17
    paper.title(axes, 316, f"One layer, window {shown['size']}", "measured: token i (row) sees token j (column)")
    for i, row in enumerate(shown["sees"]):
        for j, seen in enumerate(row):
            color = GREY if not seen else BLUE if i == j else PALE
            paper.box(axes, 4 + j * cell, 262 - i * cell, cell - 2.4, cell - 2.4, color)
    _draw_reach(paper.panel(figure, 360, 18, 410, 330), shown["reach"], shown["size"])
    return figure


def _draw_reach(axes: Any, reach: list[list[int]], size: int) -> None:
    note = "measured: hidden states that change when token 0 is another one"
    paper.title(axes, 316, f"{len(reach)} layers: how far a token is felt", note)
    length, cell = len(reach[0]), 15
    for i, changed in enumerate([[1] + [0] * (length - 1), *reach]):
        y, far = 68 + i * 38, max(p for p, mark in enumerate(changed) if mark)
        paper.text(axes, 0, y + 10, f"layer {i}" if i else "tokens", 12, SOFT)
        for p, mark in enumerate(changed):
            strong = BLUE if i else ORANGE
            paper.box(axes, 62 + p * cell, y, cell - 2.2, 20, strong if p == far else PALE if mark else GREY)
        if i:
            paper.text(axes, 66 + length * cell, y + 10, f"+{far}", 12.5, BLUE, bold=True)
    layers, whole = content.MISTRAL.n_layers, content.MISTRAL.sliding_window
    paper.text(axes, 0, 40, f"Each layer carries it {size} − 1 tokens further.")
    paper.text(axes, 0, 20, f"Mistral 7B: {layers} layers × ({whole} − 1) = {layers * (whole - 1):,} tokens.")


def buffer(shown: dict[str, Any]) -> Any:
    steps, slots = shown["steps"], len(shown["steps"][0]["slots"])
    height, left, cell = 28 * len(steps) + 137, 104, 20
    axes, top = paper.panel(figure := paper.card(792, height), 24, 16, 744, height - 32), height - 52
    note = "each line is the buffer when a chunk, later a single token, has been written and is about to attend"
    paper.title(axes, top, f"A prompt in chunks of {shown['chunk']}, window {shown['size']}, {slots} slots", note)
    paper.text(axes, 0, top - 46, "positions", 9.5, SOFT)
    paper.text(axes, left - 10, top - 46, "slot", 9.5, SOFT, "right")
    for slot in range(0, slots, 4):
        paper.text(axes, left + slot * cell + 9, top - 46, str(slot), 9.5, SOFT, "center")
    for i, step in enumerate(steps):
        first, last, y = step["first"], step["last"], top - 76 - i * 28
        paper.text(axes, 0, y + 11, f"{first} … {last}" if first < last else f"{first}", 12, SOFT)
        for slot, position in enumerate(step["slots"]):
            color, ink, edge = _slot_colors(position, step)
            paper.box(axes, left + slot * cell, y, cell - 2, 22, color, edge)
            paper.text(
                axes, left + slot * cell + 9, y + 10.4, str(position) if position >= 0 else "", 9.5, ink, "center"
            )
    legend = {
        "just written": (0, BLUE),
        "the old window, still seen": (135, PALE),
        "seen by nobody any more": (355, GREY),
    }
    for text, (x, color) in legend.items():
        paper.box(axes, left + x, 6, 16, 16, color)
        paper.text(axes, left + x + 23, 13.5, text)
    return figure


def _slot_colors(position: int, step: dict[str, Any]) -> tuple[str, str, str]:
    """(face, ink, edge) of a slot: empty, just written, in the old window, or out of sight."""
    if position < 0:
        return CARD, CARD, LINE
    if position >= step["first"]:
        return BLUE, CARD, "none"
    return (PALE, paper.INK, "none") if position >= step["oldest_seen"] else (GREY, PALE_INK, "none")


def memory(shown: dict[str, Any]) -> Any:
    w, h = 792, 317
    figure = paper.card(w, h)
    axes = figure.add_axes((66 / w, 62 / h, (w - 300) / w, (h - 122) / h))
    title = "Memory for the keys and values of one Mistral 7B v0.1 conversation"
    paper.title(paper.panel(figure, 28, 20, 700, h - 40), h - 56, title)
    thousands = [n / 1024 for n in shown["contexts"]]
    for name, color, lift in zip(shown["lines"], (PALE_INK, BLUE, ORANGE), (0, 0.07, -0.07), strict=True):
        gib = [n / 2**30 for n in shown["lines"][name]]
        axes.plot(thousands, gib, color=color, linewidth=2.6, solid_capstyle="round")
        paper.text(axes, 32.6, gib[-1] + lift, f"{gib[-1]:.2f} GiB", 13, color, bold=True)
        paper.text(axes, 38, gib[-1] + lift, name, 12, SOFT)
    axes.set(xlim=(0, 32), ylim=(0, 4.2), xlabel="tokens in context", ylabel="GiB")
    axes.set_xticks(range(0, 33, 4), [f"{n}k" if n else "0" for n in range(0, 33, 4)])
    axes.set_yticks(range(1, 5))
    axes.grid(axis="y", color=GREY)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    return figure


def block(shown: dict[str, Any]) -> Any:
    figure = paper.card(792, 392)
    axes, cell = paper.panel(figure, 28, 16, 736, 356), 9
    count, total = sum(map(len, shown["levels"])), sum(shown["nbytes"].values())
    note = f"the first {count} weights of puff's {shown['name']}, as bise rounds them; the darker, the higher the level"
    paper.title(axes, 340, f"A block of Q4_K: {count} weights in {total} bytes", note)
    for i, (levels, scale, minimum) in enumerate(zip(shown["levels"], shown["scales"], shown["minima"], strict=True)):
        y, strong = 256 - i * 21, i == shown["at"]
        words = f"scale {scale}, minimum {minimum}"
        paper.text(axes, 0, y + 7, words, 11, BLUE if strong else SOFT)
        for j, level in enumerate(levels):
            paper.box(axes, 134 + j * cell, y, cell - 1.4, 14, _shade(level / 15))
    _draw_levels(paper.panel(figure, 478, 108, 286, 196), shown)
    left = 0.0
    for name, nbytes in shown["nbytes"].items():
        wide = 12 + 4.78 * nbytes
        paper.box(axes, left, 44, wide - 3, 20, PALE if name == "levels" else ORANGE if len(name) == 1 else BLUE)
        ink = paper.INK if name == "levels" else CARD
        paper.text(axes, left + (wide - 3) / 2, 53.6, f"{nbytes}", 10, ink, "center")
        left += wide
    words = "bytes: d and m (float16), eight scales and minima of 6 bits each, 256 levels of 4 bits"
    paper.text(axes, 0, 30, words, 11, SOFT)
    paper.text(axes, 0, 8, "weight = d × scale × level − m × minimum", 13, bold=True)
    bits = f"{8 * total / count:g} bits a weight"
    paper.text(axes, 736, 8, bits, 13, ha="right", bold=True)
    return figure


def _shade(part: float) -> tuple[float, float, float]:
    """From grey, 0, to blue, 1."""
    low, high = (np.array(mpl.colors.to_rgb(color)) for color in (GREY, BLUE))
    red, green, blue = low + part * (high - low)
    return red, green, blue


def _draw_levels(axes: Any, shown: dict[str, Any]) -> None:
    """The weights of one sub-block on the 16 values that it has for them."""
    values, levels, rungs = shown["values"], shown["levels"][shown["at"]], shown["grid"]
    low, high = min(values + rungs), max(values + rungs)
    height = lambda value: 6 + 162 * (value - low) / (high - low)  # noqa: E731
    paper.text(axes, 0, 187, f"sub-block {shown['at'] + 1}: 32 weights, and where they go", 11, SOFT)
    for rung in rungs:
        axes.plot([0, 284], [height(rung)] * 2, color=LINE, linewidth=0.8, zorder=0)
    for j, (value, level) in enumerate(zip(values, levels, strict=True)):
        x = 6 + j * 8.8
        axes.plot([x, x], [height(value), height(rungs[level])], color=ORANGE, linewidth=2.2, zorder=1)
        axes.plot([x - 3.2, x + 3.2], [height(rungs[level])] * 2, color=BLUE, linewidth=2.6, zorder=2)
        axes.plot(x, height(value), "o", color=ORANGE, markersize=2.8, zorder=3)


DRAWN = {"heads": heads, "window": window, "buffer": buffer, "memory": memory, "block": block}

if __name__ == "__main__":
    for each in DRAWN:
        print(draw(each).name)
