"""docs/quantising.md's figures, written between its markers from the result files of bench/quality.py and
bench/quantising.py, and the picture of the losses.

    python docs/figures/quantising_page.py bench/results/quantising-*.json

A test makes them again from the files that the page names, and compares: no figure is typed by hand.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import losses
from content import MISTRAL
from speed_page import put, short, table

from bise.quant import nbytes
from bise.quantize import recipe
from bise.weights import expected_shapes

PAGE = Path(__file__).resolve().parents[1] / "quantising.md"
Result = dict[str, Any]
Rows = list[dict[str, Any]]


def write(results: Sequence[Path], page: Path = PAGE) -> list[Path]:
    """Each result in its places, and the picture of `quality`; what has no result keeps what it has -> the files."""
    text, written = page.read_text(encoding="utf-8"), [page]
    for path in results:
        result = json.loads(path.read_text(encoding="utf-8"))
        text = filled(text, result, os.path.relpath(path, page.parent))
        if result["scenario"] == "quality":
            (page.parent / "figures").mkdir(exist_ok=True)
            written.append(losses.draw(points(result["rows"]), page.parent / "figures"))
    page.write_text(text, encoding="utf-8")
    return written


def filled(text: str, result: Result, name: str) -> str:
    """name: of the result file, as the page links to it, above its first table."""
    parts = PARTS.get(result["scenario"])
    if parts is None:
        raise ValueError(f"the page has no place for {result['scenario']}")
    for part, shown in parts.items():
        intro = f"{about(result, name)}\n\n" if part == next(iter(parts)) else ""
        text = put(text, part, f"{intro}{shown(result['rows'])}")
    return text


def about(result: Result, name: str) -> str:
    here, load = result["machine"], result["load_average"]
    busy = f"; other processes used {load:.1f} cores before" if load > 0.5 else ""
    where = f"on {here['cores']} cores of an {here['cpu']}, {here['isa']}{busy}: [{Path(name).name}]({name})."
    return f"{ABOUT[result['scenario']](result)} {where}"


def _about_quality(result: Result) -> str:
    told, rows = result["settings"], result["rows"]
    error = statistics.median(row["kl"]["error"] / row["kl"]["value"] for row in rows if row["kl"]["value"])
    return (
        f"{result['file']}, {rows[0]['tokens']:,} tokens of {' and '.join(told['text'])} ({told['chunks']} chunks of "
        f"{told['context']}); importance and compensation from {told['calibrate']} other chunks. The standard error of "
        f"a KL is {error:.0%} of it, as a rule;"
    )


def _about_rounding(result: Result) -> str:
    return f"Median of {result['settings']['rounds']} turns, {result['settings']['threads']} threads,"


def points(rows: Rows) -> Rows:
    """What the picture shows: KL by type and way."""
    return [{"type": row["type"], "way": row["way"], "kl": row["kl"]["value"]} for row in rows]


def types(rows: Rows) -> str:
    """What each type makes of a Mistral 7B, and what it costs puff."""
    lines = []
    for type, ways in _by_type(rows).items():
        row, (size, bits) = ways.get("bise", next(iter(ways.values()))), of_7b(type)
        top = f"{row['same_top']['value']:.1%}".replace("%", " %")
        lines.append([type, f"{bits:.2f}", f"{size / 2**30:.2f}", nats(row["kl"]["value"]), top])
    return table(["type", "bits per weight", "GiB of a Mistral 7B", "KL on puff, nats a token", "same top"], lines)


def of_7b(type: str) -> tuple[int, float]:
    """Bytes of all tensors, and bits per weight."""
    shapes = expected_shapes(MISTRAL)
    chosen = recipe.types(type, shapes, MISTRAL.n_heads // MISTRAL.n_kv_heads)
    size = sum(nbytes(kind, shapes[own]) for own, kind in chosen.items())
    return size, 8 * size / sum(nbytes("F32", shape) // 4 for shape in shapes.values())


def quality(rows: Rows) -> str:
    """KL by type and way; in brackets as a part of what llama.cpp's quantiser loses without importance."""
    ways = losses.ways(rows)
    lines = []
    for type, own in _by_type(rows).items():
        base = own.get("llama.cpp")
        lines.append([type, *(_loss(own[way], base) if way in own else "" for way in ways)])
    picture = f"![KL by type: llama.cpp's quantiser and bise's](figures/{losses.NAME})"
    return f"{picture}\n\n{table(['KL, nats a token', *ways], lines)}"


def ratios(rows: Rows) -> str:
    """The same files judged by perplexity: that of the file over the full model's."""
    return _of_all_ways("perplexity ratio", rows, lambda row: _with_error(row["perplexity_ratio"]))


def seconds(rows: Rows) -> str:
    return _of_all_ways("seconds, for puff", rows, lambda row: f"{row['seconds']:.1f}")


def _of_all_ways(head: str, rows: Rows, cell: Callable[[dict[str, Any]], str]) -> str:
    """A line for each type that was made in all ways."""
    ways = losses.ways(rows)
    whole = {type: own for type, own in _by_type(rows).items() if len(own) == len(ways)}
    return table([head, *ways], [[type, *(cell(own[way]) for way in ways)] for type, own in whole.items()])


def _with_error(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f} ± {estimate['error']:.4f}"


def _by_type(rows: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        type: {row["way"]: row for row in rows if row["type"] == type}
        for type in dict.fromkeys(row["type"] for row in rows)
    }


def _loss(row: dict[str, Any], base: dict[str, Any] | None) -> str:
    kl = row["kl"]["value"]
    return nats(kl) + (f" ({kl / base['kl']['value']:.2f})" if base and row is not base else "")


def nats(value: float) -> str:
    """Three digits: 0.0143, 0.000412."""
    return f"{value:.{max(2, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def speeds(rows: Rows) -> str:
    heads = ["million weights/s", "bise", "llama.cpp", "ratio", "with importance: bise", "llama.cpp", "ratio"]
    return f"{table(heads, _both(rows, _speed))}\n\n{errors(rows)}"


def _speed(row: dict[str, Any]) -> list[str]:
    return [short(row["ours"]), short(row["theirs"]), f"{row['time']:.2f}"]


def errors(rows: Rows) -> str:
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["error"]))
    heads = ["error / llama.cpp's", *kinds, *(f"with importance: {kind}" for kind in kinds)]
    return table(heads, _both(rows, lambda row: [f"{row['error'][k]:.3f}" if k in row["error"] else "" for k in kinds]))


def _both(rows: Rows, cells: Callable[[dict[str, Any]], list[str]]) -> list[list[str]]:
    """A line for each type: without importance, then with it."""
    lines: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: bool(row["informed"])):
        lines.setdefault(row["type"], [row["type"]]).extend(cells(row))
    return list(lines.values())


def files(rows: Rows) -> str:
    lines = [[row["type"], f"{row['ours']:.2f}", f"{row['theirs']:.2f}", f"{row['time']:.2f}"] for row in rows]
    return table(["whole file, s", "bise", "llama.cpp", "times quicker"], lines)


ABOUT: Mapping[str, Callable[[Result], str]] = {
    "quality": _about_quality, "rounding": _about_rounding,
    "files": lambda _: "A BF16 file of Mistral 7B's shape with one layer, median of two turns,",
}  # fmt: skip
PARTS: Mapping[str, Mapping[str, Callable[[Rows], str]]] = {
    "quality": {"types": types, "quality": quality, "seconds": seconds, "ratios": ratios},
    "rounding": {"rounding": speeds},
    "files": {"files": files},
}


if __name__ == "__main__":
    for path in write([Path(name) for name in sys.argv[1:]]):
        print(path.name)
