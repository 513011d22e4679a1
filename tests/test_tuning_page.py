"""docs/tuning.md: every command is one that bise takes, every promise names a test that there is, every figure its
file's or the planner's."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "figures"))
import content  # noqa: E402
import paper  # noqa: E402
import tuning_charts  # noqa: E402
import tuning_page  # noqa: E402
from speed_page import named  # noqa: E402

EXAMPLE = ROOT / "examples" / "tuning" / "README.md"
PAGES = [*(path for name in ("tuning", "quantising") if (path := ROOT / "docs" / f"{name}.md").exists()), EXAMPLE]
PAGE = ROOT / "docs" / "tuning.md"
TEXT = PAGE.read_text(encoding="utf-8")
MACHINE = {"cores": 2, "cpu": "Some CPU", "isa": "avx2"}


def commands(page: Path) -> list[str]:
    """Every command line in the shell blocks of a page, and what follows "$ " in its console blocks."""
    text, found = page.read_text(encoding="utf-8"), []
    for kind, block in re.findall(r"^```(sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        found += lines if kind == "sh" else [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in found if re.search(r"\bbise \w", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_is_taken(page: Path) -> None:
    """Parsed as the command line parses it, down to the settings of a training; nothing is run."""
    lines = commands(page)
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        parse(words[words.index("bise") + 1 :], line)


def parse(words: list[str], line: str) -> None:
    import typer.main

    from bise.cli import app

    verb: Any = typer.main.get_command(app)
    context = None
    try:
        while hasattr(verb, "commands"):
            name, *words = words
            assert name in verb.commands, f"{line}: there is no verb {name}"
            verb = verb.commands[name]
        context = verb.make_context("bise", words)
    except typer.BadParameter.__bases__ as error:  # click's UsageError, wherever typer keeps it
        pytest.fail(f"{line}: {error.format_message()}")
    if verb.name == "tune":
        settled(context.params)


def settled(params: dict[str, Any]) -> None:
    """What `bise tune` makes of them before it opens a file. RequestError if it makes no sense."""
    from dataclasses import fields

    from bise.cli.teaching import Each, Length, Rows, Seen, Way, asked
    from bise.cli.tune import _job

    groups = [kind(**{f.name: params[f.name] for f in fields(kind)}) for kind in (Way, Rows, Length, Each, Seen)]
    if params["resume"] is None:
        _job("model", ("rows.jsonl",), asked(*groups)).settled(content.MISTRAL, 1000)


@pytest.mark.parametrize("line", [
    "tune a.jsonl --epoch 3", "tune a.jsonl --epochs 2 --steps 5", "tune a.jsonl --objective ppo", "teach a.jsonl",
    "merge adapter a.gguf", "tune a.jsonl --memory lots",
])  # fmt: skip
def test_other_commands_are_not(line: str) -> None:
    from bise.errors import RequestError

    with pytest.raises((pytest.fail.Exception, AssertionError, RequestError)):
        parse(shlex.split(line), line)


def test_every_promise_has_its_test() -> None:
    table = TEXT.split("## What we promise", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)`", row)
        assert named, f"a promise without a test: {row}"
        for file, name in named:
            path = ROOT / "tests" / file
            assert path.exists(), f"there is no tests/{file}"
            assert re.search(rf"^ *def {name}\(", path.read_text(encoding="utf-8"), re.M), f"{file} has no {name}"


@pytest.mark.parametrize("page", [PAGE, EXAMPLE], ids=["page", "example"])
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), f"a link goes to {target}"


def test_objectives_and_files_of_a_run_are_the_real_ones() -> None:
    from bise.tune import run
    from bise.tune.job import ROWS

    for name in ROWS:
        assert f"| `{name}` |" in TEXT
    for name in re.findall(r"`([\w.]+\.\w+|\w+/)`", TEXT.split("## The run folder", 1)[1].split("\n## ", 1)[0]):
        assert name in (run.__doc__ or ""), f"{name} is in no run folder"


def test_what_is_foreseen_is_what_the_planner_says() -> None:
    """If not: python docs/figures/tuning_page.py."""
    assert tuning_page.put(TEXT, "memory", tuning_page.foreseen_table(tuning_page.foreseen())) == TEXT
    assert paper.content_of(PAGE.parent / "figures" / "tuning-memory.svg") == tuning_page.foreseen()


def test_the_figures_are_the_files() -> None:
    """If not: python docs/figures/tuning_page.py bench/results/tuning-*.json."""
    again = TEXT
    for name in named(TEXT, "tuning"):
        result = json.loads((PAGE.parent / name).read_text(encoding="utf-8"))
        again = tuning_page.filled(again, result, name)
        if result["what"] == "tuning":
            drawn = paper.content_of(PAGE.parent / "figures" / "tuning-speed.svg")
            assert drawn == tuning_page.medians(result["rows"])
    assert again == TEXT


# the script, on results that are made up


def turns(rounds: int = 2) -> list[dict[str, Any]]:
    """bise 300 and 330 tokens/s at 900 MiB, peft 150 and 150 at 1800; each side begins at the same loss."""

    def row(who: str, base: str, i: int, speed: float, peak: float) -> dict[str, Any]:
        return {"who": who, "base": base, "round": i, "tokens/s": speed, "peak MiB": peak, "losses": [10.5, 9.0],
                "threads": 2}  # fmt: skip

    return [one for i in range(rounds) for one in (
        row("bise", "F32", i, 300.0 + 30 * i, 900.0), row("peft", "F32", i, 150.0, 1800.0),
        row("bise", "NF4", i, 200.0, 400.0),
    )]  # fmt: skip


ABOUT = {"rank": 16, "dim": 1024, "layers": 8, "hidden": 3584, "vocab": 32000, "length": 1024, "batch": 1, "rounds": 2,
         "threads": 2, "load_average": 0.1, "machine": MACHINE, "versions": {"torch": "2.13.0"}}  # fmt: skip
ADAPTERS = {
    "what": "adapters", "file": "x.gguf", "rank": 16, "bytes": 1 << 20, "load_average": 0.1, "machine": MACHINE,
    "rows": [{"case": "1, none", "round": 0, "prefill": 100.0, "decode": 10.0},
             {"case": "1, one adapter", "round": 0, "prefill": 90.0, "decode": 9.5}],
}  # fmt: skip


def test_results_are_written_in_their_places(tmp_path: Path) -> None:
    step = {"what": "step", "file": "7b.gguf", "bytes": 4 << 30, **ABOUT, "length": 256}
    step["rows"] = [{"tokens/s": 8.0, "peak MiB": 6144.0, "losses": [10.0]}]
    (tmp_path / "docs").mkdir()
    page, paths = tmp_path / "docs" / "tuning.md", []
    page.write_text(TEXT)
    for result in ({"what": "tuning", "rows": turns(), **ABOUT}, step, ADAPTERS):
        paths.append(tmp_path / f"tuning-{result['what']}.json")
        paths[-1].write_text(json.dumps(result))
    drawn = tuning_page.write(paths, page)
    text = page.read_text()
    assert "| bise | F32 | 315 | 2.10 | 900 | 0.50 |" in text and "| bise | NF4 | 200 | 1.33 | 400 | 0.22 |" in text
    assert "one step of 256 tokens" in text and "took 32 s (8.00 tokens/s) and 6.00 GiB" in text
    assert "| 1, one adapter | 90.0 | 0.90 | 9.50 | 0.95 |" in text and "loss is 10.50000" in text
    assert [path.name for path in drawn[1:]] == ["tuning-memory.svg", "tuning-speed.svg"]
    assert paper.content_of(drawn[2]) == tuning_page.medians(turns())
    tuning_page.write(paths, page)
    assert page.read_text() == text
    with pytest.raises(ValueError, match="no place for dance"):
        tuning_page.filled(text, {"what": "dance"}, "x.json")


def test_the_example_is_told(tmp_path: Path) -> None:
    """Its figures, some answers and its curves; what was served has no perplexity."""
    for name in ("lesson", "manners"):
        (tmp_path / name).mkdir()
        facts = [{"step": 0, "held_out": 2.0}, {"step": 1, "loss": 1.9}, {"step": 2, "loss": 1.5},
                 {"step": 2, "held_out": 1.7}]  # fmt: skip
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    asked, said = [f"{n}\n?" for n in range(27)], {"answers": ["a|b"] * 27, "key": "1", "seconds": 60}
    steps = [{"name": "puff", **said, "scores": {"feelings": 0.0, "stories": 14.0}, "margins": [1.0]},
             {"name": "manners", **said, "scores": {"feelings": 0.5, "margin": 2.0}, "rewarded": 0.8},
             {"name": "served", **said, "scores": {"feelings": 0.5}, "same": 27, "of": 27}]  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"cores": 2, "load": 0.5, "asked": asked, "steps": steps}))
    page = tmp_path / "page" / "README.md"
    page.parent.mkdir()
    page.write_text("".join(f"<!-- {part} -->\n<!-- /{part} -->\n" for part in ("scores", "answers", "loss")))
    _, kept, picture = tuning_page.example(tmp_path, page)
    text = page.read_text()
    assert "| puff | 0.0% |  |  |  |  | 14.00 |" in text and "| served | 50.0% |  |  |  |  |  |" in text
    assert (
        "27 of 27 answers" in text
        and "in 80% of the held-out pairs" in text
        and "took 3 minutes on 2 cores that had a load of 0.5" in text
    )
    assert "| 13 / ? | a\\|b | a\\|b | a\\|b |" in text and text.count("a\\|b") == 3
    assert tuning_page.told(text, json.loads(kept.read_text())) == text and "margins" not in kept.read_text()
    assert picture.name in text and picture.name == "tuning-loss.svg"
    assert paper.content_of(picture)["lesson"] == {"loss": [[1, 1.9], [2, 1.5]], "held_out": [[0, 2.0], [2, 1.7]]}
    assert set(tuning_charts.DRAWN) == {"memory", "speed", "loss"}
