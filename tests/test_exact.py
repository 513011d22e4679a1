"""What a token sees does not depend on how it was read: the cpu backend, to the last bit.

Cut into any chunks, beside any others, through a ring that has gone round, on any number of threads, before or after a
session was saved: the same bits. Nothing here has a tolerance.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise import _kernels, gguf
from bise.api import BUILT_IN
from bise.cache import Cache
from bise.engine import Engine, Request
from bise.model import forward
from bise.names import spelled
from bise.ops.cpu import Cpu
from bise.quant import TYPES, QTensor
from bise.sampler import Sampler, Sampling
from steps import Step, alone, mixed, read
from tiny import Arrays, tiny_config, tiny_keys, tiny_tensors, tiny_weights

CONFIG = tiny_config(dim=256, hidden_dim=512, n_heads=8, n_kv_heads=2, head_dim=32, sliding_window=40, context=1024)
WIDE = tiny_config(dim=512, hidden_dim=1536, n_heads=4, n_kv_heads=1, head_dim=128, sliding_window=40, context=1024)
CHUNKS = 1, 2, 3, 4, 5, 7, 31, 32, 33, 64, 100, 256
KV = "f32", "f16", "q8_0"
WEIGHTS = "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "mixture"


def ids(length: int, seed: int = 0, vocab: int = CONFIG.vocab_size) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, vocab, length)


def random_blocks(shape: tuple[int, ...], type: str, seed: int) -> QTensor:
    """Random bits in every field of a k-quant, its float16 scales such that values have a deviation of 1/sqrt(cols)."""
    kind, rng = TYPES[type], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // kind.block, kind.nbytes), np.uint8)

    def scaled(by: float) -> QTensor:
        for at, value in zip(kind.scales, (by, by * 7.5), strict=False):  # the minimum: half of what q * scale reaches
            blocks[:, at : at + 2] = np.float16(value).reshape(1).view(np.uint8)
        return QTensor(type, shape, blocks.reshape(-1))

    return scaled(1 / np.sqrt(shape[1]) / float(scaled(1.0).dequantise().std()))


def file_of(type: str) -> Any:
    """The type of each matrix. The mixture is Q4_K_M's: more bits for v, the second half of w2 and the output."""
    mixture = {"blk.1.ffn_down": "Q6_K", "blk.0.attn_v": "Q6_K", "output": "Q6_K"}
    return lambda name: mixture.get(name, "Q4_K") if type == "mixture" else type


def tensors(arrays: Arrays, type: str) -> dict[str, QTensor]:
    kind = file_of(type)
    random = {
        spelled(name, "gguf"): random_blocks(a.shape, kind(name), seed)
        for seed, (name, a) in enumerate(arrays.items())
        if a.ndim == 2 and kind(name).endswith("_K")
    }
    return {**tiny_tensors(arrays, lambda name: "F32" if kind(name).endswith("_K") else kind(name)), **random}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("exact")

    @cache
    def make(type: str = "mixture", kv: str = "f16", threads: int = 2, wide: bool = False) -> bise.Model:
        path = folder / f"{type}-{wide}.gguf"
        if not path.exists():
            config = WIDE if wide else CONFIG
            gguf.write(path, tiny_keys(config), tensors(tiny_weights(config), type))
        return bise.load(path, kv=kv, threads=threads)

    return make


def ring(model: bise.Model, sequences: int = 1, size: int | None = None) -> Cache:
    """A cache as the engine makes it, or with smaller rings, which go round more often: size >= window + chunk - 1."""
    made = Cache(model.ops, model.config, sequences, model.context, model.kv)
    if size:
        c, made.size = model.config, size
        made.rings = [model.ops.ring(sequences, c.n_kv_heads, size, c.head_dim, model.kv) for _ in made.rings]
    return made


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape and np.isfinite(a).all()
    wrong = np.flatnonzero((a != b).any(axis=-1))
    assert not len(wrong), (
        f"{len(wrong)} of {len(a)} rows differ, the first is {wrong[0]}, by {np.abs(a - b).max():.1e} at most"
    )


