"""Figures of speed, written between a page's markers from a result file: no such figure is typed by hand.

docs/speed.md has its tables and pictures from a file of bench/speed.py, README.md its numbers from one of
bench/against.py. A test makes both again from the files that the pages name, and compares.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import charts

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "speed.md", ROOT / "README.md"
ENGINES = ("bise", "llama.cpp")
Point = dict[str, Any]


def write(result: Path, page: Path = PAGE) -> list[Path]:
    """Fill the page and draw a picture for each series that the result has; -> the files written."""
    found = json.loads(result.read_text())
    folder = page.parent / "figures"
    folder.mkdir(exist_ok=True)
    pictures = [charts.draw(name, series["points"], folder) for name, series in found["series"].items()]
    page.write_text(filled(page.read_text(), found, os.path.relpath(result, page.parent)))
    return [page, *pictures]


def filled(text: str, found: dict[str, Any], name: str) -> str:
    """The page with fresh tables. name: of the result file, as the page links to it."""
    parts = {"about": about(found, name)}
    for series, rows in TABLES.items():
        if series in found["series"]:
            picture = f"![{SHOWN[series]}](figures/speed-{series}.svg)"
            parts[series] = f"{picture}\n\n{rows(found['series'][series]['points'])}"
    for part, body in parts.items():
        text = put(text, part, body)
    return text


def put(text: str, part: str, body: str) -> str:
    """Exchange what stands between the markers of `part`."""
    marked = re.compile(rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.DOTALL)
    return marked.sub(lambda match: f"{match[1]}\n{body}\n\n{match[2]}", text)


def named(text: str, kind: str) -> list[str]:
    """The result files of a kind that a page names."""
    return list(dict.fromkeys(re.findall(rf"\((\.\./bench/results/{kind}-[^)]+\.json)\)", text)))


def where(result: dict[str, Any], name: str) -> str:
    """The machine of a result, what else it had to do, and the file, by the name that the page links to."""
    machine, load = result["machine"], result["load_average"]
    return (
        f"on {machine['cores']} cores of an {machine['cpu']}, {machine['isa']}; other processes used {load:.1f} cores "
        f"before: [{Path(name).name}]({name})."
    )


def source(text: str, part: str) -> str | None:
    """The result file that a page links to between the markers of `part`."""
    found = re.search(rf"<!-- {part} -->((?!<!--).)*?\]\((\S+?\.json)\)", text, re.DOTALL)
    return found[2] if found else None


def write_numbers(result: Path, page: Path = README) -> Path:
    """Fill the README's numbers."""
    name = os.path.relpath(result, page.parent)
    page.write_text(put(page.read_text(), "numbers", numbers(json.loads(result.read_text()), name)))
    return page


def numbers(found: dict[str, Any], name: str) -> str:
    """The whole table of a file of bench/against.py: the first model's lines, then two speeds of each other one."""
    here, (first, *others) = found["machine"], found["lines"]
    theirs = found["about"]["llama.cpp"]["version"]
    intro = (
        f"{first}: {here['cores']} cores of an {here['cpu']}, {found['threads']} threads, bise with "
        f"{found['isa'] or here['isa']}; medians of {found['rounds']} rounds, in turns in one run "
        f"([{Path(name).name}]({name})).\nMemory reads {found['bandwidth'] / 1e9:.1f} GB/s there: decoding's limit."
    )
    heads = ["tokens/s, or the unit", "bise", f"llama.cpp ({theirs})", "times better", "of bandwidth"]
    whole = table(heads, (_cells(line) for line in found["lines"][first]))
    heads = ["other files", "prefill: bise", "llama.cpp", "ratio", "decode: bise", "llama.cpp", "ratio"]
    more = [[file, *_cells(lines[0])[1:4], *_cells(lines[1])[1:4]] for file, lines in found["lines"].items()][1:]
    return f"{intro}\n\n{whole}" + (f"\n\n{table(heads, more)}" if others else "")


