"""What the bench counts is what it says it counts; how fast that is, no test can know."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise.bench import (
    Row,
    Run,
    Spread,
    Turn,
    against,
    bandwidth,
    bytes_per_token,
    compare,
    depths,
    in_process,
    machine,
    measure,
    memory,
    ours,
    play,
    python,
    python_seconds,
    rounds,
    share,
    turn,
)
from bise.cache import Cache, cache_bytes
from bise.config import Config
from bise.errors import BiseError, FormatError, RequestError
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf

BACKEND = "cpu" if importlib.util.find_spec("bise._kernels") else "reference"
PUFF = str(Path(bise.__file__).parent / "models" / "puff.gguf")
SHAPE_7B = Config(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14_336, vocab_size=32_000)
peer = pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python is not installed")


def tiny_file(tmp_path: Path, window: int | None = None, type: str = "F32", tied: bool = False) -> Path:
    config = tiny_config(sliding_window=window, context=1024, dim=128, head_dim=32)
    return write_tiny_gguf(tmp_path / "tiny.gguf", config, tiny_weights(config, tied=tied), type)


def tiny(
    tmp_path: Path, window: int | None = None, type: str = "F32", tied: bool = False, kv: str = "f16"
) -> bise.Model:
    return bise.load(tiny_file(tmp_path, window, type, tied), backend=BACKEND, kv=kv)


# --- bise alone, and as a player


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every step of bise: (tokens before it, tokens of it), of the first sequence."""
    seen = []
    real = Cache.batch

    def watched(cache: Cache, parts: list[tuple[int, int]], wanted: str = "last") -> object:
        seen.append((cache.lengths[0], parts[0][1]))
        return real(cache, parts, wanted)

    monkeypatch.setattr(Cache, "batch", watched)
    return seen


@pytest.mark.parametrize("window", [None, 32])
def test_each_run_is_really_done_at_its_depth(tmp_path: Path, window: int | None, steps: list[tuple[int, int]]) -> None:
    rows = measure(tiny(tmp_path, window), depths=[0, 300], prefill=290, decode=3, repeats=2)
    assert [row.depth for row in rows] == [0, 300] and all(row.prefill and row.decode for row in rows)
    at_depth = [step for step in steps if step[0] >= 300]
    assert at_depth == [(300, 1), (301, 1), (302, 1)] * 2 + [(300, 256), (556, 34)] * 2


@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_a_filled_ring_has_keys_and_values_in_every_slot(tmp_path: Path, window: int | None, kv: str) -> None:
    player = ours.Bise(tiny(tmp_path, window, kv=kv))
    player.room(1, 700)
    player.fill(600)
    assert player.cache.lengths == [600] and player.cache.oldest == [max(0, 600 - player.cache.size)]
    for ring in player.cache.rings:
        for _, values, scales in ring.halves:
            assert np.any(values[0] != 0, axis=(0, 2)).all() and (scales is None or np.all(scales[0] != 0))
    player.decode(2)
    assert player.cache.lengths == [602]


def test_what_is_not_asked_for_is_not_measured(tmp_path: Path) -> None:
    [row] = measure(tiny(tmp_path), prefill=0, decode=2, repeats=1)
    assert row.prefill is None and row.decode is not None


