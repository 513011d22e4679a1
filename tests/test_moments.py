"""What the weights are given, against a model that is run by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise.errors import RequestError
from bise.moments import collect, layer_moments, moments
from bise.weights import expected_shapes
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(sliding_window=8)
CHUNKS = [np.arange(1, 30, dtype=np.int32), np.arange(100, 117, dtype=np.int32)]
LINEAR = [name for name, shape in expected_shapes(CONFIG).items() if len(shape) == 2 and name != "token_embd"]


@pytest.fixture(scope="module", params=["reference", "cpu"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bise.Model:
    path = write_tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", CONFIG, tiny_weights(CONFIG))
    return bise.load(path, backend=request.param, kv="f32", threads=1)


def by_hand(arrays: dict[str, np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    """The whole model in float64, written out for one sequence: the input of every weight, (T, cols)."""
    c, given = CONFIG, {}
    w = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(1, keepdims=True) + c.norm_eps) * w[name]

    def turned(x: np.ndarray) -> np.ndarray:
        angles = np.arange(len(x))[:, None] * c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
        pairs = x.reshape(len(x), -1, c.head_dim // 2, 2)
        z = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack([z.real, z.imag], -1).reshape(len(x), -1, c.head_dim)

    x = w["token_embd"][ids]
    i = np.arange(len(ids))
    seen = (i[None] <= i[:, None]) & (i[None] > i[:, None] - c.sliding_window)
    for n in range(c.n_layers):
        b = f"blk.{n}."
        h = norm(x, b + "attn_norm")
        given |= {b + part: h for part in ("attn_q", "attn_k", "attn_v")}
        q, k = turned(h @ w[b + "attn_q"].T), turned(h @ w[b + "attn_k"].T)
        v = (h @ w[b + "attn_v"].T).reshape(len(ids), -1, c.head_dim)
        heads = []
        for head in range(c.n_heads):
            g = head // (c.n_heads // c.n_kv_heads)
            scores = np.where(seen, q[:, head] @ k[:, g].T / np.sqrt(c.head_dim), -np.inf)
            p = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(p / p.sum(1, keepdims=True) @ v[:, g])
        given[b + "attn_output"] = np.concatenate(heads, 1)
        x = x + given[b + "attn_output"] @ w[b + "attn_output"].T
        h = norm(x, b + "ffn_norm")
        given |= {b + "ffn_gate": h, b + "ffn_up": h}
        gate = h @ w[b + "ffn_gate"].T
        given[b + "ffn_down"] = gate / (1 + np.exp(-gate)) * (h @ w[b + "ffn_up"].T)
        x = x + given[b + "ffn_down"] @ w[b + "ffn_down"].T
    given["output"] = norm(x, "output_norm")
    return given


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    runs = [by_hand(tiny_weights(CONFIG), ids) for ids in CHUNKS]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def test_collected_is_the_mean_square(model: bise.Model, truth: dict[str, np.ndarray]) -> None:
    told: list[tuple[int, int]] = []
    found = collect(model, CHUNKS, ["a.txt"], progress=lambda *now: told.append(now))
    assert set(found) == set(LINEAR) and found.chunks == 2 and found.chunk_size == 29 and found.datasets == ("a.txt",)
    for name in LINEAR:
        assert found.counts[name] == 46 and found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], (truth[name] ** 2).mean(0), rtol=2e-4, atol=1e-6)
    assert told == [(29, 46), (46, 46)]
    found.of(expected_shapes(CONFIG))


def test_moments_are_those_of_the_inputs(model: bise.Model, truth: dict[str, np.ndarray]) -> None:
    wanted = ["blk.0.attn_q", "blk.0.attn_v", "blk.0.ffn_down"]
    found = moments(model, CHUNKS, wanted)
    assert set(found) == set(wanted) and found["blk.0.attn_q"] is found["blk.0.attn_v"]
    for name in wanted:
        x = truth[name]
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], x.T @ x / len(x), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(np.diag(found["blk.0.ffn_down"]), collect(model, CHUNKS)["blk.0.ffn_down"], rtol=1e-5)


def test_only_linear_weights_have_moments(model: bise.Model) -> None:
    assert moments(model, CHUNKS, []) == {}
    for name in ("blk.9.attn_q", "blk.0.attn_norm", "output"):
        with pytest.raises(RequestError, match=f"moments of '{name}'"):
            moments(model, CHUNKS, [name])


def test_layer_by_layer_is_the_same(model: bise.Model) -> None:
    layers = list(layer_moments(model, CHUNKS))
    assert [len(layer) for layer in layers] == [7, 7]
    for i, layer in enumerate(layers):
        at_once = moments(model, CHUNKS, layer)
        assert set(layer) == {f"blk.{i}.{part}" for part in
                              ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
        for name, values in layer.items():
            np.testing.assert_array_equal(values, at_once[name])
        assert layer[f"blk.{i}.ffn_up"] is layer[f"blk.{i}.ffn_gate"]


def test_a_layer_that_was_exchanged_hands_on_its_own(model: bise.Model) -> None:
    """The second layer sees what the first one, exchanged meanwhile, makes: as if the model had always been that one."""
    blk, old = model.parameters.blk, model.parameters.blk[0]
    other: Any = replace(old, ffn_norm=np.asarray(old.ffn_norm) * np.float32(0.5))
    try:
        stepwise = layer_moments(model, CHUNKS)
        before = next(stepwise)
        blk[0] = other
        after = next(stepwise)
        expected = moments(model, CHUNKS, after)
        for name, values in after.items():
            np.testing.assert_array_equal(values, expected[name])
        assert not np.array_equal(before["blk.0.ffn_up"], moments(model, CHUNKS, ["blk.0.ffn_up"])["blk.0.ffn_up"])
    finally:
        blk[0] = old


def test_a_tied_output_goes_by_the_embeddings_name(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", CONFIG, tiny_weights(CONFIG, tied=True))
    found = collect(bise.load(path, threads=1), CHUNKS)
    assert "output" not in found and found.counts["token_embd"] == 46
