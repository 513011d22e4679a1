"""docs/serving.md: every promise names a test that there is, every route one that is served, every figure its file's."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "figures"))
import serving_page  # noqa: E402
from speed_page import named  # noqa: E402

PAGE = ROOT / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")
CHECK = {"what": "a figure", "value": 12.3456, "how": "<=", "limit": 250.0, "unit": "ms", "held": True}
RESULT = {
    "scenario": "vanish", "file": "x.gguf", "load_average": 0.1, "checks": [CHECK],
    "machine": {"cores": 2, "cpu": "Some CPU", "isa": "avx2"},
}  # fmt: skip


def test_every_promise_has_its_test() -> None:
    table = TEXT.split("## What we promise", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        assert re.search(r"test_\w+\.py::test_\w+", row), f"a promise without a test: {row}"
    for file, name in re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", TEXT):
        path = ROOT / "tests" / file
        assert path.exists(), f"there is no tests/{file}"
        assert re.search(rf"^ *(async )?def {name}\(", path.read_text(encoding="utf-8"), re.M), f"{file} has no {name}"


def test_every_route_is_there() -> None:
    pytest.importorskip("fastapi")
    from bise.server import app

    served = {
        (m, route.path.replace(":path", "")) for router in app.ROUTERS for route in router.routes for m in route.methods
    }  # type: ignore[attr-defined]
    table = TEXT.split("## The API", 1)[1].split("\n## ", 1)[0]
    named = {(m, path) for methods, path in re.findall(r"`([A-Z, ]+) (/[^`]*)`", table) for m in methods.split(", ")}
    assert named <= served | {("GET", "/openapi.json")}, sorted(named - served)
    missing = {(m, path) for m, path in served - named if m != "HEAD" and path.startswith(("/v1", "/tok", "/api"))}
    assert not missing, sorted(missing)


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert target.startswith("http") or (PAGE.parent / target).exists(), f"a link goes to {target}"


def test_the_figures_are_the_files() -> None:
    again = TEXT
    for name in named(TEXT, "serving"):
        again = serving_page.filled(again, json.loads((PAGE.parent / name).read_text(encoding="utf-8")), name)
    assert again == TEXT


def test_a_result_is_written_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "serving-x.json").write_text(json.dumps(RESULT))
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- vanish -->\nold\n<!-- /vanish -->\nz\n")
    serving_page.write([tmp_path / "serving-x.json"], page)
    text = page.read_text()
    assert "| a figure | 12.3 ms | at most 250 ms |" in text and "old" not in text and text.endswith("z\n")
    with pytest.raises(ValueError, match="no place for crowd"):
        serving_page.filled(text, RESULT | {"scenario": "crowd"}, "x.json")
