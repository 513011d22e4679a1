"""Logits against llama.cpp on files that llama.cpp quantised: a random model, every type that bise reads.

Three ways to the same weights: llama.cpp, bise (cpu), and the dequantised weights in float32 (the reference backend),
which is exactly what the file says. llama.cpp rounds activations to 8 bits before a product with quantised weights, and
so may bise; the distance of each from the exact model tells who loses more. Measured values: pytest -s.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

import bise
from bise.api import BUILT_IN
from llama import llama_cpp
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(dim=256, hidden_dim=512, n_layers=4, n_heads=8, n_kv_heads=2, head_dim=32, vocab_size=512)
TEXT = np.random.default_rng(7).integers(3, CONFIG.vocab_size, 300).tolist()
FILES = {  # type: the file type of llama.cpp whose matrices are of it
    "F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0", "Q6_K": "MOSTLY_Q6_K",
    "Q5_0": "MOSTLY_Q5_0", "Q5_1": "MOSTLY_Q5_1", "Q5_K": "MOSTLY_Q5_K_S", "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1", "Q4_K": "MOSTLY_Q4_K_S", "IQ4_NL": "MOSTLY_IQ4_NL", "IQ4_XS": "MOSTLY_IQ4_XS",
    "Q3_K": "MOSTLY_Q3_K_S", "Q2_K": "MOSTLY_Q2_K",
}  # fmt: skip
NEAR = 1e-3  # mean KL divergence in nats, at 4 bits and above
WORSE = 1e-4  # by how much bise may lie farther from the exact model than llama.cpp does


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32, of a real model's proportions: layers add to a residual stream that is as large as what they add, and a
    prediction is neither uniform nor certain. (Embeddings of 1/16 make layers amplify rounding: llama.cpp alone would
    then lie 2e-3 from the exact model.)"""
    arrays = tiny_weights(CONFIG, seed=3)
    arrays["token_embd"] *= 16
    arrays["output"] *= 1.5
    return write_tiny_gguf(tmp_path_factory.mktemp("original") / "F32.gguf", CONFIG, arrays)


def quantised(original: Path, folder: Path, file_type: str, pure: bool = True) -> Path:
    """The file as llama.cpp quantises it; pure: every matrix in the same type, else as its recipe mixes them."""
    path = folder / f"{file_type}.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
    params.pure, params.nthread, params.allow_requantize = pure, 2, True
    assert llama_cpp.llama_model_quantize(str(original).encode(), str(path).encode(), ctypes.byref(params)) == 0
    return path


def types(path: Path) -> dict[str, set[str]]:
    """{"matrix" | "vector": the types that occur}, as the gguf package reads them."""
    found: dict[str, set[str]] = {"matrix": set(), "vector": set()}
    for tensor in GGUFReader(path).tensors:
        kind = "matrix" if len(tensor.shape) == 2 else "vector"
        found[kind].add(GGMLQuantizationType(tensor.tensor_type).name)
    return found


def theirs(path: Path, ids: list[int]) -> np.ndarray:
    """(T,) -> (T, vocab) of llama.cpp: one pass, keys and values in f32."""
    model = llama_cpp.Llama(str(path), n_ctx=len(ids), n_batch=len(ids), n_threads=2, logits_all=True, verbose=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)  # fmt: skip
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    model.close()
    return logits


def ours(path: Path, ids: list[int], backend: str = "cpu") -> np.ndarray:
    return bise.load(path, backend=backend, kv="f32", threads=2).logits(ids)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL(p || q) over the rows of two arrays of logits, in nats."""
    a, b = log_softmax(p), log_softmax(q)
    return float((np.exp(a) * (a - b)).sum(axis=-1).mean())


def entropy(logits: np.ndarray) -> float:
    a = log_softmax(logits)
    return float(-(np.exp(a) * a).sum(axis=-1).mean())


@pytest.fixture(scope="module")
def measured(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """type -> logits of llama.cpp, bise's cpu backend and the exact model; each made once."""
    folder, known = tmp_path_factory.mktemp("quantised"), {}

    def measure(type: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if type not in known:
            path = quantised(original, folder, FILES[type])
            assert types(path) == {"matrix": {type}, "vector": {"F32"}}
            known[type] = theirs(path, TEXT), ours(path, TEXT), ours(path, TEXT, "reference")
        return known[type]

    return measure


def report(name: str, llama: np.ndarray, cpu: np.ndarray, exact: np.ndarray) -> None:
    pairs = {"llama.cpp||bise": (llama, cpu), "llama.cpp||exact": (llama, exact),
             "exact||llama.cpp": (exact, llama), "exact||bise": (exact, cpu)}  # fmt: skip
    print(
        f"\n{name:7} entropy {entropy(exact):.2f}", *(f"KL({which}) {kl(p, q):.1e}" for which, (p, q) in pairs.items())
    )


@pytest.mark.parametrize("type", FILES)
def test_every_type(measured: Any, type: str) -> None:
    llama, cpu, exact = measured(type)
    report(type, llama, cpu, exact)
    assert 2 < entropy(exact) < 5.5, "neither uniform (6.2 nats) nor certain"
    if type == "F32":
        assert max(np.abs(llama - cpu).max(), np.abs(llama - exact).max()) <= 1e-3
    if type not in ("Q2_K", "Q3_K"):
        assert kl(llama, cpu) <= NEAR
        assert kl(llama, exact) <= NEAR
    assert kl(exact, cpu) <= kl(exact, llama) + WORSE


@pytest.mark.parametrize("type", ["Q2_K", "Q3_K"])
def test_below_four_bits(measured: Any, type: str) -> None:
    """The bound asked for begins at 4 bits; the same weights are read all the same, so bise keeps it here too."""
    llama, cpu, exact = measured(type)
    assert kl(llama, cpu) <= NEAR
    assert kl(llama, exact) <= NEAR


def test_a_mixture(original: Path, tmp_path: Path) -> None:
    """Q4_K_M as people download it: Q4_K, and Q6_K where llama.cpp thinks it matters."""
    path = quantised(original, tmp_path, "MOSTLY_Q4_K_M", pure=False)
    assert types(path)["matrix"] == {"Q4_K", "Q6_K"}
    llama, cpu, exact = theirs(path, TEXT), ours(path, TEXT), ours(path, TEXT, "reference")
    report("Q4_K_M", llama, cpu, exact)
    assert kl(llama, cpu) <= NEAR
    assert kl(exact, cpu) <= kl(exact, llama) + WORSE


STORY = (
    "Once upon a time, there was a little fox who lived in a forest. One day he found a red ball under a tree. "
    '"Whose ball is this?" he asked the bird. The bird did not know, so the fox took it to his mother. She smiled and '
    'said, "Let us look for the one who lost it." They walked until they met a small rabbit who was crying.'
)


@pytest.mark.parametrize("file_type", ["as it ships", "MOSTLY_Q4_K_M"])
def test_the_built_in_model(tmp_path: Path, file_type: str) -> None:
    """Trained weights on real text, within the window: llama.cpp has none for this architecture."""
    path = BUILT_IN if file_type == "as it ships" else quantised(BUILT_IN, tmp_path, file_type, pure=False)
    model = bise.load(path, kv="f32", threads=2)
    ids = model.tokenizer.encode(STORY, bos=True)
    assert 64 < len(ids) <= (model.config.sliding_window or len(ids))
    llama, cpu, exact = theirs(path, ids), model.logits(ids), ours(path, ids, "reference")
    report(file_type[-7:], llama, cpu, exact)
    assert kl(llama, cpu) <= NEAR
    assert kl(exact, cpu) <= kl(exact, llama) + WORSE
