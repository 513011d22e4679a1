"""What the model card shows: held-out loss of the exported file, samples.md and loss.png.

    python examples/puff/report.py --work WORK --model src/bise/models/puff.gguf

Everything goes through bise's public face and its cpu backend, as a user would run it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bise

HERE = Path(__file__).parent
OPENINGS = ["Once upon a time", "One day, a little girl named Lily", "The fox was hungry.", "There was a king who",
            "Tom and his sister had a secret.", "It was raining, and"]  # fmt: skip
REQUESTS = ["Tell me a story.", "Tell me a story about a dog named Tim.", "Write a story about a red ball.",
            "Tell me a story about a dragon who is afraid of mice.", "Tell me a fable about a wolf and a lamb.",
            "What is the capital of France?"]  # fmt: skip
WARM_UP = 60  # steps, as in train.py
TURNS = ["Tell me a story about a cat.", "Tell me a story about a boat."]
WARM: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 400}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 400}


def texts(work: Path, part: str) -> list[str]:
    return [json.loads(line)["text"] for line in (work / f"{part}.jsonl").read_text().splitlines()]


def loss(model: bise.Model, stories: Sequence[str]) -> dict[str, float]:
    """Over whole stories and their end: nats per token, perplexity, bits per byte of text."""
    nats, tokens, size = 0.0, 0, 0
    for story in stories:
        ids = [*model.tokenizer.encode(story, bos=True), model.tokenizer.eos or 0]
        logits = model.logits(ids[:-1]).astype(np.float64)
        peak = logits.max(axis=1)
        chosen = logits[np.arange(len(logits)), ids[1:]]
        nats += float(np.sum(peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1)) - chosen))
        tokens, size = tokens + len(ids) - 1, size + len(story.encode())
    return {
        "tokens": tokens,
        "nats": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "bits": nats / math.log(2) / size,
    }


class Copied:
    """Tells how many words in a row of a text stand in the training texts, letter for letter."""

    def __init__(self, training: Sequence[str]) -> None:
        self.text = " ".join(" ".join(re.findall(r"\S+", text)) for text in training)

    def longest(self, text: str) -> int:
        words, best = text.split(), 0
        for start in range(len(words)):
            while start + best < len(words) and " ".join(words[start : start + best + 1]) in self.text:
                best += 1
        return best


def samples(model: bise.Model, copied: Copied) -> str:
    """A page of unedited output; every prompt is shown, none is chosen afterwards."""
    page = ["# Samples from puff", "",
            "Made by `report.py`; unedited, the first that came. *Greedy* is temperature 0, *warm* is temperature 0.8 "
            "with top-p 0.95 and seed 1. The number is the longest run of words that also stands in the "
            "training texts."]  # fmt: skip
    for title, prompts in (("Stories that were begun", OPENINGS), ("Stories that were asked for", REQUESTS)):
        page += ["", f"## {title}"]
        for prompt in prompts:
            for name, how in (("greedy", GREEDY), ("warm", WARM | {"seed": 1})):
                if prompts is OPENINGS:
                    said = model.generate(prompt, **how)
                    text = prompt + said.text
                else:
                    said = model.chat([{"role": "user", "content": prompt}], **how)
                    text = said.text
                page += _sample(prompt, f"{name}, {copied.longest(text)} words", said.finish_reason, text)
    session = model.session()
    page += ["", "## Two requests in one conversation"]
    for turn in TURNS:
        said = session.chat(turn, **WARM, seed=1)
        page += _sample(turn, f"warm, {copied.longest(said.text)} words", said.finish_reason, said.text)
    return "\n".join(page) + "\n"


def _sample(prompt: str, how: str, end: str, text: str) -> list[str]:
    quoted = [f"> {line}" if line else ">" for line in text.strip().split("\n")]
    return ["", f"**{prompt}** ({how}{'' if end == 'stop' else ', cut off'})", "", *quoted]


def picture(metrics: Path, to: Path) -> None:
    """The loss curve, against tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    seen = [row["tokens"] / 1e6 for row in rows]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(seen, [row["train"] for row in rows], label="training texts (with requests and books)", color="#b8b8b8")
    axes.plot(seen, [row["valid"] for row in rows], label="validation stories", color="#1f5a8a")
    fall = [row["tokens"] / 1e6 for row in rows if row["rate"] < 1 and row["step"] > WARM_UP]
    if fall:
        axes.axvline(fall[0], color="#c06030", linewidth=0.8, linestyle=":", label="learning rate begins to fall")
    axes.set(xlabel="million tokens seen", ylabel="loss, nats per token", ylim=(1, 4.5))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(to, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the .jsonl files and metrics.jsonl")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--backend", default="cpu")
    args = parser.parse_args()
    test = texts(args.work, "test")
    for window in (None, 32, 64, "none"):
        found = loss(bise.load(args.model, window=window, backend=args.backend, kv="f32"), test)
        print(f"window {window or 'as trained'}:", ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    model = bise.load(args.model, backend=args.backend)
    (args.out / "samples.md").write_text(samples(model, Copied(texts(args.work, "train"))))
    picture(args.work / "metrics.jsonl", args.out / "loss.png")
    (args.out / "metrics.jsonl").write_bytes((args.work / "metrics.jsonl").read_bytes())


if __name__ == "__main__":
    main()
