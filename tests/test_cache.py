"""The rolling buffer: what it holds, what it forgets, what it costs."""

from dataclasses import replace

import numpy as np
import pytest

from bise.cache import CHUNK, Batch, Cache, cache_bytes, ring_size, whole
from bise.config import Config
from bise.errors import ContextError, FormatError, RequestError
from bise.ops import TILE
from bise.ops.reference import Reference

OPS = Reference()
CONFIG = Config(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, hidden_dim=64, vocab_size=50, sliding_window=40
)
MISTRAL = Config(4096, 32, 32, 8, 128, 14336, 32_000, sliding_window=4096)


def vectors(n: int, start: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v of positions start..start+n-1, the same whenever they are asked for."""
    rows = [np.random.default_rng(p).normal(size=(4 + 2 + 2) * 32) for p in range(start, start + n)]
    q, k, v = np.split(np.array(rows, np.float32), [128, 192], axis=1)
    return q, k, v


def attend_in_chunks(cache: Cache, total: int, sizes: list[int], sequence: int = 0) -> np.ndarray:
    out, at = [], 0
    while at < total:
        n = min(sizes[len(out) % len(sizes)], total - at)
        batch = cache.batch([(sequence, n)])
        out.append([batch.attend(OPS, i, *vectors(n, at)) for i in range(2)][-1])
        cache.advance(batch)
        at += n
    return np.concatenate(out) if out else np.empty((0, 128), np.float32)


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("sizes", [[1], [7], [33, 1], [CHUNK], [100, 3, 250]])
def test_a_wrapped_ring_equals_masked_full_attention(kv: str, sizes: list[int]) -> None:
    cache = Cache(OPS, CONFIG, context=2000, kv=kv)
    assert cache.size < 900
    got = attend_in_chunks(cache, 900, sizes)
    want = whole(OPS, CONFIG, [900], kv).attend(OPS, 0, *vectors(900))
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_a_window_of_w_sees_w_tokens_itself_included() -> None:
    """Values are the positions themselves, scores all alike: the mean of what is seen tells what was seen."""
    ring = OPS.ring(1, 2, 64, 32, "f32")
    spans = np.array([[0, 0, 60, 0]], np.int32)
    positions = np.repeat(np.arange(60, dtype=np.float32)[:, None], 64, axis=1)
    OPS.store(ring, spans, np.zeros_like(positions), positions)
    out = OPS.attend(np.zeros((60, 128), np.float32), ring, spans, 5)[:, 0]
    np.testing.assert_allclose(out, [np.arange(max(0, i - 4), i + 1).mean() for i in range(60)], rtol=1e-6)


def test_ring_sizes_hold_window_and_chunk_in_whole_tiles() -> None:
    assert ring_size(MISTRAL, 32_768) == 4352 and 4096 + CHUNK - 1 <= 4352
    assert ring_size(MISTRAL, 1000) == 1024  # never more than the context needs
    assert ring_size(replace(MISTRAL, sliding_window=None), 32_768) == 32_768
    assert all(ring_size(replace(CONFIG, sliding_window=w), 10_000) % TILE == 0 for w in range(1, 100))


def test_memory_of_mistral_at_32k() -> None:
    """The paper's figure: an eighth of full attention, plus the chunk."""
    gib = 2**30
    assert cache_bytes(replace(MISTRAL, sliding_window=None), 32_768) == 4 * gib
    assert cache_bytes(MISTRAL, 32_768) <= 0.56 * gib
    assert cache_bytes(MISTRAL, 32_768, "q8_0") <= 0.3 * gib


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
def test_the_memory_announced_is_the_memory_taken(kv: str) -> None:
    cache = Cache(OPS, CONFIG, sequences=3, context=500, kv=kv)
    taken = sum(a.nbytes for ring in cache.rings for _, *pair in ring.halves for a in pair if a is not None)
    assert taken == cache.nbytes == 3 * cache_bytes(CONFIG, 500, kv)


def test_sequences_do_not_touch_each_other() -> None:
    alone, together = Cache(OPS, CONFIG, 1, 600), Cache(OPS, CONFIG, 3, 600)
    want = attend_in_chunks(alone, 400, [50])
    got = []
    for at in range(0, 400, 50):
        batch = together.batch([(2, 50), (0, 20)])
        mine, other = vectors(50, at), vectors(20, 10_000 + at)
        got.append(batch.attend(OPS, 1, *(np.concatenate(pair) for pair in zip(mine, other, strict=True)))[:50])
        together.advance(batch)
    np.testing.assert_array_equal(np.concatenate(got), want)
    assert together.lengths == [160, 0, 400]


def test_rewind_only_as_far_as_keys_are_alive() -> None:
    cache = Cache(OPS, CONFIG, context=5000)
    attend_in_chunks(cache, 1000, [CHUNK])
    spare = cache.size - 40  # ring less window
    assert not cache.rewind(0, 1000 - spare - 2) and cache.lengths == [1000]
    assert cache.rewind(0, 1000 - spare + 1)
    want = whole(OPS, CONFIG, [1000], "f16").attend(OPS, 0, *vectors(1000))[-10:]
    start = cache.lengths[0]
    tail = np.concatenate([step_once(cache, vectors(1, p)) for p in range(start, 1000)])[-10:]
    np.testing.assert_allclose(tail, want, atol=2e-6)
    assert cache.rewind(0, 0) and cache.oldest == [0]


def step_once(cache: Cache, qkv: tuple[np.ndarray, ...]) -> np.ndarray:
    batch: Batch = cache.batch([(0, len(qkv[0]))])
    out = batch.attend(OPS, 0, *qkv)
    cache.advance(batch)
    return out


def test_a_step_that_was_broken_off_leaves_the_past_whole() -> None:
    """Ctrl-C in the middle of a chunk: its keys are in the ring, its tokens are not in the sequence."""
    cache = Cache(OPS, CONFIG, context=5000)
    attend_in_chunks(cache, 700, [CHUNK])
    cache.batch([(0, 200)]).attend(OPS, 0, *vectors(200, 90_000))  # never advanced
    assert cache.lengths == [700]
    want = whole(OPS, CONFIG, [710], "f16").attend(OPS, 0, *vectors(710))[-10:]
    np.testing.assert_allclose(step_once(cache, vectors(10, 700)), want, atol=2e-6)


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("length", [0, 5, 39, 300, 901])
def test_saved_and_restored_goes_on_to_the_last_bit(kv: str, length: int) -> None:
    first = Cache(OPS, CONFIG, context=2000, kv=kv)
    attend_in_chunks(first, length, [100])
    second = Cache(OPS, CONFIG, sequences=2, context=1500, kv=kv)  # another place, another ring size is fine
    second.restore(1, length, first.save(0, length), "test")
    after = []
    for cache, sequence in ((first, 0), (second, 1)):
        batch = cache.batch([(sequence, 20)])
        after.append(batch.attend(OPS, 1, *vectors(20, length)))
    np.testing.assert_array_equal(*after)


def test_restore_refuses_what_does_not_fit() -> None:
    cache = Cache(OPS, CONFIG, context=2000)
    attend_in_chunks(cache, 100, [100])
    saved = cache.save(0, cache.lengths[0])
    with pytest.raises(FormatError, match=r"0\.k.*expected"):
        Cache(OPS, CONFIG, context=2000, kv="f32").restore(0, 100, saved, "test")
    with pytest.raises(FormatError, match=r"1\.v"):
        Cache(OPS, CONFIG, context=2000).restore(0, 100, {k: v for k, v in saved.items() if k != "1.v"}, "test")


def test_refusals_name_the_numbers() -> None:
    cache = Cache(OPS, CONFIG, context=100)
    with pytest.raises(ContextError, match="101.*100"):
        cache.batch([(0, 101)])
    with pytest.raises(RequestError, match="300.*256"):
        Cache(OPS, CONFIG, context=1000).batch([(0, 300)])
    with pytest.raises(RequestError, match="q8_0"):
        Cache(OPS, replace(CONFIG, head_dim=16), kv="q8_0")
    with pytest.raises(RequestError, match="q4_0"):
        cache_bytes(CONFIG, 100, "q4_0")


def test_logits_are_wanted_of_each_last_row() -> None:
    cache = Cache(OPS, CONFIG, sequences=3, context=100)
    batch = cache.batch([(0, 5), (2, 1), (1, 7)])
    assert batch.wanted.tolist() == [4, 5, 12]
    assert batch.spans.tolist() == [[0, 0, 5, 0], [2, 5, 1, 0], [1, 6, 7, 0]]
