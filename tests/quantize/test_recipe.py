"""Which tensor gets which type: as llama.cpp chooses on the same model, tensor by tensor."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from bise.config import Config
from bise.errors import RequestError
from bise.quantize.recipe import RECIPES, fitting, types
from bise.weights import expected_shapes
from llama import importance_data, llama_cpp
from tiny import tiny_config, tiny_weights, write_tiny_gguf

NARROW = dict(dim=32, hidden_dim=64, n_layers=33, n_heads=4, head_dim=8, vocab_size=32)  # no row is 256 long
WIDE = dict(dim=256, hidden_dim=256, n_layers=9, n_heads=4, head_dim=64, n_kv_heads=1, vocab_size=32)
CASES = {
    "33 layers": (NARROW, False, False),
    "33 layers, importance": (NARROW, False, True),
    "80 layers": ({**NARROW, "n_layers": 80, "n_kv_heads": 1}, False, False),
    "rows of 256": (WIDE, False, False),
    "rows of 256, importance": (WIDE, False, True),
    "tied": ({**WIDE, "n_layers": 2, "n_kv_heads": 4}, True, False),
    "rows of 80": ({**NARROW, "dim": 80, "head_dim": 20, "n_layers": 3}, False, False),
}
AS_OTHERS = ("Q8_0", "Q6_K", "Q5_K_S", "Q5_1", "Q4_1", "Q3_K_S")  # no exception needs long rows to be seen


def theirs(path: Path, out: Path, file_type: int, means: dict[str, np.ndarray] | None) -> dict[str, str]:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 2
    if means:
        data = importance_data(means)
        params.imatrix = ctypes.cast(data, type(params.imatrix))
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)) == 0
    tensors = gguf.GGUFReader(out).tensors
    return {t.name.removesuffix(".weight"): gguf.GGMLQuantizationType(t.tensor_type).name for t in tensors}


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(case: str, tmp_path: Path) -> None:
    changes, tied, informed = CASES[case]
    config: Config = tiny_config(**changes)
    arrays = tiny_weights(config, tied=tied)
    source = write_tiny_gguf(tmp_path / "f32.gguf", config, arrays)
    shapes = {own: shape for own, shape in expected_shapes(config).items() if own in arrays}
    means = {own: np.ones(shape[1], np.float32) for own, shape in shapes.items() if len(shape) == 2}
    group = config.n_heads // config.n_kv_heads
    for name, recipe in RECIPES.items():
        if config.dim == 256 and name in AS_OTHERS:
            continue
        expected = theirs(source, tmp_path / "q.gguf", recipe.file_type, means if informed else None)
        assert types(name, shapes, group, informed) == expected, name


def test_the_file_types_are_llama_cpp_s() -> None:
    for name, recipe in RECIPES.items():
        assert getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}") == recipe.file_type


@pytest.mark.parametrize(("kind", "cols", "found"), [
    ("Q4_K", 512, "Q4_K"), ("Q4_K", 96, "Q5_0"), ("Q2_K", 96, "Q4_0"), ("Q6_K", 80, "F16"), ("Q8_0", 31, "F16"),
])  # fmt: skip
def test_rows_that_are_no_whole_blocks(kind: str, cols: int, found: str) -> None:
    assert fitting(kind, (7, cols)) == found


def test_a_name_that_is_none() -> None:
    with pytest.raises(RequestError, match="no type 'Q4_K_X': expected one of Q8_0"):
        types("Q4_K_X", {"output": (3, 256)}, 1)
