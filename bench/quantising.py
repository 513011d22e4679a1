"""Quantising beside llama.cpp: time and error of each type, in turns in one run, on the same matrices.

    .venv/bin/python bench/quantising.py                  # every type, with and without importance: about a minute
    .venv/bin/python bench/quantising.py --file Q4_K_M Q8_0   # whole files of Mistral 7B's shape, one layer: minutes
    .venv/bin/python bench/quantising.py --types Q4_K,Q6_K --save FILE.json   # and keep what was found

time      how many times as many weights a second as llama.cpp (its ggml_quantize_chunk, shared out among as many
          threads), median of the rounds; above 1 bise is quicker
error     ours / llama.cpp's: the sum of squared errors; with importance, each times the importance of its column,
          which is what errors of the layer's output come to. On normal, on heavy-tailed (Student's t, 4 degrees of
          freedom) and, but for Q8_0, on trained matrices (puff's, whose own 8 bits are taken as exact)

The importance is random (a squared exponential). Needs llama-cpp-python. --json prints one JSON object;
docs/figures/quantising_page.py makes a page of what --save wrote.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from bise import quantize
from bise.api import BUILT_IN
from bise.bench import machine, others
from bise.ops.cpu import Cpu, default_threads
from bise.quant import TYPES, QTensor, nbytes
from bise.quantize.recipe import RECIPES
from bise.quantize.tensors import by_kernels
from bise.rounding import ROUNDING, prepared
from bise.weights import Weights

COLS, ROWS, SLOW_ROWS = 4096, 1024, 64  # rows that each of the two is timed with; llama.cpp's search takes longer
Rows = dict[str, dict[str, Any]]


def peer() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(next(path for path in folder.iterdir() if path.name.startswith("libggml-base."))))
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return base


def theirs(base: ctypes.CDLL, x: np.ndarray, name: str, weights: np.ndarray | None, threads: int) -> QTensor:
    (rows, cols), out = x.shape, np.empty(nbytes(name, x.shape), np.uint8)
    step, pointer = -(-rows // threads), None if weights is None else weights.ctypes.data

    def part(at: int) -> None:
        count = min(step, rows - at)
        base.ggml_quantize_chunk(TYPES[name].id, x.ctypes.data, out.ctypes.data, at * cols, count, cols, pointer)

    base.ggml_quantize_init(TYPES[name].id)
    team = [threading.Thread(target=part, args=(at,)) for at in range(0, rows, step)]
    for one in team:
        one.start()
    for one in team:
        one.join()
    return QTensor(name, x.shape, out)


def matrices() -> dict[str, np.ndarray]:
    rng, puff = np.random.default_rng(0), Weights.open(BUILT_IN)
    return {
        "normal": rng.standard_normal((128, COLS)).astype(np.float32) / 50,
        "heavy": rng.standard_t(4, (128, COLS)).astype(np.float32) / 50,
        "trained": np.concatenate([puff[f"blk.{i}.ffn_down"].dequantise() for i in range(puff.config.n_layers)]),
    }


def importance(cols: int) -> np.ndarray:
    return prepared(np.random.default_rng(2).exponential(size=cols) ** 2)


def errors(cpu: Cpu, base: ctypes.CDLL, name: str, informed: bool) -> dict[str, float]:
    """Matrix -> our error over theirs."""
    found = {}
    for kind, x in matrices().items():
        weights = importance(x.shape[1]) if informed else None
        both = (cpu.quantise(x, name, weights), theirs(base, x, name, weights, 2))
        ours, other = (
            float((np.square(q.dequantise().astype(np.float64) - x) * (1 if weights is None else weights)).sum())
            for q in both
        )
        if other > 0:
            found[kind] = round(ours / other, 4)
    return found


def rate(work: Callable[[np.ndarray], object], x: np.ndarray) -> float:
    started = time.perf_counter()
    work(x)
    return x.size / (time.perf_counter() - started) / 1e6


def times(cpu: Cpu, base: ctypes.CDLL, name: str, informed: bool, threads: int, rounds: int) -> tuple[float, float]:
    """Millions of weights a second, ours and theirs, in turns."""
    x = np.random.default_rng(1).standard_normal((ROWS, COLS)).astype(np.float32) / 50
    weights = importance(COLS) if informed else None
    quick = not informed and not name.endswith("K") and not name.startswith("IQ")
    pairs = [
        (
            rate(lambda y: cpu.quantise(y, name, weights), x),
            rate(lambda y: theirs(base, y, name, weights, threads), x if quick else x[:SLOW_ROWS]),
        )
        for _ in range(rounds)
    ]
    ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return ours, other


def by_type(names: list[str], threads: int, rounds: int) -> Rows:
    cpu, base, found = Cpu(threads), peer(), {}
    print(f"{'':18}{'bise':>9}{'llama.cpp':>11}{'time':>7}   error on normal, heavy-tailed, trained", file=sys.stderr)
    for name in names:
        for informed in (False, True):
            ours, other = times(cpu, base, name, informed, threads, rounds)
            ratios = errors(cpu, base, name, informed)
            label, told = f"{name} {'importance' if informed else 'alike'}", {"type": name, "informed": informed}
            found[label] = {**told, "ours": ours, "theirs": other, "time": ours / other, "error": ratios}
            shown = " ".join(f"{ratio:7.4f}" for ratio in ratios.values())
            print(f"{label:18}{ours:7.1f} M{other:9.1f} M{ours / other:7.2f}  {shown}", file=sys.stderr)
    return found


def by_file(names: list[str], threads: int) -> Rows:
    """A BF16 file of Mistral 7B's shape with one layer, quantised whole by each of the two, in turns."""
    import shape

    found: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.gguf", Path(folder) / "out.gguf"
        shape.write(source, "BF16", 1)
        for name in names:
            pairs = [(file_ours(source, out, name, threads), file_theirs(source, out, name, threads)) for _ in range(2)]
            ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
            found[name] = {"type": name, "ours": ours, "theirs": other, "time": other / ours}
            print(f"{name:18}{ours:7.2f} s{other:9.2f} s{other / ours:7.2f}", file=sys.stderr)
    return found


def file_ours(source: Path, out: Path, name: str, threads: int) -> float:
    out.unlink(missing_ok=True)
    started = time.perf_counter()
    quantize.quantize(source, out, name, round=by_kernels(threads))
    return time.perf_counter() - started


def file_theirs(source: Path, out: Path, name: str, threads: int) -> float:
    out.unlink(missing_ok=True)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = RECIPES[name].file_type, threads
    started = time.perf_counter()
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert not failed, name
    return time.perf_counter() - started


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, data: Any) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", nargs="*", metavar="RECIPE", help="these recipes over a whole file (1 GB, minutes)")
    parser.add_argument("--types", type=lambda text: text.split(","), default=list(ROUNDING), help="only these types")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", type=Path, help="write the JSON to a file")
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    load = others()
    if arguments.file is not None:
        found = by_file(arguments.file or ["Q4_K_M", "Q8_0"], arguments.threads)
    else:
        found = by_type(arguments.types, arguments.threads, arguments.rounds)
    result = {
        "scenario": "rounding" if arguments.file is None else "files", "rows": list(found.values()),
        "settings": {"threads": arguments.threads, "rounds": arguments.rounds},
        "load_average": load, "machine": machine(),
    }  # fmt: skip
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
