"""How fast, on what: prefill and decode at several depths of context, against what the memory of this machine allows.

Only the forward pass is timed, with the copy of its logits; reading the text and choosing the token are not part of it.
A depth is reached by really reading that many tokens. The first, unmeasured run wakes pages and threads.
"""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from .cache import CHUNK, Cache
from .config import Config
from .errors import RequestError
from .model import forward
from .ops import Ops, Ring
from .weights import Layer, Parameters, Weights

WARM_UP = 16  # tokens
ARENA = 1 << 28  # bytes that the bandwidth test reads: far more than any cache holds
Report = Callable[[str], None]


class Loaded(Protocol):
    """What is measured: a `bise.Model`, seen from below."""

    ops: Ops
    config: Config
    weights: Weights
    parameters: Parameters
    context: int
    kv: str


@dataclass(frozen=True)
class Spread:
    """Tokens per second of several runs."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(*(round(v, 2) for v in (statistics.median(values), min(values), max(values))))


@dataclass(frozen=True)
class Row:
    """One depth. bytes_per_token: weights and keys and values that one decoded token has to read."""

    depth: int
    prefill: Spread | None
    decode: Spread | None
    bytes_per_token: int


def measure(
    model: Loaded, depths: Sequence[int] = (0,), prefill: int = 512, decode: int = 32, repeats: int = 3,
    report: Report = lambda _: None,
) -> list[Row]:  # fmt: skip
    """Prefill of `prefill` tokens and decode of `decode` tokens after each depth; 0 leaves one out.

    report is called with what is being done. RequestError if a depth does not leave room in the context.
    """
    most = max(depths) + max(prefill, decode, WARM_UP)
    if most > model.context:
        raise RequestError(f"depth and run need {most:,} tokens, context is {model.context:,}: take smaller --depths")
    if repeats < 1 or min(prefill, decode, *depths) < 0:
        raise RequestError("repeats must be 1 or more, depths and lengths 0 or more")
    run = _Run(model)
    run.read(WARM_UP)
    run.write(min(decode, 4))
    rows = []
    for depth in sorted(depths):
        report(f"reading {depth:,} tokens of context")
        speeds: dict[str, list[float]] = {"decode": [], "prefill": []}
        for what, count, go in (("decode", decode, run.write), ("prefill", prefill, run.read)):
            for i in range(repeats if count else 0):
                run.stand_at(depth, count)
                report(f"{what} of {count} tokens after {depth:,}, {i + 1} of {repeats}")
                speeds[what].append(count / _seconds(go, count))
        found = {what: Spread.of(values) if values else None for what, values in speeds.items()}
        rows.append(Row(depth, found["prefill"], found["decode"], bytes_per_token(model, depth)))
    return rows


class _Run:
    """One sequence, driven by hand with random ids."""

    def __init__(self, model: Loaded) -> None:
        self.model = model
        self.cache = Cache(model.ops, model.config, 1, model.context, model.kv)
        self.ids = np.random.default_rng(0).integers(0, model.config.vocab_size, model.context).astype(np.int32)

    def step(self, count: int) -> None:
        at = self.cache.lengths[0]
        batch = self.cache.batch([(0, count)])
        model = self.model
        model.ops.numpy(forward(model.ops, model.config, model.parameters, self.ids[at : at + count], batch))
        self.cache.advance(batch)

    def read(self, count: int) -> None:
        """Prefill."""
        for done in range(0, count, CHUNK):
            self.step(min(CHUNK, count - done))

    def write(self, count: int) -> None:
        """Decode."""
        for _ in range(count):
            self.step(1)

    def stand_at(self, depth: int, room: int) -> None:
        """Have `depth` tokens read and `room` left. Where the rolling buffer has forgotten the way back, staying where
        we are is as good: past the window, depth changes nothing."""
        here = self.cache.lengths[0]
        if here >= depth and not self.cache.rewind(0, depth) and here + room <= self.cache.context:
            return
        if self.cache.lengths[0] > depth:
            self.cache.rewind(0, 0)
        self.read(depth - self.cache.lengths[0])


def _seconds(go: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    go(count)
    return time.perf_counter() - start


def bytes_per_token(model: Loaded, depth: int) -> int:
    """What one decode step at `depth` has to read at least: all weights, of the embedding only one row, and the keys
    and values that it may see."""
    c, weights = model.config, model.weights
    table = weights.entries["token_embd"].nbytes
    read = weights.nbytes - (0 if weights.tied else table - table // c.vocab_size)
    seen = min(depth + 1, c.sliding_window or depth + 1)
    of_32 = {"f32": 128, "f16": 64, "q8_0": 34}[model.kv]
    return read + 2 * c.n_layers * c.n_kv_heads * seen * c.head_dim * of_32 // 32


def bandwidth(threads: int | None = None, nbytes: int = ARENA, repeats: int = 5) -> float:
    """Bytes per second that `threads` threads read from memory together: best of several runs over a large array."""
    threads = threads or cores()
    parts = np.array_split(np.ones(nbytes // 8, np.int64), threads)
    best = 0.0
    for _ in range(repeats + 1):
        workers = [threading.Thread(target=np.max, args=(part,)) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, nbytes / (time.perf_counter() - start))
    return best


def python_seconds(config: Config, steps: int = 50) -> float:
    """What Python itself costs in one decode step: the engine around a backend that computes nothing. Median."""
    from .engine import Engine, Request
    from .sampler import Sampler, Sampling

    idle: Any = _Idle(config)
    cache = Cache(idle, config.with_window(None), 1, steps + 8)
    weights = Parameters(None, [Layer(*[None] * 9) for _ in range(config.n_layers)], None, None)
    engine = Engine(idle, config, weights, cache)
    engine.submit(Request([1], Sampler(Sampling(), config.vocab_size), steps + 4))
    times = [_seconds(lambda _: [engine.step()].clear(), 1) for _ in range(steps + 2)]
    return statistics.median(times[2:])


class _Idle:
    """The verbs with the right shapes and no work."""

    name = "idle"

    def __init__(self, config: Config) -> None:
        c = config
        self.x = np.zeros((1, c.dim), np.float32)
        self.logits = np.zeros((1, c.vocab_size), np.float32)
        heads = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim)
        self.qkv = tuple(np.zeros((1, n), np.float32) for n in heads)
        self.gates = (np.zeros((1, c.hidden_dim), np.float32),) * 2
        self.last = c.n_layers * 2
        self.calls = 0

    def ring(self, sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
        empty = np.zeros((sequences, 1, size, 1), np.float16)
        return Ring(empty, empty)

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def numpy(self, values: np.ndarray) -> np.ndarray:
        return values

    def embed(self, table: Any, tokens: np.ndarray) -> np.ndarray:
        self.calls = 0
        return self.x

    def linear(self, x: np.ndarray, *ws: Any) -> Any:
        if len(ws) > 1:
            return self.qkv if len(ws) == 3 else self.gates
        self.calls += 1  # attention's and feed-forward's outputs, then the logits
        return self.logits if self.calls > self.last else self.x

    def rms_norm(self, x: np.ndarray, w: Any, eps: float) -> np.ndarray:
        return x

    def rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        return x

    def swiglu(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return gate

    def store(self, ring: Ring, spans: np.ndarray, k: np.ndarray, v: np.ndarray) -> None: ...

    def attend(self, q: np.ndarray, ring: Ring, spans: np.ndarray, window: int | None) -> np.ndarray:
        return q


def machine() -> dict[str, Any]:
    """This machine and these versions, to stand beside every figure."""
    import importlib.util

    from . import __version__

    isa = None
    if importlib.util.find_spec("bise._kernels"):
        from . import _kernels

        isa = _kernels.isa()
    return {
        "cpu": _cpu(),
        "isa": isa,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bise": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """The processor's name, as the system knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def as_json(rows: Sequence[Row], bytes_per_second: float) -> list[dict[str, Any]]:
    """The rows with the share of the memory bandwidth that decoding reached."""
    return [asdict(row) | {"bandwidth_share": share(row, bytes_per_second)} for row in rows]


def share(row: Row, bytes_per_second: float) -> float | None:
    """Bytes that decoding read per second, over what the memory gives: 1 would be perfect. None for models so small
    that a processor's caches may hold them."""
    if row.decode is None or row.bytes_per_token < ARENA:
        return None
    return round(row.decode.median * row.bytes_per_token / bytes_per_second, 3)
