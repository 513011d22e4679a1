"""Judging: against llama.cpp's and transformers' logits of the same ids, and plain float64 formulas."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise.api import BUILT_IN
from bise.errors import BiseError, FormatError, RequestError
from bise.evaluate import common_chunks, divergence, full_logits, kept, perplexity
from bise.evaluate.kept import Kept, find, make_room, packed, write
from bise.evaluate.run import parts
from bise.score import Divergence, compare
from bise.texts import Cut
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf

CONFIG = tiny_config(vocab_size=320, sliding_window=24, dim=128, head_dim=32)
TEXT = "the north wind and the sun had a quarrel about which of them was the stronger " * 12
CUT = Cut(context=48)
STORY = (
    "Once upon a time there was a little girl named Lily. She had a red ball and a dog. One day they went to the park. "
    "The dog ran after the ball, but it fell into the water. Lily was sad. A big boy came and helped her. "
) * 4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.longdouble)
    z -= z.max(-1, keepdims=True)
    return (z - np.log(np.exp(z).sum(-1, keepdims=True))).astype(np.float64)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("full") / "full.gguf", CONFIG, tiny_weights(CONFIG))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("small") / "small.gguf", CONFIG, tiny_weights(CONFIG), "Q4_0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(path: Path, **options: Any) -> bise.Model:
    return bise.load(path, **{"threads": 1, **options})


# --- perplexity


@pytest.mark.parametrize("cut", [CUT, Cut(48, all_positions=True), Cut(48, stride=7, most=9), Cut(600), Cut(9)])
def test_perplexity_is_that_of_each_chunk_alone(full: Path, cut: Cut) -> None:
    """However many chunks are read at once: rows, targets and positions fall into their places."""
    model = opened(full, kv="f32")
    chunks = common_chunks(model.weights, model.weights, TEXT, cut)
    losses, positions = [], []
    for ids in chunks:
        logp = log_softmax(model.logits(ids.tolist()))
        for row in range(cut.first, cut.context - 1):
            losses.append(-logp[row, ids[row + 1]])
            positions.append(row + 1)
    told: list[tuple[int, int, str]] = []
    found = perplexity(model, chunks, cut, lambda *now: told.append(now))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-6)
    assert found.tokens == len(chunks) * cut.scored
    assert [p for part in parts(model, chunks, cut) for p in part.positions.tolist()] == positions
    assert told[-1][:2] == (chunks.size, chunks.size) and told[-1][2].startswith("perplexity ")


def theirs(path: Path, ids: list[int]) -> np.ndarray:
    """(T,) -> (T, vocab) of llama.cpp: one pass, keys and values in f32."""
    from llama import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=len(ids), n_batch=len(ids), n_threads=1, logits_all=True, verbose=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)  # fmt: skip
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    model.close()
    return logits


@pytest.mark.parametrize("which", ["tiny", "puff"])
def test_perplexity_is_llama_cpps(full: Path, which: str) -> None:
    """The same ids, the same chunks, its logits: within what Q8_0's rounded activations may differ in (puff), and to
    float32's digits (tiny, F32). llama.cpp knows no window in a llama file, so it is switched off."""
    path, text, near = (full, TEXT, 2e-5) if which == "tiny" else (BUILT_IN, STORY, 2e-3)
    model = opened(path, window="none", kv="f32")
    cut = Cut(context=96, most=2)
    chunks = common_chunks(model.weights, model.weights, text, cut)
    losses = [
        -log_softmax(logits)[row, ids[row + 1]]
        for ids, logits in ((ids, theirs(path, ids.tolist())) for ids in chunks)
        for row in range(48, 95)
    ]
    ours = perplexity(model, chunks, cut)
    assert ours.perplexity.value == pytest.approx(np.exp(np.mean(losses)), rel=near)
    assert np.abs(ours.losses - losses).max() < 50 * near


def test_the_tokens_are_llama_cpps() -> None:
    """Its tokeniser gives the same row of ids for the whole text, BOS in front, as its perplexity tool asks for it."""
    from llama import llama_cpp

    model = llama_cpp.Llama(str(BUILT_IN), vocab_only=True, verbose=False)
    row = model.tokenize(STORY.encode(), add_bos=True)
    model.close()
    weights = Weights.open(BUILT_IN)
    chunks = common_chunks(weights, weights, STORY, Cut(context=32))
    assert chunks[:, 1:].tolist() == [row[at + 1 : at + 32] for at in range(0, len(row) - 31, 32)]
    assert set(chunks[:, 0].tolist()) == {row[0]}