@pytest.mark.parametrize(
    "settings", [{"depths": [1000]}, {"prefill": 1025}, {"decode": -1}, {"repeats": 0}, {"depths": [-1]}]
)
def test_runs_that_cannot_be(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        measure(tiny(tmp_path), **settings)  # type: ignore[arg-type]


# --- memory


@pytest.mark.parametrize(("kv", "of_32"), [("f32", 128), ("f16", 64), ("q8_0", 34)])
@pytest.mark.parametrize("window", [None, 32])
def test_bytes_per_token(tmp_path: Path, kv: str, of_32: int, window: int | None) -> None:
    """All tensors but the embedding, of which one row; then keys and values of 2 layers, 2 heads, 32 values each."""
    weights = Weights.open(tiny_file(tmp_path, window, "Q8_0"))
    own = sum(entry.nbytes for name, entry in weights.entries.items() if name != "token_embd") + 128 // 32 * 34
    for depth, seen in ((0, 1), (31, 32), (500, 501 if window is None else 32)):
        assert bytes_per_token(weights, weights.config, kv, depth) == own + 2 * 2 * 2 * seen * of_32


def test_a_tied_table_is_read_whole(tmp_path: Path) -> None:
    weights = Weights.open(tiny_file(tmp_path, tied=True))
    assert bytes_per_token(weights, weights.config, "f16", 0) == weights.nbytes + 2 * 2 * 2 * 64


def test_bandwidth_counts_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is watched; the clock says that each run takes one second."""
    read = []
    real = np.max
    monkeypatch.setattr(memory.np, "max", lambda part: read.append(part.nbytes) or real(part))
    clock = iter(range(100))
    monkeypatch.setattr(memory.time, "perf_counter", lambda: float(next(clock)))
    assert bandwidth(threads=3, nbytes=1 << 20, repeats=1) == 1 << 20
    assert sum(read) == 2 << 20 and len(read) == 6


def test_the_share_of_the_bandwidth() -> None:
    assert share(2.0, 4 << 30, 10 * 2**30) == 0.8
    assert share(2.0, 1 << 20, 1e9) is None  # may never leave the processor's caches
    assert Row(0, None, Spread(2.0, 1.0, 3.0), 4 << 30).share(10 * 2**30) == 0.8
    assert Row(0, None, None, 4 << 30).share(1e9) is None


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


# --- Python's part


def test_python_costs_at_most_a_millisecond_per_step_of_the_7b_shape() -> None:
    """Engine, model, cache and greedy choice around a backend that does nothing. The best of several: others use this
    machine too, and noise only adds."""
    assert min(python_seconds(SHAPE_7B) for _ in range(5)) <= 1e-3


def test_the_idle_backend_walks_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = python._Idle.linear
    monkeypatch.setattr(python._Idle, "linear", lambda idle, x, *ws: calls.append(len(ws)) or real(idle, x, *ws))
    python_seconds(SHAPE_7B, steps=1)
    assert calls[: 4 * 32 + 1] == [3, 1, 2, 1] * 32 + [1]


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpu"] and found["cores"] >= 1 and found["bise"] == bise.__version__
    assert found["date"].endswith("Z")


# --- one turn


class Slow:
    """A player that writes down what it is told, and for which each token takes a second of `now`."""

    def __init__(self, pace: float = 1.0) -> None:
        self.told: list[tuple[str, int]] = []
        self.now, self.pace, self.sequences = 0.0, pace, 0

    def room(self, sequences: int, context: int) -> None:
        self.told.append(("room", context))
        self.sequences = sequences

    def fill(self, depth: int) -> None:
        self.told.append(("fill", depth))

    def prefill(self, tokens: int) -> None:
        self.told.append(("prefill", tokens))
        self.now += tokens * self.pace

    def decode(self, steps: int) -> None:
        self.told.append(("decode", steps))
        self.now += steps * self.pace

    def about(self) -> dict[str, Any]:
        return {"version": "slow 1"}


def performed(player: Slow, runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(turn.time, "perf_counter", lambda: player.now)
    return turn.perform(player, runs)


def test_a_run_is_warmed_up_and_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    player = Slow()
    runs = [Run("prefill", 8), Run("decode", 4), Run("decode", 3, sequences=8), Run("decode", 2, 100)]
    found = performed(player, runs, monkeypatch)
    assert [run["speed"] for run in found] == [1.0, 1.0, 8.0, 1.0]  # nothing but the run itself is in the time
    assert [asdict(run) for run in runs] == [
        {k: v for k, v in one.items() if k not in ("speed", "timed")} for one in found
    ]
    rooms = [told for told in player.told if told[0] == "room"]
    assert len(rooms) == 3 and rooms[2][1] >= 102  # the empty context does not pay for the deep one
    step = [("fill", 100), ("decode", 1)]
    assert player.told[-6:] == [*step, *step, ("fill", 100), ("decode", 2)]
    assert [one["timed"] for one in found] == [8, 4, 3, 2]


def test_what_is_over_at_once_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    player = Slow(pace=0.01)
    [found] = performed(player, [Run("decode", 20)], monkeypatch)
    assert found["speed"] == pytest.approx(100) and player.told.count(("decode", 20)) == 3


def test_what_would_take_minutes_at_a_depth_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    player = Slow(pace=2.0)
    runs = [Run("prefill", 256, 1000), Run("decode", 12, 1000), Run("prefill", 256), Run("decode", 400, 1000)]
    found = performed(player, runs, monkeypatch)
    assert [one["timed"] for one in found] == [256, 12, 256, 15] and {one["speed"] for one in found} == {0.5}


def test_many_sequences_start_empty() -> None:
    with pytest.raises(RequestError, match="8 sequences"):
        Run("decode", 4, 100, 8)


# --- turns of two engines


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Turn]:
    """Processes that are not started: bise does 30, 20, 30 ... tokens/s, llama.cpp 10."""
    done: list[Turn] = []

    def pretend(one: Turn, report: Any = None) -> dict[str, Any]:
        done.append(one)
        speed = (30.0 if len(done) % 4 == 1 else 20.0) if one.engine == "bise" else 10.0
        ours = one.engine == "bise"
        return {
            "load_seconds": 1.0 if ours else 2.0,
            "runs": [asdict(run) | {"speed": speed} for run in one.runs],
            "about": {"version": "1", "arithmetic": "x"},
            "peak_bytes": 100 if ours else 250,
        }

    monkeypatch.setattr(rounds, "in_process", pretend)
    monkeypatch.setattr(against, "bandwidth", lambda threads: 1e9)
    return done


def test_the_whole_table(tmp_path: Path, played: list[Turn]) -> None:
    file, other = tiny_file(tmp_path, window=32), tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes())
    plan = replace(against.Plan(), prefill=64, deep_prefill=32, depths=(256, 512, 1024, 4096))
    found = compare([file, other], 2, 2, "avx2", plan)
    assert [one.engine for one in played] == ["bise", "llama.cpp"] * 4  # A B A B
    assert {one.threads for one in played} == {2} and {one.isa for one in played} == {"avx2"}
    assert played[0].runs == played[1].runs and played[4].runs == played[0].runs[:2]
    lines = {line.name: line for line in found.lines["tiny.gguf"]}
    assert list(lines) == [
        "prefill 64, empty", "decode 192, empty", "decode, 8 sequences",
        "prefill at 256", "decode at 256", "prefill at 512", "decode at 512",
        "prefill at 1k", "decode at 1k",  # 4k is beyond this model's context
        "load, warm cache", "KV at 1k, f16", "KV at 1k, q8_0", "peak memory",
    ]  # fmt: skip
    assert lines["prefill at 1k"].values == (Spread(25.0, 20.0, 30.0), Spread(10.0, 10.0, 10.0))
    assert [line.ratio for line in lines.values()][-4:] == [
        2.0, pytest.approx(1024 / 288, abs=0.01), pytest.approx(1024 / 288, abs=0.01), 2.5
    ]  # fmt: skip
    assert all(line.ratio == 2.5 for line in list(lines.values())[:9])
    assert [line.name for line in found.lines["other.gguf"]] == list(lines)[:2]
    assert json.loads(json.dumps(found.as_json()))["turns"]["tiny.gguf"][1][1]["peak_bytes"] == 250


def test_a_depth_is_where_its_runs_end(tmp_path: Path) -> None:
    """At 32k, nothing goes beyond a context of 32k."""
    runs = against.Plan().whole(replace(SHAPE_7B, context=32_768))
    assert max(run.room for run in runs.values()) == 32_768
    assert {name.rpartition("at ")[2] for name in runs if " at " in name} == {"4k", "16k", "32k"}


def test_the_share_is_that_of_bises_decoding(tmp_path: Path) -> None:
    weights = Weights.open(tiny_file(tmp_path))
    runs = {"p": Run("prefill", 4), "d": Run("decode", 4), "m": Run("decode", 4, sequences=8)}
    result = {"runs": [asdict(run) | {"speed": 500.0} for run in runs.values()]}
    read = bytes_per_token(weights, weights.config, "f16", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CACHED", 0)
        found = against.speed_lines(weights, runs, [[result], [result]], read * 1000)
    assert [line.share for line in found] == [None, 0.5, None]


def test_files_are_asked_for_one_by_one(tmp_path: Path, played: list[Turn]) -> None:
    """A file may be made when its turn has come, and be gone afterwards."""
    file = tiny_file(tmp_path)

    def made() -> Any:
        for name in ("a.gguf", "b.gguf"):
            path = tmp_path / name
            path.write_bytes(file.read_bytes())
            yield path
            path.unlink()

    assert list(compare(made(), 1, 1).lines) == ["a.gguf", "b.gguf"] and not (tmp_path / "a.gguf").exists()


def test_what_cannot_be_compared_is_refused_before_anything_runs(tmp_path: Path, played: list[Turn]) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"noise")
    with pytest.raises(FormatError, match="not a GGUF file"):
        compare([tmp_path / "noise.gguf"], 1, 1)
    with pytest.raises(BiseError, match="is a folder"):
        compare([tmp_path], 1, 1)
    assert not played


# --- real processes


def test_a_turn_in_its_own_process() -> None:
    one = Turn("bise", PUFF, (Run("prefill", 32), Run("decode", 8, 300)), 1, isa="base" if BACKEND == "cpu" else "")
    words: list[str] = []
    found = in_process(one, words.append)
    assert words == ["loading", "prefill 32", "decode 8 after 300"]
    assert [run["speed"] > 0 for run in found["runs"]] == [True, True]
    assert Path(PUFF).stat().st_size < found["peak_bytes"] < 200 << 20  # its own, not what this process had
    assert "base" in found["about"]["arithmetic"]


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RequestError, match=r"bise ended with code 2: instruction set 'mmx' does not run here"):
        in_process(Turn("bise", PUFF, (Run("prefill", 4),), 1, isa="mmx"))


@peer
def test_llama_cpp_stands_where_it_is_told() -> None:
    """Positions, counted by llama.cpp itself; and its state has the bytes that the table says."""
    from bise.bench.llama_cpp import MAIN, LlamaCpp

    player = LlamaCpp(PUFF, 1)
    player.room(1, 600)
    for depth in (0, 300, 500, 200, 0):
        player.fill(depth)
        player.decode(1)
        assert player.c.llama_memory_seq_pos_max(player.memory, MAIN) == depth
        assert player.c.llama_memory_seq_pos_min(player.memory, MAIN) == 0
    player.fill(512)
    size = player.c.llama_state_seq_get_size(player.context, MAIN)
    assert size == pytest.approx(cache_bytes(Weights.open(PUFF).config.with_window(None), 512), rel=0.01)
    player.room(4, 40)
    player.decode(3)
    assert [player.c.llama_memory_seq_pos_max(player.memory, s) for s in range(4)] == [2] * 4


@peer
def test_a_copied_context_says_what_a_read_one_says() -> None:
    """Copies of a block, moved: the keys of the first block are those that were read, so with the same tokens again
    and again and only one block copied, the logits are the same."""
    from bise.bench.llama_cpp import BLOCK, MAIN, LlamaCpp

    player = LlamaCpp(PUFF, 1)

    def logits() -> np.ndarray:
        player.decode(1)
        return np.ctypeslib.as_array(player.c.llama_get_logits_ith(player.context, -1), (player.vocab,)).copy()

    player.room(1, 600)
    player.prefill(BLOCK)
    read = logits()
    player.room(1, 600)
    player.fill(BLOCK)
    assert player.lengths[MAIN] == BLOCK
    np.testing.assert_allclose(logits(), read, atol=1e-3)


def test_play_names_the_engine(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    found = play(Turn("bise", str(model.path), (Run("decode", 2),), 1), lambda _: model)
    assert found["about"]["version"] == bise.__version__ and found["load_seconds"] >= 0
    assert depths.as_json([], 1.0) == []
