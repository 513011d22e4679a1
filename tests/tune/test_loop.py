"""The loop: what a step is, what is kept, and what stops it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bise.errors import RequestError  # noqa: E402
from bise.tune import checkpoint  # noqa: E402
from bise.tune.alarm import Alarm, BrokenError  # noqa: E402
from bise.tune.loop import Training, sft  # noqa: E402
from bise.tune.run import Run  # noqa: E402
from bise.tune.sample import Sample  # noqa: E402
from bise.tune.settings import Settings  # noqa: E402

from .pupil import QUICK, adapted, fresh, sentences, training  # noqa: E402


def losses(folder: Path) -> list[float]:
    return [note["loss"] for note in Run(folder).notes() if "loss" in note]


def test_it_learns(tmp_path: Path) -> None:
    student = fresh()
    at = training(tmp_path, student, steps=45, eval_every=20).run()
    assert at.ended == "finished" and at.step == 45
    assert at.best is not None and at.before is not None and at.best < at.before - 1
    assert [note["step"] for note in Run(tmp_path).notes() if "held_out" in note] == [0, 20, 40, 45]


def test_accumulation_is_the_large_batch(tmp_path: Path) -> None:
    """However a step is cut into micro-batches, its gradient is that of the mean over all its learnt tokens: computed
    here row by row, by plain autograd."""
    rows = sentences(12)
    student = fresh()
    whole = Training(student, lambda e: rows, Settings(**{**QUICK, "batch": "12"}), Run(tmp_path / "0"))
    for name in ("token_embd", "blk.0.attn_q"):
        assert student.trained[name].grad is not None
    exact = sum(student.loss([row]).double() for row in rows) / sum(row.targets for row in rows)
    wanted, mean = torch.autograd.grad(exact, list(student.trained.values())), float(exact.detach())
    for micro in (1, 64, 150, 10_000):
        whole.settings = dataclasses.replace(whole.settings, micro=micro)
        loss, count, _ = whole._gradient(rows)
        assert count == sum(row.targets for row in rows) and loss == pytest.approx(mean, rel=1e-6)
        for t, g in zip(student.trained.values(), wanted, strict=True):
            torch.testing.assert_close(t.grad, g, rtol=1e-4, atol=1e-7)


def test_a_run_is_the_same_whatever_the_micro_batch(tmp_path: Path) -> None:
    runs = {}
    for micro in (40, 10_000):
        training(tmp_path / str(micro), micro=micro).run()
        runs[micro] = losses(tmp_path / str(micro))
    assert runs[40] == pytest.approx(runs[10_000], abs=2e-4)


def test_8_bit_averages_learn_as_well(tmp_path: Path) -> None:
    ends = {}
    for bits in (32, 8):
        at = training(tmp_path / str(bits), adapted(), bits=bits, steps=12, rate=2e-3).run()
        assert at.best is not None and at.before is not None
        ends[bits] = at.before - at.best
    assert ends[32] > 0.3 and ends[8] == pytest.approx(ends[32], rel=0.05)


def test_noise_is_of_training_only_and_repeats(tmp_path: Path) -> None:
    noisy = [training(tmp_path / str(i), noise=5.0).run() for i in range(2)]
    plain = training(tmp_path / "plain").run()
    assert noisy[0].best == noisy[1].best != plain.best
    assert noisy[0].before == plain.before


def test_8_bit_products_learn_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """puff's file is Q8_0: its products in 8 bits, both ways, against the same weights in float32. At this rate
    gradients rounded to the nearest end 5 % higher."""
    eight = training(tmp_path / "eight", adapted(), steps=32).run()
    monkeypatch.setattr("bise.ops.torch.product._kernels_of", lambda ws: None)
    floats = training(tmp_path / "floats", adapted(), steps=32).run()
    assert eight.held_out == pytest.approx(floats.held_out, rel=0.005)


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    """The second epoch's rows are nonsense and make it worse; what comes out are the weights that were best."""
    student, chance = adapted(), np.random.default_rng(0)
    nonsense = [Sample(chance.integers(200, 900, 20).astype(np.int32), np.ones(20, bool)) for _ in range(48)]
    settings = Settings(**{**QUICK, "schedule": "constant", "steps": 16, "eval_every": 1})
    run = Training(
        student, lambda epoch: nonsense if epoch else sentences(48), settings, Run(tmp_path),
        held_out=sentences(10, 1000),
    )  # fmt: skip
    at = run.run()
    assert at.best_step < 16 and at.held_out != at.best
    with torch.no_grad():
        loss, count, _ = sft(student, run.held_out)
    assert float(loss) / count == pytest.approx(at.best, rel=1e-4)