def test_kl_is_that_of_transformers_logits(full: Path, small: Path, tmp_path: Path) -> None:
    """The full model's logits are transformers', window included; the other's are ours; the formula is NumPy's."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = write_tiny_hf(tmp_path / "hf", CONFIG, tiny_weights(CONFIG))
    hf = transformers.MistralForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model, weights = opened(small, kv="f32"), Weights.open(full)
    chunks = common_chunks(weights, model.weights, TEXT, CUT)[:3]
    with torch.no_grad():
        logits = hf(torch.from_numpy(chunks.astype(np.int64))).logits.numpy()
    p, q = (log_softmax(x)[:, CUT.first : -1] for x in (logits, np.stack([model.logits(c.tolist()) for c in chunks])))
    expected = (np.exp(p) * (p - q)).sum(-1)
    held = full_logits(weights, chunks, CUT, {}, lambda path: opened(full, kv="f32"))
    found = divergence(model, held, chunks, CUT)
    assert found.kl.value == pytest.approx(expected.mean(), rel=1e-4) and expected.mean() > 1e-3
    assert found.largest == pytest.approx(expected.max(), rel=1e-3)
    assert found.same_top.value == (p.argmax(-1) == q.argmax(-1)).mean()
    gone = np.take_along_axis(np.exp(q) - np.exp(p), chunks[:, CUT.first + 1 :, None], -1)
    assert found.change.value == pytest.approx(gone.mean(), rel=1e-3)


def test_kl_is_what_llama_cpp_would_find(tmp_path: Path) -> None:
    """Both files' logits are llama.cpp's: nothing of ours but the formula. What it finds is what we find, to what its
    arithmetic and ours differ in."""
    config = tiny_config(vocab_size=320, dim=128, head_dim=32)
    f32, q4_0 = (
        write_tiny_gguf(tmp_path / f"{kind}.gguf", config, tiny_weights(config), kind) for kind in ("F32", "Q4_0")
    )
    model, weights, cut = opened(q4_0, kv="f32"), Weights.open(f32), Cut(96, most=3)
    chunks = common_chunks(weights, model.weights, TEXT, cut)
    rows = slice(cut.first, cut.context - 1)
    expected = Divergence()
    for ids in chunks:
        p, q = (theirs(path, ids.tolist())[rows] for path in (f32, q4_0))
        expected.add(p, q, ids[cut.first + 1 :])
    found = divergence(model, full_logits(weights, chunks, cut, {}, lambda path: opened(f32, kv="f32")), chunks, cut)
    assert found.kl.value == pytest.approx(expected.kl.value, rel=0.03) and found.kl.value > 0.01
    assert found.ratio.value == pytest.approx(expected.ratio.value, rel=0.02)


# --- the full model's logits on disk


def test_the_full_model_is_run_once(full: Path, small: Path, own_cache: Path) -> None:
    model, weights, runs = opened(small), Weights.open(full), []

    def load(path: Path) -> bise.Model:
        runs.append(path)
        return opened(full)

    chunks = common_chunks(weights, model.weights, TEXT, CUT)
    first, again = (divergence(model, full_logits(weights, chunks, CUT, {}, load), chunks, CUT) for _ in range(2))
    assert len(runs) == 1 and runs[0].parent == own_cache and first.facts() == again.facts()
    itself = divergence(opened(full), full_logits(weights, chunks, CUT, {}, load), chunks, CUT)
    assert itself.same_top.value == 1 and 0 <= itself.kl.value < 1e-8 and itself.largest < 1e-7
    assert len(runs) == 1
    assert list(own_cache.iterdir()) == runs  # and nothing half written beside it


def test_other_models_texts_and_cuts_are_other_files(full: Path, small: Path) -> None:
    weights, paths = Weights.open(full), []

    def load(path: Path) -> bise.Model:
        paths.append(path)
        return opened(full)

    chunks = common_chunks(weights, weights, TEXT, CUT)
    full_logits(weights, chunks, CUT, {"window": 24}, load)
    full_logits(weights, chunks, CUT, {"window": None}, load)
    full_logits(weights, chunks[:-1], CUT, {"window": 24}, load)
    full_logits(weights, chunks, Cut(48, all_positions=True), {"window": 24}, load)
    full_logits(Weights.open(small), chunks, CUT, {"window": 24}, load)
    assert len(set(paths)) == 5
    paths[1].write_bytes(paths[0].read_bytes())  # one in the other's place is seen, too
    full_logits(weights, chunks, CUT, {"window": None}, load)
    assert paths[5] == paths[1]
    with pytest.raises(FormatError, match="the logits of another model, text or cut"):
        Kept(paths[0], "{}")


def test_a_torn_file_is_made_anew(full: Path) -> None:
    weights, runs = Weights.open(full), []

    def load(path: Path) -> bise.Model:
        runs.append(path)
        return opened(full)

    chunks = common_chunks(weights, weights, TEXT, CUT)
    full_logits(weights, chunks, CUT, {}, load)
    whole = runs[0].read_bytes()
    runs[0].write_bytes(whole[: len(whole) // 2])
    full_logits(weights, chunks, CUT, {}, load)
    assert len(runs) == 2 and runs[0].read_bytes() == whole


def test_what_breaks_off_leaves_nothing(full: Path, own_cache: Path) -> None:
    weights = Weights.open(full)
    chunks = common_chunks(weights, weights, TEXT, CUT)

    def stop(done: int, total: int, title: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        full_logits(weights, chunks, CUT, {}, lambda path: opened(full), stop)
    assert list(own_cache.iterdir()) == []


def test_what_16_bits_cost() -> None:
    """Logits of the size that models give: the divergence of the kept ones from the true ones is some 2e-9 nats, a
    hundredth of what log-probabilities lose as 16-bit floats."""
    logits = np.random.default_rng(0).normal(0, 3, (400, 4000)).astype(np.float32)
    logits[::2, 1] = logits[::2].max(1) + 3
    codes, scale = packed(logits)
    targets = np.zeros(400, int)
    ours = compare(logits, (codes.astype(np.float32) - 65535) * scale[:, None], targets)
    halves = compare(logits, log_softmax(logits).astype(np.float16).astype(np.float32), targets)
    assert ours.same_top.value == 1 and ours.largest < 1e-8 and ours.kl.value < halves.kl.value / 50


def test_the_likeliest_token_stays_the_likeliest() -> None:
    """Also where another is as likely to the last bit of a float."""
    logits = np.random.default_rng(1).normal(0, 3, (400, 50)).astype(np.float32)
    best = np.random.default_rng(2).permuted(np.tile(np.arange(50), (400, 1)), axis=1)[:, :2]
    rows = np.arange(400)
    logits[rows, best[:, 1]] = logits[rows, best[:, 0]] = logits.max(1) + 1
    logits[rows, best[:, 0]] = np.nextafter(logits[rows, best[:, 0]], np.float32(np.inf))
    codes, scale = packed(logits)
    assert (codes.argmax(1) == best[:, 0]).all() and ((codes == 65535).sum(1) == 1).all()
    assert compare(logits, (codes.astype(np.float32) - 65535) * scale[:, None], best[:, 0]).largest < 1e-7


def test_deep_tails_and_flat_rows_are_kept() -> None:
    logits = np.array([[0, -5, -1000, -np.inf], [1, 1, 1, 1]], np.float32)
    codes, scale = packed(logits)
    assert codes[0, 2:].tolist() == [0, 0] and codes[0, 0] == 65535
    assert compare(logits, (codes.astype(np.float32) - 65535) * scale[:, None], np.array([0, 1])).largest < 1e-8
    with pytest.raises(RequestError, match="NaN or infinite"):
        packed(np.array([[0, np.nan]], np.float32))


def test_kept_logits_are_bounded(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one unused for longest goes; what will never fit is refused with a remedy."""
    own_cache.mkdir()
    for i, name in enumerate("abc"):
        path = own_cache / f"{name}.logits"
        write(path, name, [(4, 100)], lambda: np.zeros((4, 100), np.float32))
        os.utime(path, (i, i))
    size = (own_cache / "a.logits").stat().st_size
    monkeypatch.setattr(kept, "MOST", 3 * size)
    assert find(own_cache / "a.logits", "a") is not None  # used just now
    make_room(size, 10)
    assert sorted(path.name for path in own_cache.iterdir()) == ["a.logits", "c.logits"]
    with pytest.raises(RequestError, match=r"at most .* are kept: pass --chunks with less than 10"):
        make_room(4 * size, 10)
    stale = own_cache / ".x.logits.abc.part"
    stale.write_bytes(b"")
    os.utime(stale, (0, 0))
    make_room(1, 10)
    assert not stale.exists()


