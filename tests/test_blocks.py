"""What was read before is found again: after the ring has gone round, in other sequences, under the same salt only."""

from __future__ import annotations

import numpy as np
import pytest

import bise
from bise import Model
from bise.blocks import BLOCK, Blocks
from bise.cache import Cache
from bise.engine import Engine, Request
from bise.sampler import Sampler, Sampling

BIG = 64 << 20


@pytest.fixture(scope="module")
def puff() -> Model:
    return bise.load()


def text(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 3000, n).tolist()  # type: ignore[no-any-return]


def said(engine: Engine, prompt: list[int], sequence: int = 0, n: int = 12, salt: str = "") -> Request:
    request = Request(prompt, Sampler(Sampling(), 3072), n, sequence=sequence, salt=salt)
    engine.submit(request)
    while engine.running:
        engine.step()
    assert request.error is None
    return request


@pytest.mark.parametrize("kv", ["f16", "q8_0", "f32"])
def test_a_text_is_taken_up_again_after_the_ring_has_gone_round(kv: str) -> None:
    model = bise.load(kv=kv)
    engine, fresh = model.engine(2, BIG), model.engine(1)
    first = text(900)
    said(engine, first)  # the ring holds 384 of them, the window 128
    again = [*first[:500], *text(60, 1)]
    got, alone = said(engine, again), said(fresh, again)
    assert got.reused == 480  # the last whole block of the 500
    assert (got.tokens, got.logprobs) == (alone.tokens, alone.logprobs)


def test_another_sequence_takes_it_up(puff: Model) -> None:
    engine, fresh = puff.engine(2, BIG), puff.engine(1)
    prompt = text(300)
    said(engine, prompt, sequence=0)
    engine.keep(0)
    got = said(engine, [*prompt[:200], 5, 6, 7], sequence=1)
    assert got.reused == 192
    assert got.logprobs == said(fresh, [*prompt[:200], 5, 6, 7]).logprobs


def test_what_another_text_pushes_out_is_kept(puff: Model) -> None:
    engine = puff.engine(1, BIG)
    prompt = text(300)
    said(engine, prompt)
    said(engine, text(300, 9))
    assert said(engine, prompt).reused == 288


def test_a_salt_keeps_texts_apart(puff: Model) -> None:
    engine = puff.engine(2, BIG)
    prompt = text(300)
    said(engine, prompt, salt="a")
    assert said(engine, prompt, salt="b").reused == 0
    assert said(engine, prompt, salt="b").reused == 299
    assert said(engine, prompt, salt="a").reused == 288
    assert said(engine, prompt, salt="").reused == 0


def test_ids_that_differ_in_one_place_share_what_comes_before_it(puff: Model) -> None:
    engine = puff.engine(1, BIG)
    prompt = text(300)
    said(engine, prompt)
    said(engine, text(30, 5))
    other = list(prompt)
    other[100] = 7 if other[100] != 7 else 8
    assert said(engine, other).reused == 96


def test_memory_is_bounded_and_the_oldest_goes(puff: Model) -> None:
    room = 20
    cache = Cache(puff.ops, puff.config, 1, 1024)
    size = cache.nbytes // cache.size * BLOCK
    engine = puff.engine(1, room * size)
    assert engine.blocks is not None
    for seed in range(6):
        said(engine, text(300, seed))
        assert engine.blocks.nbytes <= room * size
    assert engine.blocks.nbytes == room * size
    assert said(engine, text(300, 4)).reused > 0
    assert said(engine, text(300, 0)).reused == 0
    assert_sound(engine.blocks)


def assert_sound(blocks: Blocks) -> None:
    """Every place belongs to one node that can be reached, or is free; and no branch leads nowhere."""
    places, stack = list(blocks._free), [blocks._root]
    while stack:
        node = stack.pop()
        stack += node.children.values()
        assert node.children or node.place is not None or node is blocks._root, "a branch that leads nowhere"
        if node.place is not None:
            places.append(node.place)
            assert node in blocks._held
    assert sorted(places) == list(range(len(blocks._memory)))


@pytest.mark.parametrize("window", ["none", 128])
@pytest.mark.parametrize("room", [4, 7, 40])
def test_texts_that_begin_alike_come_and_go(room: int, window: int | str) -> None:
    """Many, long and short, in a memory that holds few of their blocks: what is found is what was put there."""
    model = bise.load(window=window)
    cache = Cache(model.ops, model.config.with_window(None), 1, 1024)
    cache.config = model.config
    blocks, rng = Blocks(cache, room * (cache.nbytes // cache.size * BLOCK)), np.random.default_rng(room)
    base = [text(400, seed) for seed in range(3)]
    found = 0
    for _ in range(400):
        ids = [*base[rng.integers(3)][: rng.integers(400)], *text(int(rng.integers(300)), int(rng.integers(6)))]
        cache.lengths[0], cache.oldest[0] = len(ids), int(rng.choice([0, 0, 2])) * BLOCK
        for layer, ring in enumerate(cache.rings):
            ring.k[0, 0, : len(ids), 0] = np.array(ids) % 1000 + layer
        blocks.keep("ab"[rng.integers(2)], ids, 0, int(rng.choice([0, 0, 100])), len(ids))
        assert_sound(blocks)
        for ring in cache.rings:
            ring.k[:] = 0
        n = blocks.fill("a", ids, 0)
        found += n
        for layer, ring in enumerate(cache.rings):
            seen = slice(cache.oldest[0], n)
            np.testing.assert_array_equal(ring.k[0, 0, seen, 0], np.array(ids)[seen] % 1000 + layer)
    assert found > 0


def test_a_hole_is_never_jumped_over(puff: Model) -> None:
    """Without a block that the next token sees, the text is read again from further back."""
    model = bise.load(window="none")
    engine = model.engine(1, BIG)
    prompt = text(300)
    said(engine, prompt)
    said(engine, text(30, 5))
    assert engine.blocks is not None
    path = engine.blocks._path("", prompt)
    engine.blocks._drop(path[4])
    assert engine.blocks.known("", prompt) == 4 * BLOCK
    assert said(engine, prompt).logprobs == said(model.engine(1), prompt).logprobs


def test_no_room_no_blocks(puff: Model) -> None:
    cache = Cache(puff.ops, puff.config, 1, 1024)
    blocks = Blocks(cache, 10)
    blocks.keep("", [5] * 64, 0, 0, 64)
    assert (blocks.nbytes, blocks.known("", [5] * 64), len(blocks._root.children)) == (0, 0, 0)


def test_a_long_answer_is_kept_while_it_is_said(puff: Model) -> None:
    engine, fresh = puff.engine(1, BIG), puff.engine(1)
    prompt = puff.tokenizer.encode("Once upon a time", bos=True)
    story = said(engine, prompt, n=700)
    branch = [*prompt, *story.tokens[:100], 9, 10]
    got = said(engine, branch)
    assert got.reused == 96
    assert got.tokens == said(fresh, branch).tokens
