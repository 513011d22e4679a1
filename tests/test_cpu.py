"""The CPU backend against the reference, verb by verb, on every instruction set that runs here."""

from __future__ import annotations

import mmap
import os
import time

import numpy as np
import pytest

import bise
from bise import _kernels
from bise.errors import FormatError
from bise.ops import Pair, Ring
from bise.ops import cpu as cpu_backend
from bise.ops.cpu import Cpu, default_threads
from bise.ops.reference import Reference
from bise.quant import TYPES, QTensor

F32 = np.float32
BY_256 = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
BY_32 = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")
FLOATS = ("F32", "F16", "BF16")
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 33)
WINDOWS = (None, 1, 5, 31, 32, 33, 64, 1000)
reference = Reference()


@pytest.fixture(params=_kernels.isas())
def ops(request) -> Cpu:
    return Cpu(1, request.param)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, F32)


def blocks(type: str, rows: int, cols: int, seed: int = 0) -> QTensor:
    """Random bytes with plausible scales: every bit pattern of the quants occurs."""
    kind, rng = TYPES[type], np.random.default_rng(seed)
    if type in FLOATS:
        return QTensor.of(rng.standard_normal((rows, cols), F32), type)
    data = rng.integers(0, 256, (rows * cols // kind.block, kind.nbytes), np.uint8)
    for at in kind.scales:
        data[:, at : at + 2] = rng.normal(0, 0.01, (len(data), 1)).astype(np.float16).view(np.uint8)
    return QTensor(type, (rows, cols), data.reshape(-1))


def eight_bit(x: np.ndarray, group: int) -> np.ndarray:
    """The activations as the kernels see them: q = round(x * 127 / max|x|), times max|x| / 127, per group."""
    groups = x.reshape(len(x), -1, group)
    top = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(F32(127), top, out=np.zeros_like(top), where=top > 0)
    return (np.rint(groups * inverse).astype(np.float64) * (top / F32(127))).reshape(x.shape)


# linear


@pytest.mark.parametrize("type", BY_256 + BY_32)
@pytest.mark.parametrize("rows, cols", [(1, 256), (15, 256), (17, 512), (64, 1280)])
def test_linear_of_quantised_weights(ops, type, rows, cols):
    weight, x = blocks(type, rows, cols), normal(11, cols)
    seen = eight_bit(x, 256 if type in BY_256 else 32)
    want = seen @ weight.dequantise().astype(np.float64).T
    size = np.abs(seen) @ np.abs(weight.dequantise().astype(np.float64).T)  # what rounding errors are measured against
    assert (np.abs(ops.linear(x, ops.weight(weight)) - want) <= 2e-6 * size).all()


@pytest.mark.parametrize("type", BY_32)
@pytest.mark.parametrize("cols", [32, 96, 288])
def test_linear_of_short_rows(ops, type, cols):
    weight, x = blocks(type, 5, cols), normal(3, cols)
    want = eight_bit(x, 32) @ weight.dequantise().T
    np.testing.assert_allclose(ops.linear(x, ops.weight(weight)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("type", FLOATS)
@pytest.mark.parametrize("rows, cols", [(1, 1), (15, 7), (16, 16), (17, 33), (40, 257), (33, 515)])
def test_linear_of_float_weights(ops, type, rows, cols):
    weight, x = blocks(type, rows, cols), normal(9, cols)
    want = reference.linear(x, weight.dequantise())
    np.testing.assert_allclose(ops.linear(x, ops.weight(weight)), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("type", [*TYPES])
def test_a_token_sees_the_same_sums_in_any_company(ops, type):
    """To the last bit: any number of columns, any cut, one thread or two."""
    weight, x = blocks(type, 50, 512), normal(150, 512)
    matrix, two = ops.weight(weight), Cpu(2, ops.verbs.isa)
    whole = ops.linear(x, matrix)
    for n in (*TOKENS, 129):
        for at in (0, 150 - n):
            assert np.array_equal(two.linear(x[at : at + n], matrix), whole[at : at + n]), (n, at)


def test_linear_of_several_weights_at_once(ops):
    x = normal(3, 256)
    weights = [
        ops.weight(blocks(type, 20 + i, 256, i)) for i, type in enumerate(("Q4_K", "Q6_K", "Q8_0", "F16", "Q4_0"))
    ]
    for together, weight in zip(ops.linear(x, *weights), weights, strict=True):
        assert np.array_equal(together, ops.linear(x, weight))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", ["Q4_K", "Q8_0", "F32"])
def test_a_sick_activation_stays_with_its_token(ops, type, bad):
    x = normal(3, 256)
    x[1, 5] = bad
    y = ops.linear(x, ops.weight(blocks(type, 17, 256)))
    assert np.isfinite(y[[0, 2]]).all() and not np.isfinite(y[1]).any()


# adapters

RANKS = (1, 3, 16, 17, 64, 256)


def pairs(ops, rank: int, cols: int, outs: tuple[int, ...], type: str = "F32", seed: int = 0) -> list[Pair | None]:
    """Of every second output none, of every third with a factor."""
    found: list[Pair | None] = []
    for i, out in enumerate(outs):
        a, b = (QTensor.of(normal(*shape, seed=seed + i) / 8, type) for shape in ((rank, cols), (out, rank)))
        found.append(
            Pair(ops.weight(a), ops.weight(b), normal(out, seed=i) if i % 3 == 0 else None) if i != 1 else None
        )
    return found


@pytest.mark.parametrize("type", FLOATS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("cols", [1, 33, 256, 515])
def test_adapt(ops, type, rank, cols):
    """Groups of one row and of many, next to each other and not; a pair for some of the outputs."""
    outs, rows = (40, 16, 17, 1), np.array([[0, 1], [1, 3], [5, 5], [6, 13], [13, 40]], np.int32)
    x, before = normal(41, cols), [normal(41, out, seed=1) for out in outs]
    got, want = ([y.copy() for y in before] for _ in range(2))
    ops.adapt(x, tuple(got), rows, tuple(tuple(pairs(ops, rank, cols, outs, type, i)) for i in range(len(rows))))
    specified = tuple(tuple(pairs(reference, rank, cols, outs, type, i)) for i in range(len(rows)))
    reference.adapt(x.astype(np.float64), tuple(want), rows, specified)
    for y, wanted, was in zip(got, want, before, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
        assert np.array_equal(y[[3, 4, 5, 40]], was[[3, 4, 5, 40]])
    assert np.array_equal(got[1], before[1]) and not np.array_equal(got[0], before[0])


@pytest.mark.parametrize("rank", [4, 40])
@pytest.mark.parametrize("cols", [96, 1000])
def test_an_adapted_token_sees_the_same_sums_in_any_company(ops, rank, cols):
    """To the last bit: any number of rows, any groups, one thread or two."""
    x, before, two = normal(60, cols), normal(60, 700), Cpu(2, ops.verbs.isa)
    pair = tuple(pairs(ops, rank, cols, (700,)))
    whole = before.copy()
    ops.adapt(x, (whole,), np.array([[0, 60]], np.int32), (pair,))
    for n in (*TOKENS, 25, 60):
        for ends in ([[0, n]], [[60 - n, 60]], [[i, i + 1] for i in range(n)]):
            y, rows = before.copy(), np.array(ends, np.int32)
            two.adapt(x, (y,), rows, (pair,) * len(rows))
            changed = slice(rows[0, 0], rows[-1, 1])
            assert np.array_equal(y[changed], whole[changed]), (n, ends)


def test_a_sick_activation_is_adapted_alone(ops):
    x, y = normal(30, 64), np.zeros((30, 40), F32)
    x[7, 5] = np.nan
    ops.adapt(x, (y,), np.array([[0, 30]], np.int32), (tuple(pairs(ops, 3, 64, (40,))),))
    assert np.isnan(y[7]).all() and np.isfinite(np.delete(y, 7, 0)).all()


def test_wrong_adapters_are_refused(ops):
    x, y, rows = normal(4, 64), np.zeros((4, 40), F32), np.array([[0, 4]], np.int32)
    (pair,) = pairs(ops, 3, 64, (40,))
    quantised = ops.weight(blocks("Q8_0", 3, 64))

    def adapt(x=x, ys=(y,), rows=rows, pairs=((pair,),)):
        ops.verbs.adapt(x, ys, rows, pairs)

    adapt()
    for wrong in (
        lambda: adapt(x=normal(4, 63)), lambda: adapt(x=normal(3, 64)), lambda: adapt(x=x[0]), lambda: adapt(ys=(y.T,)),
        lambda: adapt(ys=(np.zeros((4, 41), F32),)), lambda: adapt(ys=(y, y)), lambda: adapt(ys=(None,)),
        lambda: adapt(rows=np.array([[0, 5]], np.int32)), lambda: adapt(rows=np.array([[-1, 2]], np.int32)),
        lambda: adapt(rows=np.array([[3, 2]], np.int32)), lambda: adapt(rows=rows.astype(np.int64)),
        lambda: adapt(rows=np.array([[0, 2], [1, 3]], np.int32), pairs=((pair,), (pair,))), lambda: adapt(pairs=()),
        lambda: adapt(pairs=((pair, pair),)), lambda: adapt(pairs=([pair],)), lambda: adapt(pairs=((pair[:2],),)),
        lambda: adapt(pairs=(((None, pair.b, None),),)), lambda: adapt(pairs=((("A", pair.b, None),),)),
        lambda: adapt(pairs=(((quantised, pair.b, None),),)), lambda: adapt(pairs=(((pair.b, pair.a, None),),)),
        lambda: adapt(pairs=(((pair.a, ops.weight(blocks("F32", 40, 4)), None),),)),
        lambda: adapt(pairs=(((pair.a, pair.b, normal(41)),),)),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            wrong()


def test_zeros_and_tiny_numbers(ops):
    weight = ops.weight(blocks("Q4_K", 16, 256))
    assert (ops.linear(np.zeros((2, 256), F32), weight) == 0).all()
    assert np.abs(ops.linear(np.full((1, 256), 1e-40, F32), weight)).max() < 1e-30


@pytest.mark.parametrize("type", [*TYPES])
def test_bad_scales_are_found_while_packing(ops, type):
    weight = blocks(type, 40, 256)
    data, kind = weight.data.copy(), TYPES[type]
    field = 37 * 256 // kind.block * kind.nbytes + (kind.scales or (0,))[0]
    bad = {"F32": F32(np.nan), "BF16": np.uint16(0x7F80)}.get(type, np.float16(np.inf)).tobytes()
    data[field : field + len(bad)] = np.frombuffer(bad, np.uint8)
    with pytest.raises(FormatError, match="row 37 holds a NaN or infinite"):
        ops.weight(QTensor(type, weight.shape, data))


def test_a_packed_weight_takes_the_bytes_of_the_file(ops):
    for type in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"):
        tensor = blocks(type, 64, 1024)
        matrix = ops.weight(tensor)
        assert (matrix.rows, matrix.cols, matrix.type) == (64, 1024, type)
        assert tensor.nbytes <= matrix.nbytes <= 1.01 * tensor.nbytes


# embed


@pytest.mark.parametrize("type", [*TYPES])
def test_embed(ops, type):
    tensor, ids = blocks(type, 7, 512), np.array([6, 0, 0, 3], np.int32)
    assert np.array_equal(ops.embed(ops.table(tensor), ids), reference.embed(tensor.dequantise(), ids))


def test_embed_of_an_unaligned_read_only_view(ops):
    tensor = blocks("F32", 3, 5)
    data = np.frombuffer(b"x" + tensor.data.tobytes(), np.uint8)[1:]
    assert np.array_equal(ops.embed(QTensor("F32", (3, 5), data), np.array([2])), tensor.dequantise()[[2]])


# pointwise


@pytest.mark.parametrize("T", (1, 3, 200))
@pytest.mark.parametrize("n", (1, 15, 16, 17, 64, 1000))
def test_rms_norm(ops, T, n):
    x, w = normal(T, n), normal(n, seed=1)
    np.testing.assert_allclose(ops.rms_norm(x, w, 1e-5), reference.rms_norm(x, w, 1e-5), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("heads, D", [(1, 2), (3, 8), (4, 64), (8, 128)])
def test_rope(ops, heads, D):
    x, angle = normal(5, heads * D), normal(5, D // 2, seed=1) * 100
    cos, sin = np.cos(angle), np.sin(angle)
    want = reference.rope(x, cos, sin)
    np.testing.assert_allclose(ops.rope(x.copy(), cos, sin), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (2, 17), (5, 30000)])
def test_swiglu(ops, shape):
    gate, up = normal(*shape) * 10, normal(*shape, seed=1)
    gate[0, 0] = -200.0
    want = reference.swiglu(gate, up)
    np.testing.assert_allclose(ops.swiglu(gate.copy(), up), want, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (2, 17), (5, 3000)])
def test_ways_back(ops, shape):
    """d/dx of sum(dy * f(x)), in float64 from the formulas' own differences."""
    x, up, dy, w = (normal(*shape, seed=seed) for seed in (0, 1, 2, 3))
    w = w[0].copy()
    dx, dgate, dup = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    ops.verbs.rms_norm_back(x, w, 1e-5, dy, dx)
    ops.verbs.swiglu_back(x, up, dy, dgate, dup)
    x, up, dy, w = (v.astype(np.float64) for v in (x, up, dy, w))
    r = 1 / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5)
    s = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(dx, r * w * dy - x * r**3 * (x * w * dy).mean(1, keepdims=True), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(dgate, dy * up * s * (1 + x * (1 - s)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dup, dy * x * s, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("type", TYPES)
def test_dequantise_is_the_specification(ops, type):
    """Every row of every type, to the bit."""
    tensor = blocks(type, 5, 768)
    out = np.full((5, 768), np.nan, F32)
    ops.verbs.dequantise(type, tensor.data, out)
    np.testing.assert_array_equal(out, tensor.dequantise())


# the ring


def filled(ops: Cpu, kv: str, S: int, G: int, N: int, D: int, lengths: list[int], chunk: int = 7) -> Ring:
    """A ring whose unwritten slots hold NaN (or nonsense), with lengths[s] positions stored for sequence s, in chunks."""
    ring = ops.ring(S, G, N, D, kv)
    for values in (ring.k, ring.v):
        values.fill(-128 if kv == "q8_0" else np.nan)
    for scales in (ring.k_scale, ring.v_scale):
        if scales is not None:
            scales.fill(np.nan)
    for s, length in enumerate(lengths):
        k, v = normal(length, G * D, seed=s), normal(length, G * D, seed=100 + s)
        for p in range(0, length, chunk):
            n = min(chunk, length - p)
            ops.store(ring, np.array([[s, 0, n, p]], np.int32), k[p : p + n], v[p : p + n])
    return ring


@pytest.mark.parametrize("kv, D", [("f32", 6), ("f32", 64), ("f16", 10), ("f16", 128), ("q8_0", 32), ("q8_0", 96)])
def test_store(ops, kv, D):
    rings = [backend.ring(2, 3, 32, D, kv) for backend in (ops, reference)]
    k, v = normal(13, 3 * D) * 3, normal(13, 3 * D, seed=1)
    k[0] = 0
    spans = np.array([[1, 0, 9, 28], [0, 9, 4, 64]], np.int32)
    for backend, ring in zip((ops, reference), rings, strict=True):
        backend.store(ring, spans, k, v)
    for mine, theirs in zip(vars(rings[0]).values(), vars(rings[1]).values(), strict=True):
        assert np.array_equal(mine, theirs)


def test_store_rounds_float16_as_numpy_does(ops):
    x = np.array(
        [65504, 65519.9, 65520, 1e-8, 2.98e-8, 5.96e-8, 6.1e-5, -0.0, 1 + 2**-11, 1 + 3 * 2**-11, np.inf, 3e-5], F32
    )
    ring = ops.ring(1, 1, 32, 12, "f16")
    ops.store(ring, np.array([[0, 0, 1, 0]], np.int32), x[None], x[None])
    with np.errstate(over="ignore"):
        assert np.array_equal(ring.k[0, 0, 0].view(np.uint16), x.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("G, R", [(2, 1), (1, 2), (2, 3), (1, 4), (1, 5), (1, 7), (2, 8)])
def test_attend_every_grouping(ops, kv, G, R):
    D, lengths = 32, [45, 3]
    ring = filled(ops, kv, 2, G, 64, D, lengths)
    spans = np.array([[1, 0, 2, 1], [0, 2, 19, 26]], np.int32)
    q = normal(21, G * R * D, seed=5)
    for window in (None, 20):
        want = reference.attend(q, ring, spans, window)
        np.testing.assert_allclose(ops.attend(q, ring, spans, window), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kv, D", [("f32", 2), ("f32", 8), ("f16", 10), ("f16", 48), ("f16", 128), ("q8_0", 128)])
@pytest.mark.parametrize("window", WINDOWS)
def test_attend_in_a_wrapped_ring(ops, kv, D, window):
    """Positions far past the ring's size, stale and unwritten slots around, any window that the ring can serve."""
    N, length = 128, 300
    ring = filled(ops, kv, 1, 2, N, D, [length])
    for n in (1, 2, 17, 40):
        if window is None or window + n - 1 > N:
            with pytest.raises(ValueError, match="live slots"):
                ops.attend(normal(n, 4 * D), ring, np.array([[0, 0, n, length - n]], np.int32), window)
            continue
        q, spans = normal(n, 4 * D, seed=n), np.array([[0, 0, n, length - n]], np.int32)
        want = reference.attend(q, ring, spans, window)
        np.testing.assert_allclose(ops.attend(q, ring, spans, window), want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0"])
def test_attend_does_not_depend_on_the_cut(ops, kv):
    """To the last bit: one chunk, chunks of any size, alone or with another sequence, one thread or two."""
    G, R, D, length, two = 2, 4, 64, 90, Cpu(2, ops.verbs.isa)
    ring = filled(ops, kv, 2, G, 128, D, [length, length])
    q = normal(length, G * R * D)
    for window in (None, 33):
        whole = ops.attend(q, ring, np.array([[0, 0, length, 0]], np.int32), window)
        for chunk in (1, 7, 16, 37):
            for p in range(0, length, chunk):
                n = min(chunk, length - p)
                spans = np.array([[1, n, n, p], [0, 0, n, p]], np.int32)
                part = two.attend(np.concatenate([q[p : p + n]] * 2), ring, spans, window)
                assert np.array_equal(part[:n], whole[p : p + n]), (chunk, p)


def test_attend_skips_what_a_query_does_not_see(ops):
    """A NaN in a later key of the same chunk reaches only those who see it."""
    D = 16
    ring = filled(ops, "f32", 1, 1, 32, D, [20])
    q, spans = normal(20, D), np.array([[0, 0, 20, 0]], np.int32)
    clean = ops.attend(q, ring, spans, None)
    ring.k[0, 0, 12], ring.v[0, 0, 12] = np.nan, np.nan
    sick = ops.attend(q, ring, spans, None)
    assert np.array_equal(sick[:12], clean[:12]) and np.isnan(sick[12:]).all()


# the door


def test_wrong_arguments_are_refused(ops):
    verbs, x, matrix = ops.verbs, normal(2, 256), ops.weight(blocks("Q4_K", 16, 256))
    out = np.empty((2, 16), F32)
    ring = ops.ring(1, 1, 32, 32, "f16")
    spans = np.array([[0, 0, 2, 0]], np.int32)
    q = normal(2, 32)

    def attend(*, q=q, k=ring.k, v=ring.v, k_scale=None, v_scale=None, spans=spans, window=None, out=None):
        verbs.attend(q, k, v, k_scale, v_scale, spans, window, np.empty_like(q) if out is None else out)

    def span(*row):
        return np.array([row], np.int32)

    attend()
    wrong = [
        lambda: verbs.linear(x.astype(np.float64), (matrix,), (out,)),
        lambda: verbs.linear(x[:, :255], (matrix,), (out,)),
        lambda: verbs.linear(x[:, ::2], (matrix,), (out,)),
        lambda: verbs.linear(x, (matrix,), (out[:1],)),
        lambda: verbs.linear(x, (matrix,), ()),
        lambda: verbs.linear(x, (None,), (out,)),
        lambda: verbs.linear(x[0], (matrix,), (out,)),
        lambda: verbs.linear(None, (matrix,), (out,)),
        lambda: verbs.rms_norm(x, x[0, :5].copy(), 1e-5, np.empty_like(x)),
        lambda: verbs.rms_norm(x, x[0], 1e-5, np.frombuffer(x.tobytes(), F32).reshape(2, 256)),
        lambda: verbs.rope(x, normal(2, 3), normal(2, 3)),
        lambda: verbs.rope(x, normal(1, 4), normal(1, 4)),
        lambda: verbs.swiglu(x, x[:1], x),
        lambda: verbs.dequantise("Q4_K", np.zeros(143, np.uint8), np.empty((1, 256), F32)),
        lambda: verbs.dequantise("Q4_K", np.zeros(144, np.uint8), np.empty((1, 255), F32)),
        lambda: verbs.look_up(np.zeros(15, F32), np.zeros(32, np.uint8), np.zeros(1, F32), np.empty((1, 64), F32)),
        lambda: verbs.look_up(np.zeros(16, F32), np.zeros(32, np.uint8), np.zeros(2, F32), np.empty((1, 64), F32)),
        lambda: verbs.look_up(np.zeros(16, F32), np.zeros(32, np.uint8), np.zeros(1, F32), np.empty((1, 63), F32)),
        lambda: verbs.look_up(np.zeros(16, F32), np.zeros(48, np.uint8), np.zeros(3, F32), np.empty((1, 128), F32)),
        lambda: verbs.swiglu_back(x, x, x, x, x[:1].copy()),
        lambda: verbs.rms_norm_back(x, x[0], 1e-5, x[:1], np.empty_like(x)),
        lambda: verbs.pack("Q4_K", np.zeros(144, np.uint8), 1, 255),
        lambda: verbs.pack("Q4_K", np.zeros(143, np.uint8), 1, 256),
        lambda: verbs.pack("Q4_K", np.zeros(144, np.uint8), 1 << 62, 256),
        lambda: verbs.pack("Q4_K", np.zeros(0, np.uint8), 0, 256),
        lambda: verbs.pack("F32", np.zeros(0, np.uint8), -1, -1),
        lambda: verbs.pack("Q9_9", np.zeros(144, np.uint8), 1, 256),
        lambda: verbs.embed("F32", np.zeros(16, np.uint8), 2, 2, np.array([2], np.int32), np.empty((1, 2), F32)),
        lambda: verbs.embed("F32", np.zeros(16, np.uint8), 2, 2, np.array([-1], np.int32), np.empty((1, 2), F32)),
        lambda: verbs.embed("F32", np.zeros(16, np.uint8), 2, 3, np.array([0], np.int32), np.empty((1, 3), F32)),
        lambda: verbs.embed("F32", np.zeros(16, np.uint8), 2, 2, np.array([0], np.int64), np.empty((1, 2), F32)),
        lambda: attend(spans=span(1, 0, 2, 0)),
        lambda: attend(spans=span(-1, 0, 2, 0)),
        lambda: attend(spans=span(0, 1, 2, 0)),
        lambda: attend(spans=span(0, 0, 0, 0)),
        lambda: attend(spans=span(0, 0, 2, -1)),
        lambda: attend(spans=span(0, 0, 2, 31)),
        lambda: attend(spans=span(0, 0, 2, 2**31 - 2), window=4),
        lambda: attend(spans=spans[:, :3]),
        lambda: attend(spans=spans.astype(np.int64)),
        lambda: attend(window=0),
        lambda: attend(q=normal(2, 48)),
        lambda: attend(k=ring.k[:, :, :31].copy(), v=ring.v[:, :, :31].copy()),
        lambda: attend(v=ring.v[:, :, :, :16].copy()),
        lambda: attend(k=ring.k.astype(np.float64)),
        lambda: attend(k_scale=np.zeros((1, 1, 32, 1), np.float16)),
        lambda: verbs.store(ring.k, ring.v, None, None, span(0, 0, 33, 0), normal(33, 32), normal(33, 32)),
        lambda: verbs.store(ring.k, ring.v, None, None, spans, normal(2, 31), normal(2, 31)),
    ]  # fmt: skip
    for i, call in enumerate(wrong):
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert "\n" not in str(caught.value) or isinstance(caught.value, TypeError), i


def test_unknown_instruction_sets_and_thread_counts():
    with pytest.raises(ValueError, match="does not run here, these do: .*base"):
        Cpu(1, "sse9")
    with pytest.raises(ValueError, match="threads is 5000"):
        Cpu(5000)
    assert _kernels.isa() == _kernels.isas()[0] and _kernels.isas()[-1] == "base"
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


def test_the_pool_survives_a_fork_and_many_owners():
    weight, x = blocks("Q4_K", 200, 256), normal(2, 256)
    two = Cpu(2)
    matrix, want = two.weight(weight), Cpu(1).linear(x, Cpu(1).weight(weight))
    assert np.array_equal(two.linear(x, matrix), want)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(two.linear(x, matrix), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for n in (2, 3, 2, 5):
        assert np.array_equal(Cpu(n).linear(x, matrix), want)


# packed weights from elsewhere


def test_checksum_sees_every_byte() -> None:
    rng = np.random.default_rng(0)
    ops = [Cpu(threads) for threads in (1, 2, 3)]
    for size in (1, 7, 8, 63, 64, 65, 4096, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1_000_003):
        data = rng.integers(0, 256, size, np.uint8)
        want = ops[0].verbs.checksum(data)
        assert {o.verbs.checksum(data) for o in ops} == {want}
        for at in {0, size - 1, *rng.integers(0, size, 20).tolist()}:
            data[at] ^= 1 << int(rng.integers(8))
            assert ops[1].verbs.checksum(data) != want
            want = ops[1].verbs.checksum(data)
        assert ops[0].verbs.checksum(np.append(data, np.uint8(0))) != want
    assert ops[0].verbs.checksum(np.zeros(0, np.uint8)) != ops[0].verbs.checksum(np.zeros(1, np.uint8))


def test_checksum_sees_order_and_top_bits() -> None:
    """Words exchanged in one lane, and the highest bit of two words of a lane: what a sum or a bare product overlooks."""
    verbs, words = Cpu(1).verbs, np.arange(1, 65, dtype=np.uint64)
    sums = {verbs.checksum(words.view(np.uint8))}
    for a, b in ((0, 8), (0, 1), (8, 56)):
        words[[a, b]] = words[[b, a]]
        sums.add(verbs.checksum(words.view(np.uint8)))
        words[[a, b]] ^= np.uint64(1 << 63)
        sums.add(verbs.checksum(words.view(np.uint8)))
    assert len(sums) == 7


def aligned(matrix, shift: int = 0) -> np.ndarray:
    """The matrix's panels in memory of our own, `shift` bytes past a multiple of 64."""
    memory = np.zeros(matrix.nbytes + 128, np.uint8)
    at = -memory.ctypes.data % 64 + shift
    memory[at : at + matrix.nbytes] = np.frombuffer(matrix, np.uint8)
    return memory[at : at + matrix.nbytes]


@pytest.mark.parametrize("type", [*TYPES])
def test_adopted_panels_are_the_packed_ones(ops, type):
    packed, x = ops.weight(blocks(type, 50, 512)), normal(5, 512)
    matrix = ops.verbs.adopt(packed.type, aligned(packed), 50, 512)
    assert (matrix.type, matrix.rows, matrix.cols, matrix.nbytes) == (packed.type, 50, 512, packed.nbytes)
    assert np.array_equal(ops.linear(x, matrix), ops.linear(x, packed))
    assert memoryview(matrix).readonly and bytes(memoryview(matrix)) == bytes(memoryview(packed))


def test_adopt_checks_what_it_is_given(ops):
    verbs, packed = ops.verbs, ops.weight(blocks("F32", 17, 5))
    good = aligned(packed)
    wrong = [
        ("F31", good, 17, 5), ("Q5_1", good, 17, 32), ("Q8_0", good, 17, 5), ("F32", good, 33, 5), ("F32", good, 17, 6),
        ("F32", good, 0, 5), ("F32", good, -17, 5), ("F32", good, 1 << 40, 1 << 40), ("F32", good[1:], 17, 5),
        ("F32", good.reshape(2, -1), 17, 5), ("F32", good[::-1], 17, 5), ("F32", aligned(packed, 32), 17, 5),
        ("F32", good.view(F32), 17, 5), ("F32", None, 17, 5),
    ]  # fmt: skip
    verbs.adopt("F32", good, 17, 5)
    for arguments in wrong:
        with pytest.raises((ValueError, TypeError)):
            verbs.adopt(*arguments)
    for data in (None, good.view(F32), good[::2], good.reshape(2, -1)):
        with pytest.raises((ValueError, TypeError)):
            verbs.checksum(data)


# rows as the file has them, for training


def by_chance(x: np.ndarray) -> np.ndarray:
    """Gradients as the kernels see them: rounded after a number in (-0.5, 0.5) from their own last bits was added."""
    groups, bits = x.reshape(len(x), -1, 32), x.reshape(len(x), -1, 32).view(np.uint32)
    top = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(F32(127), top, out=np.zeros_like(top), where=top > 0)
    chance = (((bits ^ bits >> 8 ^ bits >> 16) & 255).astype(F32) - F32(127.5)) * F32(1 / 256)
    return (np.rint(groups * inverse + chance).astype(np.float64) * (top / F32(127))).reshape(x.shape)


def test_gradients_lose_nothing_on_average():
    """Among the large the small ones are rounded to nothing or to a whole step, as often as they are worth."""
    x = normal(4000, 32) * F32(0.001)
    x[:, 0], x[:, 1] = 1, F32(0.0021) * (1 + normal(4000) * F32(0.01))
    seen = by_chance(x)
    assert seen[:, 1].mean() == pytest.approx(x[:, 1].mean(), rel=0.1) and set(np.round(seen[:, 1] * 127)) == {0, 1}


@pytest.mark.parametrize("type", BY_256 + BY_32)
def test_kept_rows_are_packed_as_they_are_met(ops, type):
    for rows, cols, T in ((70, 512, 60), (17, 256 if type in BY_256 else 96, 3)):
        weight, x = blocks(type, rows, cols), normal(T, cols)
        kept = ops.verbs.keep(type, weight.data, rows, cols)
        assert (kept.type, kept.rows, kept.cols, kept.nbytes) == (type, rows, cols, weight.data.nbytes)
        assert np.array_equal(ops.linear(x, kept), ops.linear(x, ops.weight(weight)))


def turned(weight: QTensor) -> np.ndarray:
    """The matrix as the way back sees it: each column in blocks of 32 rows of 8 bits, scales in float16."""
    w = weight.dequantise()
    groups = np.pad(w, ((0, -len(w) % 32), (0, 0))).reshape(-1, 32, w.shape[1])
    d = (np.abs(groups).max(1, keepdims=True) * F32(1 / 127)).astype(np.float16).astype(F32)
    inverse = np.divide(F32(1), d, out=np.zeros_like(d), where=d > 0)
    return (np.rint(np.clip(groups * inverse, -127, 127)) * d).reshape(-1, w.shape[1])[: len(w)]


@pytest.mark.parametrize("type", BY_256 + BY_32)
@pytest.mark.parametrize("rows, cols", [(1, 256), (32, 512), (300, 768)])
def test_linear_back(ops, type, rows, cols):
    weights = [blocks(type, rows + 8 * i, cols, i) for i in range(2)]
    dys = [normal(11, rows + 8 * i, seed=i) * np.exp(normal(11, rows + 8 * i)) for i in range(2)]
    want, size = 0.0, 0.0
    for dy, weight in zip(dys, weights, strict=True):
        padded = np.pad(dy, ((0, 0), (0, -dy.shape[1] % 32)))
        seen, w = by_chance(padded)[:, : dy.shape[1]], turned(weight).astype(np.float64)
        want, size = want + seen @ w, size + np.abs(seen) @ np.abs(w)
    kept = tuple(ops.verbs.keep(type, w.data, *w.shape) for w in weights)
    dx = np.full((11, cols), np.nan, F32)
    ops.verbs.linear_back(tuple(dys), kept, dx)
    assert (np.abs(dx - want) <= 2e-6 * size).all()
    for t in range(11):  # in company as alone
        alone = np.empty((1, cols), F32)
        ops.verbs.linear_back(tuple(np.ascontiguousarray(dy[t : t + 1]) for dy in dys), kept, alone)
        assert np.array_equal(alone[0], dx[t])


def test_linear_back_of_tiny_and_mixed_weights(ops):
    """Scales below float16's smallest are none; types may differ."""
    small = QTensor("Q8_0", (32, 256), blocks("Q8_0", 32, 256).data.copy())
    small.data.reshape(-1, 34)[:, :2] = np.array([3e-8], np.float16).view(np.uint8)
    other, dy, dx = blocks("Q4_K", 40, 256), [normal(3, 32), normal(3, 40)], np.empty((3, 256), F32)
    kept = [ops.verbs.keep(w.type, w.data, *w.shape) for w in (small, other)]
    ops.verbs.linear_back(tuple(dy), tuple(kept), dx)
    want = dy[0] @ small.dequantise() + dy[1] @ other.dequantise()
    assert np.abs(dx - want).max() < 0.02 * np.abs(want).max()


def test_kept_rows_are_checked(ops):
    verbs, weight = ops.verbs, blocks("Q8_0", 16, 64)
    kept, dy, dx = verbs.keep("Q8_0", weight.data, 16, 64), normal(2, 16), np.empty((2, 64), F32)
    verbs.linear_back((dy,), (kept,), dx)
    wrong = [
        lambda: verbs.keep("F32", weight.data, 16, 64), lambda: verbs.keep("Q8_0", weight.data[1:], 16, 64),
        lambda: verbs.keep("Q8_0", weight.data, 16, 63), lambda: verbs.keep("Q8_0", None, 16, 64),
        lambda: verbs.linear_back((dy,), (ops.weight(weight),), dx), lambda: verbs.linear_back((dy,), (None,), dx),
        lambda: verbs.linear_back((dy[:1],), (kept,), dx), lambda: verbs.linear_back((), (kept,), dx),
        lambda: verbs.linear_back((dy[:, :15],), (kept,), dx), lambda: verbs.linear_back((dy,), (kept,), dx[:, :32]),
        lambda: verbs.linear_back((dy.astype(np.float64),), (kept,), dx), lambda: verbs.linear_back((dy,), (kept,), None),
    ]  # fmt: skip
    for call in wrong:
        with pytest.raises((ValueError, TypeError)):
            call()


def test_a_matrix_keeps_what_it_adopted_and_a_view_keeps_the_matrix():
    packed, verbs = Cpu(1).weight(blocks("F32", 17, 5)), Cpu(1).verbs
    held = mmap.mmap(-1, packed.nbytes)
    held[:] = bytes(memoryview(packed))
    view = memoryview(verbs.adopt("F32", np.frombuffer(held, np.uint8), 17, 5))
    with pytest.raises(BufferError):
        held.close()
    assert bytes(view) == bytes(memoryview(packed))
    view.release()
    held.close()


# threads


def test_an_idle_model_uses_no_cores():
    model = bise.load(threads=4)
    assert len(model.generate("Once upon a time", max_tokens=20).tokens) == 20
    time.sleep(0.01)  # workers look out for another call for a moment

    def used() -> float:
        before = time.process_time()
        time.sleep(0.5)
        return time.process_time() - before

    assert min(used() for _ in range(4)) < 0.005  # (threads that other tests left behind may wake up once)


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"topology": "siblings"}, 4),  # two hardware threads to a core
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "5000 100000"}, 1),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/a/cpu.max": "300000 100000",
          "/sys/fs/cgroup/a/b/cpu.max": "200000 100000", "/sys/fs/cgroup/cpu.max": "900000 100000"}, 2),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "nonsense 0"}, 8),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)  # fmt: skip
def test_default_threads_keep_to_the_affinity_and_the_quota(monkeypatch, files, threads):
    def read(path: str) -> str:
        if "topology" in path and "topology" in files:
            cpu = int(path.split("/cpu/cpu")[1].split("/")[0])
            return f"{cpu % 4},{cpu % 4 + 4}"
        return files.get(path, "")

    monkeypatch.setattr(cpu_backend, "_read", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert default_threads() == threads
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert default_threads() == 1
