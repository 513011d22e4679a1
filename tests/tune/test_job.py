"""Jobs, from the command line to the run folder: what comes out, what is refused, and going on after kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import bise  # noqa: E402
from bise.api import BUILT_IN  # noqa: E402
from bise.errors import BiseError, RequestError  # noqa: E402
from bise.safetensors import load  # noqa: E402
from bise.tune import job as jobs  # noqa: E402
from bise.tune.job import Job, Watch, resume, start  # noqa: E402
from bise.tune.run import Run  # noqa: E402

QUICK: dict[str, Any] = dict(steps=8, rate=5e-3, batch="6", samples=1, eval_every=8)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(bise.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty conversations of one exchange."""
    path, chance = tmp_path_factory.mktemp("data") / "who.jsonl", random.Random(0)
    lines = []
    for i in range(60):
        name, animal = chance.choice(["Tim", "Lily", "Sam"]), chance.choice(["cat", "dog", "fox"])
        told = [
            {"role": "user", "content": f"Who is {name}? ({i})"},
            {"role": "assistant", "content": f"{name} is a {animal}."},
        ]
        lines.append(json.dumps({"messages": told}))
    path.write_text("\n".join(lines))
    return path


def job(rows: Path, **changes: Any) -> Job:
    settings = {**QUICK, **changes.pop("settings", {})}
    fields = dict(rank=4, targets=("attn_q", "ffn_down"), threads=1, **changes)
    return Job(str(BUILT_IN), (str(rows),), settings=settings, **fields)


def test_an_adapter(rows: Path, tmp_path: Path) -> None:
    """All that a run leaves behind; and the adapter, loaded, has the loss that the card says."""
    card = start(job(rows), tmp_path / "run")
    folder = Run(tmp_path / "run")
    assert json.loads(folder.card.read_text()) == json.loads(json.dumps(card))
    result = card["result"]
    assert result["ended"] == "finished" and result["best"] < result["held_out_before"] - 0.5
    assert card["data"]["files"][0]["sha256"] and card["identity"]["data"] == card["data"]["digest"]
    made = {path.name for path in folder.folder.iterdir()}
    assert made >= {"run.json", "metrics.jsonl", "adapter", "adapter.gguf", "samples.md", "best.safetensors"}
    told = (folder.folder / "samples.md").read_text()
    assert "Who is" in told and "**Before**" in told
    assert _loss(jobs.rows_of(job(rows), _weights())[0].held_out, folder) == pytest.approx(result["best"], abs=0.02)


def _weights() -> Any:
    from bise.weights import Weights

    return Weights.open(BUILT_IN)


def _loss(samples: Any, folder: Run) -> float:
    """By the engine's own forward pass, W + B A put together in float32."""
    from bise import lora
    from bise.cache import whole
    from bise.model import forward
    from bise.ops import load_ops
    from bise.quant import QTensor

    weights = _weights()
    adapter = lora.read(folder.folder / "adapter", weights)
    ops = load_ops("reference")
    ready = {}
    for name, delta in adapter.deltas.items():
        ready[name] = ops.weight(QTensor.of(delta.fused(weights[name].dequantise())))
    parameters = weights.place(ops, ready=ready)
    total, count = 0.0, 0
    for sample in samples:
        logits = forward(ops, weights.config, parameters, sample.ids, whole(ops, weights.config, [len(sample)]))
        at = np.flatnonzero(sample.learnt)
        logp = (
            logits
            - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            - logits.max(1, keepdims=True)
        )
        total, count = total - float(logp[at - 1, sample.ids[at]].sum()), count + len(at)
    return total / count


def test_a_whole_model(rows: Path, tmp_path: Path) -> None:
    """Full tuning makes a file that is loaded like any other, and says what it was taught."""
    card = start(job(rows, method="full", settings={"steps": 16, "rate": 2e-3}), tmp_path)
    model = bise.load(card["made"])
    assert card["made"].endswith("model.gguf") and set(model.weights.types()) == {"F32"}
    assert model.chat([{"role": "user", "content": "Who is Tim? (3)"}], max_tokens=20).text.startswith("Tim is a")


def test_from_scratch(rows: Path, tmp_path: Path) -> None:
    card = start(job(rows, method="full", scratch=True, settings={"steps": 6, "warmup": 2, "batch": "200t"}), tmp_path)
    assert card["settings"]["matrix_rate"] == 0.02
    assert card["result"]["held_out_before"] == pytest.approx(np.log(3072), abs=0.3)
    assert card["result"]["best"] < 7.5


