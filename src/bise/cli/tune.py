"""bise tune: teach a model, on the weights that will be run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError, UnsupportedError
from . import app
from .options import grouped
from .teaching import Each, Length, Rows, Seen, Way, asked

if TYPE_CHECKING:
    from ..tune.data import Dataset
    from ..tune.job import Job
    from ..tune.memory import Plan
    from ..tune.settings import Settings

EXAMPLES = """[bold]Examples[/]

[cyan]bise tune chats.jsonl more.jsonl[/]  the built-in model, in a minute or two

[cyan]bise tune mistral-7b-v0.1.Q4_K_M.gguf chats.jsonl --budget 24h[/]  an adapter, trained against this very file

[cyan]bise tune mistral-7b-v0.1/ chats.jsonl more.jsonl:0.5 --base nf4 --rank 64[/]  QLoRA, half of the second file

[cyan]bise tune model.gguf pairs.jsonl --objective dpo[/]  from preferences

[cyan]bise tune model.gguf chats.jsonl --look[/]  which tokens would be learnt? Nothing is trained

[cyan]bise tune --resume runs/chats[/]  after Ctrl-C, or a power cut: the same result to the last bit (on a CPU)
"""
DATA = (".jsonl", ".json", ".txt", ".csv", ".md", ".parquet")


@app.command(epilog=EXAMPLES)
@grouped
def tune(
    *,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False,
        help="A .gguf file of any type, a safetensors folder, or a hub id. Default: the built-in model.")] = None,
    data: Annotated[list[str] | None, typer.Argument(metavar="DATA...", show_default=False,
        help="Rows: chat messages, ShareGPT, Alpaca, prompt and completion, preference pairs (.jsonl, .json), or plain "
             "text; recognised by themselves. FILE:2 counts each row twice, FILE:0.5 takes half of them.")] = None,
    way: Way,
    rows: Rows,
    length: Length,
    step: Each,
    seen: Seen,
) -> None:  # fmt: skip
    """Teach a model from rows of data: an adapter, or new weights.

    The adapter is trained beside the very weights that will be run, quantised or not.

    Every row is checked before anything begins; a run can be stopped at any moment and taken up again.
    """
    # fmt: on
    from .terminal import listen

    began = time.monotonic() - _age()
    _need_torch()
    seen = replace(seen, quiet=seen.quiet or not _first())
    listen(seen.quiet)
    given = asked(way, rows, length, step, seen)
    if seen.resume is not None:
        if model is not None or data or seen.out is not None or seen.look:
            raise RequestError("--resume knows model, data and folder: give it nothing but that folder")
        folder = seen.resume
        _teach(lambda **how: _resumed(folder, given, how), seen, began)
        return
    job = _job(*_sources(model, data), given)
    if seen.look:
        _look(job, seen)
        return
    out = seen.out or _free(Path("runs"), Path(job.data[0].partition(":")[0]).stem)
    _teach(lambda **how: _started(job, out, how), seen, began)


def _age() -> float:
    """Seconds that this process has been there: a budget begins with the command. 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:  # proc(5): starttime is field 22, in ticks
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", encoding="ascii") as file:
            return min(60.0, max(0.0, float(file.read().split()[0]) - started))
    except (OSError, ValueError, IndexError):
        return 0.0


def _first() -> bool:
    """Of several processes one talks to the terminal: the first, as torchrun counts them."""
    return os.environ.get("RANK", "0") == "0"


def _need_torch() -> None:
    try:
        from ..tune import job  # noqa: F401
    except ImportError as error:
        if error.name != "torch":
            raise
        raise UnsupportedError(f"tuning needs PyTorch ({error}): pip install 'bise[torch]'") from None


def _sources(model: str | None, data: list[str] | None) -> tuple[str, tuple[str, ...]]:
    """The model, found or pulled, and the data; data where the model should stand means the built-in one."""
    from ..api import find
    from .terminal import Bar

    if model is not None and Path(model.partition(":")[0]).suffix in DATA:
        data = [model, *(data or [])]
        model = None
    if not data:
        raise RequestError("no data: bise tune MODEL rows.jsonl")
    with Bar("pulling", "bytes") as bar:
        return str(find(model, bar)), tuple(data)


