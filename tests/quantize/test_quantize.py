"""A model, quantised and written: what is in the file, who can read it, and what is refused."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest

import bise
from bise import quantize
from bise.errors import BiseError, FormatError
from bise.ops.cpu import Cpu
from bise.quant import Floats, QTensor
from bise.quantize import Informed, tensors
from bise.quantize.recipe import RECIPES
from bise.weights import Weights
from tiny import Arrays, tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf

CONFIG = tiny_config(dim=256, hidden_dim=512, n_layers=3, n_heads=8, n_kv_heads=2, head_dim=32, vocab_size=512)
IDS = np.random.default_rng(7).integers(3, CONFIG.vocab_size, 60).tolist()


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Of a real model's proportions: see test_parity_llama_cpp.py."""
    found = tiny_weights(CONFIG, seed=3)
    found["token_embd"] *= 16
    return found


@pytest.fixture(scope="module")
def original(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {"general.license": "apache-2.0", "quantize.imatrix.file": "another", "split.no": 0, "split.count": 0}
    return write_tiny_gguf(tmp_path_factory.mktemp("original") / "bf16.gguf", CONFIG, arrays, "BF16", **keys)


def informed(arrays: Arrays) -> Informed:
    rng = np.random.default_rng(1)
    means = {own: rng.exponential(size=w.shape[1]) for own, w in arrays.items() if w.ndim == 2 and own != "token_embd"}
    return Informed(means, "means.gguf", "stories.txt", 40)


def divergence(path: Path, expected: np.ndarray) -> float:
    """Mean KL divergence in nats from the logits of the original."""
    z = bise.load(path, backend="reference").logits(IDS).astype(np.float64)
    p, q = (v - v.max(axis=1, keepdims=True) for v in (expected.astype(np.float64), z))
    p, q = (v - np.log(np.exp(v).sum(axis=1, keepdims=True)) for v in (p, q))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


MOST = {"Q8_0": 5e-4, "Q6_K": 4e-3, "Q5_K_M": 0.015, "Q5_K_S": 0.015, "Q4_K_M": 0.05, "Q4_K_S": 0.05, "Q4_0": 0.08,
        "IQ4_NL": 0.06, "IQ4_XS": 0.06, "Q3_K_M": 0.2, "Q2_K": 0.5}  # fmt: skip


@pytest.mark.parametrize("name", MOST)
def test_the_file_says_what_the_original_says(name: str, original: Path, tmp_path: Path) -> None:
    out, expected = tmp_path / "q.gguf", bise.load(original, backend="reference").logits(IDS)
    made = quantize.quantize(original, out, name)
    found = gguf.GGUFReader(out)
    for tensor in found.tensors:
        own, kind = tensor.name.removesuffix(".weight"), gguf.GGMLQuantizationType(tensor.tensor_type)
        assert made.types[own] == kind.name
        theirs = gguf.quants.dequantize(tensor.data, kind).astype(np.float32)
        ours = Weights.open(out)[own].dequantise().reshape(theirs.shape)
        assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), own
    assert divergence(out, expected) < MOST[name]
    assert made.nbytes == sum(int(tensor.n_bytes) for tensor in found.tensors)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_llama_cpp_reads_it(name: str, original: Path, tmp_path: Path) -> None:
    from llama import llama_cpp

    out = tmp_path / "q.gguf"
    quantize.quantize(original, out, name)
    model = llama_cpp.Llama(str(out), n_ctx=64, n_batch=64, logits_all=True, verbose=False)
    model.eval(IDS)
    theirs = np.array(model.scores[: len(IDS)])
    model.close()
    assert divergence(out, theirs) < 5e-3  # activations are rounded to 8 bits there


def test_keys_are_carried_and_what_was_done_is_said(original: Path, arrays: Arrays, tmp_path: Path) -> None:
    quantize.quantize(original, tmp_path / "q.gguf", "Q4_K_M", informed(arrays))
    before, keys = Weights.open(original).metadata, Weights.open(tmp_path / "q.gguf").metadata
    assert keys["general.license"] == "apache-2.0" and keys["tokenizer.ggml.tokens"] == before["tokenizer.ggml.tokens"]
    assert (keys["general.file_type"], keys["general.quantization_version"]) == (15, 2)
    assert {key: value for key, value in keys.items() if key.startswith(("quantize.", "split."))} == {
        "quantize.imatrix.file": "means.gguf", "quantize.imatrix.dataset": "stories.txt",
        "quantize.imatrix.entries_count": 22, "quantize.imatrix.chunks_count": 40,
    }  # fmt: skip
    quantize.quantize(original, tmp_path / "plain.gguf", "Q4_K_M")
    assert not [key for key in Weights.open(tmp_path / "plain.gguf").metadata if key.startswith("quantize.")]


def test_importance_makes_what_counts_smaller(original: Path, arrays: Arrays, tmp_path: Path) -> None:
    known = informed(arrays)
    for name, informed_by in (("with", known), ("without", None)):
        quantize.quantize(original, tmp_path / f"{name}.gguf", "Q4_K_S", informed_by)
    with_it, without = (Weights.open(tmp_path / f"{name}.gguf") for name in ("with", "without"))
    for own, means in known.means.items():
        errors = [np.square(found[own].dequantise() - arrays[own]) @ means for found in (with_it, without)]
        assert errors[0].sum() < errors[1].sum(), own


