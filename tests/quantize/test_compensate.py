"""Error compensation: against GPTQ's own algorithm, against what it must lower, and through a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bise
from bise import quantize
from bise.api import BUILT_IN
from bise.errors import RequestError
from bise.evaluate.run import parts
from bise.moments import layer_moments
from bise.ops.cpu import Cpu
from bise.quant import Floats, QTensor
from bise.quantize.compensate import DAMPING, SPAN, Moment, compensate
from bise.quantize.lattice import LATTICES, grid, nearest
from bise.quantize.sequential import Sequential
from bise.score import Divergence
from bise.texts import Cut
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf

ROWS, COLS = 40, 512
CPU = Cpu(1)


def inputs(correlation: float = 0.8, cols: int = COLS, count: int = 2000) -> Floats:
    """Columns of unequal size that know of each other, as a model's are."""
    rng = np.random.default_rng(4)
    common = rng.standard_normal((count, cols // 8)) @ rng.standard_normal((cols // 8, cols)) / np.sqrt(cols // 8)
    own = rng.standard_normal((count, cols))
    size = np.exp(rng.standard_normal(cols))
    return ((correlation * common + (1 - correlation) * own) * size).astype(np.float32)


def second(x: Floats) -> Floats:
    return x.T @ x / np.float32(len(x))


WEIGHT = np.random.default_rng(5).standard_normal((ROWS, COLS)).astype(np.float32)
H = second(inputs())


def cost(weight: Floats, made: QTensor, h: Floats) -> float:
    error = (weight - made.dequantise()).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, h.astype(np.float64), error))


def gptq(weight: Floats, h: Floats, importance: Floats, type: str) -> Floats:
    """Frantar et al. 2022, algorithm 1, in float64: the inverse of H, its Cholesky factor, and errors pushed on to the
    columns that follow. Scales as here: chosen when a span begins, on the weights as they are by then."""
    w, (rows, cols) = weight.astype(np.float64), weight.shape
    damped = h.astype(np.float64) + np.eye(cols) * DAMPING * np.diag(h).mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(1 / np.diag(upper) ** 2, importance, rtol=1e-4)
    made = np.zeros_like(w)
    for at in range(0, cols, SPAN):
        span = slice(at, at + SPAN)
        chosen = CPU.quantise(w[:, span].astype(np.float32), type, importance[span]).data
        zero, step = (part.reshape(rows, SPAN) for part in grid(type, chosen.reshape(rows, -1)))
        for k in range(SPAN):
            _, made[:, at + k] = nearest(type, w[:, at + k].astype(np.float32), zero[:, k], step[:, k])
            error = (w[:, at + k] - made[:, at + k]) / upper[at + k, at + k]
            w[:, at + k :] -= np.outer(error, upper[at + k, at + k :])
    return made.astype(np.float32)


def test_factors() -> None:
    moment = Moment.of(H)
    m = moment.feedback.T.astype(np.float64)
    np.testing.assert_allclose(m @ np.diag(moment.cost) @ m.T, moment.h, atol=1e-5 * H.max())
    np.testing.assert_allclose(np.diag(moment.h), np.diag(H) + DAMPING * np.diag(H).mean(), rtol=1e-5)
    assert not np.tril(m, -1).any() and np.allclose(np.diag(m), 1)


@pytest.mark.parametrize("type", ["Q4_K", "Q2_K", "IQ4_XS"])
def test_first_pass_is_gptq(type: str) -> None:
    """Value for value, but for rows in which one weight lies between two levels and float32 goes the other way: all that
    follows in its row is then different, and as good."""
    moment = Moment.of(H)
    made = compensate(WEIGHT, moment, type, CPU, sweeps=0)
    theirs = gptq(WEIGHT, H, moment.cost, type)
    same = np.isclose(made.dequantise(), theirs, rtol=1e-4, atol=1e-4)
    assert same.mean() > 0.7
    error = (WEIGHT - theirs).astype(np.float64)
    assert cost(WEIGHT, made, H) == pytest.approx(np.einsum("ij,jk,ik->", error, H.astype(np.float64), error), rel=0.05)


@pytest.mark.parametrize("type", LATTICES)
def test_costs_less_than_rounding(type: str) -> None:
    plain = cost(WEIGHT, CPU.quantise(WEIGHT, type, np.ascontiguousarray(np.diag(H))), H)
    moment = Moment.of(H)
    costs = [cost(WEIGHT, compensate(WEIGHT, moment, type, CPU, n), moment.h) for n in (0, 1, 2)]
    assert costs[0] < 0.8 * plain
    assert costs[2] <= costs[1] <= costs[0]


def test_independent_inputs_leave_nothing_to_gain() -> None:
    """A diagonal H: no worse than the search with importance, and no farther from it than its own rounding."""
    h = np.diag(np.diag(H))
    made, plain = compensate(WEIGHT, Moment.of(h), "Q4_K", CPU), CPU.quantise(WEIGHT, "Q4_K", Moment.of(h).cost)
    assert 0.9 * cost(WEIGHT, plain, h) < cost(WEIGHT, made, h) <= 1.0001 * cost(WEIGHT, plain, h)


