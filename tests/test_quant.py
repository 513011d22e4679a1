"""Every block format against the gguf package, byte for byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from bise.errors import FormatError, RequestError
from bise.quant import TYPES, QTensor, nbytes, quantise
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf

ALL = list(TYPES)
QUANTISED = [name for name in ALL if TYPES[name].scales]


def ggml(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def random_blocks(name: str, rows: int, cols: int, seed: int = 0) -> QTensor:
    """Random bytes with sane scales in the scale fields (or sane floats, for plain types)."""
    rng = np.random.default_rng(seed)
    kind = TYPES[name]
    if not kind.scales:
        return quantise(rng.standard_normal((rows, cols)).astype(np.float32), name)
    blocks = rng.integers(0, 256, (rows * cols // kind.block, kind.nbytes), dtype=np.uint8)
    for at in kind.scales:
        scales = rng.standard_normal(len(blocks)).astype(np.float16) / np.float16(50)
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8)
    return QTensor(name, (rows, cols), blocks.reshape(-1))


@pytest.mark.parametrize("name", ALL)
def test_the_table_is_ggml_s(name: str) -> None:
    assert TYPES[name].id == ggml(name).value
    assert (TYPES[name].block, TYPES[name].nbytes) == gguf.GGML_QUANT_SIZES[ggml(name)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(3, 512), (5, 2304)])
def test_dequantise_is_the_gguf_package_s_bit_for_bit(name: str, shape: tuple[int, int]) -> None:
    tensor = random_blocks(name, *shape)
    ours = tensor.dequantise()
    theirs = gguf.quants.dequantize(tensor.data.reshape(shape[0], -1), ggml(name)).astype(np.float32).reshape(shape)
    assert ours.dtype == np.float32 and ours.shape == shape
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


# llama.cpp's number of the file type, and the largest relative error (RMS of the error over RMS of the weights)
BY_LLAMA_CPP = {
    "Q4_0": (2, 0.11), "Q4_1": (3, 0.10), "Q5_0": (8, 0.06), "Q5_1": (9, 0.05), "Q8_0": (7, 0.01), "Q2_K": (10, 0.35),
    "Q3_K": (12, 0.20), "Q4_K": (15, 0.09), "Q5_K": (17, 0.05), "Q6_K": (18, 0.03), "IQ4_NL": (25, 0.10),
    "IQ4_XS": (30, 0.10),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_LLAMA_CPP)
def test_what_llama_cpp_quantised_comes_back_near_and_as_the_gguf_package_has_it(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    config = tiny_config(n_layers=1, dim=256, head_dim=64, hidden_dim=512)
    arrays = tiny_weights(config)
    source, target = write_tiny_gguf(tmp_path / "f32.gguf", config, arrays), tmp_path / "q.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, most = BY_LLAMA_CPP[name]
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    seen = False
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    for own, tensor in Weights.open(target).items():
        found = theirs[f"{own}.weight"]
        expected = gguf.quants.dequantize(found.data, found.tensor_type).astype(np.float32).reshape(tensor.shape)
        assert np.array_equal(tensor.dequantise().view(np.uint32), expected.view(np.uint32)), own
        if tensor.type == name:
            error = tensor.dequantise() - arrays[own]
            assert np.sqrt(np.mean(error**2) / np.mean(arrays[own] ** 2)) < most, own
            seen = True
    assert seen, name


@pytest.mark.parametrize("name", ALL)
def test_strips_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_blocks(name, 7, 768)
    whole = tensor.dequantise()
    monkeypatch.setattr("bise.quant.STRIP", 512)
    assert np.array_equal(tensor.dequantise(), whole)


@pytest.mark.parametrize("name", ALL)
def test_rows_and_take_move_whole_rows(name: str) -> None:
    tensor, ids = random_blocks(name, 9, 512), [8, 0, 3, 3]
    assert np.array_equal(tensor.rows(ids), tensor.dequantise()[ids])
    taken = tensor.take(ids)
    assert taken.shape == (4, 512) and taken.nbytes == nbytes(name, (4, 512))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_quantise_is_the_gguf_package_s_byte_for_byte(name: str, scale: float) -> None:
    x = (np.random.default_rng(5).standard_normal((64, 1024)) * scale).astype(np.float32)
    x[3, :64] = 0
    x[4, :32] = np.arange(32) - 16  # exact halves after division
    x[5, :64] = np.linspace(-127, 127, 64)
    theirs = gguf.quants.quantize(x, ggml(name)).view(np.uint8).reshape(-1)
    assert np.array_equal(QTensor.of(x, name).data, theirs)


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFF800000, 0x7F7FFFFF], np.uint32)
    out = quantise(bits.view(np.float32), "BF16").data.view(np.uint16)
    assert out.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7FC0, 0xFF80, 0x7F80]


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_bad_scale_is_found_with_its_row(name: str, bad: float) -> None:
    kind = TYPES[name]
    for at in kind.scales:
        tensor = random_blocks(name, 6, 512)
        assert tensor.faults() == (0, None)
        blocks = tensor.data.reshape(6, -1, kind.nbytes)
        blocks[4, -1, at : at + 2] = np.array([bad], np.float16).view(np.uint8)
        assert tensor.faults() == (1, 4)
        blocks[2, 0, at : at + 2] = np.array([bad], np.float16).view(np.uint8)
        assert tensor.faults() == (2, 2)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_bad_value_is_found_with_its_row(name: str, bad: float) -> None:
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32) * 1e4
    assert quantise(x, name).faults() == (0, None)
    x[4, 39] = bad
    assert quantise(x, name).faults() == (1, 4)
    assert quantise(x[4], name).faults().total == 1


def test_faults_are_found_past_the_first_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bise.quant.GLANCE", 16)
    x = np.zeros((8, 40), np.float32)
    x[5, 7] = x[6, 1] = np.nan
    assert quantise(x, "F32").faults() == (2, 5)


def test_float16_overflow_is_left_for_faults_to_tell() -> None:
    assert quantise(np.full((1, 32), 1e6, np.float32), "F16").faults().total == 32


def test_unaligned_data_is_fine() -> None:
    for name in ALL:
        tensor = random_blocks(name, 2, 512)
        room = np.empty(tensor.nbytes + 1, np.uint8)
        room[1:] = tensor.data
        shifted = QTensor(name, tensor.shape, room[1:])
        assert np.array_equal(shifted.dequantise(), tensor.dequantise())
        assert shifted.faults() == (0, None)


def test_wrong_lengths_and_types_are_refused() -> None:
    with pytest.raises(FormatError, match="needs 1,024 bytes"):
        QTensor("F32", (2, 128), np.zeros(1023, np.uint8))
    with pytest.raises(FormatError, match="multiple of Q4_K's block of 256"):
        nbytes("Q4_K", (2, 128))
    with pytest.raises(RequestError, match="multiple of 32"):
        quantise(np.zeros((2, 33)), "Q8_0")
    with pytest.raises(RequestError, match="expected one of"):
        quantise(np.zeros((2, 256)), "Q4_K")


def test_a_product_that_wraps_in_64_bits_does_not_wrap_here() -> None:
    assert nbytes("F32", (2**40, 2**40)) == 2**82
