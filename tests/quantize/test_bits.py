"""Bits where they do most: the allocation against every other one, and the search on a model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from bise import quantize
from bise.errors import RequestError
from bise.quant import nbytes
from bise.quantize import bits
from bise.quantize.tensors import by_kernels
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf


def costs(seed: int, matrices: int = 5) -> dict[str, bits.Costs]:
    """Errors that fall fourfold with each bit, times how much a matrix matters."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(matrices):
        size, matters = int(rng.integers(1, 20)), float(rng.exponential())
        found[f"w{i}"] = {str(b): (size * b, matters * 0.25**b * float(rng.uniform(0.9, 1.1))) for b in (2, 3, 4, 5, 6)}
    return found


@pytest.mark.parametrize("seed", range(8))
def test_no_other_choice_is_much_better(seed: int) -> None:
    options = costs(seed)
    least = sum(options[own]["2"][0] for own in options)
    for budget in np.linspace(least, 3 * least, 7).astype(int):
        chosen = bits.choose(options, int(budget))
        size = sum(options[own][kind][0] for own, kind in chosen.items())
        error = sum(options[own][kind][1] for own, kind in chosen.items())
        best = min(
            sum(options[own][kind][1] for own, kind in zip(options, kinds, strict=True))
            for kinds in itertools.product("23456", repeat=len(options))
            if sum(options[own][kind][0] for own, kind in zip(options, kinds, strict=True)) <= budget
        )
        assert size <= budget and best <= error <= 1.5 * best


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(RequestError, match="the smallest types need"):
        bits.choose(costs(0), 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    config = tiny_config(dim=256, hidden_dim=512, n_layers=3, n_heads=8, n_kv_heads=2, head_dim=32)
    return Weights.open(
        write_tiny_gguf(tmp_path_factory.mktemp("bits") / "f.gguf", config, tiny_weights(config), "BF16")
    )


def total(weights: Weights, types: dict[str, str]) -> float:
    """The sum of relative errors, over all rows, each as harmful as it is."""
    found = 0.0
    for own, kind in types.items():
        if len(weights[own].shape) == 2:
            x, harm = weights[own].dequantise(), bits.harm(own, weights)
            found += harm * np.square(by_kernels(1)(own, x, kind, None).dequantise() - x).sum() / np.square(x).sum()
    return found


@pytest.mark.parametrize(("wanted", "uniform"), [(4.52, "Q4_K"), (3.46, "Q3_K"), (5.52, "Q5_K")])
def test_the_same_size_with_less_error_than_one_type_for_all(model: Weights, wanted: float, uniform: str) -> None:
    found = bits.search(model, wanted, {}, by_kernels(2))
    alike = {own: uniform for own, entry in model.entries.items() if len(entry.shape) == 2}
    size = sum(nbytes(kind, model.entries[own].shape) for own, kind in found.items())
    assert size * 8 <= wanted * sum(np.prod(entry.shape) for entry in model.entries.values())
    assert total(model, found) < 0.95 * total(model, alike)
    assert {found[own] for own, entry in model.entries.items() if len(entry.shape) == 1} == {"F32"}


def test_what_is_hard_to_round_gets_more(tmp_path: Path) -> None:
    config = tiny_config(dim=256, hidden_dim=256, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=64)
    arrays = tiny_weights(config)
    arrays["blk.1.attn_output"][:] = np.random.default_rng(0).standard_t(2, (256, 256))  # rare, large values
    weights = Weights.open(write_tiny_gguf(tmp_path / "f.gguf", config, arrays))
    found = bits.search(weights, 4.5, {}, by_kernels(1))
    hard, *others = (nbytes(found[f"blk.{i}.attn_output"], (256, 256)) for i in (1, 0, 2, 3))
    assert hard > max(others)


def test_the_file_is_no_larger_than_asked(model: Weights, tmp_path: Path) -> None:
    types = bits.search(model, 4.25, {}, by_kernels(2))
    made = quantize.plan(model, tmp_path / "q.gguf", None, types=types)
    assert 4.1 < made.bits <= 4.25 and made.keys["general.file_type"] in (30, 15, 12)
    with pytest.raises(RequestError, match="--bits 2: .*ask for more"):
        bits.search(model, 2, {}, by_kernels(2))
