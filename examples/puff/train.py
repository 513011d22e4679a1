"""Trains puff, a small Mistral, from scratch: bise's own forward pass with the torch backend, on a CPU or a GPU.

    python examples/puff/train.py --work WORK --minutes 95

WORK is what data.py made. The time on the wall drives the schedule: warm up, hold, and fall to zero over the last half
of --minutes, so that a machine that is slow or paused for a while only makes fewer steps of it. WORK/checkpoint.npz is
written every few minutes and taken up again when the script is started again; export.py turns it into a GGUF file.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from data import VOCAB, request
from muon import Muon
from torch import Tensor

from bise.cache import whole
from bise.config import Config
from bise.model import forward
from bise.ops import load_ops
from bise.weights import Layer, Parameters, expected_shapes

CONFIG = Config(dim=256, n_layers=5, n_heads=8, n_kv_heads=4, head_dim=32, hidden_dim=768, vocab_size=VOCAB,
                sliding_window=128, context=1024)  # fmt: skip
BATCH = 4096  # tokens
MUON, ADAM, WEIGHT_DECAY = 0.02, 3e-3, 0.1  # peak learning rates: matrices of the blocks | embedding, output, norms
WARM_UP, DECAY = 60, 0.5  # steps the rates rise over; share of the time they fall in, when the books are left out
BOOKS = 0.3  # share of the books' passages that an epoch takes
CHAT, TWICE = 0.3, 0.2  # share of the stories and fables that are asked for; of those, share that follow another one
BOS, EOS, IGNORE = 1, 2, -100
COUNTERS = ("step", "seen", "epoch", "elapsed")  # steps, targets learnt, whole passes, seconds
EVERY = 300.0  # seconds between two checkpoints

Example = tuple[list[int], list[int]]  # ids, and what of them is learnt: the same ids, IGNORE in requests


def fresh(c: Config, device: torch.device) -> dict[str, Tensor]:
    """Ones for the norms, a normal of 0.02 for the rest, less where a block writes back into the stream."""
    tensors = {}
    for name, shape in expected_shapes(c).items():
        deviation = 0.02 / math.sqrt(2 * c.n_layers) if name.endswith(("attn_output", "ffn_down")) else 0.02
        made = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * deviation
        tensors[name] = made.to(device).requires_grad_()
    return tensors


def parameters(c: Config, tensors: dict[str, Tensor]) -> Parameters:
    """The tensors as the forward pass takes them."""
    names = Layer.__dataclass_fields__
    blk = [Layer(**{name: tensors[f"blk.{i}.{name}"] for name in names}) for i in range(c.n_layers)]
    return Parameters(tensors["token_embd"], blk, tensors["output_norm"], tensors["output"])


class Texts:
    """The rows of data.py as ids, in batches of sequences of like length."""

    def __init__(self, work: Path, name: str, pieces: sentencepiece.SentencePieceProcessor) -> None:
        self.rows = [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]
        self.ids = [pieces.encode(row["text"]) for row in self.rows]
        self.pieces = pieces

    def examples(self, chance: random.Random, chat: float, books: float) -> list[Example]:
        """Every text once: as it is, or (the share `chat`) as the answer to a request, in Mistral's format v1."""
        found: list[Example] = []
        before: Example | None = None  # the last text that was asked for
        for row, ids in zip(self.rows, self.ids, strict=True):
            if row["kind"] == "book":  # a passage from the middle of something: it does not end
                found += [([BOS, *ids], [BOS, *ids])] if chance.random() < books else []
                continue
            answer = [*ids, EOS]
            if chance.random() >= chat:
                found.append(([BOS, *answer], [BOS, *answer]))
                continue
            asked = self.pieces.encode(f"[INST] {request(row['kind'], row['about'], chance)} [/INST]")
            head = ([BOS], [BOS]) if before is None or chance.random() >= TWICE else before
            before = (head[0] + asked + answer, head[1] + [IGNORE] * len(asked) + answer)
            found.append(before)
            before = before if head == ([BOS], [BOS]) else None
        return [(ids[: CONFIG.context], learnt[: CONFIG.context]) for ids, learnt in found]

    def batches(
        self, chance: random.Random, chat: float, books: float = 0.0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets, int64 (sequences, length): padded to the longest of the batch, without targets there."""
        examples = self.examples(chance, chat, books)
        chance.shuffle(examples)
        batches = []
        for at in range(0, len(examples), 1024):  # sorted within a part only, so that an epoch's batches stay mixed
            part = sorted(examples[at : at + 1024], key=lambda e: len(e[0]))
            while part:
                count = max(1, BATCH // len(part[-1][0]))
                batches.append(part[-count:])
                part = part[:-count]
        chance.shuffle(batches)
        return map(_pad, batches)


def _pad(examples: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(ids) for ids, _ in examples) - 1
    inputs = np.full((len(examples), longest), EOS)
    targets = np.full((len(examples), longest), IGNORE)
    for i, (ids, learnt) in enumerate(examples):
        inputs[i, : len(ids) - 1] = ids[:-1]
        targets[i, : len(ids) - 1] = learnt[1:]
    return inputs, targets


class Training:
    """The model, its optimiser and how far they are."""

    def __init__(self, device: str) -> None:
        self.ops = load_ops("torch", device=device)
        self.tensors = fresh(CONFIG, torch.device(device))
        inside = {n for n, t in self.tensors.items() if t.ndim == 2 and n.startswith("blk.")}
        matrices = [t for n, t in self.tensors.items() if n in inside]
        rest = [t for n, t in self.tensors.items() if n not in inside]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, MUON, weight_decay=WEIGHT_DECAY),
            torch.optim.AdamW(rest, ADAM, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.peaks = [MUON, ADAM]
        self.step = self.seen = self.epoch = 0
        self.elapsed = 0.0

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, int]:
        """Nats per target, and how many targets there were."""
        batch = whole(self.ops, CONFIG, [inputs.shape[1]] * len(inputs))
        labels = targets.reshape(-1)
        batch.wanted = torch.as_tensor(np.flatnonzero(labels != IGNORE))
        logits = forward(self.ops, CONFIG, parameters(CONFIG, self.tensors), inputs.reshape(-1), batch)
        labels = labels[labels != IGNORE]
        return F.cross_entropy(logits, torch.as_tensor(labels, device=logits.device)), len(labels)

    def learn(self, inputs: np.ndarray, targets: np.ndarray, share: float) -> float:
        """One step at this share of the peak rates -> the loss before it."""
        loss, count = self.loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.tensors.values()), 1.0)
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * share
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.seen += count
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, texts: Texts) -> float:
        """Nats per token over all texts as they are, without requests."""
        total, count = 0.0, 0
        for inputs, targets in texts.batches(random.Random(0), chat=0.0):
            loss, n = self.loss(inputs, targets)
            total, count = total + float(loss) * n, count + n
        return total / count

    def save(self, path: Path) -> None:
        """One .npz: weights, the optimisers' averages, and the counters as JSON bytes."""
        arrays = {name: t.detach().cpu().numpy() for name, t in self.tensors.items()}
        for name, t in self.tensors.items():
            state = next(o.state[t] for o in self.optimisers if t in o.state)
            arrays |= {f"{kind}/{name}": value.cpu().numpy() for kind, value in state.items()}
        facts = {name: getattr(self, name) for name in COUNTERS} | {"config": asdict(CONFIG)}
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        part = path.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.replace(path)

    def restore(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays, torch.no_grad():
            facts = json.loads(arrays["facts"].tobytes())
            for name, t in self.tensors.items():
                t.copy_(torch.from_numpy(arrays[name]))
            for optimiser in self.optimisers:
                for t in optimiser.param_groups[0]["params"]:
                    name = next(n for n, mine in self.tensors.items() if mine is t)
                    kinds = [k.split("/")[0] for k in arrays.files if k.endswith(f"/{name}")]
                    optimiser.state[t] = {k: torch.from_numpy(arrays[f"{k}/{name}"]).to(t.device) for k in kinds}
        for name in COUNTERS:
            setattr(self, name, facts[name])


def rate(step: int, done: float) -> float:
    """Share of the peak learning rates after `step` steps and the share `done` of the time: up, level, down."""
    return min(1.0, (step + 1) / WARM_UP) * min(1.0, max(0.0, 1.0 - done) / DECAY)


def train(work: Path, minutes: float, device: str, seed: int) -> None:
    torch.manual_seed(seed)
    pieces = sentencepiece.SentencePieceProcessor(str(work / "tokenizer.model"))
    texts, valid = Texts(work, "train", pieces), Texts(work, "valid", pieces)
    training = Training(device)
    checkpoint, log = work / "checkpoint.npz", work / "metrics.jsonl"
    if checkpoint.exists():
        training.restore(checkpoint)
    else:
        log.unlink(missing_ok=True)
    begun, saved = time.monotonic() - training.elapsed, time.monotonic()
    losses: list[float] = []
    done = training.elapsed / (60 * minutes)
    while done < 1:
        chance = random.Random(f"{seed} {training.step}")  # taken up in the middle, an epoch is shuffled anew
        for inputs, targets in texts.batches(chance, CHAT, BOOKS if done < 1 - DECAY else 0.0):
            losses.append(training.learn(inputs, targets, rate(training.step, done)))
            training.elapsed = time.monotonic() - begun
            done = training.elapsed / (60 * minutes)
            if done >= 1 or time.monotonic() - saved > EVERY:
                fact = {
                    "step": training.step,
                    "tokens": training.seen,
                    "epoch": training.epoch,
                    "minutes": round(training.elapsed / 60, 2),
                    "rate": round(rate(training.step, done), 3),
                    "train": round(float(np.mean(losses)), 4),
                    "valid": round(training.evaluate(valid), 4),
                }
                with log.open("a") as lines:
                    lines.write(json.dumps(fact) + "\n")
                print(json.dumps(fact), flush=True)
                training.save(checkpoint)
                saved, losses = time.monotonic(), []
            if done >= 1:
                return
        training.epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what data.py made; checkpoint and log go there")
    parser.add_argument("--minutes", type=float, default=95, help="time on the wall for the whole training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.work, args.minutes, args.device, args.seed)


if __name__ == "__main__":
    main()
