#!/usr/bin/env python3
"""Load on a server: how fast for how many, and whether it keeps its word when clients leave, crowd or take too much.

    python bench/serving.py sweep MODEL.gguf [--against llama-server,llama-cpp-python] [--clients 1,2,4,8,16,32]
    python bench/serving.py intruder|vanish|crowd|hog|crash MODEL.gguf
    python bench/serving.py soak [--hours 2] --save soak.json                      its course is in soak.jsonl
    python bench/serving.py sweep --url http://127.0.0.1:8080/v1 [--key KEY]       a server that runs already
    python bench/serving.py client                                                 what the load generator can take

Without --url the server is started and ended here; without a model it serves puff. sweep measures all servers in
turns, on the same file, `--rounds` times. A table for people, --json for one line, --save for a file; exit code 1 if a
limit was not held. It needs Linux (processes are looked up in /proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from serving import crash, crowd, hog, intruder, soak, sweep, vanish
from serving.checks import Check
from serving.client import Target, send
from serving.servers import KINDS, free_port, start

from bise.api import BUILT_IN
from bise.bench.machine import machine, others

Found = tuple[dict[str, Any], list[Check]]


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    a = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is ended, too
    load = others()
    figures, checks = asyncio.run(SCENARIOS[a.scenario](a))
    result = {
        "scenario": a.scenario, "file": (a.model or BUILT_IN).name if not a.url else a.url, "settings": settings(a),
        **figures, "checks": [check.record() for check in checks], "load_average": load, "machine": machine(),
    }  # fmt: skip
    if a.save:
        a.save.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result)) if a.json else show(result, checks)
    sys.exit(0 if all(check.held for check in checks) else 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; without one: puff")
    parser.add_argument("--server", choices=KINDS, default="bise", help="which server to start")
    parser.add_argument("--against", default="", help="sweep: other servers to measure in turns")
    parser.add_argument("--rounds", type=int, default=1, help="sweep: turns of every server; intruder: long prompts")
    parser.add_argument("--url", help="http://host:port/v1 of a server that runs")
    parser.add_argument("--pid", type=int, help="with --url: its first process, for vanish")
    parser.add_argument("--key", default="", help="with --url: its key; hog: eight keys, with commas between")
    parser.add_argument("--clients", default="", help="how many at once (sweep: a list)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--context", type=int, default=1024, help="tokens that one request may take, both together")
    parser.add_argument("--repeats", type=int, default=1, help="sweep: answers one after the other of each client")
    parser.add_argument("--seconds", type=float, default=60, help="hog: how long; intruder: undisturbed, in all")
    parser.add_argument("--hours", type=float, default=2, help="soak: how long; Ctrl-C ends it with what there is")
    parser.add_argument("--threads", type=int, default=machine()["cores"], help="of the server")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--save", type=Path, help="write the JSON to a file")
    return parser.parse_args()


def settings(a: argparse.Namespace) -> dict[str, Any]:
    kept = ("clients", "prompt", "answer", "context", "repeats", "rounds", "seconds", "threads", "server")
    return {name: getattr(a, name) for name in kept}


def report(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


async def with_server(
    a: argparse.Namespace, clients: int, what: Callable[[Target, int], Coroutine[Any, Any, Any]]
) -> Any:
    """Does something with the server named, or with one that is started for it: its target and first process."""
    if a.url:
        target = Target(a.url, key=a.key.split(",")[0], extra=KINDS[a.server].extra)
        reply = await send(target, "models")
        return await what(replace(target, model=reply.json()["data"][0]["id"]), a.pid or 0)
    async with start(a.server, a.model or BUILT_IN, clients, a.context, a.threads) as server:
        return await what(server.target(), server.id)


# --- the scenarios


async def run_sweep(a: argparse.Namespace) -> Found:
    counts = [int(n) for n in (a.clients or ",".join(map(str, sweep.CLIENTS))).split(",")]
    names = [a.server, *filter(None, a.against.split(","))]
    rows: list[dict[str, Any]] = []
    for number in range(a.rounds):
        for name in names:

            async def measure(target: Target, _: int, name: str = name) -> list[dict[str, Any]]:
                told = lambda text: report(f"{name}, round {number + 1}: {text}")  # noqa: B023, E731
                return await sweep.sweep(target, counts, a.prompt, a.answer, a.repeats, told)

            found = await with_server(argparse.Namespace(**vars(a) | {"server": name}), max(counts), measure)
            rows += [{"server": name, "round": number + 1, **row} for row in found]
    failed = sum(n for row in rows for how, n in row["outcomes"].items() if how != "200")
    servers = {name: KINDS[name].about for name in names}
    return {"rows": rows, "servers": servers}, [Check("requests that were not answered", failed, "==", 0)]


async def run_intruder(a: argparse.Namespace) -> Found:
    chats = int(a.clients or 8)
    long = a.context - 32 - a.context // 50  # its length in tokens is known to 2 %
    answer = min(4096, a.context - a.prompt - a.context // 20)
    before = a.seconds / a.rounds
    return await with_server(
        a, chats + 1, lambda target, _: intruder.intruder(target, chats, a.prompt, long, answer, before, a.rounds)
    )


async def run_vanish(a: argparse.Namespace) -> Found:
    slots = 4
    return await with_server(
        a, slots, lambda target, id: vanish.vanish(target, id, int(a.clients or 1000), slots, a.context, report)
    )


async def run_crowd(a: argparse.Namespace) -> Found:
    return await with_server(a, 8, lambda target, _: crowd.crowd(target, int(a.clients or 1000), a.prompt, a.answer))


async def run_hog(a: argparse.Namespace) -> Found:
    async def measure(target: Target, _: int) -> Found:
        keys = a.key.split(",") if "," in a.key else [a.key] * (1 + hog.POLITE)
        targets = [replace(target, key=key) for key in keys]
        sources = [f"127.0.0.{n + 2}" for n in range(1 + hog.POLITE)]
        return await hog.hog(targets, sources, a.seconds, a.prompt, a.answer)

    return await with_server(a, 8, measure)


async def run_soak(a: argparse.Namespace) -> Found:
    async def measure(target: Target, id: int) -> Found:
        run = soak.Soak(target, id, Path(a.save).with_suffix(".jsonl") if a.save else None, report)
        try:
            await run.run(a.hours)
        except asyncio.CancelledError:  # Ctrl-C: what there is
            report("")
        return run.figures()

    return await with_server(a, 4, measure)


async def run_crash(a: argparse.Namespace) -> Found:
    """A server of its own, whatever --url says: it is killed."""
    with tempfile.TemporaryDirectory(prefix="bise-") as data:
        port = free_port()
        anew = partial(start, a.server, a.model or BUILT_IN, crash.STREAMS, a.context, a.threads, data, port)
        async with anew() as server:
            figures, checks = await crash.crash_worker(server, server.target(), int(a.clients or 3))
            more, also = await crash.crash_server(anew, server, server.target())
    return figures | more, checks + also


async def run_client(a: argparse.Namespace) -> Found:
    """What the load generator takes of a server that costs nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.trivial"], stdout=subprocess.PIPE, cwd=Path(__file__).parent
    )
    try:
        assert process.stdout
        port = int(await asyncio.to_thread(process.stdout.readline))
        clients, events = int(a.clients or 32), 1000
        target, body = Target(f"http://127.0.0.1:{port}/v1"), {"max_tokens": events, "pause": 0.002}
        started, mine = time.perf_counter(), time.process_time()
        replies = await asyncio.gather(*(send(target, "chat/completions", body) for _ in range(clients)))
        seconds, busy = time.perf_counter() - started, time.process_time() - mine
        assert all(reply.complete for reply in replies)
        figures = {
            "clients": clients, "events_per_s": round(clients * events / seconds),
            "us_per_event": round(1e6 * busy / clients / events, 1),
        }  # fmt: skip
        return figures, []
    finally:
        process.kill()
        process.wait()