def _job(model: str, data: tuple[str, ...], asked: dict[str, Any]) -> Job:
    from ..tune.job import Job
    from ..tune.settings import Settings

    names = {f.name for f in fields(Settings)}
    chosen = {name: value for name, value in asked.items() if name in names}
    rest = {name: value for name, value in asked.items() if name not in names}
    return Job(model, data, settings=chosen, **rest)


def _free(folder: Path, name: str) -> Path:
    """`name` in this folder, or name-2, name-3 ..., whichever is not there yet."""
    found, n = folder / name, 1
    while found.exists():
        n += 1
        found = folder / f"{name}-{n}"
    return found


def _started(job: Job, out: Path, how: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    from ..tune.job import start

    return out, start(job, out, **how)


def _resumed(out: Path, asked: dict[str, Any], how: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    from ..tune.job import resume

    return out, resume(out, asked, **how)


def _look(job: Job, seen: Seen) -> None:
    from ..tokenizer import Tokenizer
    from ..tune.data import BadData
    from ..tune.job import rows_of
    from ..weights import Weights
    from .look import look, show_faults

    weights = Weights.open(job.model)
    tokenizer = Tokenizer.of(weights)
    try:
        rows, _ = rows_of(job, weights)
    except BadData as bad:
        show_faults(bad)
        raise
    assert tokenizer is not None
    page = None
    if seen.out is not None:
        seen.out.mkdir(parents=True, exist_ok=True)
        page = seen.out / "look.html"
    look(rows, tokenizer, Path(job.model).name, seed=seen.seed or 0, out=page)


def _teach(run: Callable[..., tuple[Path, dict[str, Any]]], seen: Seen, began: float) -> None:
    """Train with a picture on the terminal; Ctrl-C ends it after the micro-batch, with a checkpoint."""
    from ..tune.budget import Clock
    from ..tune.data import BadData
    from ..tune.job import Watch
    from .lesson import Lesson
    from .look import show_faults

    with Lesson(seen.device or "cpu", seen.quiet) as lesson, _asked_to_stop() as wanted:
        watch = Watch(doing=lesson.doing, read=lambda *about: _about(*about, quiet=seen.quiet),
                      news=lesson.news)  # fmt: skip
        try:
            out, card = run(watch=watch, wanted=wanted, clock=Clock(since=began))
        except BadData as bad:
            lesson.close()
            if _first():
                show_faults(bad)
            raise
    if _first():
        _said(out, card, seen)
    if not card.get("result", {}).get("ended", ""):
        raise typer.Exit(130)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether somebody pressed Ctrl-C, or the system wants us to end; asked a second time, it ends at once."""
    asked: list[int] = []

    def note_it(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note_it) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _about(rows: Dataset, settings: Settings, plan: Plan | None, *, quiet: bool) -> None:
    """What it is going to learn from, in a line or two."""
    from .terminal import note, size

    if quiet:
        return
    for line in rows.report.notes():
        note(line)
    rate = f"rate {settings.rate:g} {settings.schedule}, {settings.batch.replace('t', ' tokens')}"
    note(f"{rate}{'' if settings.batch.endswith('t') else ' rows'} a step, seed {settings.seed}")
    if plan:
        again = ", layers computed again on the way back" if plan.checkpointing else ""
        parts = ", ".join(f"{name} {size(nbytes)}" for name, nbytes, share in plan.rows() if share > 0.04)
        note(f"memory {size(plan.total)} at most ({parts}); {plan.micro:,} tokens at a time{again}")


def _said(out: Path, card: dict[str, Any], seen: Seen) -> None:
    """The product: what was made, or the card."""
    from .lesson import clock
    from .terminal import note

    result = card.get("result", {})
    if seen.json:
        import json

        card = {name: value for name, value in card.items() if name != "samples"}
        print(json.dumps({"run": str(out), **card}, ensure_ascii=False))
    elif result.get("ended"):
        print(card.get("made", out))
    if seen.quiet or not result:
        return
    if not result["ended"]:
        note(f"stopped after step {result['steps']:,} of {result['of']:,}: go on with bise tune --resume {out}")
        return
    loss = ""
    if result["held_out_before"] is not None and result["best"] is not None:
        loss = f"; held-out loss {result['held_out_before']:.3f} before, {result['best']:.3f} after"
        if result["best"] >= result["held_out_before"]:
            loss += ": it got no better, try a lower --rate or other data"
    note(f"{result['ended']} after {result['steps']:,} steps in {clock(result['seconds'])}{loss} ({out}/run.json)")
