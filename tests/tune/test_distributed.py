"""Two real processes on 127.0.0.1: the very bits of one, half of what is trained in each, and one line where one dies."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bise.api import BUILT_IN  # noqa: E402
from bise.config import Config  # noqa: E402
from bise.errors import BiseError, RequestError  # noqa: E402
from bise.tune import distributed, job, memory  # noqa: E402
from bise.tune.distributed import Ranks, joined  # noqa: E402
from bise.tune.job import Job, resume, start  # noqa: E402
from bise.tune.keepers import dealt, held  # noqa: E402
from bise.tune.loop import Training, sft  # noqa: E402
from bise.tune.run import Run  # noqa: E402
from bise.tune.sample import Sample  # noqa: E402
from bise.tune.settings import Settings  # noqa: E402
from bise.tune.student import Student  # noqa: E402
from bise.weights import expected_shapes  # noqa: E402
from tune.pupil import QUICK, adapted, fresh, sentences  # noqa: E402

# Steps of two rows, each a micro-batch: a sum of two has the same bits in either order
PAIRS: dict[str, Any] = {**QUICK, "batch": "2", "micro": 1, "clip": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "full": {}, "full, again": {"checkpointing": True}, "8 bits": {"bits": 8}, "muon": {"matrix_rate": 0.02},
    "dora, again": {"checkpointing": True},
}  # fmt: skip
STOP = 5  # the step before which a run is stopped


def training(folder: Path, ranks: Ranks, kind: str = "full", **more: Any) -> Training:
    """more: settings, and what `Training` takes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = {name: more.pop(name) for name in ("wanted", "objective") if name in more}
    settings = Settings(**{**PAIRS, **KINDS[kind], **more})
    student = adapted("dora") if kind.startswith("dora") else fresh()
    return Training(
        student, lambda epoch: sentences(), settings, Run(folder), held_out=sentences(5, 1000), ranks=ranks, **beside
    )


def finished(folder: Path, ranks: Ranks, kind: str = "full", **more: Any) -> str:
    """-> a hash of the weights at the end."""
    run = training(folder, ranks, kind, **more)
    run.run()
    run.student.together()
    assert all(tensor.requires_grad and tensor.is_leaf for tensor in run.student.trained.values())
    return hashed(run.student)


def hashed(student: Student) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a) for a in student.state().values())).hexdigest()


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in Run(folder).notes() if "loss" in line]


def stopped(folder: Path, ranks: Ranks, before: int) -> None:
    """Somebody asks rank 0 to stop in the middle of a step."""
    run = training(folder, ranks, wanted=lambda: ranks.first and run.at.step == before and next(calls) > 0)
    calls = iter(range(100))
    assert run.run().ended == ""


# what the children do


