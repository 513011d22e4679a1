"""What a person sees beside the product: all of it on stderr, the moving parts only where stderr is a terminal."""

from __future__ import annotations

import logging
import re
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ..completion import Completion

PATIENCE = 0.4  # seconds that a job may take before it gets a bar
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def console() -> Console:
    """stderr, with colours where it is a terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One dim line on stderr."""
    if sys.stderr.isatty():
        console().print(text, style="dim", markup=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr)


def say(text: str) -> None:
    """A piece of the product on stdout, at once. On a terminal a model's control characters (cursor movements, title
    changes, bells) are shown as what they are and do nothing."""
    sys.stdout.write(_CONTROLS.sub(_picture, text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"  # U+2400: pictures of controls


def listen(quiet: bool) -> None:
    """Show what the library logs: what it decided about a model, and what it warns of."""
    log = logging.getLogger("bise")
    log.handlers = [_Notes()]
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    log.propagate = False


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


class Bar:
    """A progress bar to be called with (done, total), and perhaps another title; it appears when a job turns out to be
    long, and goes when the block ends or `close` is called. Where stderr is no terminal it does nothing."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self._started = time.perf_counter()
        self._first: int | None = None  # what was done when we were called first: not ours to count in the speed
        self._progress: Any = None
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __call__(self, done: int, total: int, title: str = "") -> None:
        if not self._live:
            return
        self.title = title or self.title
        self._first = done if self._first is None else self._first
        seconds = time.perf_counter() - self._started
        if self._progress is None and (seconds > PATIENCE or self._long(total - done)) and done < total:
            self._progress = self._open(total)
        if self._progress is not None:
            counted = self.unit == "tokens" and done > self._first
            speed = f"{(done - self._first) / seconds:,.0f} tokens/s" if counted else ""
            self._progress.update(self._task, completed=done, speed=speed, description=self.title)

    def close(self) -> None:
        """Take the bar away: what follows is the product."""
        self._live = False
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _long(self, left: int) -> bool:
        return self.unit == "tokens" and left > 512

    def _open(self, total: int) -> Any:
        from rich import progress as rich

        amount: list[rich.ProgressColumn] = [rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn()]
        if self.unit != "bytes":
            counted = "{task.completed:,.0f} of {task.total:,.0f} "
            amount = [rich.TextColumn(counted + self.unit + " {task.fields[speed]}")]
        progress = rich.Progress(
            rich.TextColumn("[dim]{task.description}"), rich.BarColumn(), *amount,
            rich.TimeRemainingColumn(compact=True), console=console(), transient=True,
        )  # fmt: skip
        self._task = progress.add_task(self.title, total=total, speed="")
        progress.start()
        return progress


def size(nbytes: int) -> str:
    """Bytes for a person: 3 digits that matter."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value, unit = float(nbytes), -1
    while value >= 1000 and unit < 3:
        value, unit = value / 1024, unit + 1
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {('KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def speed(done: Completion) -> str:
    """One line: how much was read and written, and how fast."""
    read = done.prompt_tokens - done.reused_tokens
    reused = f" ({done.reused_tokens:,} reused)" if done.reused_tokens else ""
    wrote = len(done.tokens)
    parts = [f"read {read:,} token{'s' * (read != 1)}{reused} at {_rate(read, done.prefill_seconds)}"]
    if wrote > 1:  # the first one comes with the prompt
        parts.append(f"wrote {wrote:,} at {_rate(wrote - 1, done.decode_seconds)}")
    return ", ".join(parts)


def _rate(tokens: int, seconds: float) -> str:
    rate = tokens / seconds if seconds else 0.0
    return f"{rate:,.0f}/s" if rate >= 20 else f"{rate:.1f}/s"


def print_table(heads: list[str], rows: list[list[str]], title: str | None = None, stderr: bool = False) -> None:
    """A table for a person; a head that begins with '>' has its column on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head.removeprefix(">"), justify="right" if head.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(stderr=stderr, highlight=False).print(table)


def print_facts(title: str, facts: dict[str, str]) -> None:
    """A title and a list of named facts, for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    out = Console(highlight=False)
    out.print(Text(title, style="bold"))
    out.print(grid)
    out.print()


class Doing:
    """A line on the terminal that says what is being done; call it with the words."""

    def __init__(self) -> None:
        self._status: Any = None

    def __enter__(self) -> Doing:
        if sys.stderr.isatty():
            self._status = console().status("", spinner_style="dim")
            self._status.start()
        return self

    def __call__(self, words: str) -> None:
        if self._status:
            self._status.update(f"[dim]{words}")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status:
            self._status.stop()