def test_a_full_disk_is_foreseen(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(RequestError, match="has 10 bytes free, logits take 1,000: pass --chunks"):
        make_room(1000, 5)


def test_a_cache_that_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("BISE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(BiseError, match="set BISE_CACHE"):
        make_room(1, 1)


# --- models that do not compare


def test_other_tokens_are_refused(full: Path, tmp_path: Path) -> None:
    pieces = list(Weights.open(full).metadata["tokenizer.ggml.tokens"])
    pieces[261], pieces[262] = pieces[262], pieces[261]
    keys = {"tokenizer.ggml.tokens": pieces}
    other = write_tiny_gguf(tmp_path / "o.gguf", CONFIG, tiny_weights(CONFIG), **keys)
    with pytest.raises(RequestError, match="makes other tokens of this text"):
        common_chunks(Weights.open(full), Weights.open(other), TEXT, CUT)


def test_no_tokenizer_is_said(full: Path, tmp_path: Path) -> None:
    folder = write_tiny_hf(tmp_path / "hf", CONFIG, tiny_weights(CONFIG))
    with pytest.raises(RequestError, match="has no tokenizer"):
        common_chunks(Weights.open(full), Weights.open(folder), TEXT, CUT)


def test_another_number_of_logits_is_refused(full: Path, tmp_path: Path) -> None:
    config = tiny_config(vocab_size=352, dim=128, head_dim=32)
    other = write_tiny_gguf(tmp_path / "other.gguf", config, tiny_weights(config))
    weights = Weights.open(full)
    chunks = common_chunks(weights, weights, TEXT, CUT)
    held = full_logits(weights, chunks, CUT, {}, lambda path: opened(full))
    with pytest.raises(RequestError, match="gives 352 logits a token, the full model 320"):
        divergence(opened(other), held, chunks, CUT)
