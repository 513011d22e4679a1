"""The search for levels and scales: against llama.cpp's, against brute force, and the kernels against the specification."""

from __future__ import annotations

import re

import gguf
import numpy as np
import pytest

from bise import _kernels
from bise.api import BUILT_IN
from bise.errors import FormatError, RequestError
from bise.ops.cpu import Cpu
from bise.quant import TYPES, QTensor
from bise.rounding import ROUNDING, prepared, rounded
from bise.weights import Weights

ALL = list(ROUNDING)


def normal(rows: int = 32, cols: int = 1024) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32) / 50


def heavy_tailed(rows: int = 32, cols: int = 1024) -> np.ndarray:
    return np.random.default_rng(1).standard_t(4, (rows, cols)).astype(np.float32) / 50


def trained() -> np.ndarray:
    """Of puff; its file's 8 bits are noise here, but for Q8_0, which finds them again."""
    return Weights.open(BUILT_IN)["blk.2.ffn_down"].rows(np.arange(64))


def importance(cols: int) -> np.ndarray:
    return prepared(np.random.default_rng(2).exponential(size=cols) ** 2)


def error(tensor: QTensor, x: np.ndarray, weights: np.ndarray | None) -> float:
    squares = np.square(tensor.dequantise().astype(np.float64) - x)
    return float((squares * (1 if weights is None else weights)).sum())


def strange(cols: int = 512) -> np.ndarray:
    """(21, cols): no multiple of 16 rows, and rows that invite a division by zero or a loss of all digits."""
    x = heavy_tailed(21, cols)
    x[0, :256], x[1], x[2] = 0, 0.01, -0.01
    x[3], x[4] = np.abs(x[3]) + 1, -np.abs(x[4])
    x[5, ::7], x[6], x[7], x[8, 5] = 1e-9, x[6] * 1e-6, x[7] * 1e4, 40
    x[9], x[10, :] = 1e-38, np.where(np.arange(cols) % 2, 0.5, -0.5)
    return x


@pytest.mark.parametrize("informed", [False, True], ids=["alike", "importance"])
@pytest.mark.parametrize("name", ALL)
def test_the_error_is_at_most_llama_cpp_s(name: str, informed: bool) -> None:
    from llama import quantised

    for x in (normal(), heavy_tailed(), trained()):
        weights = importance(x.shape[1]) if informed else None
        ours, theirs = (
            error(Cpu(2).quantise(x, name, weights), x, weights),
            error(quantised(x, name, weights), x, weights),
        )
        assert ours <= 0.985 * theirs


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("name", ALL)
def test_the_kernels_give_the_specification_s_bytes(name: str, isa: str) -> None:
    x = strange()
    for weights in (None, importance(512) ** 3):
        assert np.array_equal(Cpu(2, isa).quantise(x, name, weights).data, rounded(x, name, weights).data)


@pytest.mark.parametrize("name", ALL)
def test_strange_rows_come_back_near(name: str) -> None:
    x = strange()
    found = Cpu(1).quantise(x, name).dequantise()
    assert not found[0, :256].any()
    levels = ROUNDING[name].grid.high - ROUNDING[name].grid.low if ROUNDING[name].grid.table is None else 11
    rough = np.abs(x).reshape(21, -1, 256).max(axis=2).repeat(256, axis=1)
    assert (np.abs(found - x) <= 1.7 / levels * rough + 4e-6).all()  # (float16 ends at 6e-8)
    alike = (1, 2, 10)  # rows of one value, or of two
    assert (np.abs(found - x)[alike, :] <= 0.05 * np.abs(x)[alike, :]).all()


@pytest.mark.parametrize("name", ALL)
def test_the_gguf_package_reads_the_same_numbers(name: str) -> None:
    tensor = Cpu(2).quantise(heavy_tailed(), name)
    theirs = gguf.quants.dequantize(tensor.data.reshape(32, -1), gguf.GGMLQuantizationType[name])
    assert np.array_equal(tensor.dequantise().view(np.uint32), theirs.astype(np.float32).view(np.uint32))


