#!/usr/bin/env python3
"""bise and llama.cpp on the same file, in turns: the figures of the README.

    pip install . llama-cpp-python
    python bench/first_mark.py MODEL.gguf [--threads 2] [--prefill 512] [--decode 48] [--rounds 2]

Each turn (A B A B ...) is a process of its own: load, a short warm-up, one prompt of --prefill tokens from an empty
context, then --decode tokens one by one after it. Neither tokenising nor sampling is timed. llama.cpp runs with flash
attention and an f16 cache in batches of 512, as its own benchmark does. Prints a table of medians and ratios, and one
line of JSON with the machine in it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

WARM_UP = 16  # tokens
FIGURES = {  # name: (unit, larger is better)
    "prefill": ("tokens/s", True),
    "decode": ("tokens/s", True),
    "load": ("s", False),
    "peak memory": ("GiB", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--turn", choices=ENGINES, help=argparse.SUPPRESS)  # one engine, in this process
    arguments = parser.parse_args()
    if not os.path.exists(arguments.model):
        parser.error(f"{arguments.model}: there is no such file")
    if arguments.turn:
        print(json.dumps(ENGINES[arguments.turn](arguments)))
        return
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"other processes use {busy:.1f} cores of this machine: the figures will be theirs too", file=sys.stderr)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in present()}
    for number in range(arguments.rounds):
        for name in turns:
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            turns[name].append(turn(name))
    report(arguments, busy, {name: medians(results) for name, results in turns.items()})


def present() -> list[str]:
    """The engines that are installed."""
    try:
        version("llama-cpp-python")
    except PackageNotFoundError:
        print("llama-cpp-python is not installed: measuring bise alone", file=sys.stderr)
        return ["bise"]
    return ["bise", "llama.cpp"]


def turn(name: str) -> dict[str, float]:
    """One engine in a fresh process; the peak of its memory is what the system says at its end."""
    child = subprocess.Popen([sys.executable, *sys.argv, "--turn", name], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    result: dict[str, float] = json.loads(child.stdout.read() or "{}")
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{name} ended with code {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return result | {"peak memory": usage.ru_maxrss * unit / 2**30}


def bise(a: argparse.Namespace) -> dict[str, float]:
    import numpy as np

    from bise import load
    from bise.cache import CHUNK, Cache
    from bise.model import forward

    start = time.perf_counter()
    model = load(a.model, threads=a.threads, context=a.prefill + a.decode + WARM_UP)
    seconds = time.perf_counter() - start
    cache = Cache(model.ops, model.config, 1, model.context, "f16")

    def feed(ids: list[int]) -> None:
        for at in range(0, len(ids), CHUNK):
            part = np.array(ids[at : at + CHUNK], np.int32)
            batch = cache.batch([(0, len(part))])
            model.ops.numpy(forward(model.ops, model.config, model.parameters, part, batch))
            cache.advance(batch)

    return {"load": seconds} | timed(a, feed, lambda: cache.rewind(0, 0))


def llama_cpp(a: argparse.Namespace) -> dict[str, float]:
    import llama_cpp as c

    silent = c.llama_log_callback(lambda *_: None)  # kept alive: the library calls it later
    c.llama_log_set(silent, ctypes.c_void_p(0))
    c.llama_backend_init()
    start = time.perf_counter()
    model = c.llama_model_load_from_file(a.model.encode(), c.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp cannot load {a.model}")
    settings = c.llama_context_default_params()
    settings.n_ctx = a.prefill + a.decode + WARM_UP
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = a.threads
    settings.flash_attn_type = 1
    context = c.llama_init_from_model(model, settings)
    seconds = time.perf_counter() - start

    def feed(ids: list[int]) -> None:
        for at in range(0, len(ids), 512):
            part = ids[at : at + 512]
            array = (c.llama_token * len(part))(*part)
            if c.llama_decode(context, c.llama_batch_get_one(array, len(part))):
                sys.exit("llama_decode failed")
            c.llama_synchronize(context)

    return {"load": seconds} | timed(a, feed, lambda: c.llama_memory_clear(c.llama_get_memory(context), True))


def timed(a: argparse.Namespace, feed: Callable[[list[int]], None], forget: Callable[[], Any]) -> dict[str, float]:
    """Tokens per second; the ids are arbitrary and the same for both engines."""
    ids = [10 + 7 * i % 1000 for i in range(a.prefill + a.decode)]
    feed(ids[:WARM_UP])
    feed(ids[:1])
    forget()
    start = time.perf_counter()
    feed(ids[: a.prefill])
    middle = time.perf_counter()
    for id in ids[a.prefill :]:
        feed([id])
    return {"prefill": a.prefill / (middle - start), "decode": a.decode / (time.perf_counter() - middle)}


ENGINES = {"bise": bise, "llama.cpp": llama_cpp}


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(r[name] for r in results), 2) for name in FIGURES}


def report(a: argparse.Namespace, busy: float, found: dict[str, dict[str, float]]) -> None:
    """The ratio says how many times better bise is."""
    from bise.bench import machine

    ratios = {}
    print(f"{'':<14}" + "".join(f"{name:>12}" for name in found) + f"{'ratio':>8}" * (len(found) > 1))
    for figure, (unit, more) in FIGURES.items():
        values = [results[figure] for results in found.values()]
        line = f"{figure:<14}" + "".join(f"{value:>12.2f}" for value in values)
        if len(values) > 1 and min(values) > 0:
            ratios[figure] = round(values[0] / values[1] if more else values[1] / values[0], 2)
            line += f"{ratios[figure]:>8.2f}"
        print(f"{line}  {unit}")
    peer = version("llama-cpp-python") if "llama.cpp" in found else None
    settings = {
        "threads": a.threads,
        "prefill": a.prefill,
        "decode": a.decode,
        "rounds": a.rounds,
        "load_average": round(busy, 1),
    }
    about = {"model": os.path.basename(a.model), **settings, "llama-cpp-python": peer}
    print(json.dumps(about | {"medians": found, "ratios": ratios, "machine": machine()}))


if __name__ == "__main__":
    main()
