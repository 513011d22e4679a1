"""Trains puff, a small Mistral, from scratch: by bise's own training loop, on a CPU or a GPU.

    python examples/puff/train.py --work WORK --budget 100m

WORK is what data.py made. The budget drives the schedule: warm up, hold, and fall to zero over the last half of the
steps that fit into it. Stopped, it goes on from its last checkpoint in WORK/run when it is started again; export.py
turns the best weights into a GGUF file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from data import VOCAB, request

from bise.config import Config
from bise.disk import replacing
from bise.tune.budget import seconds
from bise.tune.loop import News, Training
from bise.tune.run import Run
from bise.tune.sample import Sample
from bise.tune.settings import Settings
from bise.tune.student import Student

CONFIG = Config(dim=256, n_layers=5, n_heads=8, n_kv_heads=4, head_dim=32, hidden_dim=768, vocab_size=VOCAB,
                sliding_window=128, context=1024)  # fmt: skip
RECIPE = Settings(
    batch="4096t",
    micro=4096,
    rate=3e-3,
    matrix_rate=0.02,
    decay=0.1,
    clip=1.0,
    schedule="linear",
    warmup=60,
    fall=0.5,
    budget=6000.0,
)  # Muon for the matrices of the blocks, AdamW for embedding, output and norms
BOOKS, WITH_BOOKS = 0.3, 3  # share of the books' passages that an epoch takes, and in how many it does: half of six
CHAT, TWICE = 0.3, 0.2  # share of the stories and fables that are asked for; of those, share that follow another one
BOS, EOS = 1, 2


class Texts:
    """The rows of data.py as samples."""

    def __init__(self, work: Path, name: str, pieces: sentencepiece.SentencePieceProcessor) -> None:
        self.path = work / f"{name}.jsonl"
        self.rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.ids = [pieces.encode(row["text"]) for row in self.rows]
        self.pieces = pieces

    def samples(self, chance: random.Random, chat: float = 0.0, books: float = 0.0) -> list[Sample]:
        """Every text once: as it is, or (the share `chat`) as the answer to a request, in Mistral's format v1."""
        found: list[Sample] = []
        before: tuple[list[int], list[bool]] | None = None  # the last text that was asked for
        for line, (row, ids) in enumerate(zip(self.rows, self.ids, strict=True), 1):
            if row["kind"] == "book":  # a passage from the middle of something: it does not end
                found += [self._sample([BOS, *ids], [True] * (1 + len(ids)), line)] if chance.random() < books else []
                continue
            answer = [*ids, EOS]
            if chance.random() >= chat:
                found.append(self._sample([BOS, *answer], [True] * (1 + len(answer)), line))
                continue
            asked = self.pieces.encode(f"[INST] {request(row['kind'], row['about'], chance)} [/INST]")
            fresh = before is None or chance.random() >= TWICE
            head = ([BOS], [False]) if before is None or fresh else before
            told = head[0] + asked + answer, head[1] + [False] * len(asked) + [True] * len(answer)
            found.append(self._sample(*told, line))
            before = told if fresh else None
        return found

    def _sample(self, ids: list[int], learnt: list[bool], line: int) -> Sample:
        ids, learnt = ids[: CONFIG.context], learnt[: CONFIG.context]
        return Sample(np.array(ids, np.int32), np.array([False, *learnt[1:]]), str(self.path), line)


def epoch_of(texts: Texts, seed: int, epoch: int) -> Sequence[Sample]:
    """An epoch's samples: other texts are asked for, and for something else, in each."""
    return texts.samples(random.Random(f"{seed} {epoch}"), CHAT, BOOKS if epoch < WITH_BOOKS else 0.0)


def log(folder: Run, to: Path) -> None:
    """A line for each look at the validation stories: what report.py draws."""
    lines: list[str] = []
    losses: list[float] = []
    last: dict[str, Any] = {}
    for note in folder.notes():
        if "loss" in note:
            losses.append(note["loss"])
            last = note
        elif "held_out" in note and losses:
            fact = {
                "step": note["step"], "tokens": last["tokens"], "epoch": int(last["epoch"]),
                "minutes": round(note["seconds"] / 60, 2), "rate": round(last["rate"] / RECIPE.rate, 3),
                "train": round(float(np.mean(losses)), 4), "valid": round(note["held_out"], 4),
            }  # fmt: skip
            lines.append(json.dumps(fact) + "\n")
            losses = []
    with replacing(to) as file:
        file.write("".join(lines).encode())


def train(work: Path, budget: float, device: str, threads: int, seed: int) -> None:
    pieces = sentencepiece.SentencePieceProcessor(str(work / "tokenizer.model"))
    texts, valid = Texts(work, "train", pieces), Texts(work, "valid", pieces)
    student = Student.fresh(CONFIG, seed=seed, device=device, threads=threads)
    folder = Run(work / "run")

    def show(news: News) -> None:
        if news.at.looked == news.at.step:
            print(f"step {news.at.step}: validation {news.at.held_out:.4f}, {news.speed:,.0f} tokens/s", flush=True)
            log(folder, work / "metrics.jsonl")

    with folder.locked():
        Training(
            student, lambda epoch: epoch_of(texts, seed, epoch), replace(RECIPE, budget=budget, seed=seed), folder,
            held_out=valid.samples(random.Random(0)), watch=show,
        ).run()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what data.py made; the run's folder goes there")
    parser.add_argument("--budget", default="100m", help="time on the wall for the whole training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.work, seconds(args.budget), args.device, args.threads, args.seed)


if __name__ == "__main__":
    main()
