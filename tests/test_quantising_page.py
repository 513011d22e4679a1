"""docs/quantising.md: every promise names a test that there is, every message one that is said, every figure its file's."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "figures"))
import content  # noqa: E402
import draw  # noqa: E402
import losses  # noqa: E402
import paper  # noqa: E402
import quantising_page  # noqa: E402
from speed_page import named  # noqa: E402

PAGE = ROOT / "docs" / "quantising.md"
TEXT = PAGE.read_text(encoding="utf-8")
MACHINE = {"load_average": 0.1, "machine": {"cores": 2, "cpu": "Some CPU", "isa": "avx2"}}


def row(type: str, way: str, kl: float) -> dict[str, Any]:
    return {
        "type": type, "way": way, "kl": {"value": kl, "error": kl / 20}, "same_top": {"value": 0.9375, "error": 0.01},
        "perplexity_ratio": {"value": 1.0125, "error": 0.0014}, "tokens": 510, "seconds": 2.34,
    }  # fmt: skip


QUALITY = {
    "scenario": "quality", "file": "x.gguf", **MACHINE,
    "settings": {"text": ["a.txt"], "chunks": 2, "context": 512, "calibrate": 4},
    "rows": [row("Q8_0", "llama.cpp", 1.2e-4), row("Q8_0", "bise", 1.2e-4), row("Q4_K_M", "llama.cpp", 0.015),
             row("Q4_K_M", "bise", 0.012), row("Q4_K_M", "bise, compensated", 0.009)],
}  # fmt: skip
ROUNDING = {
    "scenario": "rounding", "file": "puff.gguf", **MACHINE, "settings": {"threads": 2, "rounds": 3},
    "rows": [
        {"type": "Q4_K", "informed": informed, "ours": 30.0, "theirs": 2.0, "time": 15.0, "error": {"normal": error}}
        for informed, error in ((True, 0.8), (False, 0.9))
    ],
}  # fmt: skip


def section(title: str) -> str:
    return TEXT.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> list[str]:
    return [line for line in section(title).splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_every_promise_has_its_test() -> None:
    assert len(rows("What we promise")) > 20
    for promise in rows("What we promise"):
        assert re.search(r"test_\w+\.py::test_\w+", promise), f"a promise without a test: {promise}"
    for file, name in re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", TEXT):
        path = ROOT / "tests" / file
        assert path.exists(), f"there is no tests/{file}"
        assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.M), f"{file} has no {name}"


def test_every_message_is_one_that_is_said() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "bise").rglob("*.py")]
    for line in rows("What goes wrong"):
        messages = re.findall(r"`([^`]+)`", line.split("|")[2])
        assert messages, f"nothing is said: {line}"
        for message in messages:
            assert any(message in source for source in sources), f"nobody says {message!r}"


def test_every_option_is_there() -> None:
    import typer.main

    from bise.cli import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^(?:`)?bise (\w+) ([^#\n`]*)", TEXT, re.M) + re.findall(r"`bise (\w+) ([^`]*)`", TEXT)
    assert len(lines) > 8
    for name, rest in lines:
        verb = verbs[name]
        if parts := getattr(verb, "commands", None):
            verb = parts[rest.split()[0]]
        options = {option for parameter in verb.params for option in parameter.opts}
        for option in re.findall(r"(?:^|\s)(--?[a-z][\w-]*)", rest):
            assert option in options, f"bise {name} has no {option}"


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert target.startswith("http") or (PAGE.parent / target).exists() or "quantising-kl.svg" in target, target
    for page, anchor in re.findall(r"\]\((\w+\.md)#([\w-]+)\)", TEXT):
        titles = re.findall(r"^#+ (.*)", (PAGE.parent / page).read_text(encoding="utf-8"), re.M)
        assert anchor in [title.lower().replace(" ", "-") for title in titles], anchor


def test_the_figures_are_the_files() -> None:
    """If not: python docs/figures/quantising_page.py RESULT.json."""
    again = TEXT
    for name in named(TEXT, "quantising"):
        found = json.loads((PAGE.parent / name).read_text(encoding="utf-8"))
        again = quantising_page.filled(again, found, name)
        if found["scenario"] == "quality":
            picture = PAGE.parent / "figures" / "quantising-kl.svg"
            assert paper.content_of(picture) == quantising_page.points(found["rows"])
    assert again == TEXT


def test_results_are_written_in_their_places(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "quantising.md"
    page.parent.mkdir()
    page.write_text(re.sub(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", r"\1\3", TEXT, flags=re.DOTALL))
    results = [tmp_path / f"{result['scenario']}.json" for result in (QUALITY, ROUNDING)]
    for path, result in zip(results, (QUALITY, ROUNDING), strict=True):
        path.write_text(json.dumps(result))
    assert [path.name for path in quantising_page.write(results, page)] == ["quantising.md", "quantising-kl.svg"]
    text = page.read_text()
    assert "| Q4_K_M | 4.83 | 4.07 | 0.0120 | 93.8 % |" in text
    assert "| Q4_K_M | 0.0150 | 0.0120 (0.80) | 0.00900 (0.60) |" in text
    assert "| Q8_0 | 0.000120 | 0.000120 (1.00) |  |" in text  # not compensated
    assert "| Q4_K_M | 2.3 | 2.3 | 2.3 |" in text and "| Q8_0 | 2.3" not in text
    assert text.count("| 1.0125 ± 0.0014 |") == 2
    assert "| Q4_K | 30.0 | 2.00 | 15.00 | 30.0 | 2.00 | 15.00 |" in text and "| Q4_K | 0.900 | 0.800 |" in text
    assert "x.gguf, 510 tokens of a.txt (2 chunks of 512)" in text and "a KL is 5% of it" in text
    assert "(figures/quantising-kl.svg)" in text and "[quality.json](../quality.json)" in text
    picture = page.parent / "figures" / "quantising-kl.svg"
    assert paper.content_of(picture) == quantising_page.points(QUALITY["rows"])
    quantising_page.write(results, page)
    assert page.read_text() == text
    with pytest.raises(ValueError, match="no place for crowd"):
        quantising_page.filled(text, QUALITY | {"scenario": "crowd"}, "x.json")


def test_every_part_has_its_place_and_every_way_its_colour() -> None:
    bench = (ROOT / "bench" / "quality.py").read_text(encoding="utf-8")
    for parts in quantising_page.PARTS.values():
        for part in parts:
            assert f"<!-- {part} -->" in TEXT and f"<!-- /{part} -->" in TEXT
    assert re.findall(r'^    "([^"]+)": (?:partial|by)', bench, re.M) == list(losses.LOOKS)


def test_the_block_is_as_bise_rounds_it() -> None:
    """If not: make figures."""
    assert draw.content_of(ROOT / "docs" / "figures" / "block.svg") == content.CONTENT["block"]()
