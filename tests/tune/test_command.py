"""`bise tune` as it is typed: what it prints where, what it refuses in a line, and what its options mean."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from bise import cli
from bise.cli.plot import Plot
from bise.cli.teaching import Each, Length, Rows, Seen, Way, asked


def bise(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bise", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capfd.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "who.jsonl"
    told = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A cat."}]
    path.write_text("".join(json.dumps({"messages": [*told, {"role": "user", "content": str(i)}, told[1]]}) + "\n"
                            for i in range(12)))  # fmt: skip
    return path


def test_from_the_command_to_the_card(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line of JSON on stdout, and nothing that moves on stderr."""
    run = "--steps", 2, "--rank", 2, "--targets", "attn_q", "--samples", 0, "--threads", 1
    code, out, err = bise(monkeypatch, capfd, "tune", rows, *run, "--out", tmp_path / "run", "--json")
    card = json.loads(out)
    assert code == 0 and card["result"]["ended"] == "finished" and card["asked"]["rank"] == 2
    assert "\x1b" not in err and "11 sequences to train on, 1 held out" in err and "finished after 2 steps" in err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    code, out, _ = bise(
        monkeypatch, capfd, "tune", "--resume", tmp_path / "run", "--quiet"
    )  # there is nothing left to do
    assert (code, out.strip()) == (0, str(tmp_path / "run" / "adapter"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no data: bise tune MODEL rows.jsonl"),
        (["{rows}", "--budget", "soon"], "budget is 'soon', expected a time"),
        (["{rows}", "--batch", "many"], "batch is 'many'"),
        (["{rows}", "--targets", "attn_x"], "targets attn_x: expected some of"),
        (["{rows}", "--epochs", "1", "--steps", "3"], "epochs and steps given"),
        (["{rows}", "--memory", "lots"], "memory is 'lots'"),
        (["{rows}", "--checkpointing", "maybe"], "expected on or off"),
        (["--resume", "nowhere"], "there is no run here"),
        (["{rows}", "--resume", "nowhere"], "--resume knows model, data and folder"),
        (["missing.jsonl"], "missing.jsonl"),
        (["missing.parquet"], "missing.parquet"),
    ],
)
def test_refused_in_a_line(
    words: list[str], line: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = bise(monkeypatch, capfd, "tune", *(word.replace("{rows}", str(rows)) for word in words))
    assert code == 2 and out == "" and line in err.splitlines()[-1] and "Traceback" not in err


def test_faulty_rows_are_shown(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows.write_text(rows.read_text() + '{"messages": []}\n')
    code, _, err = bise(monkeypatch, capfd, "tune", rows, "--out", tmp_path / "run")
    assert code == 2 and "who.jsonl:13" in err and "--skip-bad" in err


def test_look_trains_nothing(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = bise(monkeypatch, capfd, "tune", rows, "--look", "--out", tmp_path / "seen")
    assert code == 0 and "learnt" in out and (tmp_path / "seen" / "look.html").exists()
    assert not (tmp_path / "seen" / "run.json").exists()


def test_what_options_are_called_inside() -> None:
    def given(**changes: Any) -> dict[str, Any]:
        groups = [Way(), Rows(), Length(), Each(), Seen()]
        for name, value in changes.items():
            setattr(next(group for group in groups if hasattr(group, name)), name, value)
        return asked(*groups)

    assert given() == {}
    assert given(from_scratch=True) == {"scratch": True, "method": "full"}
    assert given(budget="20m", base="as-is", held_out="0.1") == {"budget": 1200.0, "base": "as it is", "held_out": 0.1}
    assert given(held_out="a.jsonl,b.jsonl", cut=True) == {"held_out": ("a.jsonl", "b.jsonl"), "long": "cut"}
    assert given(no_eos=True, format="v3", memory="2g") == {"append_eos": False, "chat": "v3", "memory": 2 << 30}
    assert given(samples=0, seed=0, warmup=0.0) == {"samples": 0, "seed": 0, "warmup": 0.0}
    assert given(checkpointing="off") == {"checkpointing": False}


def test_a_curve_in_braille() -> None:
    """A falling line from corner to corner; each cell has the style of who drew last."""
    plot = Plot(4, 2, (0, 10), (0, 1))
    plot.curve([(0, 1), (10, 0)], "a")
    top, bottom = plot.lines()
    assert top[0][0] == "⠑" and bottom[3][0] == "⢄" and top[3] == (" ", "") and bottom[0] == (" ", "")
    plot.curve([(0, 0)], "b")
    assert plot.lines()[1][0] == ("⡀", "b")
