"""bise bench: how fast this machine runs a model, alone or beside another engine."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from . import app
from .options import MODEL, Loading, grouped, option

if TYPE_CHECKING:
    from ..api import Model
    from ..bench import Row, Spread

SMALL = 1_000_000_000  # parameters: smaller models are measured at several depths unless told otherwise
BESIDE = "Beside another engine"
EXAMPLES = """[bold]Examples[/]

[cyan]bise bench[/]  the built-in model

[cyan]bise bench mistral-7b-v0.1.Q4_K_M.gguf --depths 0,4096,8192[/]

[cyan]bise bench model.gguf --threads 2 --json >> speeds.jsonl[/]

[cyan]bise bench mistral-7b-v0.1.Q4_K_M.gguf --against llama.cpp[/]  the whole table, some ten minutes
"""


@app.command(epilog=EXAMPLES)
@grouped
def bench(
    *,
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)] = None,
    prefill: Annotated[int | None, option(None, "--prefill", metavar="N",
        help="Tokens of the prompt that is read. Default: 512, or half of a smaller context.")] = None,
    decode: Annotated[int | None, option(None, "--decode", metavar="N",
        help="Tokens that are written. Default: 32.")] = None,
    depths: Annotated[str | None, option(None, "--depths", metavar="N,N,...",
        help="Tokens of context before each run. Default: 0; for small models several.")] = None,
    repeats: Annotated[int | None, option(None, "--repeats", metavar="N",
        help="Runs of each; the median counts. Default: 3.")] = None,
    json: Annotated[bool, option(None, "--json", help="Print one line of JSON, with the machine in it.")] = False,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    against: Annotated[str | None, option(BESIDE, "--against", metavar="llama.cpp",
        help="Measure bise and llama.cpp (the package llama-cpp-python) on the same files, in turns. The first file is "
             "measured in everything, further ones and the built-in model from an empty context.")] = None,
    rounds: Annotated[int, option(BESIDE, "--rounds", metavar="N",
        help="Turns of each engine; the median counts. Default: 2.")] = 2,
    save: Annotated[str | None, option(BESIDE, "--save", metavar="FILE.json",
        help="Write everything that was measured to this file, too.")] = None,
    isa: Annotated[str, option("How the model is loaded", "--isa", metavar="NAME",
        help="Instruction set of bise: avx512vnni, avx2, base. Default: the best that runs here.")] = "",
    turn: Annotated[str | None, typer.Option(hidden=True, help="One turn of --against, as JSON.")] = None,
    loading: Loading,
) -> None:  # fmt: skip
    """Measure how fast this machine reads (prefill) and writes (decode).

    Decoding reads all weights once per token, so the memory sets its limit: the table shows the share of it reached.
    """
    from .against import lengths, measure_both, play_turn
    from .terminal import listen

    if turn is not None:
        play_turn(turn)
    elif against is not None:
        if repeats is not None:
            raise RequestError("--repeats is for a model alone: --against takes --rounds")
        ends = None if depths is None else _numbers(depths)
        measure_both(models or [None], against, loading, rounds, isa, lengths(prefill, decode, ends), json, save)
    elif len(models or []) > 1:
        raise RequestError(f"{len(models or [])} models were given, expected one: --against llama.cpp takes several")
    else:
        listen(quiet)
        decode, repeats = 32 if decode is None else decode, 3 if repeats is None else repeats
        _alone(models[0] if models else None, loading, isa, prefill, decode, depths, repeats, json)


def _alone(
    model: str | None, loading: Loading, isa: str, prefill: int | None, decode: int, depths: str | None, repeats: int,
    json: bool,
) -> None:  # fmt: skip
    from ..bench import as_json, bandwidth, machine, measure, python_seconds
    from .terminal import Doing

    started = time.perf_counter()
    loaded = loading.open(model, isa=isa)
    load_seconds = time.perf_counter() - started
    prefill = min(512, loaded.context // 2) if prefill is None else prefill
    with Doing() as doing:
        rows = measure(loaded, _depths(depths, loaded, prefill + decode), prefill, decode, repeats, doing)
        doing("the memory's bandwidth")
        speed = bandwidth(loading.threads)
    result = {
        "model": str(loaded.path), "bytes": loaded.weights.nbytes, "backend": loaded.ops.name, "kv": loaded.kv,
        "window": loaded.config.sliding_window, "threads": loading.threads or machine()["cores"], "prefill": prefill,
        "decode": decode, "repeats": repeats, "load_seconds": round(load_seconds, 2),
        "python_ms": round(1000 * python_seconds(loaded.config), 3), "bandwidth_gb": round(speed / 1e9, 2),
        "rows": as_json(rows, speed), "machine": machine(),
    }  # fmt: skip
    if json:
        import json as writer

        print(writer.dumps(result))
    else:
        _print(result, rows)


def _depths(text: str | None, model: Model, run: int) -> list[int]:
    if text is None:
        wanted = (0, 1024, 4096) if model.config.parameters < SMALL else (0,)
        fitting = [depth for depth in wanted if depth + run <= model.context]
        return fitting if len(fitting) == len(wanted) else sorted({*fitting, model.context - run})
    return _numbers(text)


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise RequestError(f"--depths is {text!r}, expected whole numbers with commas: 0,1024,4096")
    return [int(part) for part in text.split(",")]


def _print(result: dict[str, Any], rows: list[Row]) -> None:
    from .terminal import print_facts, print_table, size

    machine = result["machine"]
    print_facts(
        result["model"],
        {
            "machine": f"{machine['cpu']}, {result['threads']} threads, {machine['isa'] or 'no C++ kernels'}",
            "backend": f"{result['backend']}, keys and values in {result['kv']}",
            "loaded": f"{size(result['bytes'])} in {result['load_seconds']} s",
            "memory": f"reads {result['bandwidth_gb']} GB/s (measured on all threads)",
            "Python": f"{result['python_ms']} ms of every decode step",
        },
    )
    runs = [f">prefill {result['prefill']}", f">decode {result['decode']}"]
    lines = []
    for row, facts in zip(rows, result["rows"], strict=True):
        reached = facts["bandwidth_share"]
        lines.append([f"{row.depth:,}", _speed(row.prefill), _speed(row.decode), size(row.bytes_per_token),
                      f"{reached:.0%}" if reached is not None else "fits a cache"])  # fmt: skip
    heads = [">depth", *runs, ">read per token", ">of bandwidth"]
    print_table(heads, lines, f"Tokens per second: median (lowest to highest) of {result['repeats']}")


def _speed(spread: Spread | None) -> str:
    from .against import three_digits

    if spread is None:
        return ""
    middle, low, high = map(three_digits, (spread.median, spread.low, spread.high))
    return f"{middle} ({low}\u2013{high})"
