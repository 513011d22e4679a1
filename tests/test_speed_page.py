"""docs/speed.md and the README's numbers say what the result files say: no figure of speed is typed by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "figures"))
import charts  # noqa: E402
import paper  # noqa: E402
import speed_page  # noqa: E402

PAGE, README = ROOT / "docs" / "speed.md", ROOT / "README.md"


def both(label: str, values: list[Any], **more: Any) -> list[dict[str, Any]]:
    """Points of both engines: bise reads 20 tokens/s and writes 4, llama.cpp 10 and 3.2."""
    speeds = {"bise": (20.0, 4.0), "llama.cpp": (10.0, 3.2)}
    return [
        {"engine": engine, label: value, "prefill": prefill, "decode": decode, **more}
        for engine, (prefill, decode) in speeds.items()
        for value in values
    ]


def windowed(size: int | None, seconds: float, kept: int) -> dict[str, Any]:
    speeds = {"prefill": 20.0, "decode": 4.0, "attention": seconds, "kv_f16": kept}
    return {"engine": "bise", "context": 16_384, "window": size, **speeds}


POINTS: dict[str, list[dict[str, Any]]] = {
    "context": both("context", [0, 4096], kv_f16=1 << 29, kv_q8_0=1 << 28),
    "sequences": both("sequences", [1, 8]),
    "threads": both("threads", [1, 2]),
    "types": both("type", ["Q8_0", "Q4_0"]),
    "window": [windowed(4096, 2.0, 1 << 29), windowed(None, 4.2, 1 << 31)],
}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    machine = {"cores": 2, "cpu": "Some CPU"}
    series = {name: {"points": points, "load_average": 0.1, "machine": machine} for name, points in POINTS.items()}
    (tmp_path / "docs").mkdir()
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"file": "x.gguf", "threads": 2, "isa": "avx2", "series": series}))
    return path


def test_the_page_is_made_of_the_result(result: Path) -> None:
    page = result.parent / "docs" / "speed.md"
    page.write_text(PAGE.read_text())
    written = speed_page.write(result, page)
    text = page.read_text()
    assert "| 4,096 | 20.0 | 10.0 | 2.00 | 4.00 | 3.20 | 1.25 |" in text
    assert "| 8 | 4.00 | 3.20 | 1.25 |" in text and "| Q4_0 | 20.0 | 10.0 | 2.00 |" in text
    assert "at 16,384 tokens 2.10 times in attention and 4.00 times in memory" in text
    assert "2 cores of an Some CPU, 2 threads, bise with avx2, file x.gguf: [speed.json](../speed.json)" in text
    assert speed_page.source(text, "about") == "../speed.json"
    assert [path.name for path in written[1:]] == [f"speed-{name}.svg" for name in POINTS]
    for name, points in POINTS.items():
        assert f"(figures/speed-{name}.svg)" in text
        assert paper.content_of(page.parent / "figures" / f"speed-{name}.svg") == points
    speed_page.write(result, page)
    assert page.read_text() == text


def test_every_series_has_a_picture_a_table_and_a_place() -> None:
    """And bench/speed.py measures no other."""
    text, script = PAGE.read_text(), (ROOT / "bench" / "speed.py").read_text()
    assert list(charts.DRAWN) == list(speed_page.TABLES) == list(speed_page.SHOWN) == list(POINTS)
    for name in POINTS:
        assert f"<!-- {name} -->" in text and f"--what {name}" in text and f'"{name}": {name}' in script


def test_the_readmes_numbers_are_made_of_a_result(tmp_path: Path) -> None:
    def line(name: str, unit: str, ours: float, theirs: float, ratio: float, share: float | None) -> dict[str, Any]:
        values = [{"median": value, "low": value, "high": value} for value in (ours, theirs)]
        return {"name": name, "unit": unit, "values": values, "ratio": ratio, "share": share}

    speeds = [line("prefill 512", "tokens/s", 30, 10, 3.0, None), line("decode 24", "tokens/s", 6, 4, 1.5, 0.85)]
    lines = {"7b.gguf": [*speeds, line("load", "s", 2, 4, 2.0, None)], "puff.gguf": speeds}
    found = {
        "machine": {"cores": 2, "cpu": "Some CPU", "isa": "avx2"}, "threads": 2, "isa": "", "rounds": 2,
        "bandwidth": 2e10, "about": {"llama.cpp": {"version": "1.2.3"}}, "lines": lines,
    }  # fmt: skip
    page, result = tmp_path / "README.md", tmp_path / "against.json"
    page.write_text(README.read_text())
    result.write_text(json.dumps(found))
    text = speed_page.write_numbers(result, page).read_text()
    assert "| decode 24 | 6.00 | 4.00 | 1.50 | 85% |" in text and "| load | 2.00 s | 4.00 s | 2.00 |  |" in text
    assert "| puff.gguf | 30.0 | 10.0 | 3.00 | 6.00 | 4.00 | 1.50 |" in text
    assert speed_page.source(text, "numbers") == "against.json" and "Another machine gives other figures" in text


def test_docs_speed_says_what_its_result_file_says() -> None:
    """If not: python bench/speed.py --draw RESULT.json."""
    text = PAGE.read_text()
    name = speed_page.source(text, "about")
    if name is None:
        assert "speed-context.svg" not in text and "| ---" not in text  # nothing measured yet, nothing shown
        return
    found = json.loads((PAGE.parent / name).read_text())
    assert speed_page.filled(text, found, name) == text
    for series, measured in found["series"].items():
        assert paper.content_of(PAGE.parent / "figures" / f"speed-{series}.svg") == measured["points"]


def test_the_readme_says_what_its_result_file_says() -> None:
    """If not: python bench/against.py --write RESULT.json."""
    text = README.read_text()
    if name := speed_page.source(text, "numbers"):
        found = json.loads((ROOT / name).read_text())
        assert speed_page.put(text, "numbers", speed_page.numbers(found, name)) == text