def learn(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Every kind of run; one that is stopped; what each keeps."""
    found = {kind: finished(folder / kind, ranks, kind) for kind in KINDS}
    stopped(folder / "stopped", ranks, STOP)
    run = training(folder / "uneven", ranks, batch="3", steps=3, micro=1000)
    kept = {name: tensor.numel() for name, tensor in run.student.kept.items()}
    run.run()
    return {"weights": found, "kept": kept, "flat": sum(len(part.flat.values) for part in run.optimiser.parts.values())}


def go_on(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """To the end of the run that was stopped twice; and a step beside PyTorch's own."""
    told = []
    for facts in (b"rows", b"rows of another file, and more of them" if ranks.rank else b"rows"):
        try:
            ranks.agree("data", facts)
        except RequestError as error:
            told.append(str(error))
    ends = []
    for name, how in (
        ("early", {"rate": 3.0, "eval_every": 1, "patience": 2}),
        ("time", {"steps": None, "budget": 2.0}),
    ):
        at = training(folder / name, ranks, **how).run()
        ends.append([at.ended, at.step])
    weights = finished(folder / "stopped", ranks)
    return {"weights": weights, "told": told, "off": beside_ddp(ranks), "ends": ends}


def beside_ddp(ranks: Ranks) -> float:
    """The largest difference from DistributedDataParallel's gradient, which is a mean over ranks, of an equal module."""
    samples = [sentences(8)[i] for i in range(ranks.rank, 8, 2)]
    ours, theirs = fresh(), fresh()
    ours.share(ranks)
    ours.loss(samples).backward()

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = torch.nn.ParameterList(torch.nn.Parameter(t.detach()) for t in theirs.trained.values())
            theirs._put(dict(zip(theirs.trained, self.all, strict=True)))

        def forward(self) -> Any:
            return 2 * theirs.loss(samples)

    module = torch.nn.parallel.DistributedDataParallel(Module())
    module().backward()
    pairs = [(t.grad, theirs.trained[name].grad) for name, t in ours.kept.items()]
    assert all(float(wanted.abs().max()) > 1e-3 for _, wanted in pairs)
    return max(float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted in pairs)


def die(ranks: Ranks, folder: Path) -> None:
    """Rank 1 ends without a word inside a step."""

    def objective(student: Student, samples: Sequence[Sample]) -> Any:
        if run.at.step == STOP and not ranks.first:
            os._exit(7)
        return sft(student, samples)

    run = training(folder, ranks, objective=objective, save_every=1)
    run.run()


def hang(ranks: Ranks, folder: Path) -> None:
    """Rank 1 falls asleep."""
    if not ranks.first:
        time.sleep(8)
    ranks.wait()


def hold(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What was foreseen for a process, and what it held."""
    config = Config(dim=512, n_layers=8, n_heads=8, n_kv_heads=4, head_dim=64, hidden_dim=1536, vocab_size=8192,
                    sliding_window=None, context=1024)  # fmt: skip
    chance, shapes = np.random.default_rng(0), expected_shapes(config)
    rows = [Sample(chance.integers(3, 8192, 128).astype(np.int32), np.arange(128) > 0, "rows", i) for i in range(16)]
    foreseen = {}
    for size in (1, 2):
        subject = memory.Subject(config, dict.fromkeys(shapes, "F32"), "full", ranks=size)
        foreseen[size] = sum(memory.predict(subject, memory.Load.of(rows[:4]), True).values())
    settings = Settings(rate=1e-4, steps=3, batch="8", micro=512, checkpointing=True, save_every=2)
    student = Student.fresh(config, threads=1)
    run = Training(student, lambda epoch: rows, settings, Run(folder), ranks=ranks)
    memory.forget_peak()
    run.run()
    return {"alone": foreseen[1], "foreseen": foreseen[2], "held": memory.peak()}


def main() -> int:
    role, folder = sys.argv[1], Path(sys.argv[2])
    if role == "hang":
        distributed.PATIENCE = timedelta(seconds=4)
    torch.set_num_threads(1)
    try:
        with joined() as ranks:
            print(json.dumps(globals()[role](ranks, folder)))
    except BiseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def pair(role: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Two processes as torchrun starts them."""
    env = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, role, str(folder)], env={**env, "RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        return [
            subprocess.CompletedProcess(p.args, p.returncode, *said)
            for p in started
            if (said := p.communicate(timeout=300))
        ]
    finally:
        for p in started:
            p.kill()


def told(done: list[subprocess.CompletedProcess[str]]) -> list[dict[str, Any]]:
    """What both found; neither has said anything else."""
    assert [(p.returncode, p.stderr) for p in done] == [(0, "")] * 2
    return [json.loads(p.stdout) for p in done]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, told(pair("learn", folder))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(
    learnt: tuple[Path, list[dict[str, Any]]], tmp_path: Path, kind: str
) -> None:
    """To the last bit, where a step is two micro-batches."""
    folder, found = learnt
    alone = finished(tmp_path, Ranks(), kind)
    one, two = losses(tmp_path), losses(folder / kind)
    assert len(one) == QUICK["steps"] and sum(one[-4:]) < sum(one[:4]) - 0.1  # something was learnt
    assert two == one
    assert found[0]["weights"][kind] == found[1]["weights"][kind] == alone


def test_what_does_not_come_out_even_counts_once(learnt: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Three rows for two ranks: the same losses, but for the order of the sums."""
    training(tmp_path, Ranks(), batch="3", steps=3, micro=1000).run()
    assert losses(learnt[0] / "uneven") == pytest.approx(losses(tmp_path), rel=1e-5)


def test_each_keeps_half(learnt: tuple[Path, list[dict[str, Any]]]) -> None:
    """Of the weights, and of gradients and averages, which are as long as the flat values."""
    first, second = (one["kept"] for one in learnt[1])
    everything = {name: t.numel() for name, t in fresh().trained.items()}
    assert first.keys().isdisjoint(second) and first | second == everything
    assert abs(sum(first.values()) - sum(second.values())) <= min(everything.values())
    assert all(one["flat"] < 0.55 * sum(everything.values()) for one in learnt[1])


def test_two_then_one_then_two(learnt: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """A checkpoint is whole: any number of processes goes on from it, and nothing tells in the end. Besides: all end at
    the same step, a gradient is that of PyTorch's DistributedDataParallel, ranks with other data are refused."""
    folder, _ = learnt
    assert len(losses(folder / "stopped")) == STOP
    stopped(folder / "stopped", Ranks(), 2 * STOP - 1)
    found = told(pair("go_on", folder))
    straight = finished(tmp_path, Ranks())
    assert [one["weights"] for one in found] == [straight] * 2
    assert losses(folder / "stopped") == losses(tmp_path)
    (early, steps), (late, more) = found[0]["ends"]
    assert early == "early stop" and steps < QUICK["steps"] and late in ("finished", "time") and more > 0
    for one in found:
        assert one["off"] < 1e-5
        assert one["ends"] == found[0]["ends"]  # they decide alike, whatever each one's clock says
        assert one["told"] == [
            "data: 1 of 2 ranks have another than rank 0: start all with the same arguments on the same files"
        ]


def test_a_rank_that_dies_ends_the_others_with_a_line(tmp_path: Path) -> None:
    """And what was kept until then is where one goes on."""
    first, second = pair("die", tmp_path / "run")
    assert (first.returncode, second.returncode) == (2, 7)
    assert first.stderr.count("\n") == 1 and "rank 0 of 2 lost the others" in first.stderr
    assert finished(tmp_path / "run", Ranks(), save_every=1) == finished(tmp_path / "straight", Ranks())
    assert len(losses(tmp_path / "run")) == QUICK["steps"]


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    for done in pair("hang", tmp_path):
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "lost the others" in done.stderr


def test_the_command_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on stdout, and on stderr what rank 0 has to say; the losses are those of one process, which can go on
    with the run, with as many threads as it likes."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"Cat {i} sat on mat {i} and saw {i % 7} dogs."}) for i in range(40)))
    words = ["--method", "full", "--steps", "3", "--batch", "6", "--rate", "1e-3", "--samples", "0"]
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    done = subprocess.run(
        [sys.executable, *run, "-m", "bise", "tune", str(rows), *words, "--out", str(tmp_path / "two")],
        env=environment(), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/two/model.gguf\n"
    told = [line.split()[0] for line in done.stderr.splitlines()]
    assert told[-3:] == ["rate", "memory", "finished"] and len(told) == len(set(told)) <= 5
    asked = {"steps": 3, "batch": "6", "rate": 1e-3, "samples": 0}
    start(Job(str(BUILT_IN), (str(rows),), method="full", threads=1, settings=asked), tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    monkeypatch.setattr(job, "_threads", lambda: 99)
    assert resume(tmp_path / "two")["processes"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_each_holds_what_was_predicted(tmp_path: Path) -> None:
    for one in told(pair("hold", tmp_path)):
        assert one["held"] == pytest.approx(one["foreseen"], rel=0.1)
        assert one["held"] < 0.85 * one["alone"]  # of which the process itself is more than a third


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert (ranks.first, ranks.share([1, 2, 3])) == (True, [(1, 1.0), (2, 1.0), (3, 1.0)])
        assert ranks.total([0.5]) == ranks.told([0.5]) == [0.5]
        assert ranks.listed(b"") == [b""]
        ranks.agree("anything", b"")
    assert Ranks(0, 2).share("abcde") == [("a", 1.0), ("c", 1.0), ("e", 1.0)]
    assert Ranks(1, 2).share("abcde") == [("b", 1.0), ("d", 1.0), ("e", 0.0)]  # as many, the last for nothing


def test_all_get_about_the_same() -> None:
    shapes = expected_shapes(Config(4096, 32, 32, 8, 128, 14336, 32000, 4096, 32768))
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    for ranks in (1, 2, 3, 8):
        assert max(held(sizes, ranks)) < 1.02 * sum(sizes.values()) / ranks
        assert set(dealt(sizes, ranks).values()) == set(range(ranks))


def test_a_broken_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RequestError, match="torchrun"), joined():
        pass


if __name__ == "__main__":
    sys.exit(main())
