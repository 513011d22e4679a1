"""examples/tuning: what is done is not done again, the exam counts what it says it counts, and the whole course goes
from rows to server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "tuning"
sys.path[:0] = [str(EXAMPLE), str(ROOT / "docs" / "figures")]
import data  # noqa: E402
import run  # noqa: E402
import scores  # noqa: E402

for name in ("data", "run", "scores", "served"):  # other examples have scripts of these names
    del sys.modules[name]

RUDE, POLITE = "Obviously, it is {}.", "It is indeed {}."


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rows of an exam of two feelings and two instructions."""
    pairs = [{"prompt": f"{n}?", "chosen": POLITE.format(n), "rejected": RUDE.format(n)} for n in range(12)]
    data.write(tmp_path / "pairs.jsonl", pairs[2:])
    data.write(tmp_path / "pairs-test.jsonl", pairs[:2])
    feelings = [{"prompt": "A cake! How do you feel?", "completion": "Happy."},
                {"prompt": "No cake. How do you feel?", "completion": "Sad."}]  # fmt: skip
    data.write(tmp_path / "feelings-test.jsonl", feelings)
    data.write(tmp_path / "instructions-test.jsonl", [{"prompt": "1 and 1?", "completion": "2."}])
    (tmp_path / "stories.txt").write_text("Once upon a time there was a dog. " * 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_exam_counts_right_answers_and_marked_words(work: Path) -> None:
    exam = scores.Exam(work)
    assert exam.marks == ({"indeed"}, {"obviously"})  # "it" and "is" are on both sides
    assert [most for _, most in exam.prompts] == [scores.SHORT] * 2 + [scores.LONG] * 2
    said = exam.said(["Happy.", "Sad", "obviously 1", "It is indeed, obviously, 2."])
    assert said == {"feelings": 0.5, "polite": 0.5, "rude": 1.0}


def test_margins_are_those_of_whole_answers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds every token equally likely prefers the shorter answer, by ln(vocabulary) for each token."""
    model = bise.load(threads=1)
    ids = [len(model.tokenizer.encode(text.format(0))) for text in (POLITE, RUDE)]
    monkeypatch.setattr(model, "logits", lambda ids: np.zeros((len(ids), model.vocab_size), np.float32))
    exam = scores.Exam(work)
    assert exam.margins(model)[0] == pytest.approx((ids[1] - ids[0]) * np.log(model.vocab_size), rel=1e-5)
    likely = exam.likely(model)
    assert likely["stories"] == pytest.approx(model.vocab_size, rel=1e-4)
    assert likely["instructions"] == pytest.approx(model.vocab_size, rel=1e-4)


def test_what_is_done_is_not_done_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def examined(self: run.Course, step: run.Step) -> dict[str, Any]:
        taken.append(step.name)
        return {"scores": {"feelings": 0.5}, "answers": []}

    monkeypatch.setattr(run.Course, "examined", examined)
    monkeypatch.setattr(run, "make", lambda command, made, begun: made.write_text(f"{command} {begun}"))

    def course(*steps: run.Step) -> list[str]:
        taken.clear()
        of_it = run.Course(scores.Exam(work), quick=False)
        for step in steps:
            of_it.take(step)
        return [step["name"] for step in of_it.steps]

    base, one, two = run.Step("base"), run.Step("one", "tune a", "a"), run.Step("two", "merge b", "b")
    assert course(base, one, two) == ["base", "one", "two"] == taken
    assert course(base, one, two) == ["base", "one", "two"] and taken == []
    (work / "b").unlink()
    assert course(base, one, two) and taken == ["two"]
    changed = run.Step("one", "tune a --rate 1", "a")
    assert course(base, changed, two) and taken == ["one", "two"]  # and what came after it
    assert (work / "a").read_text().endswith(" False")
    data.write(work / "pairs.jsonl", data.read(work / "pairs.jsonl")[1:])
    assert course(base, changed, two) and taken == ["base", "one", "two"]


def test_a_training_that_was_stopped_is_resumed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    class Pretended:
        def __init__(self, words: list[str], **_: Any) -> None:
            commands.append(words[3:])

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Pretended)
    (work / "lesson").mkdir()
    (work / "lesson" / "run.json").write_text("{}")
    run.make("tune rows.jsonl --out lesson", Path("lesson"), begun=True)
    assert commands.pop() == ["tune", "--resume", "lesson"]
    run.make("tune rows.jsonl --out lesson", Path("lesson"), begun=False)  # somebody else's
    assert commands.pop() == ["tune", "rows.jsonl", "--out", "lesson"] and not (work / "lesson").exists()


def test_the_figures_are_those_of_the_results() -> None:
    """If not: python docs/figures/tuning_page.py --example tuning."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    import tuning_page

    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    found = json.loads((EXAMPLE / "results.json").read_text(encoding="utf-8"))
    assert tuning_page.told(page, found) == page
    assert not found["quick"] and [step["name"] for step in found["steps"]] == [step.name for step in run.STEPS]
    assert [step["command"] for step in found["steps"]] == [step.command for step in run.STEPS]


@pytest.mark.slow
def test_the_whole_course(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command = [sys.executable, str(EXAMPLE / "run.py"), "--quick", "--data", str(shared / "data"), "--work",
               str(tmp_path / "work")]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run(command, env=env, cwd=tmp_path).returncode == 0
    steps = json.loads((tmp_path / "work" / "results.json").read_text())["steps"]
    puff, taught, merged, polite, served, fused, small = steps

    def score(step: dict[str, Any], name: str) -> float:
        return float(step["scores"][name])

    assert score(puff, "feelings") < 0.05 and score(taught, "feelings") > 0.2  # guessing: 0.17
    assert score(taught, "instructions") < score(puff, "instructions") / 3
    assert score(polite, "margin") > score(merged, "margin") and polite["rewarded"] > 0.6
    assert served["answers"] == polite["answers"]
    for step in (taught, merged, polite, fused, small):
        assert score(step, "stories") < 1.15 * score(puff, "stories")
    for step, like in ((merged, taught), (fused, polite), (small, polite)):
        assert abs(score(step, "feelings") - score(like, "feelings")) < 0.06
    again = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (
        again.returncode == 0
        and again.stdout.count("done before") == len(run.STEPS)
        and "$ bise tune" not in again.stdout
    )
