#!/usr/bin/env python3
"""How the cost grows: speed and memory against context, sequences, threads, weight types, with and without a window.

    python bench/speed.py MODEL.gguf [--what context,sequences,threads,types,window] [--isa avx2] [--again]
    python bench/speed.py --draw bench/results/speed-....json

bise and llama.cpp run in processes of their own, one after the other. Each series is written to the result file as soon
as it is done, and is not measured again unless --again says so. --draw makes the pictures and the tables of
docs/speed.md out of a result file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shape

from bise.bench import ENGINES, Run, Turn, bandwidth, bytes_per_token, in_process, machine, others, share
from bise.bench.rounds import wake
from bise.cache import CHUNK, Cache, cache_bytes
from bise.cli.terminal import Doing
from bise.config import Config
from bise.errors import BiseError, FormatError
from bise.ops import load_ops
from bise.ops.cpu import default_threads
from bise.weights import Weights

RESULTS = Path(__file__).parent / "results"
CONTEXTS = (0, 1024, 2048, 4096, 8192, 16_384, 32_768)
SEQUENCES = (1, 2, 4, 8, 16, 32)
TYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K_M", "Q4_0", "IQ4_XS")
LAYERS = 8  # of the files made for TYPES
PREFILL, DECODE = Run("prefill", 256), Run("decode", 12)
ROOM = max(PREFILL.room, DECODE.room)  # a depth is where a run ends: 32k fit a context of 32k
Point = dict[str, Any]  # what was measured, beside what distinguishes it from the series' other points


@dataclass
class Bench:
    """Where the series are measured."""

    file: Path
    threads: int
    isa: str
    report: Callable[[str], None]

    @property
    def config(self) -> Config:
        return Weights.open(self.file).config

    def turn(self, engine: str, *runs: Run, file: Path | None = None, **changes: Any) -> dict[str, Any]:
        """One process: what `rounds.in_process` says. changes: of the turn's other fields."""
        file = file or self.file
        turn = replace(Turn(engine, str(file), runs, self.threads, self.isa), **changes)
        return in_process(turn, lambda words: self.report(f"{file.name}, {engine}: {words}"))


def context(bench: Bench) -> Iterator[Point]:
    """Both engines: speeds and memory for keys and values up to the model's context."""
    for engine in ENGINES:
        config = bench.config if engine == "bise" else bench.config.with_window(None)
        yield from at_contexts(bench, engine, config, CONTEXTS)


def at_contexts(bench: Bench, engine: str, config: Config, ends: tuple[int, ...], **changes: Any) -> Iterator[Point]:
    ends = tuple(end for end in ends if end <= config.context and (end == 0 or end > ROOM))
    runs = [replace(run, depth=max(0, end - ROOM)) for end in ends for run in (PREFILL, DECODE)]
    speeds = [run["speed"] for run in bench.turn(engine, *runs, **changes)["runs"]]
    for i, end in enumerate(ends):
        kept = {f"kv_{kv}": cache_bytes(config, end, kv) if end else 0 for kv in ("f16", "q8_0")}
        yield {"engine": engine, "context": end, "prefill": speeds[2 * i], "decode": speeds[2 * i + 1], **kept}