def test_from_a_folder_as_from_a_gguf(arrays: Arrays, tmp_path: Path) -> None:
    pytest.importorskip("bise.release")
    folder = write_tiny_hf(tmp_path / "hf", CONFIG, arrays, "BF16")
    file = write_tiny_gguf(tmp_path / "bf16.gguf", CONFIG, arrays, "BF16")
    for source, out in ((folder, tmp_path / "a.gguf"), (file, tmp_path / "b.gguf")):
        quantize.quantize(source, out, "Q4_K_M")
    a, b = Weights.open(tmp_path / "a.gguf"), Weights.open(tmp_path / "b.gguf")
    matrices = [own for own, entry in b.entries.items() if len(entry.shape) == 2]
    assert all(a[own].type == b[own].type and np.array_equal(a[own].data, b[own].data) for own in matrices)
    assert a.metadata["general.file_type"] == 15 and a.config.sliding_window == CONFIG.sliding_window


def test_strips_make_no_difference(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize.quantize(original, tmp_path / "a.gguf", "Q3_K_M")
    monkeypatch.setattr(tensors, "STRIP", 1)
    quantize.quantize(original, tmp_path / "b.gguf", "Q3_K_M")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_keep(original: Path, tmp_path: Path) -> None:
    kept = {"output": "Q8_0", "attn_v": "F16", "blk.1.ffn_up": "Q6_K"}
    quantize.quantize(original, tmp_path / "q.gguf", "Q2_K", keep=kept)
    types = {own: entry.type for own, entry in Weights.open(tmp_path / "q.gguf").entries.items()}
    assert [types[own] for own in ("output", "blk.0.attn_v", "blk.2.attn_v", "blk.1.ffn_up", "blk.0.ffn_up")] == [
        "Q8_0", "F16", "F16", "Q6_K", "Q2_K"]  # fmt: skip


def test_another_rounding_can_take_the_search_s_place(original: Path, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def round(own: str, values: Floats, type: str, importance: Floats | None) -> QTensor:
        seen[own] = seen.get(own, 0) + len(values)
        return Cpu(1).quantise(values * 0, type, importance)

    quantize.quantize(original, tmp_path / "q.gguf", "Q4_K_S", round=round)
    weights = Weights.open(tmp_path / "q.gguf")
    assert seen == {own: entry.shape[0] for own, entry in weights.entries.items() if len(entry.shape) == 2}
    assert not weights["blk.1.ffn_down"].dequantise().any()


def test_what_is_quantised_already_is_said(original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantize.quantize(original, tmp_path / "q8.gguf", "Q8_0")
    made = quantize.quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_K_S")
    assert made.again == ["Q8_0"] and "Q8_0: quantised already" in caplog.text
    again = quantize.quantize(tmp_path / "q4.gguf", tmp_path / "same.gguf", "Q4_K_S")
    assert (
        again.again == []
        and Weights.open(tmp_path / "same.gguf").fingerprint == Weights.open(tmp_path / "q4.gguf").fingerprint
    )


def test_progress_ends_at_the_end(original: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    quantize.quantize(original, tmp_path / "q.gguf", "Q4_0", progress=lambda *call: calls.append(call))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]


def refused(words: str, original: Path, out: Path, name: str = "Q4_K_M", **more: object) -> None:
    with pytest.raises(BiseError, match=words):
        quantize.quantize(original, out, name, **more)  # type: ignore[arg-type]


def test_refusals(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "q.gguf"
    refused("is the model itself", original, original)
    refused("no type 'Q9'", original, out, "Q9")
    refused("no folder", original, tmp_path / "none" / "q.gguf")
    refused("with .gguf at its end", original, tmp_path / "q.bin")
    refused("expected a type, one of F32", original, out, keep={"output": "Q4_K_M"})
    refused("no such matrix here, there are token_embd, attn_q", original, out, keep={"ffn_gate_exps": "Q8_0"})
    refused("256 columns, the model 512", original, out, informed=Informed({"blk.0.ffn_down": np.ones(256)}))
    refused("no such matrix", original, out, informed=Informed({"blk.7.ffn_down": np.ones(512)}))
    refused("expected finite values", original, out, informed=Informed({"output": np.full(256, np.nan)}))
    narrow = tiny_config(n_layers=1)
    small = write_tiny_gguf(tmp_path / "small.gguf", narrow, tiny_weights(narrow))
    refused("rows of 64, no whole number", small, out, keep={"attn_q": "Q4_K"})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    refused("bytes are needed, 1,000 are free", original, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf"]
    out.write_bytes(b"mine")
    refused("exists: name another", original, out)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["Q4_K_M", "Q8_0"])
def test_a_bad_value_is_named_with_its_tensor_and_row(
    name: str, arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {**arrays, "blk.1.ffn_up": arrays["blk.1.ffn_up"].copy()}
    bad["blk.1.ffn_up"][200, 5] = np.nan
    path = write_tiny_gguf(tmp_path / "bad.gguf", CONFIG, bad)
    with pytest.raises(FormatError, match=r"bad.gguf: tensor 'blk.1.ffn_up': row 200 holds (a NaN|nan)"):
        quantize.quantize(path, tmp_path / "q.gguf", name)
    monkeypatch.setattr(tensors, "STRIP", 1)
    with pytest.raises(FormatError, match=r"'blk.1.ffn_up', rows from 192 on: row 8 "):
        quantize.quantize(path, tmp_path / "q.gguf", name)
    assert [found.name for found in tmp_path.iterdir()] == ["bad.gguf"]


def test_a_plan_reads_no_weights(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights.open(original)
    monkeypatch.setattr(QTensor, "dequantise", lambda self: pytest.fail("a weight was read"))
    made = quantize.plan(weights, tmp_path / "q.gguf", "Q4_K_M")
    assert 4 < made.bits < 6 and not (tmp_path / "q.gguf").exists()
    assert sum(size for _, size in made.by_type().values()) == made.nbytes
    assert set(RECIPES) > set(MOST)
