"""The planner's figures against what torch's allocator counts, and against what the system says of whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bise import gguf, names
from bise.config import Config
from bise.errors import RequestError
from bise.quant import TYPES, QTensor
from bise.tune import memory, prefer
from bise.tune.optimiser import Optimiser
from bise.tune.sample import Pair, Sample
from bise.tune.student import TARGETS, Student
from bise.weights import Weights, expected_shapes
from tiny import tiny_config, tiny_keys

CLOSE = 0.05


def write(path: Path, config: Config, type: str) -> Path:
    """A model of random bytes: blocks of any type in no time, scales small."""
    chance, tensors = np.random.default_rng(0), {}
    for name, shape in expected_shapes(config).items():
        kind = TYPES["F32" if len(shape) == 1 else type]
        if len(shape) == 1 or type == "F32":
            values = np.ones(shape, np.float32) if len(shape) == 1 else chance.standard_normal(shape, np.float32) / 30
            tensors[names.spelled(name, "gguf")] = QTensor("F32", shape, values.reshape(-1).view(np.uint8))
            continue
        blocks = chance.integers(0, 256, (shape[0] * shape[1] // kind.block, kind.nbytes), np.uint8)
        for at in kind.scales:
            blocks[:, at : at + 2] = np.array([2e-4], np.float16).view(np.uint8)
        tensors[names.spelled(name, "gguf")] = QTensor(type, shape, blocks.reshape(-1))
    gguf.write(path, tiny_keys(config), tensors)
    return path


def rows(lengths: list[int], vocab: int, prompt: float = 0.0) -> list[Sample]:
    """prompt: the share at the beginning that is not learnt."""
    chance = np.random.default_rng(1)
    return [
        Sample(chance.integers(3, vocab, n).astype(np.int32), np.arange(n) >= max(1, int(prompt * n))) for n in lengths
    ]


def most_held(work: Callable[[], Any]) -> int:
    """Bytes that torch's allocator had given out at once, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


TINY = dict(dim=128, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32, hidden_dim=352, vocab_size=512)
WAYS = {
    "lora": dict(method="lora"),
    "lora on q and v": dict(method="lora", targets=("attn_q", "attn_v")),
    "lora on Q8_0": dict(method="lora", type="Q8_0"),
    "many rows": dict(method="lora", lengths=[120, 70, 50]),
    "mostly prompts": dict(method="lora", prompt=0.8),
    "a narrow gate": dict(method="lora", shape=dict(hidden_dim=128, n_heads=8)),
    "many words": dict(method="lora", shape=dict(vocab_size=8192)),
    "full": dict(method="full"),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "made again"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_micro_batch_holds_what_was_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], checkpointing: bool
) -> None:
    monkeypatch.setattr("bise.ops.torch.memory.LARGE", 1 << 40)  # all arrays from torch's allocator, which counts
    config = tiny_config(**{**TINY, **way.get("shape", {})})
    path = write(tmp_path / "m.gguf", config, way.get("type", "F32"))
    asked = dict(method=way["method"], rank=8, targets=way.get("targets", TARGETS))
    student = Student.open(path, **asked)
    student.checkpointing = checkpointing
    examples = rows(way.get("lengths", [240]), config.vocab_size, way.get("prompt", 0.0))
    student.loss(examples).backward()  # gradients and strips are there from now on
    counted = most_held(lambda: student.loss(examples).backward())
    parts = memory.predict(memory.Subject.of(Weights.open(path), **asked), memory.Load.of(examples), checkpointing, 0)
    assert parts["kept for the way back"] + parts["work"] == pytest.approx(counted, rel=CLOSE)


# whole processes

SMALL = dict(dim=256, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=32, hidden_dim=768, vocab_size=4096, context=4096)
PROCESSES = {
    "lora": dict(),
    "lora, made again": dict(checkpointing=True, lengths=[2000, 1000]),
    "lora on Q4_K": dict(type="Q4_K", shape=dict(dim=1024, n_layers=4, head_dim=128, hidden_dim=2048), lengths=[600]),
    "full, 8 bits": dict(method="full", bits=8, shape=dict(dim=512, head_dim=64, vocab_size=16384), lengths=[300]),
    "dpo on Q8_0": dict(type="Q8_0", objective="dpo", lengths=[700, 600]),
    "q8_0": dict(base="q8_0", shape=dict(dim=1024, n_layers=4, head_dim=128, hidden_dim=2048), lengths=[600]),
    "nf4": dict(base="nf4", shape=dict(dim=1024, n_layers=4, head_dim=128, hidden_dim=2048), lengths=[600]),
}
QUICK = ("lora, made again", "lora on Q4_K", "dpo on Q8_0")