def _cells(line: dict[str, Any]) -> list[str]:
    """Name, both values, ratio, share of the bandwidth."""
    said = {"tokens/s": short, "s": lambda v: f"{v:.2f} s", "bytes": lambda v: f"{v / 2**30:.2f} GiB"}[line["unit"]]
    part = f"{line['share']:.0%}" if line["share"] else ""
    return [line["name"], *(said(value["median"]) for value in line["values"]), f"{line['ratio']:.2f}", part]


def about(found: dict[str, Any], name: str) -> str:
    here = next(iter(found["series"].values()))["machine"]
    load = max(series["load_average"] for series in found["series"].values())
    busy = f", other processes used up to {load} cores" if load > 0.5 else ""
    return (
        f"Measured on {here['cores']} cores of an {here['cpu']}, {found['threads']} threads, bise with {found['isa']}, "
        f"file {found['file']}{busy}: [{Path(name).name}]({name})."
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def beside(points: Sequence[Point], label: str, keys: Sequence[str], said: Callable[[Any], str] = str) -> str:
    """A row for each value of `label`; for each key bise, llama.cpp and how many times better bise is."""
    heads = [label, *(head for key in keys for head in (f"{key}: bise", "llama.cpp", "ratio"))]
    rows = []
    for value in dict.fromkeys(point[label] for point in points):
        pair = [next(p for p in points if (p["engine"], p[label]) == (engine, value)) for engine in ENGINES]
        cells = [cell for key in keys for cell in _compared(pair[0][key], pair[1][key])]
        rows.append([said(value), *cells])
    return table(heads, rows)


def _compared(ours: float, theirs: float) -> tuple[str, str, str]:
    return short(ours), short(theirs), f"{ours / theirs:.2f}"


def context(points: Sequence[Point]) -> str:
    speeds = beside(points, "context", ["prefill", "decode"], lambda n: f"{n:,}")
    rows = []
    for n in dict.fromkeys(point["context"] for point in points):
        kept = {point["engine"]: point for point in points if point["context"] == n}
        sizes = [gib(kept[engine][kv]) for kv in ("kv_f16", "kv_q8_0") for engine in ENGINES]
        rows.append([f"{n:,}", *sizes])
    heads = ["GiB of keys and values", "f16: bise", "llama.cpp", "q8_0: bise", "llama.cpp"]
    return f"{speeds}\n\n{table(heads, rows[1:])}"


def window(points: Sequence[Point]) -> str:
    heads = ["context", "window", "prefill", "decode", "attention of a layer, s", "keys and values f16, GiB"]
    rows = [
        [f"{p['context']:,}", f"{p['window']:,}" if p["window"] else "none", short(p["prefill"]), short(p["decode"]),
         short(p["attention"]), gib(p["kv_f16"])]
        for n in dict.fromkeys(point["context"] for point in points) for p in points if p["context"] == n
    ]  # fmt: skip
    return f"{table(heads, rows)}\n\n{gains(points)}"


def gains(points: Sequence[Point]) -> str:
    """How many times less the window takes, at each context."""
    said = []
    for n in dict.fromkeys(point["context"] for point in points):
        with_it, without = sorted((p for p in points if p["context"] == n), key=lambda p: p["window"] is None)
        time, memory = (without[key] / with_it[key] for key in ("attention", "kv_f16"))
        said.append(f"at {n:,} tokens {time:.2f} times in attention and {memory:.2f} times in memory")
    return f"The window saves {'; '.join(said)}."


SHOWN = {
    "context": "Prefill, decode and memory against the context",
    "sequences": "Decode against the number of sequences",
    "threads": "Prefill and decode against the threads",
    "types": "Prefill and decode by type of the weights",
    "window": "Attention and memory with the window and without",
}
TABLES: dict[str, Callable[[Sequence[Point]], str]] = {
    "context": context,
    "sequences": lambda points: beside(points, "sequences", ["decode"]),
    "threads": lambda points: beside(points, "threads", ["prefill", "decode"]),
    "types": lambda points: beside(points, "type", ["prefill", "decode"]),
    "window": window,
}


def short(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def gib(value: int) -> str:
    return f"{value / 2**30:.2f}"
