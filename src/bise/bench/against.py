"""bise against another engine: what is timed on each file, and what comes of it, as lines of one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..cache import cache_bytes
from ..config import Config
from ..errors import RequestError
from ..machine import cores
from ..weights import Weights
from .machine import machine, others
from .memory import bandwidth, bytes_per_token, share
from .rounds import ENGINES, alternate
from .spread import Spread
from .turn import WARM_UP, Report, Run, Turn, under

SMALL = 1_000_000_000  # parameters: what writes hundreds of tokens a second is given more of them
MANY = 8  # sequences at once
ONCE = 8192  # tokens of context beyond which a prefill is measured in the first round only


@dataclass(frozen=True)
class Plan:
    """Lengths of the runs, in tokens. They are short at a depth, where an engine may need seconds for a token."""

    prefill: int = 512
    decode: int = 24
    many: int = 8  # steps of MANY sequences
    depths: tuple[int, ...] = (4096, 16_384, 32_768)
    deep_prefill: int = 256
    deep_decode: int = 12

    def empty(self, config: Config) -> dict[str, Run]:
        """From an empty context: what every file is measured with. By the name of the line in the table."""
        decode = self.decode * (1 if config.parameters >= SMALL else 8)
        most = config.context - WARM_UP - 2
        prefill, decode = min(self.prefill, most), min(decode, most)
        return {
            f"prefill {prefill}, empty": Run("prefill", prefill),
            f"decode {decode}, empty": Run("decode", decode),
        }

    def whole(self, config: Config) -> dict[str, Run]:
        """Everything, as far as the context goes; a depth is where a run ends, so that 32k fit a context of 32k."""
        runs = self.empty(config) | {f"decode, {MANY} sequences": Run("decode", self.many, sequences=MANY)}
        prefill, decode = Run("prefill", self.deep_prefill), Run("decode", self.deep_decode)
        room = max(prefill.room, decode.room)
        for end in self.depths:
            if room < end <= config.context:
                where = f"at {end // 1024}k" if end % 1024 == 0 else f"at {end:,}"
                for run in (prefill, decode):
                    once = run.what == "prefill" and end > ONCE
                    runs[f"{run.what} {where}"] = replace(run, depth=end - room, once=once)
        return runs


@dataclass(frozen=True)
class Line:
    """One thing of one file, for the engines in their order. unit: "tokens/s", "s" or "bytes"; share: of the memory's
    bandwidth, for bise; ratio: how many times better the first engine is."""

    name: str
    unit: str
    values: tuple[Spread, ...]
    share: float | None = None

    @property
    def ratio(self) -> float | None:
        if len(self.values) < 2 or not all(value.median for value in self.values[:2]):
            return None
        ours, theirs = (value.median for value in self.values[:2])
        return round(ours / theirs if self.unit == "tokens/s" else theirs / ours, 2)


@dataclass
class Comparison:
    """The table and everything it was made from."""

    engines: tuple[str, ...]
    threads: int
    rounds: int
    isa: str
    load_average: float
    bandwidth: float = 0.0  # bytes per second
    lines: dict[str, list[Line]] = field(default_factory=dict)  # by file name
    turns: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)  # by file name, engine, round
    about: dict[str, Any] = field(default_factory=dict)  # by engine: version, arithmetic

    def as_json(self) -> dict[str, Any]:
        """Everything, with ratios and with the machine."""
        lines = {
            file: [asdict(line) | {"ratio": line.ratio} for line in some] for file, some in self.lines.items()
        }  # fmt: skip
        return {**{k: v for k, v in vars(self).items() if k != "lines"}, "lines": lines, "machine": machine()}


def compare(
    files: Iterable[str | Path], threads: int | None = None, count: int = 2, isa: str = "", plan: Plan | None = None,
    report: Report = lambda _: None,
) -> Comparison:  # fmt: skip
    """bise and llama.cpp on the same GGUF files, `count` rounds each. The first file is measured in everything, the
    others from an empty context alone; a file need not be there before its turn has come."""
    plan, found = plan or Plan(), Comparison(ENGINES, threads or cores(), count, isa, others())
    measured: list[tuple[str, Weights, dict[str, Run]]] = []
    for file in files:
        weights, name = _opened(file), Path(file).name
        runs = plan.empty(weights.config) if measured else plan.whole(weights.config)
        turns = [Turn(engine, str(file), tuple(runs.values()), found.threads, isa) for engine in found.engines]
        found.turns[name] = alternate(turns, count, under(report, name))
        measured.append((name, weights, runs))
    report("the memory's bandwidth")
    found.bandwidth = bandwidth(found.threads)
    for name, weights, runs in measured:
        results = found.turns[name]
        found.lines[name] = speed_lines(weights, runs, results, found.bandwidth)
        if not found.about:
            found.lines[name] = [*found.lines[name], *size_lines(weights.config, results)]
            found.about = {engine: some[0]["about"] for engine, some in zip(found.engines, results, strict=True)}
    return found


def _opened(file: str | Path) -> Weights:
    """Headers only; a file that only one of the engines reads is refused before anything is timed."""
    if Path(file).is_dir():
        raise RequestError(f"{file}: is a folder, and llama.cpp reads .gguf files only: convert it first")
    return Weights.open(file)


Results = Sequence[Sequence[dict[str, Any]]]  # by engine and round, as `alternate` gives them


def speed_lines(weights: Weights, runs: dict[str, Run], results: Results, bytes_per_second: float) -> list[Line]:
    """A line for each run, with bise's share of the bandwidth where one sequence decodes."""
    found = []
    for name, run in runs.items():
        values = tuple(Spread.of(list(_speeds(run, some))) for some in results)
        reached = None
        if run.what == "decode" and run.sequences == 1:
            read = bytes_per_token(weights, weights.config, "f16", run.depth)
            reached = share(values[0].median, read, bytes_per_second)
        found.append(Line(name, "tokens/s", values, reached))
    return found


def _speeds(run: Run, rounds: Sequence[dict[str, Any]]) -> Iterator[float]:
    """What this run came to in each round that it was part of."""
    wanted = asdict(run).items()
    return (found["speed"] for one in rounds for found in one["runs"] if wanted <= found.items())


def size_lines(config: Config, results: Results) -> list[Line]:
    """Load and peak memory; and the memory of keys and values, computed: bise keeps those that the window sees,
    llama.cpp, for which the file's architecture has no window, all."""

    def measured(name: str, unit: str, key: str) -> Line:
        return Line(name, unit, tuple(Spread.of([one[key] for one in some]) for some in results))

    n, both = config.context, (config, config.with_window(None))
    kept = [
        Line(f"KV at {n // 1024}k, {kv}", "bytes", tuple(Spread.of([cache_bytes(c, n, kv)]) for c in both))
        for kv in ("f16", "q8_0")
    ]
    load = measured("load, warm cache", "s", "load_seconds")
    return [load, *kept, measured("peak memory", "bytes", "peak_bytes")]