def test_early_stop(tmp_path: Path) -> None:
    at = training(tmp_path, rate=1.0, schedule="constant", warmup=0, steps=500, eval_every=1, patience=3).run()
    assert at.ended == "early stop" and at.step < 500 and at.worse == 3
    assert at.step == at.best_step + 3


def poisoned(bad: int) -> Any:
    """sft, but the row of that line has a loss that is no number."""

    def objective(student, samples):
        loss, count, figures = sft(student, samples)
        if any(sample.line == bad for sample in samples):
            loss = loss * float("nan")
        return loss, count, figures

    return objective


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    """The step and the row are named, and the weights from before it are kept."""
    student, rows = fresh(), sentences()
    first = next(n for n, step in enumerate(_steps(rows)) if any(row.line == 17 for row in step.examples))
    run = Training(student, lambda e: rows, Settings(**QUICK), Run(tmp_path), objective=poisoned(17))
    with pytest.raises(BrokenError, match=f"step {first + 1}: the loss is nan, in counting.jsonl:17: "):
        run.run()
    assert all(bool(t.isfinite().all()) for t in student.trained.values())
    other = training(tmp_path)
    assert other.at.step == first and other.at.ended == ""


def _steps(rows: list[Any]) -> Any:
    from bise.tune.pack import Batch, steps

    return steps(lambda e: rows, Batch.read(QUICK["batch"]), QUICK["seed"], 1)


def test_a_loss_that_explodes(tmp_path: Path) -> None:
    settings = Settings(**{**QUICK, "steps": 400, "rate": 5e-3, "warmup": 0, "schedule": "constant"})
    rows = sentences()
    begun: list[int] = []

    def objective(student, samples):
        loss, count, figures = sft(student, samples)
        begun.append(1)
        return (loss * 50 if len(begun) > 60 else loss), count, figures

    run = Training(fresh(), lambda e: rows, settings, Run(tmp_path), held_out=rows[:4], objective=objective)
    with pytest.raises(BrokenError, match=r"it explodes, in counting.jsonl:\d+, .* has the best weights"):
        run.run()
    assert run.folder.best.exists()


def test_alarm() -> None:
    alarm = Alarm()
    assert not any(alarm.look(loss, 1.0) for loss in np.linspace(5, 1, 100))
    assert not any(alarm.look(loss, 1.0) for loss in (3.0, 9.0, 9.0, 1.0, 9.0, 9.0, 1.0))  # hard rows, not a trend
    assert "explodes" in [alarm.look(9.0, 1.0) for _ in range(3)][-1]
    assert "nan" in Alarm().look(float("nan"), 1.0) and "inf" in Alarm().look(1.0, float("inf"))


def test_who_wants_it_to_end_gets_it(tmp_path: Path) -> None:
    """In the middle of a step: that step has never been, and the run goes on later as if it had not stopped."""
    straight = training(tmp_path / "straight", micro=40).run()
    asked = iter([False] * 31 + [True] * 100)
    run = training(tmp_path / "cut", micro=40)
    run.wanted = lambda: next(asked)
    at = run.run()
    assert at.ended == "" and 0 < at.step < 12
    again = training(tmp_path / "cut", micro=40).run()
    assert again.best == straight.best and losses(tmp_path / "cut") == losses(tmp_path / "straight")


def test_figures_of_an_objective_are_noted(tmp_path: Path) -> None:
    def objective(student, samples):
        loss, count, _ = sft(student, samples)
        return loss, count, {"rows": float(len(samples))}

    rows = sentences()
    Training(fresh(), lambda e: rows, Settings(**QUICK), Run(tmp_path), objective=objective).run()
    note = Run(tmp_path).notes()[0]
    assert 0 < note["rows"] < 1 and note["rate"] > 0 and note["tokens"] > 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rate": -1}, "rate is -1"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"steps": None}, "none given, expected one"),
        ({"epochs": 1}, "epochs and steps given"),
        ({"bits": 16}, "bits is 16"),
        ({"schedule": "exotic"}, "schedule is 'exotic'"),
        ({"batch": "x"}, "batch is 'x'"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], line: str) -> None:
    with pytest.raises(RequestError, match=line):
        Settings(**{**QUICK, **change})


def test_settings_survive_json() -> None:
    settings = Settings(**QUICK, betas=(0.8, 0.95), ratio=16)
    assert Settings.read(json.loads(json.dumps(settings.facts()))) == settings


def test_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    run = training(tmp_path)
    run._save()
    with pytest.raises(RequestError, match="resume with the same rank"):
        checkpoint.restore(Run(tmp_path).last, adapted(), run.optimiser)
