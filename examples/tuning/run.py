"""A model is taught, corrected, merged, quantised and served, and asked the same questions after every step.

    python examples/tuning/run.py [--data ../shared/data] [--work WORK] [--quick]

Each step is a command of bise, printed before it runs; scores.py says what is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import data
import scores

import bise

HERE = Path(__file__).resolve().parent
PORT = 18473
SERVED = 20  # questions put to the server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data", help="see README.md")
    parser.add_argument("--work", type=Path, default=Path("tuning"), help="where everything is made")
    parser.add_argument("--quick", action="store_true", help="four steps of each training: does it run?")
    args = parser.parse_args()
    data.make(args.data, args.work)
    os.chdir(args.work)
    few = " --steps 4" if args.quick else ""

    print("puff answers questions about tables and small instructions", flush=True)
    step("puff as it is", bise.load())
    do("tune sql.jsonl instructions.jsonl replay.jsonl --out lesson --rank 64 --rate 4e-3 --epochs 2" + few)
    step("with the adapter", bise.load(adapter="lesson/adapter"))
    do("merge adapter {puff} lesson/adapter taught.gguf --type f16")
    step("merged", bise.load("taught.gguf"))
    do("tune taught.gguf pairs.jsonl --objective dpo --out manners --eval-split pairs-test.jsonl --rate 1e-3" + few)
    do("merge adapter taught.gguf manners/adapter polite.gguf --type f16")
    step("after DPO, merged", bise.load("polite.gguf"))
    do("quantize polite.gguf small.gguf --type Q4_K_M --compensate calibration.txt")
    step("in 4 bits", bise.load("small.gguf"))
    serve()


def step(what: str, model: bise.Model) -> None:
    print(f"  {what:20s} {scores.of(model, Path())}", flush=True)


def do(command: str) -> None:
    """One command of bise; its result is on disk."""
    words = shlex.split(command.format(puff=bise.api.BUILT_IN))
    print("\n$ bise " + command.format(puff="puff.gguf"), flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "bise", *words], stdout=subprocess.DEVNULL).returncode
    if code:
        sys.exit(code)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def serve() -> None:
    """The adapter on the base, by name, over HTTP: the same answers as in this process."""
    model = bise.load(adapter="lesson/adapter")
    rows = data.read(Path("sql-test.jsonl"))[:SERVED]
    with server("--adapter", "lesson=lesson/adapter"):
        same = [ask("lesson", row["messages"][0]["content"]) == scores.says(model, row["messages"][0]["content"])
                for row in rows]  # fmt: skip
    print(f"  {sum(same)} of {len(same)} answers of the server are those of this process", flush=True)
    if not all(same):
        sys.exit("the server says something else")


@contextmanager
def server(*options: str) -> Iterator[None]:
    command = [sys.executable, "-m", "bise", "serve", "--port", str(PORT), "--data", "served", "--quiet", *options]
    print("\n$ bise serve " + " ".join(options), flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()  # it says so when it is ready
        yield
    finally:
        process.terminate()
        process.wait()


def ask(model: str, question: str) -> str:
    body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 100,
                            "messages": [{"role": "user", "content": question}]}  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
