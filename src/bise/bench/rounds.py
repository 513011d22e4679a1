"""Turns, each in a process of its own, one engine after the other: A B A B, so that what else changes meets both."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError
from ..machine import peak
from .llama_cpp import LlamaCpp
from .ours import Bise, Loaded
from .turn import Player, Report, Turn, perform, under

ENGINES = ("bise", "llama.cpp")
Load = Callable[[Turn], Loaded]  # what a door gives: `bise.load` with what a turn says


def alternate(turns: Sequence[Turn], count: int, report: Report = lambda _: None) -> list[list[dict[str, Any]]]:
    """Every turn `count` times, in the order 1 2 .. 1 2 ..; -> for each turn, what `play` and the system said each
    time. Its file is read before each, so that all find it in the page cache."""
    found: list[list[dict[str, Any]]] = [[] for _ in turns]
    for number in range(count):
        for turn, results in zip(turns, found, strict=True):
            report(f"reading {Path(turn.file).name}")
            wake(turn.file)
            if number:
                turn = replace(turn, runs=tuple(run for run in turn.runs if not run.once))
            results.append(in_process(turn, under(report, f"round {number + 1} of {count}, {turn.engine}")))
    return found


def wake(file: str) -> None:
    """Read a file through, so that it lies in the page cache, and use as much memory once: a virtual machine's may have
    to come from its host first, which whoever loads first would pay for."""
    with open(file, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 24)
        while stream.readinto(buffer):
            pass
    np.ones(Path(file).stat().st_size, np.uint8)


def in_process(turn: Turn, report: Report = lambda _: None) -> dict[str, Any]:
    """What `play` found. RequestError, with the process's last words, if it failed."""
    command = [sys.executable, "-m", "bise", "bench", "--turn", json.dumps(asdict(turn))]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert child.stdout is not None
        result: dict[str, Any] = {}
        try:
            for line in child.stdout:
                said = json.loads(line)
                if isinstance(said, str):
                    report(said)
                else:
                    result = said
        except BaseException:
            child.kill()
            raise
        finally:
            child.wait()
            child.stdout.close()
        if child.returncode or not result:
            errors.seek(0)
            words = (errors.read().strip().splitlines() or ["no word"])[-1].removeprefix("bise: ")
            raise RequestError(f"{turn.engine} ended with code {child.returncode}: {words}")
    return result


def play(turn: Turn, load: Load, report: Report = lambda _: None) -> dict[str, Any]:
    """What a process does: load_seconds, the runs with their speeds, peak_bytes, and about the engine."""
    report("loading")
    start = time.perf_counter()
    player = _players(load)[turn.engine](turn)
    seconds = time.perf_counter() - start
    runs = perform(player, turn.runs, report)
    return {
        "load_seconds": round(seconds, 3), "runs": runs, "peak_bytes": peak(), "about": player.about(),
    }  # fmt: skip


def _players(load: Load) -> dict[str, Callable[[Turn], Player]]:
    return {
        "bise": lambda turn: Bise(load(turn)),
        "llama.cpp": lambda turn: LlamaCpp(turn.file, turn.threads),
    }
