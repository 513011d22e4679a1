"""bench/shape.py: files of random weights that both engines take for a Mistral 7B."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import bise
from bise.config import Config
from bise.quant import QTensor

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("shape", ROOT / "bench" / "shape.py")
assert spec and spec.loader
shape = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shape)


@pytest.mark.parametrize("type", shape.CHOICES[1:])
def test_weights_have_the_usual_size(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "POOL", 1 << 16)
    values = QTensor(type, (1, shape.POOL), shape.random_blocks.__wrapped__(type)).dequantise()
    assert values.std() == pytest.approx(0.02, rel=0.05) and abs(values.mean()) < 0.003


def test_q4_k_m_keeps_six_bits_where_llama_cpp_does() -> None:
    """All of 32 layers: 16 of them, in attn_v and ffn_down; and the output."""
    kinds = {name: shape.type_of(name, "Q4_K_M", 32) for name in ("output", "token_embd", "blk.0.attn_q")}
    assert kinds == {"output": "Q6_K", "token_embd": "Q4_K", "blk.0.attn_q": "Q4_K"}
    fine = [i for i in range(32) if shape.type_of(f"blk.{i}.ffn_down", "Q4_K_M", 32) == "Q6_K"]
    assert fine == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert fine == [i for i in range(32) if shape.type_of(f"blk.{i}.attn_v", "Q4_K_M", 32) == "Q6_K"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with narrower layers."""
    narrow = {"dim": 256, "hidden_dim": 512, "n_heads": 8, "n_kv_heads": 2, "head_dim": 32}
    monkeypatch.setattr(shape, "Config", lambda **shape_: Config(**{**shape_, **narrow}))
    shape.write(tmp_path / "small.gguf", "Q4_K_M", 2)
    return tmp_path / "small.gguf"


def test_bise_reads_it(small: Path) -> None:
    model = bise.load(small, backend="reference", context=64)
    assert (model.config.sliding_window, model.config.context, model.config.n_layers) == (4096, 32_768, 2)
    assert model.tokenizer.vocab_size == 32_000 and model.tokenizer.decode(model.tokenizer.encode("A fox.")) == "A fox."
    logits = model.logits([1, 2, 3])
    assert np.isfinite(logits).all() and logits.std() > 0.01


def test_llama_cpp_reads_it(small: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from bise.bench.llama_cpp import LlamaCpp

    player = LlamaCpp(str(small), 1)
    player.room(1, 64)
    player.prefill(3)
    got = np.ctypeslib.as_array(player.c.llama_get_logits_ith(player.context, -1), (32_000,)).copy()
    ids = [10, 17, 24]
    expected = bise.load(small, backend="reference", context=64).logits(ids)[-1]
    assert np.corrcoef(got, expected)[0, 1] > 0.99