def child(spec: dict[str, Any]) -> dict[str, float]:
    """A process that plans, then makes two steps of two micro-batches each -> what it foresaw and what it held."""
    torch.set_num_threads(1)
    process, weights = memory.resident(), Weights.open(spec["path"])
    asked = dict(method=spec.get("method", "lora"), rank=16, targets=TARGETS, base=spec.get("base", "as it is"))
    config, bits, again = weights.config, spec.get("bits", 32), spec.get("checkpointing", False)
    samples = rows(spec.get("lengths", [1024, 512]), config.vocab_size, 0.1)
    examples = [Pair(*samples)] if spec.get("objective") == "dpo" else samples
    parts = memory.predict(memory.Subject.of(weights, **asked, bits=bits), memory.Load.of(examples), again, process)
    student = Student.open(spec["path"], **asked)
    student.checkpointing = again
    optimiser = Optimiser.adamw(student.trained, 1e-4, bits=bits)
    for _ in range(spec.get("steps", 2)):
        optimiser.zero()
        for _ in range(2):
            loss = prefer.Dpo()(student, examples)[0] if spec.get("objective") == "dpo" else student.loss(examples)
            loss.backward()
        optimiser.step(1.0)
    return {"foreseen": sum(parts.values()), "held": memory.peak(), **parts}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PROCESSES]
)
def test_a_process_holds_what_was_predicted(tmp_path: Path, name: str) -> None:
    spec = PROCESSES[name]
    path = write(tmp_path / "m.gguf", Config(**{**SMALL, **spec.get("shape", {})}), spec.get("type", "F32"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, __file__, json.dumps({**spec, "path": str(path)})],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 250 << 20 < found["held"] < 1500 << 20
    assert found["foreseen"] == pytest.approx(found["held"], rel=CLOSE)


def test_a_probe_measures_and_draws_no_chance(tmp_path: Path) -> None:
    student = Student.open(write(tmp_path / "m.gguf", tiny_config(), "F32"), rank=4)
    student.noise, before = 5.0, student.state()["chance"]
    held = memory.probe(student, lambda student, samples: (student.loss(samples), 1, {}), rows([50], 288))
    assert held >= memory.resident() // 2 > 0
    assert student.noise == 5.0 and np.array_equal(student.state()["chance"], before)
    assert any(tensor.grad.any() for tensor in student.trained.values())


# the plan


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> memory.Subject:
    path = write(tmp_path_factory.mktemp("plan") / "m.gguf", Config(**SMALL), "F32")
    return memory.Subject.of(Weights.open(path), "lora", 16, TARGETS)


def planned(subject: memory.Subject, limit: int | None, longest: int = 1000, **more: Any) -> memory.Plan:
    return memory.plan(subject, rows([100, longest, 300], 4096), 8000, limit, process=200 << 20, **more)


def test_the_plan_grows_with_the_memory(subject: memory.Subject) -> None:
    free = planned(subject, None)
    assert (free.checkpointing, free.micro) == (False, 8000)
    parts = memory.predict(subject, memory.Load(1024, 1024, True), False, 200 << 20)
    least = sum(parts.values())  # what the longest row needs if nothing is computed twice
    sizes = [int(least * share) for share in (0.95, 1.1, 1.5, 2, 20)]
    found = [planned(subject, size) for size in sizes]
    assert all(plan.total <= size for plan, size in zip(found, sizes, strict=True))
    assert [plan.checkpointing for plan in found] == [True, False, False, False, False]
    micro = [plan.micro for plan in found]
    assert micro[1:] == sorted(micro[1:]) and micro[1] < micro[2] and min(micro) >= 1000 and micro[-1] == 8000


def test_what_is_given_is_kept(subject: memory.Subject) -> None:
    found = planned(subject, 4000 << 20, micro=1024, checkpointing=True)
    assert (found.micro, found.checkpointing) == (1024, True)
    with pytest.raises(RequestError):
        planned(subject, found.total + (1 << 20), longest=4000, checkpointing=False)


def test_the_refusal_has_numbers_and_remedies_that_work(subject: memory.Subject) -> None:
    limit = planned(subject, None, longest=2000, micro=2048, checkpointing=True).total
    with pytest.raises(RequestError) as refused:
        planned(subject, limit, longest=4000)
    line = str(refused.value)
    assert "\n" not in line and "m may be used" in line and "--max-length" in line
    length = int(line.split("at most ")[1].split(" tokens")[0].replace(",", ""))
    assert 1500 < length < 2100
    assert planned(subject, limit, longest=length)
    assert planned(subject, memory.read_size(line.rsplit("--memory ", 1)[1]), longest=4000)


def test_the_refusal_names_what_helps_and_nothing_else(subject: memory.Subject) -> None:
    def refusal(limit: int, process: int) -> str:
        with pytest.raises(RequestError) as refused:
            memory.plan(wide, rows([64], 4096), 64, limit, process=process)
        return str(refused.value)

    wide = replace(subject, rank=2048)  # the averages of its adapter are a large part
    assert "--optimiser-bits 8 (saves" in (line := refusal(900 << 20, 200 << 20)) and "--base nf4" in line
    line = refusal(900 << 20, 950 << 20)
    assert "nf4" not in line and "bits" not in line and line.count("--") == 1 and "--memory" in line
    four = {name: "Q4_K" if len(shape) == 2 else "F32" for name, shape in expected_shapes(wide.config).items()}
    wide = replace(wide, types=four)  # the norms are floats, and nothing is gained by rounding them
    assert "nf4" not in (line := refusal(900 << 20, 200 << 20)) and "--optimiser-bits 8" in line


def test_the_plan_is_for_the_card(subject: memory.Subject) -> None:
    plan = planned(subject, 1 << 30)
    facts = json.loads(json.dumps(plan.facts()))
    assert facts["bytes"] == sum(facts["parts"].values()) == plan.total
    assert sum(share for _, _, share in plan.rows()) == pytest.approx(1)


@pytest.mark.parametrize("text, size", [("16g", 16 << 30), ("900m", 900 << 20), ("1.5 GiB", 3 << 29), ("2GB", 2 << 30)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert memory.read_size(text) == size


@pytest.mark.parametrize("text", ["16", "0g", "g", "-1g", "1e9g", "16t", ""])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="16g"):
        memory.read_size(text)


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
