"""bise bench --against: the turns are played here, and the page is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError, UnsupportedError
from .options import Loading
from .terminal import Doing, print_facts, print_table, size

if TYPE_CHECKING:
    from ..api import Model
    from ..bench import Comparison, Line, Plan, Spread, Turn


def measure_both(
    models: Sequence[str | Path | None], against: str, loading: Loading, rounds: int, isa: str, plan: Plan,
    as_json: bool, save: str | None,
) -> None:  # fmt: skip
    """Everything about --against but the options themselves; the built-in model comes last."""
    from ..api import BUILT_IN, find
    from ..bench import compare

    _check(against, loading, rounds)
    files = list(dict.fromkeys([*(find(model) for model in models), BUILT_IN]))
    with Doing() as doing:
        found = compare(files, loading.threads, rounds, isa, plan, doing)
    finish(found, as_json, save)


def finish(found: Comparison, as_json: bool = False, save: str | Path | None = None) -> None:
    """Print the page, or one line of JSON; write the JSON to a file as well."""
    if save:
        Path(save).write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        show(found)


def _check(against: str, loading: Loading, rounds: int) -> None:
    if against != "llama.cpp":
        raise RequestError(f"--against is {against!r}, expected llama.cpp")
    if rounds < 1:
        raise RequestError(f"--rounds is {rounds}, expected 1 or more")
    if loading != Loading(threads=loading.threads):
        raise RequestError("--against measures both engines as they are by default: it takes --threads and --isa")
    if find_spec("llama_cpp") is None:
        raise UnsupportedError("--against llama.cpp needs its Python package: pip install llama-cpp-python")


def lengths(prefill: int | None, decode: int | None, depths: Sequence[int] | None) -> Plan:
    """The usual plan, but for what was asked for; what is done at a depth is never longer than what is done at none."""
    from ..bench import Plan

    usual = Plan()
    prefill, decode = usual.prefill if prefill is None else prefill, usual.decode if decode is None else decode
    if min(prefill, decode) < 1:
        raise RequestError(f"prefill is {prefill}, decode {decode}: --against takes 1 or more tokens")
    return Plan(
        prefill, decode, min(usual.many, decode), usual.depths if depths is None else tuple(depths),
        min(usual.deep_prefill, prefill), min(usual.deep_decode, decode),
    )  # fmt: skip


def play_turn(text: str) -> None:
    """What the process of one turn does: a line of JSON for each thing begun, a string, and one for the result."""
    from ..bench import Turn, play

    turn = Turn.of(json.loads(text))
    result = play(turn, _loaded, lambda words: print(json.dumps(words), flush=True))
    print(json.dumps(result), flush=True)


def _loaded(turn: Turn) -> Model:
    from ..api import load

    return load(turn.file, window=turn.window, kv=turn.kv, threads=turn.threads, isa=turn.isa)


def show(found: Comparison) -> None:
    """The machine and the engines, then a table per file."""
    from ..bench import BUSY, machine

    load = found.load_average
    facts = {
        "machine": f"{machine()['cpu']}, {found.threads} threads, memory reads {found.bandwidth / 1e9:.1f} GB/s",
        **{engine: f"{about['version']}, {about['arithmetic']}" for engine, about in found.about.items()},
        "other load": f"{load} cores before this began" + (": the figures are theirs too" if load > BUSY else ""),
    }
    print_facts(f"{' against '.join(found.engines)}, in turns; median (lowest\u2013highest) of {found.rounds}", facts)
    rows = []
    for file, lines in found.lines.items():
        rows += [[file]] + [
            [f"  {line.name}", *(_cell(value, line.unit) for value in line.values), *_ends(line)] for line in lines
        ]
    heads = [">" + head for head in (*found.engines, "better by", "bandwidth")]
    print_table(["tokens/s, or the unit", *heads], rows)


def _ends(line: Line) -> tuple[str, str]:
    return f"{line.ratio:.2f}" if line.ratio else "", f"{line.share:.0%}" if line.share else ""


def _cell(value: Spread, unit: str) -> str:
    """Median and range; sizes have hardly any, and are not given one."""
    if unit == "bytes":
        return size(round(value.median))
    middle, low, high = (three_digits(number) for number in (value.median, value.low, value.high))
    return middle + (" s" if unit == "s" else "") + ("" if low == high else f" ({low}\u2013{high})")


def three_digits(number: float) -> str:
    """At least as many as matter: 0.52, 5.21, 52.1, 521, 5,212."""
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"
