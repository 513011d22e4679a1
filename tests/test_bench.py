"""What the bench counts is what it says it counts; how fast that is, no test can know."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import bise
from bise import bench
from bise.bench import Row, Spread, bandwidth, bytes_per_token, machine, measure, python_seconds, share
from bise.cache import Cache
from bise.config import Config
from bise.errors import RequestError
from tiny import tiny_config, tiny_weights, write_tiny_gguf

BACKEND = "cpu" if importlib.util.find_spec("bise._kernels") else "reference"
SHAPE_7B = Config(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14_336, vocab_size=32_000)


def tiny(
    tmp_path: Path, window: int | None = None, type: str = "F32", tied: bool = False, kv: str = "f16"
) -> bise.Model:
    config = tiny_config(sliding_window=window, context=1024, dim=128, head_dim=32)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", config, tiny_weights(config, tied=tied), type)
    return bise.load(path, backend=BACKEND, kv=kv)


@pytest.mark.parametrize("window", [None, 32])
def test_each_depth_is_really_read_and_each_run_really_done(
    tmp_path: Path, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is watched: (tokens before it, tokens of it)."""
    steps = []
    real = Cache.batch

    def watched(cache: Cache, parts: list[tuple[int, int]], wanted: str = "last") -> object:
        steps.append((cache.lengths[0], parts[0][1]))
        return real(cache, parts, wanted)

    monkeypatch.setattr(Cache, "batch", watched)
    rows = measure(tiny(tmp_path, window), depths=[0, 300], prefill=290, decode=3, repeats=2)
    assert [row.depth for row in rows] == [0, 300]
    decoded = [before for before, count in steps if count == 1 and before >= 300]
    assert len(decoded) == 6 and decoded[:3] == [300, 301, 302]
    if window is None:
        assert decoded[3:] == [300, 301, 302]  # every repeat stands where the first one stood
        assert steps.count((300, 256)) == 2 and steps.count((556, 34)) == 2
    read = [before for before, count in steps if count == 256 and before >= 300]
    assert len(read) == 2 and all(row.prefill and row.decode for row in rows)


def test_what_is_not_asked_for_is_not_measured(tmp_path: Path) -> None:
    [row] = measure(tiny(tmp_path), prefill=0, decode=2, repeats=1)
    assert row.prefill is None and row.decode is not None


@pytest.mark.parametrize(
    "settings", [{"depths": [1000]}, {"prefill": 1025}, {"decode": -1}, {"repeats": 0}, {"depths": [-1]}]
)
def test_runs_that_cannot_be(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        measure(tiny(tmp_path), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kv", "of_32"), [("f32", 128), ("f16", 64), ("q8_0", 34)])
@pytest.mark.parametrize("window", [None, 32])
def test_bytes_per_token(tmp_path: Path, kv: str, of_32: int, window: int | None) -> None:
    """All tensors but the embedding, of which one row; then keys and values of 2 layers, 2 heads, 32 values each."""
    model = tiny(tmp_path, window, "Q8_0", kv=kv)
    entries = model.weights.entries
    weights = sum(entry.nbytes for name, entry in entries.items() if name != "token_embd") + 128 // 32 * 34
    for depth, seen in ((0, 1), (31, 32), (500, 501 if window is None else 32)):
        assert bytes_per_token(model, depth) == weights + 2 * 2 * 2 * seen * of_32


def test_a_tied_table_is_read_whole(tmp_path: Path) -> None:
    model = tiny(tmp_path, tied=True)
    assert bytes_per_token(model, 0) == model.weights.nbytes + 2 * 2 * 2 * 64


def test_bandwidth_counts_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is watched; the clock says that each run takes one second."""
    read = []
    real = np.max
    monkeypatch.setattr(bench.np, "max", lambda part: read.append(part.nbytes) or real(part))
    clock = iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    assert bandwidth(threads=3, nbytes=1 << 20, repeats=1) == 1 << 20
    assert sum(read) == 2 << 20 and len(read) == 6


def test_the_share_of_the_bandwidth() -> None:
    row = Row(0, None, Spread(2.0, 1.0, 3.0), 4 << 30)
    assert share(row, 10 * 2**30) == 0.8
    assert share(Row(0, None, Spread(2.0, 1.0, 3.0), 1 << 20), 1e9) is None  # may never leave the processor's caches
    assert share(Row(0, None, None, 4 << 30), 1e9) is None


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_python_costs_at_most_a_millisecond_per_step_of_the_7b_shape() -> None:
    """Engine, model, cache and greedy choice around a backend that does nothing. The best of several: others use this
    machine too, and noise only adds."""
    assert min(python_seconds(SHAPE_7B) for _ in range(5)) <= 1e-3


def test_the_idle_backend_walks_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = bench._Idle.linear
    monkeypatch.setattr(bench._Idle, "linear", lambda idle, x, *ws: calls.append(len(ws)) or real(idle, x, *ws))
    python_seconds(SHAPE_7B, steps=1)
    assert calls[: 4 * 32 + 1] == [3, 1, 2, 1] * 32 + [1]


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpu"] and found["cores"] >= 1 and found["bise"] == bise.__version__
    assert found["date"].endswith("Z")