def sequences(bench: Bench) -> Iterator[Point]:
    """Both engines: tokens per second of all sequences together."""
    runs = [Run("decode", max(4, 16 // n), sequences=n) for n in SEQUENCES]
    for engine in ENGINES:
        for run in bench.turn(engine, *runs)["runs"]:
            yield {"engine": engine, "sequences": run["sequences"], "decode": run["speed"]}


def threads(bench: Bench) -> Iterator[Point]:
    """Both engines, with one thread, two, four ... as many as there are cores."""
    for engine in ENGINES:
        for n in sorted({2**i for i in range(8) if 2**i < bench.threads} | {bench.threads}):
            prefill, decode = bench.turn(engine, PREFILL, DECODE, threads=n)["runs"]
            yield {"engine": engine, "threads": n, "prefill": prefill["speed"], "decode": decode["speed"]}


def types(bench: Bench) -> Iterator[Point]:
    """Both engines, two rounds, on files of the model's shape with fewer layers; one file is there at a time."""
    speed = bandwidth(bench.threads)
    layers = min(LAYERS, bench.config.n_layers)
    for type in TYPES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{type}.gguf")
            bench.report(f"making {file.name}")
            shape.write(file, type, layers)
            wake(str(file))
            weights = Weights.open(file)
            read = bytes_per_token(weights, weights.config, "f16", 0)
            turns = [[bench.turn(engine, PREFILL, DECODE, file=file)["runs"] for engine in ENGINES] for _ in range(2)]
            for i, engine in enumerate(ENGINES):
                prefill, decode = (sum(turn[i][j]["speed"] for turn in turns) / len(turns) for j in range(2))
                reached = share(decode, read, speed)
                yield {"engine": engine, "type": type, "prefill": prefill, "decode": decode, "bandwidth": reached}


def window(bench: Bench) -> Iterator[Point]:
    """bise with the model's window and without one; "attention": seconds that attention alone takes for the whole
    context in one layer."""
    usual = bench.config.sliding_window or 4096
    for size in (usual, None):
        config = bench.config.with_window(size)
        for point in at_contexts(bench, "bise", config, (8192, 16_384, 32_768), window=size or "none"):
            bench.report(f"attention alone, window {size}, {point['context']:,} tokens")
            yield {**point, "window": size, "attention": attention_seconds(bench, config, point["context"])}


def attention_seconds(bench: Bench, config: Config, tokens: int) -> float:
    """A prompt of so many tokens through one layer's attention, in chunks: keys, values and queries are arbitrary."""
    ops = load_ops("cpu", bench.threads, isa=bench.isa)
    c, rng = replace(config, n_layers=1), np.random.default_rng(0)
    cache = Cache(ops, c, context=tokens)
    heads = c.n_heads, c.n_kv_heads, c.n_kv_heads
    q, k, v = (rng.standard_normal((CHUNK, n * c.head_dim), np.float32) for n in heads)
    start = time.perf_counter()
    for at in range(0, tokens, CHUNK):
        n = min(CHUNK, tokens - at)
        batch = cache.batch([(0, n)])
        batch.attend(ops, 0, q[:n], k[:n], v[:n])
        cache.advance(batch)
    return time.perf_counter() - start


SERIES = {"context": context, "sequences": sequences, "threads": threads, "types": types, "window": window}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--what", default=",".join(SERIES), help="series, with commas")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--isa", default="", help="instruction set of bise")
    parser.add_argument("--out", type=Path, help="the result file; default: bench/results/speed-CPU-ISA.json")
    parser.add_argument("--again", action="store_true", help="measure also what the result file has already")
    parser.add_argument("--draw", type=Path, metavar="RESULT.json", help="make pictures and tables, measure nothing")
    a = parser.parse_args()
    if unknown := set(a.what.split(",")) - set(SERIES):
        parser.error(f"--what has {', '.join(sorted(unknown))}, expected some of {', '.join(SERIES)}")
    if a.model is None and a.draw is None:
        parser.error("name a model (bench/shape.py makes one), or --draw a result file")
    try:
        if a.draw is None:
            measure(a)
        else:
            draw(a.draw)
    except BiseError as error:
        sys.exit(f"bise: {error}")


def measure(a: argparse.Namespace) -> None:
    out = a.out or RESULTS / f"speed-{slug(machine()['cpu'])}-{a.isa or machine()['isa']}.json"
    about = {"file": a.model.name, "threads": a.threads, "isa": a.isa or machine()["isa"]}
    found = json.loads(out.read_text()) if out.exists() else {**about, "series": {}}
    if {key: found.get(key) for key in about} != about:
        raise FormatError(f"{out}: holds another file, number of threads or instruction set: choose another --out")
    Weights.open(a.model)  # refuses what is no model before anything is timed
    busy = others()
    wake(str(a.model))
    with Doing() as doing:
        for name in a.what.split(","):
            if name not in found["series"] or a.again:
                points = list(SERIES[name](Bench(a.model, a.threads, a.isa, doing)))
                found["series"][name] = {"load_average": busy, "points": points, "machine": machine()}
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(f"{out}: {name}, {len(points)} points", file=sys.stderr)


def slug(cpu: str) -> str:
    """A processor's name as part of a file's name: intel-xeon."""
    plain = re.sub(r"\(\w+\)|@.*|\bcpu\b|processor|\d+-core", " ", cpu.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def draw(result: Path) -> None:
    """The pictures and tables of docs/speed.md."""
    figures = Path(__file__).resolve().parents[1] / "docs" / "figures"
    sys.path.insert(0, str(figures))
    import speed_page

    for path in speed_page.write(result):
        print(path)


if __name__ == "__main__":
    main()
