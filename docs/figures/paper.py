"""Paper and pen for every picture: colours, a white card, words and boxes on it. The unit is one point."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Affine2D

INK, SOFT, PALE_INK, LINE, CARD = "#1f2a37", "#6b7785", "#8b97a4", "#d5dbe1", "#ffffff"
BLUE, PALE, GREY, ORANGE = "#1c6e8c", "#b9d8e3", "#eff1f4", "#d9822b"
TINTS = (BLUE, ORANGE, "#5b8c5a", "#8a6fae", "#c0577a", "#3f7fbf", "#a88a2c", "#4d9a94")
STYLE = {
    "svg.hashsalt": "bise", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 13, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT,
}  # fmt: skip


def save(figure: Any, path: Path, shown: Any) -> Path:
    """As SVG, with what it was drawn from as JSON in its description."""
    about = {"Date": None, "Creator": None, "Description": json.dumps(shown, separators=(",", ":"))}
    figure.savefig(path, metadata=about)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path


def content_of(path: Path) -> Any:
    """What a picture was drawn from."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL)
    return json.loads(html.unescape(found[1])) if found else None


def card(width: float, height: float) -> Any:
    """An empty figure on a white card with round corners: legible on a light page and on a dark one."""
    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    shape = {"boxstyle": "round,pad=0,rounding_size=10", "facecolor": CARD, "edgecolor": LINE}
    figure.add_artist(FancyBboxPatch((6, 6), width - 12, height - 12, transform=points, zorder=-5, **shape))
    return figure


def panel(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes without a frame; (0, 0) is its lower left corner."""
    w, h = figure.get_size_inches() * 72
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def text(
    axes: Any, x: float, y: float, words: str, size: float = 12, color: str = INK, ha: str = "left", bold: bool = False
) -> None:
    axes.text(x, y, words, fontsize=size, color=color, ha=ha, va="center", weight="bold" if bold else "normal")


def title(axes: Any, y: float, head: str, note: str = "") -> None:
    text(axes, 0, y, head, 16, bold=True)
    text(axes, 0, y - 22, note, 11.5, SOFT)


def box(axes: Any, x: float, y: float, width: float, height: float, color: str, edge: str = "none") -> None:
    shape = {"boxstyle": "round,pad=0,rounding_size=2.5", "facecolor": color, "edgecolor": edge}
    axes.add_patch(FancyBboxPatch((x, y), width, height, zorder=2, **shape))