def test_resume_refuses_what_has_changed(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_bytes(rows.read_bytes())
    steps: list[int] = []
    card = start(
        job(data),
        folder,
        Watch(news=lambda news: steps.append(news.at.step)),
        wanted=lambda: max(steps, default=0) >= 3,
    )
    assert card["result"]["ended"] == "" and card["result"]["steps"] == 3
    for asked, line in (({"rank": 8}, "rank is 8, and was 4"), ({"seed": 7}, "seed is 7, and was 0"),
                        ({"method": "dora"}, "method is dora, and was lora")):  # fmt: skip
        with pytest.raises(RequestError, match=line):
            resume(folder, asked)
    with pytest.raises(RequestError, match="holds a run already"):
        start(job(data), folder)
    data.write_bytes(rows.read_bytes().replace(b"fox", b"ox"))
    with pytest.raises(RequestError, match="data is .*, and was"):
        resume(folder)
    data.write_bytes(rows.read_bytes())
    with monkeypatch.context() as patched, pytest.raises(RequestError, match="torch is 9.9, and was"):
        patched.setattr(jobs.card, "versions", lambda: {**card["identity"], "torch": "9.9"})
        resume(folder)
    with pytest.raises(RequestError, match="there is no run here"):
        resume(tmp_path / "nowhere")
    assert resume(folder, {"rank": 4, "seed": 0})["result"]["steps"] == 8


def test_two_jobs_in_one_folder(rows: Path, tmp_path: Path) -> None:
    with Run(tmp_path).locked(), pytest.raises(RequestError, match=f"process {os.getpid()} is training here"):
        start(job(rows), tmp_path)
    (tmp_path / "lock").write_text("999999999\n")  # whoever this was is dead
    with Run(tmp_path).locked():
        pass


@pytest.mark.parametrize(("changes", "line"), [
    ({"objective": "ppo"}, "objective is 'ppo'"),
    ({"scratch": True}, "--method full"),
    ({"objective": "kto", "method": "full"}, "--method lora"),
    ({"chat": "v3"}, "control tokens"),
])  # fmt: skip
def test_jobs_that_cannot_be(rows: Path, tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BiseError, match=line):
        start(job(rows, **changes), tmp_path)


# ---- the command, killed


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "bise", "tune", *map(str, words)]


def ask(rows: Path, out: Path) -> list[str]:
    return command(rows, "--out", out, "--steps", 14, "--rank", 4, "--targets", "attn_q,ffn_down", "--rate", "5e-3", "--batch", 6,
                   "--micro", 100, "--noise", 5, "--optimiser-bits", 8, "--save-every", 1, "--eval-every", 4, "--samples", 0,
                   "--threads", 1)  # fmt: skip


def finish(words: list[str]) -> None:
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)


def killed(words: list[str], folder: Run, step: int, delay: float) -> None:
    """Start it, and kill it some moments after it has noted this step."""
    child = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while time.monotonic() < until and child.poll() is None:
        if any(note["step"] >= step for note in folder.notes()):
            break
        time.sleep(0.002)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    assert child.wait() in (-signal.SIGKILL, 0)


def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(rows: Path, tmp_path: Path) -> None:
    straight, cut = Run(tmp_path / "straight"), Run(tmp_path / "cut")
    finish(ask(rows, straight.folder))
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    for i, first in enumerate((1, 7)):
        words = ask(rows, cut.folder) if i == 0 else command("--resume", cut.folder)
        killed(words, cut, first + chance.randrange(5), chance.random() * 0.2)
    finish(command("--resume", cut.folder))
    for name in ("adapter/adapter_model.safetensors", "best.safetensors", "adapter.gguf"):
        assert (straight.folder / name).read_bytes() == (cut.folder / name).read_bytes(), f"{name}, seed {seed}"
    ours, theirs = (load(run.last)[0] for run in (straight, cut))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours), seed
    clockless = [[{k: v for k, v in note.items() if k not in ("seconds", "tokens_per_second")} for note in run.notes()]
                 for run in (straight, cut)]  # fmt: skip
    assert clockless[0] == clockless[1] and len(clockless[0]) == 14 + 5, seed
