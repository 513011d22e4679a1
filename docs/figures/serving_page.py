"""docs/serving.md's figures, written between its markers from the result files of bench/serving.py.

    python docs/figures/serving_page.py bench/results/serving-*.json

A test makes them again from the files that the page names, and compares: no figure is typed by hand.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speed_page import where

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "serving.md"
Result = dict[str, Any]


def write(results: Sequence[Path], page: Path = PAGE) -> None:
    """Each result in its scenario's place; a place that has none keeps what it has."""
    text = page.read_text(encoding="utf-8")
    for path in results:
        result = json.loads(path.read_text(encoding="utf-8"))
        text = filled(text, result, os.path.relpath(path, page.parent))
    page.write_text(text, encoding="utf-8")


def filled(text: str, result: Result, name: str) -> str:
    """name: of the result file, as the page links to it."""
    start, end = f"<!-- {place(result)} -->", f"<!-- /{place(result)} -->"
    if start not in text or end not in text:
        raise ValueError(f"the page has no place for {place(result)}")
    body = f"{start}\n\n{result['file']} {where(result, name)}\n\n{shown(result)}\n\n{end}"
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: body, text, flags=re.DOTALL)


def place(result: Result) -> str:
    """The scenario; a sweep has one for each company that it was measured in."""
    return " ".join([result["scenario"], *(name for name in result.get("servers", ()) if name != "bise")])


def shown(result: Result) -> str:
    parts = [sweep(result["rows"])] if "rows" in result else []
    if result["scenario"] != "sweep":
        parts.append(checks(result["checks"]))
    return "\n\n".join(parts)


def sweep(rows: list[dict[str, Any]]) -> str:
    """Medians of the rounds, a line for each server and number of clients."""
    head = "| clients | server | tokens/s written | tokens/s in all "
    head += "| first token p50 | p95 | p99, s | between p50 | p95 | p99, ms |"
    lines = [head, "| ---: | --- |" + " ---: |" * 8]
    for clients in sorted({row["clients"] for row in rows}):
        for server in dict.fromkeys(row["server"] for row in rows):
            of = [row for row in rows if (row["clients"], row["server"]) == (clients, server)]
            if of:
                lines.append(f"| {clients} | {server} | " + " | ".join(cells(of)) + " |")
    return "\n".join(lines)


def cells(rows: list[dict[str, Any]]) -> list[str]:
    def median(*keys: str) -> float:
        return statistics.median(value(row, keys) for row in rows)

    first = [number(median("first_ms", p) / 1000) for p in ("p50", "p95", "p99")]
    gaps = [number(median("gap_ms", p)) for p in ("p50", "p95", "p99")]
    return [number(median("answer_per_s")), number(median("all_per_s")), *first, *gaps]


def value(row: dict[str, Any], keys: Sequence[str]) -> float:
    found: Any = row
    for key in keys:
        found = found[key]
    return float(found)


def checks(found: list[dict[str, Any]]) -> str:
    lines = ["| | measured | limit |", "| --- | ---: | ---: |"]
    return "\n".join(lines + [f"| {c['what']} | {told(c['value'], c['unit'])} | {limit(c)} |" for c in found])


def limit(check: dict[str, Any]) -> str:
    word = {"<=": "at most ", ">=": "at least ", "==": ""}[check["how"]]
    said = "the same" if isinstance(check["limit"], dict) else told(check["limit"], check["unit"])
    return (word + said) + ("" if check["held"] else " **not held**")


def told(value: Any, unit: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{n} {name}" for name, n in value.items())
    return f"{number(value)} {unit}".strip()


def number(value: float) -> str:
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    write([Path(name) for name in sys.argv[1:]])
