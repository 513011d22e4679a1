"""loss.png: the loss of every step, and of the held-out rows."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..disk import replacing


def smooth(values: Sequence[float], span: float = 0.05) -> list[float]:
    """A running mean over about this share of them: exponential, corrected for its beginning."""
    keep = 1 - 1 / max(1.0, span * len(values))
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def draw(path: Path, notes: Sequence[dict[str, Any]], title: str) -> bool:
    """From the lines of metrics.jsonl. False where matplotlib is not installed, or there is nothing to draw."""
    steps = [(note["step"], note["loss"]) for note in notes if "loss" in note]
    looks = [(note["step"], note["held_out"]) for note in notes if "held_out" in note]
    if not steps or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at, losses = zip(*steps, strict=True)
    axes.plot(at, losses, color="#9bb7d4", linewidth=0.8, label="each step")
    axes.plot(at, smooth(losses), color="#1f5c99", linewidth=1.6, label="its running mean")
    if looks:
        axes.plot(
            *zip(*looks, strict=True), "o-", color="#c4572e", markersize=3.5, linewidth=1.4, label="held-out rows"
        )
    axes.set(xlabel="step", ylabel="loss per learnt token, or pair", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    with replacing(path) as file:
        file.write(image.getvalue())
    return True
