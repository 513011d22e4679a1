"""What adapters cost: the same requests without, with one and with different ones, in turns in one run.

    python bench/adapters.py model.gguf --rank 16 --rounds 3 --save adapters.json

Adapters are random, on all seven linear layers of every block. Prints tokens/s and their ratio to those without.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np

import bise
from bise.bench.machine import machine, others
from bise.engine import Engine
from bise.lora import Adapter, Delta, Placed
from bise.lora.adapter import targets
from bise.request import Request
from bise.sampler import Sampler, Sampling

MANY = 8  # sequences at once
PREFILL = {1: 256, MANY: 32}  # tokens of a prompt, by sequences


def random_adapter(model: bise.Model, rank: int, seed: int) -> Placed:
    rng, deltas = np.random.default_rng(seed), {}
    for name, (rows, cols) in targets(model.config).items():  # type: ignore[misc]
        if name != "output":
            a, b = rng.standard_normal((rank, cols), np.float32), rng.standard_normal((rows, rank), np.float32)
            deltas[name] = Delta(a / np.float32(np.sqrt(cols)), b * np.float32(0.01), 1.0)
    return model.beside.place(Adapter(deltas, float(rank)), f"a{seed}")


def measure(engine: Engine, placed: list[Placed | None], steps: int) -> tuple[float, float]:
    """Tokens/s of prefill and of decode, all sequences together."""
    vocab, prompt = engine.config.vocab_size, PREFILL[len(placed)]
    requests = []
    for i, adapter in enumerate(placed):
        engine.empty(i)
        ids = np.random.default_rng(i).integers(3, vocab, prompt).tolist()
        requests.append(Request(ids, Sampler(Sampling(), vocab), steps, sequence=i, adapter=adapter))
        engine.submit(requests[-1])
    began = time.perf_counter()
    while not all(r.speaks for r in requests):
        engine.step()
    read, said = time.perf_counter(), sum(len(r.tokens) for r in requests)
    while engine.running:
        engine.step()
    done = time.perf_counter()
    return prompt * len(placed) / (read - began), (sum(len(r.tokens) for r in requests) - said) / (done - read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the built-in one")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="tokens that each sequence says")
    parser.add_argument("--save", type=Path, help="write what was found to a file, for docs/figures/tuning_page.py")
    told, load = parser.parse_args(), others()
    model = bise.load(told.model, context=512, lookup=False)
    made = [random_adapter(model, told.rank, seed) for seed in range(MANY)]
    print(f"{model.path.name}: rank {told.rank}, {made[0].nbytes / 2**20:.1f} MiB an adapter")
    none: list[Placed | None] = [None]
    cases = {"1, none": none, "1, one adapter": [made[0]], f"{MANY}, none": none * MANY,
             f"{MANY}, the same": [made[0]] * MANY, f"{MANY}, all different": [*made]}  # fmt: skip
    engine, found = model.engine(MANY), {name: [] for name in cases}  # type: dict[str, list[tuple[float, float]]]
    measure(engine, cases[f"{MANY}, all different"], 4)  # everything is in memory then
    for _ in range(told.rounds):
        for name, placed in cases.items():
            found[name].append(measure(engine, placed, told.steps))
    print(f"{'sequences':20} {'prefill':>9} {'ratio':>6} {'decode':>9} {'ratio':>6}")
    for name, rounds in found.items():
        plain = found[name.split(",")[0] + ", none"]
        speeds = [[round[i] for round in rounds] for i in (0, 1)]
        ratios = [median(a[i] / b[i] for a, b in zip(rounds, plain, strict=True)) for i in (0, 1)]
        print(f"{name:20} {median(speeds[0]):9.1f} {ratios[0]:6.3f} {median(speeds[1]):9.2f} {ratios[1]:6.3f}")
    if told.save:
        rows = [{"case": name, "round": i, "prefill": prefill, "decode": decode}
                for name, rounds in found.items() for i, (prefill, decode) in enumerate(rounds)]  # fmt: skip
        result = {"what": "adapters", "file": model.path.name, "rank": told.rank, "bytes": made[0].nbytes,
                  "steps": told.steps, "rows": rows, "load_average": load, "machine": machine()}  # fmt: skip
        told.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