CASES = [(type, "f16", False) for type in WEIGHTS] + [("mixture", "f32", False), ("mixture", "q8_0", False)]
CASES += [("mixture", "f16", True), ("Q8_0", "q8_0", True), ("F32", "f32", True)]


@pytest.mark.parametrize(("type", "kv", "wide"), CASES)
def test_chunked_is_whole(load: Any, type: str, kv: str, wide: bool) -> None:
    """Every chunk size, against one pass over the whole text in a ring that never wraps."""
    model, text = load(type, kv, wide=wide), ids(270)
    want = model.logits(text)
    assert np.abs(want).max() > 1
    for chunk in CHUNKS:
        same(read(model, ring(model), [text], alone(len(text), chunk))[0], want)


@pytest.mark.parametrize("kv", KV)
def test_rolling_is_masked_full_attention(load: Any, kv: str) -> None:
    """1,000 tokens through rings of 320 slots (three times round) and 96 (ten times), against one of 1,024."""
    model, text = load(kv=kv), ids(1000)
    want = model.logits(text)
    assert ring(model).size == 320
    same(read(model, ring(model), [text], alone(1000, 256))[0], want)
    same(read(model, ring(model), [text], mixed([1000], 256, seed=1))[0], want)
    same(read(model, ring(model, size=96), [text], mixed([1000], 57, seed=2))[0], want)
    same(read(model, ring(model, size=1024), [text], mixed([1000], 256, seed=3))[0], want)


@pytest.mark.parametrize(("type", "kv", "wide"), CASES)
def test_batched_is_alone(load: Any, type: str, kv: str, wide: bool) -> None:
    """Prompts of unequal lengths together, prefill beside decode, then all decoding; each as if it were alone."""
    model, lengths = load(type, kv, wide=wide), [1, 7, 40, 111, 300]
    texts = [ids(n + 20, seed=n) for n in lengths]
    decode: list[Step] = [[(s, 1) for s in range(len(lengths))]] * 10
    some: list[Step] = (
        [[(s, 1) for s in (4, 1, 3)]] * 5 + [[(2, 6), (0, 1), (1, 3), (4, 5)]] + [[(s, 1) for s in (0, 2)]] * 4
    )
    got = read(model, ring(model, len(lengths)), texts, mixed(lengths, 90, seed=4) + decode + some)
    for mine, text in zip(got, texts, strict=True):
        same(mine, model.logits(text)[: len(mine)])


def test_many_clients_are_alone(load: Any) -> None:
    """32 sequences decoding at once, so that a step has as many rows as a chunk."""
    model = load()
    texts = [ids(30 + s, seed=s) for s in range(32)]
    steps = [[(s, 10 + s) for s in range(32)], *[[(s, 1) for s in range(32)]] * 20]
    for mine, text in zip(read(model, ring(model, 32), texts, steps), texts, strict=True):
        same(mine, model.logits(text))


@pytest.mark.parametrize(("type", "kv", "wide"), CASES)
def test_threads_change_nothing(load: Any, type: str, kv: str, wide: bool) -> None:
    text = ids(300)
    one, *more = (load(type, kv, threads, wide) for threads in (1, 2, 3))
    for model in more:
        same(model.logits(text), one.logits(text))
        same(read(model, ring(model), [text], alone(300, 33))[0], one.logits(text))


@pytest.mark.parametrize("isa", _kernels.isas())
def test_on_every_instruction_set(load: Any, isa: str) -> None:
    """Each has kernels of its own: chunks, neighbours and wraps once more, with all that this machine can run."""
    best, text = load(), ids(300)
    model = bise.Model(best.weights, best.config, Cpu(2, isa), best.context, best.kv)
    want = model.logits(text)
    assert np.abs(want - best.logits(text)).max() < 0.1
    for chunk in (1, 7, 100):
        same(read(model, ring(model, size=160), [text], alone(300, chunk))[0], want)
    texts = [text, ids(50, seed=1), ids(9, seed=2)]
    for mine, other in zip(read(model, ring(model, 3), texts, mixed([300, 50, 9], 40, seed=5)), texts, strict=True):
        same(mine, model.logits(other))