def test_rows_do_not_depend_on_each_other() -> None:
    moment = Moment.of(H)
    whole, some = compensate(WEIGHT, moment, "Q3_K", CPU), compensate(WEIGHT[8:24], moment, "Q3_K", CPU)
    assert (whole.dequantise()[8:24] == some.dequantise()).mean() > 0.99  # a product of other shape rounds otherwise


@pytest.mark.parametrize("cols", [32, 288])
def test_odd_widths(cols: int) -> None:
    h, weight = second(inputs(cols=cols)), WEIGHT[:, :cols]
    made = compensate(weight, Moment.of(h), "Q4_0", CPU)
    assert made.shape == (ROWS, cols) and cost(weight, made, h) < cost(weight, CPU.quantise(weight, "Q4_0", None), h)


def test_columns_that_never_met_an_input() -> None:
    """And an H of lower rank than it has columns: damping carries both."""
    x = inputs(count=100)
    x[:, 7:300:9] = 0
    made = compensate(WEIGHT, Moment.of(second(x)), "Q4_K", CPU)
    assert np.isfinite(made.dequantise()).all() and np.abs(WEIGHT - made.dequantise())[:, 7].max() < 0.5
    nothing = compensate(WEIGHT, Moment.of(np.zeros((COLS, COLS), np.float32)), "Q4_K", CPU)
    assert np.abs(WEIGHT - nothing.dequantise()).max() < 0.5


def test_each_layer_meets_what_the_rounded_ones_hand_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moments that the second layer is rounded with are those of a model whose first layer is rounded already; and
    a matrix that comes in several strips is put in place whole."""
    config = tiny_config(dim=256, hidden_dim=256, head_dim=64, vocab_size=320)
    path = write_tiny_gguf(tmp_path / "f32.gguf", config, tiny_weights(config))
    chunks = [np.random.default_rng(i).integers(3, 300, 64).astype(np.int32) for i in range(4)]
    rounding = Sequential(bise.load(path, kv="f32", backend="reference"), chunks, CPU)
    monkeypatch.setattr("bise.quantize.tensors.STRIP", 256 * 64)
    quantize.quantize(path, tmp_path / "q.gguf", "Q4_K_S", round=rounding)
    mixed = bise.load(path, kv="f32", backend="reference")
    made = bise.load(tmp_path / "q.gguf", kv="f32", backend="reference")
    mixed.parameters.token_embd, mixed.parameters.blk[0] = made.parameters.token_embd, made.parameters.blk[0]
    *_, want = layer_moments(mixed, chunks)
    for own in ("blk.1.attn_q", "blk.1.ffn_down"):
        np.testing.assert_allclose(rounding._moments[own], want[own], rtol=1e-3, atol=1e-4 * np.abs(want[own]).max())


def test_backwards_is_refused(tmp_path: Path) -> None:
    config = tiny_config(dim=256, hidden_dim=256, head_dim=64, vocab_size=320)
    path = write_tiny_gguf(tmp_path / "f32.gguf", config, tiny_weights(config))
    rounding = Sequential(bise.load(path, kv="f32"), [np.arange(3, 40, dtype=np.int32)], CPU)
    weight = Weights.open(path)["blk.1.attn_q"].dequantise()
    rounding("blk.1.attn_q", weight, "Q4_K", None)
    with pytest.raises(RequestError, match="layer 0 after layer 1"):
        rounding("blk.0.attn_q", weight, "Q4_K", None)


@pytest.mark.skipif(not BUILT_IN.exists(), reason="the built-in model is not here")
def test_nearer_to_the_full_model(tmp_path: Path, shared: Path) -> None:
    """puff in Q3_K_M, judged on other stories than it was calibrated on."""
    from bise import texts

    text = texts.read([shared / "data" / "tinystories" / "gusjengis_2MiB_endoftext.txt.gz"])
    model = bise.load(BUILT_IN, kv="f32", threads=1)
    chunks = Cut(256).chunks(model.tokenizer.encode(text[:100_000]), model.tokenizer.bos)
    calibration, judged = chunks[:48], chunks[-12:]
    kl = {}
    for name, rounding in (("plain", None), ("compensated", Sequential(model, list(calibration), CPU))):
        quantize.quantize(BUILT_IN, tmp_path / f"{name}.gguf", "Q3_K_M", round=rounding)
        kl[name] = divergence(tmp_path / f"{name}.gguf", judged)
    assert kl["compensated"] < 0.85 * kl["plain"]


def divergence(path: Path, chunks: np.ndarray) -> float:
    found, cut = Divergence(), Cut(256, all_positions=True)
    models = [bise.load(file, kv="f32", threads=1) for file in (BUILT_IN, path)]
    for full, other in zip(*(parts(model, chunks, cut) for model in models), strict=True):
        found.add(full.logits, other.logits, full.targets, full.positions)
    return found.kl.value
