#!/usr/bin/env python3
"""What choosing a token costs, for each way of choosing.

    python bench/sampling.py [--vocab 32000] [--repeats 50]

Logits are random: peaked (standard deviation 3, as a model that knows what comes next) and flat (0.3, the worst case
for every cut). Milliseconds a token, the quickest of the repeats; 2,000 tokens of history.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from bise.sampler import Sampler, Sampling

WARM = {"temperature": 0.8, "seed": 1}
WAYS: dict[str, dict[str, float]] = {
    "greedy": {},
    "greedy, penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "temperature": WARM,
    "top-k 40": {**WARM, "top_k": 40},
    "top-p 0.95": {**WARM, "top_p": 0.95},
    "top-p 0.5": {**WARM, "top_p": 0.5},
    "min-p 0.05": {**WARM, "min_p": 0.05},
    "typical 0.95": {**WARM, "typical_p": 0.95},
    "typical 0.3": {**WARM, "typical_p": 0.3},
    "XTC": {**WARM, "xtc_probability": 1.0},
    "mirostat": {**WARM, "mirostat_tau": 5.0},
    "DRY": {**WARM, "dry_multiplier": 0.8},
    "top-k, top-p, min-p": {**WARM, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "typical, top-p, min-p": {**WARM, "typical_p": 0.9, "top_p": 0.95, "min_p": 0.05},
    "everything": {
        **WARM, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "dry_multiplier": 0.8, "top_k": 20_000,
        "typical_p": 0.98, "top_p": 0.98, "min_p": 0.001, "xtc_probability": 0.5,
    },
}  # fmt: skip


def milliseconds(options: dict[str, float], scale: float, vocab: int, repeats: int) -> float:
    chance = np.random.default_rng(0)
    logits = (chance.standard_normal(vocab) * scale).astype(np.float32)
    history = chance.integers(0, vocab, 2000).tolist()
    np.ones(1 << 21)  # as a prompt's activations do, it teaches malloc to keep memory of that size
    sampler, best = Sampler(Sampling(**options), vocab), float("inf")  # type: ignore[arg-type]
    for _ in range(repeats):
        started = time.perf_counter()
        sampler.sample(logits, history)
        best = min(best, time.perf_counter() - started)
    return 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    print(f"{'ms a token':22} {'peaked':>7} {'flat':>7}")
    for way, options in WAYS.items():
        figures = [milliseconds(options, scale, arguments.vocab, arguments.repeats) for scale in (3.0, 0.3)]
        print(f"{way:22} {figures[0]:7.3f} {figures[1]:7.3f}")


if __name__ == "__main__":
    main()