def test_wanted_rows_change_nothing(load: Any) -> None:
    """The engine asks for the last row of each part only: then the output meets 2 rows instead of 140."""
    model, texts = load(), [ids(100), ids(40, seed=1)]
    held = ring(model, 2)
    batch = held.batch([(1, 40), (0, 100)])
    tokens = np.concatenate([texts[1], texts[0]]).astype(np.int32)
    got = model.ops.numpy(forward(model.ops, model.config, model.parameters, tokens, batch))
    same(got, np.stack([model.logits(texts[1])[-1], model.logits(texts[0])[-1]]))


def tell(model: bise.Model, prompts: Sequence[np.ndarray], late: int = 0) -> list[tuple[list[int], list[float]]]:
    """Greedy continuations from one engine; request r is handed in `late` * r steps after the first."""
    engine = Engine(model.ops, model.config, model.parameters, ring(model, len(prompts)))
    requests = [
        Request(p.tolist(), Sampler(Sampling(temperature=0), model.config.vocab_size), 60, sequence=s)
        for s, p in enumerate(prompts)
    ]
    waiting, steps = list(requests), 0
    while waiting or engine.running:
        while waiting and steps >= late * waiting[0].sequence:
            engine.submit(waiting.pop(0))
        engine.step()
        steps += 1
    return [(r.tokens, r.logprobs) for r in requests]


@pytest.mark.parametrize("kv", KV)
def test_the_engine_batched_is_alone(load: Any, kv: str) -> None:
    """Requests that arrive while others decode: tokens and logprobs as if each had the machine to itself."""
    model = load(kv=kv)
    prompts = [ids(n, seed=n) for n in (5, 700, 1, 40, 290)]
    want = [tell(model, [p])[0] for p in prompts]
    assert tell(model, prompts) == want
    assert tell(model, prompts, late=3) == want


# sessions


def options(n: int) -> dict[str, Any]:
    return dict(max_tokens=n, temperature=0, ignore_eos=True)


