"""The values that a block's scales leave open: read from the blocks of every type, and written back."""

from __future__ import annotations

import numpy as np
import pytest

from bise.ops.cpu import Cpu
from bise.quant import TYPES, QTensor
from bise.quantize.lattice import LATTICES, grid, nearest


@pytest.fixture(scope="module", params=LATTICES)
def rounded(request: pytest.FixtureRequest) -> QTensor:
    values = np.random.default_rng(1).standard_normal((24, 512)).astype(np.float32)
    return Cpu(1).quantise(values, request.param)


def blocks_of(tensor: QTensor) -> np.ndarray:
    return tensor.data.reshape(-1, TYPES[tensor.type].nbytes).copy()


def test_every_block_format_has_one() -> None:
    assert set(LATTICES) == {name for name, kind in TYPES.items() if kind.scales}


def test_any_levels(rounded: QTensor) -> None:
    """Written at random, they decode to zero + step * level, and the scales stay."""
    blocks, lattice = blocks_of(rounded), LATTICES[rounded.type]
    zero, step = grid(rounded.type, blocks)
    index = np.random.default_rng(2).integers(0, len(lattice.levels), zero.shape).astype(np.uint8)
    lattice.write(blocks, index)
    got = QTensor(rounded.type, rounded.shape, blocks.reshape(-1)).dequantise().reshape(zero.shape)
    np.testing.assert_allclose(got, zero + step * lattice.levels[index], rtol=1e-6, atol=1e-6 * np.abs(got).max())
    for same in zip(grid(rounded.type, blocks), (zero, step), strict=True):
        np.testing.assert_array_equal(*same)


def test_what_is_there_is_nearest_to_itself(rounded: QTensor) -> None:
    """The levels of a block, found again from its values and written, give its bytes."""
    blocks = blocks_of(rounded)
    zero, step = grid(rounded.type, blocks)
    values = rounded.dequantise().reshape(zero.shape)
    index, near = nearest(rounded.type, values, zero, step)
    np.testing.assert_allclose(near, values, rtol=1e-6, atol=1e-6)
    again = blocks.copy()
    LATTICES[rounded.type].write(again, index)
    used = (step != 0).all(axis=1)  # a scale of zero: all levels are the same
    assert used.mean() > 0.4
    np.testing.assert_array_equal(again[used], blocks[used])


def test_nearest_is_nearest(rounded: QTensor) -> None:
    """Against trying every level; far outside, too."""
    zero, step = grid(rounded.type, blocks_of(rounded)[:8])
    values = 3 * np.random.default_rng(3).standard_normal(zero.shape).astype(np.float32)
    index, near = nearest(rounded.type, values, zero, step)
    every = zero[..., None] + step[..., None] * LATTICES[rounded.type].levels
    least = np.abs(every - values[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(near - values), least, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.take_along_axis(every, index[..., None].astype(int), -1)[..., 0], near)