SCENARIOS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, Found]]] = {
    "sweep": run_sweep, "intruder": run_intruder, "vanish": run_vanish, "crowd": run_crowd, "hog": run_hog,
    "soak": run_soak, "crash": run_crash, "client": run_client,
}  # fmt: skip


# --- for people


def show(result: dict[str, Any], checks: list[Check]) -> None:
    report("")
    print(f"{result['scenario']}: {result['file']}, {result['machine']['cores']} cores of {result['machine']['cpu']}")
    if "rows" in result:
        show_rows(result["rows"])
    shown = {k: v for k, v in result.items() if k not in ("scenario", "file", "settings", "rows", "checks", "machine")}
    for name, value in shown.items():
        print(f"{name:24} {value}")
    for check in checks:
        print(check)


def show_rows(rows: list[dict[str, Any]]) -> None:
    head = f"{'server':18}{'clients':>8}{'answer t/s':>12}{'all t/s':>10}"
    print(head + "".join(f"{name:>10}" for name in ("first p50", "p95", "p99", "gap p50", "p95", "p99")) + "  ms")
    for row in rows:
        times = [row[which][p] for which in ("first_ms", "gap_ms") for p in ("p50", "p95", "p99")]
        cells = "".join(f"{ms:10.1f}" for ms in times)
        print(f"{row['server']:18}{row['clients']:8}{row['answer_per_s']:12.1f}{row['all_per_s']:10.1f}{cells}")


if __name__ == "__main__":
    main()