ELSEWHERE = """
import json, sys, bise
path, prompt, n = json.loads(sys.argv[1])
c = bise.Session.load(path).generate(prompt, max_tokens=n, temperature=0, ignore_eos=True)
print(json.dumps([c.tokens, [x.hex() for x in c.logprobs], c.reused_tokens]))
"""


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("length", [20, 300, 700], ids=["in the window", "past it", "the ring has wrapped"])
def test_saved_session_is_uninterrupted(load: Any, tmp_path: Path, kv: str, length: int) -> None:
    """Saved after a first answer, gone on with in this process and in another: the same tokens, the same logprobs."""
    model, prompt, more, path = load(kv=kv), ids(length).tolist(), ids(9, seed=5).tolist(), tmp_path / "talk.session"
    session = model.session()
    session.generate(prompt, **options(30))
    session.save(path)
    want = session.generate(more, **options(50))
    assert want.reused_tokens >= length

    resumed = bise.Session.load(path, model).generate(more, **options(50))
    assert (resumed.tokens, resumed.logprobs, resumed.reused_tokens) == (want.tokens, want.logprobs, want.reused_tokens)

    asked = json.dumps([str(path), more, 50])
    out = subprocess.run([sys.executable, "-c", ELSEWHERE, asked], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    tokens, logprobs, reused = json.loads(out.stdout)
    assert (tokens, [float.fromhex(x) for x in logprobs], reused) == (want.tokens, want.logprobs, want.reused_tokens)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("length", [20, 300, 700])
def test_a_warm_cache_is_a_cold_one(load: Any, kv: str, length: int) -> None:
    """A prompt that shares its beginning with the one before, with whatever keys are left of it."""
    model, start = load(kv=kv), ids(length).tolist()
    for seed in (1, 2, 3):
        prompt = start + ids(5 * seed, seed=seed).tolist()
        warm, cold = model.generate(prompt, **options(25)), model.session().generate(prompt, **options(25))
        assert (warm.tokens, warm.logprobs) == (cold.tokens, cold.logprobs)
        assert cold.reused_tokens == 0 and (seed == 1 or warm.reused_tokens >= length)


# any order of events


def refilled(model: bise.Model, held: Cache) -> Cache:
    """Another cache that was given what `held` saved; every other slot holds rubbish."""
    fresh = ring(model, len(held.lengths), held.size)
    for _, values, scales in (half for r in fresh.rings for half in r.halves):
        values[...] = 77
        if scales is not None:
            scales[...] = 77
    for s, length in enumerate(held.lengths):
        fresh.restore(s, length, held.save(s, length), "memory")
    return fresh


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_events(tmp_path: Path, seed: int) -> None:
    """Random shapes and rings as small as they may be; sequences read, go back, and move to another cache, in any order."""
    rng = np.random.default_rng(seed)
    head_dim, groups, window = (int(rng.choice(x)) for x in ((8, 32, 40, 64, 96, 128), (1, 2, 3), (1, 5, 32, 33, 70)))
    config = tiny_config(
        n_heads=groups * int(rng.choice((1, 3, 4, 8))), n_kv_heads=groups, head_dim=head_dim, sliding_window=window
    )
    gguf.write(tmp_path / "m.gguf", tiny_keys(config), tiny_tensors(tiny_weights(config, seed), "F16"))
    kv = str(rng.choice(KV if head_dim % 32 == 0 else KV[:2]))
    model, most = bise.load(tmp_path / "m.gguf", kv=kv, threads=2), int(rng.integers(1, 80))
    texts = [ids(500, seed=s) for s in range(3)]
    held = ring(model, 3, size=-(-(window + most - 1) // 32) * 32)
    for event in rng.random(40):
        s = int(rng.integers(3))
        if event < 0.15:
            keep = max(0, held.lengths[s] - int(rng.integers(40)))
            if held.rewind(s, keep):
                texts[s] = np.concatenate([texts[s][:keep], ids(500 - keep, seed=int(event * 1e9))])
        elif event < 0.2:
            held = refilled(model, held)
        else:
            before = list(held.lengths)
            step = [(q, min(int(rng.integers(1, most + 1)), 500 - before[q])) for q in range(3) if rng.random() < 0.7]
            step = [(q, n) for q, n in step if n]
            got = read(model, held, texts, [step] if step else [])
            for q, _ in step:
                same(got[q], model.logits(texts[q][: held.lengths[q]])[before[q] :])


# the built-in model: real weights, real text


@pytest.fixture(scope="module")
def puff() -> bise.Model:
    if not BUILT_IN.exists():
        pytest.fail(f"the built-in model is missing: {BUILT_IN}")
    return bise.load()


def test_puff(puff: bise.Model, tmp_path: Path) -> None:
    """Chunks, wraps, neighbours and a saved session on the model that ships."""
    window, vocab = puff.config.sliding_window or 256, puff.config.vocab_size
    prompts = [
        puff.tokenizer.encode("Once upon a time, there was a little fox", bos=True),
        ids(window + 50, 1, vocab),
        ids(7, 2, vocab),
    ]
    texts = [np.array(p) for p in prompts]
    want = [puff.logits(t) for t in texts]
    got = read(puff, ring(puff, 3), texts, mixed([len(t) for t in texts], 61, seed=6))
    for mine, whole in zip(got, want, strict=True):
        same(mine, whole)
    session = puff.session()
    session.generate(prompts[0], **options(window + 20))
    session.save(tmp_path / "puff.session")
    more = puff.tokenizer.encode(" The fox")
    asked = session.generate(more, **options(20))
    resumed = bise.Session.load(tmp_path / "puff.session", puff).generate(more, **options(20))
    assert (asked.tokens, asked.logprobs) == (resumed.tokens, resumed.logprobs)
