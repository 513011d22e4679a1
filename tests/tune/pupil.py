"""Something small to teach, and something to learn: puff, and sentences with numbers in them.

python tests/tune/pupil.py FOLDER '{"steps": 12}'     trains there, or goes on
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bise.api import BUILT_IN
from bise.config import Config
from bise.tune.loop import Training
from bise.tune.run import Run
from bise.tune.sample import Sample
from bise.tune.settings import Settings
from bise.tune.student import Student

SMALL = Config(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=64, vocab_size=97, sliding_window=16, context=64
)
QUICK: dict[str, Any] = dict(rate=5e-3, steps=12, batch="6", micro=128, eval_every=4, seed=3)


def sentences(n: int = 40, first: int = 0, vocab: int = 97) -> list[Sample]:
    """Counting from somewhere in steps of 1 to 4, 5 to 30 tokens long; the first two tokens are not learnt."""
    made = []
    for i in range(first, first + n):
        chance = np.random.default_rng(i)
        length, start, step = int(chance.integers(5, 31)), int(chance.integers(3, vocab)), int(chance.integers(1, 5))
        ids = 3 + (start + step * np.arange(length)) % (vocab - 3)
        learnt = np.arange(length) > 1
        made.append(Sample(np.array([1, *ids[1:]], np.int32), learnt, "counting.jsonl", i + 1))
    return made


def fresh(seed: int = 0) -> Student:
    """A new small model, all of it trained."""
    return Student.fresh(SMALL, seed=seed, threads=1)


def adapted(method: str = "lora") -> Student:
    """puff with an adapter."""
    return Student.open(BUILT_IN, method=method, rank=4, targets=("attn_q", "attn_v", "ffn_down"), threads=1)


def training(folder: Path, student: Student | None = None, **changes: Any) -> Training:
    rows = sentences()
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(**{**QUICK, **changes})
    return Training(student or fresh(), lambda epoch: rows, settings, Run(folder), held_out=sentences(10, 1000))


def main() -> None:
    folder = Run(sys.argv[1])
    with folder.locked():
        training(folder.folder, **json.loads(sys.argv[2])).run()


if __name__ == "__main__":
    main()