def test_8_bits_find_8_bits_again() -> None:
    x = trained()
    assert error(Cpu(2).quantise(x, "Q8_0"), x, None) == 0


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "IQ4_NL"])
def test_one_scale_is_near_the_best_that_there_is(name: str) -> None:
    """Every float16 that could be one is tried."""
    x, weights, kind = heavy_tailed(1, 256), importance(256), ROUNDING[name]
    best = 0.0
    for at in range(0, 256, 32):
        values, w = x[0, at : at + 32], weights[at : at + 32]
        scales = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
        top = np.abs(values).max()
        scales = scales[(scales > top / 200) & (scales < top / 4)]
        scales = np.concatenate([scales, -scales])[:, None]
        best += np.square(values - scales * kind.grid.snap(values / scales), dtype=np.float64).dot(w).min()
    assert best <= error(rounded(x, name, weights), x, weights) <= 1.05 * best


@pytest.mark.parametrize("name", ALL)
def test_an_important_column_is_rounded_with_more_care(name: str) -> None:
    x, weights = normal(), np.ones(1024, np.float32)
    weights[::64] = 1000
    cared, alike = Cpu(2).quantise(x, name, weights).dequantise(), Cpu(2).quantise(x, name).dequantise()
    assert np.square(cared - x)[:, ::64].sum() < 0.5 * np.square(alike - x)[:, ::64].sum()


@pytest.mark.parametrize("name", ALL)
def test_threads_and_neighbours_make_no_difference(name: str) -> None:
    x = heavy_tailed(50, 512)
    whole = Cpu(3).quantise(x, name).data.reshape(50, -1)
    assert np.array_equal(Cpu(1).quantise(x, name).data.reshape(50, -1), whole)
    assert np.array_equal(Cpu(1).quantise(x[17:18], name).data, whole[17])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520, -1e12])
@pytest.mark.parametrize("name", ALL)
def test_the_first_row_with_a_bad_value_is_named(name: str, bad: float) -> None:
    x = normal(70)
    x[[41, 65], 1023] = bad
    with pytest.raises(FormatError, match=f"row 41 holds {re.escape(f'{bad:.6g}')}, expected"):
        Cpu(2).quantise(x, name)


@pytest.mark.parametrize("name", ALL)
def test_the_largest_float16_is_kept(name: str) -> None:
    x = normal(1, 256)
    x[0, 100] = 65504
    assert Cpu(1).quantise(x, name).dequantise()[0, 100] == pytest.approx(65504, rel=0.2)


def test_importance_is_made_fit_for_use() -> None:
    ready = prepared(np.array([0.0, 1.0, 3.0]))
    assert ready.dtype == np.float32 and ready[0] > 0 and ready[2] == pytest.approx(2.25, rel=1e-3)
    assert (prepared(np.zeros(4)) == 1).all()
    for bad in ([1, np.nan], [-1, 1], [np.inf, 1], []):
        with pytest.raises(RequestError, match="importance"):
            prepared(np.array(bad))


def test_refusals() -> None:
    with pytest.raises(RequestError, match="expected one of Q8_0"):
        rounded(normal(), "F16")
    with pytest.raises(RequestError, match="multiple of 256"):
        rounded(normal(2, 96), "Q4_K")
    verbs, x, out = _kernels.Verbs(1), normal(2, 256), np.empty(288, np.uint8)
    for arguments, words in (
        (("F32", x, None, out), "does not make"),
        (("Q4_K", x[:, :32].copy(), None, out), "blocks of 256"),
        (("Q4_K", x, None, out[:-1]), "288"),
        (("Q4_K", x, np.ones(255, np.float32), out), "importance"),
        (("Q4_K", x[:, ::2], None, out), "contiguous"),
    ):
        with pytest.raises(ValueError, match=words):
            verbs.quantise(*arguments)


def test_every_type_of_a_file_can_be_made() -> None:
    assert set(ALL) == {name for name, kind in TYPES.items() if kind.scales}
