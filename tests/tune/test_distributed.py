"""Two real processes on 127.0.0.1: the losses of one, the same weights in both, and one line where one of them dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bise.errors import BiseError, RequestError
from bise.tune.distributed import Ranks, joined
from bise.tune.loop import Training
from bise.tune.run import Run
from bise.tune.settings import Settings
from tune.pupil import QUICK, adapted, fresh, sentences

STEPS = 6


def train(folder: Path, ranks: Ranks, kind: str) -> None:
    settings = Settings(**{**QUICK, "steps": STEPS, "micro": 64})
    student = fresh() if kind == "full" else adapted()
    Training(student, lambda epoch: sentences(), settings, Run(folder), held_out=sentences(6, 1000), ranks=ranks).run()
    student.together()
    weights = b"".join(array.tobytes() for array in student.state().values())
    ranks.agree("the weights at the end", weights)


def die(ranks: Ranks) -> None:
    """Rank 1 ends without a word between two steps."""
    for step in range(3):
        if step == 2 and not ranks.first:
            os._exit(7)
        ranks.total([1.0])


def disagree(ranks: Ranks) -> None:
    ranks.agree("data", b"rows of another file, and more of them" if ranks.rank else b"rows")


def main() -> int:
    try:
        with joined() as ranks:
            if sys.argv[1] == "die":
                die(ranks)
            elif sys.argv[1] == "disagree":
                disagree(ranks)
            else:
                train(Path(sys.argv[2]), ranks, sys.argv[1])
    except BiseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def pair(*words: str) -> list[subprocess.CompletedProcess[str]]:
    """Two processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *words], env={**env, "RANK": str(rank)}, text=True,
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


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("held_out")) for line in lines]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_learn_what_one_does(tmp_path: Path, kind: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    done = pair(kind, str(tmp_path / "two"))
    assert [p.returncode for p in done] == [0, 0], done
    train(tmp_path / "one", Ranks(), kind)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) > STEPS and one[0] - one[-2] > 0.01  # something was learnt
    assert two == pytest.approx(one, abs=1e-5)


def test_a_rank_that_dies_ends_the_others_with_a_line() -> None:
    first, second = pair("die")
    assert second.returncode == 7
    assert first.returncode == 2
    assert first.stderr.count("\n") == 1 and "rank 0 of 2 lost the others" in first.stderr


def test_ranks_with_other_data_are_refused() -> None:
    for done in pair("disagree"):
        assert done.returncode == 2
        assert "data: 1 of 2 ranks have another than rank 0" in done.stderr


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert (ranks.first, ranks.share([1, 2, 3])) == (True, [(1, 1.0), (2, 1.0), (3, 1.0)])
        assert ranks.total([0.5]) == ranks.told([0.5]) == [0.5]
        ranks.agree("anything", b"")
    assert Ranks(0, 2).share("abcde") == [("a", 1.0), ("c", 1.0), ("e", 1.0)]
    assert Ranks(1, 2).share("abcde") == [("b", 1.0), ("d", 1.0), ("e", 0.0)]  # as many, the last for nothing


def test_a_broken_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RequestError, match="torchrun"), joined():
        pass


if __name__ == "__main__":
    sys.exit(main())
