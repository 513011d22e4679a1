"""A training, as one sees it: the loss as a curve that grows, and a line of figures. Nothing where stderr is no
terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from .plot import Plot
from .terminal import console, size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..tune.loop import News

HEIGHT, WIDEST = 8, 96  # of the curve, in characters
LEARNT, HELD_OUT = "cyan", "bold yellow"
OFTEN = 0.2  # seconds between two pictures


class Lesson:
    """Shows `News` while the block runs; call `doing` with what else begins."""

    def __init__(self, device: str, quiet: bool) -> None:
        self.device, self.live = device, not quiet and sys.stderr.isatty()
        self.losses: list[tuple[float, float]] = []  # (step, mean loss of the last tenth of the steps, at most 50)
        self.held_out: list[tuple[float, float]] = []
        self._raw: deque[float] = deque(maxlen=500)
        self._words, self._shown = "", 0.0
        self._news: News | None = None
        self._screen: Any = None

    def __enter__(self) -> Lesson:
        if self.live:
            from rich.live import Live

            self._screen = Live(console=console(), auto_refresh=False, transient=True)
            self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it away, but for the curve as it was at the end."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = None
            if self._news is not None:
                console().print(self._picture(self._news))

    def doing(self, words: str) -> None:
        self._words = words
        self._show()

    def news(self, news: News) -> None:
        at = news.at
        if news.loss is not None and (not self.losses or self.losses[-1][0] < at.step):
            self._raw.append(news.loss)
            lately = list(self._raw)[-max(1, len(self._raw) // 10) :]
            self.losses.append((at.step, sum(lately) / len(lately)))
        if at.held_out is not None and (not self.held_out or self.held_out[-1][0] < at.looked):
            self.held_out.append((at.looked, at.held_out))
        self._news = news
        if time.monotonic() - self._shown > OFTEN:
            self._show()

    def _show(self) -> None:
        if self._screen is None:
            return
        from rich.text import Text

        self._shown = time.monotonic()
        shown = self._picture(self._news) if self._news is not None else Text(f"{self._words} ...", style="dim")
        self._screen.update(shown, refresh=True)

    def _picture(self, news: News) -> RenderableType:
        from rich.console import Group

        return Group(*self._curve(news), self._figures(news))

    def _curve(self, news: News) -> list[Any]:
        from rich.text import Text

        values = [y for _, y in self.losses + self.held_out]
        if len(self.losses) < 2:
            return []
        low, high = min(values), max(values)
        width = min(WIDEST, console().width - 12)
        plot = Plot(width, HEIGHT, (0, _end(news)), (low, high))
        plot.curve(_thinned(self.losses, 2 * width), LEARNT)
        plot.curve(self.held_out, HELD_OUT)
        labels = {0: f"{high:.3g}", HEIGHT - 1: f"{low:.3g}"}
        rows = []
        for i, pieces in enumerate(plot.lines()):
            rows.append(
                Text.assemble((f"{labels.get(i, ''):>7} ", "dim"), ("┤" if i in labels else "│", "dim"), *pieces)
            )
        return rows

    def _figures(self, news: News) -> Any:
        from rich.text import Text

        from ..tune.card import memory

        at, parts = news.at, []
        steps = f"step {at.step:,} of {at.schedule.steps:,}" if at.planned else f"step {at.step:,}, measuring the speed"
        parts.append((steps, "bold"))
        if self.losses:
            parts.append((f"loss {self.losses[-1][1]:.3f}", LEARNT))
        if at.held_out is not None:
            best = f" (best {at.best:.3f} at {at.best_step:,})" if at.best is not None else ""
            parts.append((f"held out {at.held_out:.3f}{best}", HELD_OUT))
        if news.speed:
            parts.append((f"{news.speed:,.0f} tokens/s", ""))
        parts.append((size(memory(self.device)), "dim"))
        if news.left is not None and not at.ended:
            parts.append((f"{clock(news.left)} left", ""))
        line = Text("        ")
        for i, (words, style) in enumerate(parts):
            line.append("  " if i else "").append(words, style=style)
        return line


def _end(news: News) -> float:
    """The last step of the picture: of the whole run, where that is known."""
    return float(news.at.schedule.steps if news.at.planned else max(2, news.at.step))


def _thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about so many of them, the last one among them."""
    return points[:: max(1, len(points) // most)] + points[-1:]


def clock(seconds: float) -> str:
    """ "1:02:03", "2:03"."""
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
