"""The torch backend's verbs and their ways back: against plain autograd in float64, and against quant.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import Tensor  # noqa: E402

from bise.ops import load_ops  # noqa: E402
from bise.ops.reference import Reference  # noqa: E402
from bise.ops.torch import entropy, memory  # noqa: E402
from bise.ops.torch.attention import attend_whole  # noqa: E402
from bise.ops.torch.decode import _DECODE, decode  # noqa: E402
from bise.ops.torch.entropy import logprobs  # noqa: E402
from bise.ops.torch.pointwise import rms_norm, rope, swiglu  # noqa: E402
from bise.ops.torch.product import Products, linear  # noqa: E402
from bise.ops.torch.weights import LEVELS, Adapted, Frozen, Nf4  # noqa: E402
from bise.quant import TYPES, QTensor, nbytes  # noqa: E402

CPU = torch.device("cpu")
F64 = torch.float64
chance = torch.Generator().manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=chance, dtype=dtype)


def leaf(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return normal(*shape, dtype=dtype).requires_grad_()


def blocks(type: str, rows: int, columns: int, seed: int = 0) -> QTensor:
    """Random bytes with scales of a sound size: every code of the type turns up."""
    rng, kind = np.random.default_rng(seed), TYPES[type]
    if kind.block == 1:
        return QTensor.of(rng.standard_normal((rows, columns)).astype(np.float32), type)
    data = rng.integers(0, 256, (nbytes(type, (rows, columns)) // kind.nbytes, kind.nbytes), np.uint8)
    for at in kind.scales:
        data[:, at : at + 2] = rng.uniform(0.001, 0.01, (len(data), 1)).astype(np.float16).view(np.uint8)
    return QTensor(type, (rows, columns), data.reshape(-1))


def gradients(y: Tensor, of: list[Tensor], dy: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, of, dy.to(y.dtype)))


def near(got: list[Tensor], want: list[Tensor], within: float = 2e-6) -> None:
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        g, w = g.detach().double(), w.detach().double()
        assert float((g - w).abs().max()) <= within * max(1e-3, float(w.abs().max()))


@pytest.mark.parametrize("type", TYPES)
def test_decoded_strips_are_the_specification(type: str) -> None:
    tensor = blocks(type, 7, 512)
    out = torch.full((3, 512), torch.nan)
    frozen = Frozen(tensor, CPU)
    frozen.decode(2, 5, out)
    np.testing.assert_array_equal(out.numpy(), tensor.dequantise()[2:5])
    np.testing.assert_array_equal(frozen.rows(torch.tensor([6, 0, 6])).numpy(), tensor.rows([6, 0, 6]))


@pytest.mark.parametrize("type", _DECODE)
def test_decoding_in_torch_is_the_specification(type: str) -> None:
    tensor = blocks(type, 5, 512)
    got = decode(type, torch.from_numpy(tensor.data.copy()).view(5, -1)).view(5, 512)
    np.testing.assert_array_equal(got.numpy(), tensor.dequantise())


PUBLISHED = [  # bitsandbytes' table of the 4-bit NormalFloat
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_normal_floats_are_the_published_ones() -> None:
    np.testing.assert_allclose(LEVELS.numpy(), PUBLISHED, atol=2e-7)


def test_nf4_rounds_to_the_nearest_level_and_its_scales_are_near() -> None:
    w = normal(96, 192, dtype=torch.float32) * 0.02
    nf4, got = Nf4(w), torch.empty(96, 192)
    nf4.decode(0, 96, got)
    largest = w.view(-1, 64).abs().amax(1, keepdim=True)
    levels = torch.tensor(PUBLISHED)
    nearest = levels[(w.view(-1, 64, 1) / largest[..., None] - levels).abs().argmin(-1)]
    scales = torch.where(nearest == 0, largest, got.view(-1, 64) / nearest)
    assert float((scales / largest - 1).abs().max()) < 0.01, "scales keep 8 bits"
    assert bool(((got.view(-1, 64) == 0) == (nearest == 0)).all())
    assert nf4.nbytes * 8 / w.numel() == pytest.approx(4.127, abs=0.01)
    part = torch.empty(3, 192)
    nf4.decode(5, 8, part)
    assert torch.equal(part, got[5:8])
    assert torch.equal(nf4.rows(torch.tensor([7, 1])), got[[7, 1]])


def test_nf4_on_other_devices_computes_the_same() -> None:
    nf4, want, got = Nf4(normal(8, 128, dtype=torch.float32)), torch.empty(8, 128), torch.empty(8, 128)
    nf4.decode(0, 8, want)
    nf4.device = torch.device("meta")  # anything but the CPU takes torch's operations; the arrays stay here
    nf4._decode_in_torch(nf4.codes, nf4.offset + nf4.factors[0] * nf4.scales.flatten(), got)
    assert torch.equal(got, want)


class TestLinear:
    """y and every gradient against autograd over the weights as floats."""

    def check(self, w: object, plain: Callable[[Tensor], Tensor], leaves: list[Tensor], within: float = 2e-5) -> None:
        x = leaf(9, 256, dtype=torch.float32)
        (y,) = linear(Products(), x, [w])
        exact = [t.detach().double().requires_grad_() for t in (x, *leaves)]
        want = plain(*exact)
        dy = normal(*y.shape)
        near([y], [want], within)
        near(gradients(y, [x, *leaves], dy), gradients(want, exact, dy), within)

    @pytest.mark.parametrize("type", [*TYPES, "NF4"])
    @pytest.mark.parametrize("kind", ["bare", "lora", "dora"])
    def test_frozen(self, type: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bise.ops.torch.product.STRIP", 256 * 7)  # 20 rows: strips of 7, 7 and 6
        if type == "NF4":
            base: Nf4 | Frozen = Nf4(normal(20, 256, dtype=torch.float32))
        else:
            base = Frozen(blocks(type, 20, 256), CPU)
            base.kernel = None  # as on other devices
        w = torch.empty(20, 256)
        base.decode(0, 20, w)
        self.adapted(base, w.double(), kind)

    @pytest.mark.parametrize("types", [[type] for type in TYPES if TYPES[type].block > 1] + [["Q4_K", "Q8_0", "Q6_K"]])
    def test_quantised_weights_take_the_kernels_that_serve(self, types: list[str]) -> None:
        """Bit for bit on the way forward; on the way back 8 bits a number, whose errors are no larger than a hundredth
        and have no direction."""
        tensors = [blocks(type, 40 + 16 * i, 512, i) for i, type in enumerate(types)]
        x, dys = (
            leaf(9, 512, dtype=torch.float32),
            [normal(9, len(t.dequantise()), dtype=torch.float32) for t in tensors],
        )
        ys = linear(Products(), x, [Frozen(t, CPU) for t in tensors])
        served, x8 = load_ops("cpu"), x.detach().numpy()
        for y, t in zip(ys, tensors, strict=True):
            np.testing.assert_array_equal(y.detach().numpy(), served.linear(x8, served.weight(t)))
        (dx,) = torch.autograd.grad(ys, [x], dys)
        want = sum(dy.double() @ torch.from_numpy(t.dequantise()).double() for dy, t in zip(dys, tensors, strict=True))
        assert float((dx - want).norm()) < 0.015 * float(want.norm())
        slope = float((dx * want).sum() / want.square().sum())
        assert slope == pytest.approx(1, abs=3e-3)

    @pytest.mark.parametrize("kind", ["bare", "lora", "dora"])
    def test_floats(self, kind: str) -> None:
        w = normal(20, 256, dtype=torch.float32)
        self.adapted(w, w.double(), kind)

    def adapted(self, base: object, w: Tensor, kind: str) -> None:
        if kind == "bare":
            return self.check(base, lambda x: x @ w.T, [])
        a, b = leaf(4, 256, dtype=torch.float32), leaf(20, 4, dtype=torch.float32)
        if kind == "lora":
            return self.check(Adapted(base, a, b, 0.7), lambda x, a, b: x @ (w + 0.7 * b @ a).T, [a, b])
        m = leaf(20, dtype=torch.float32)

        def dora(x: Tensor, a: Tensor, b: Tensor, m: Tensor) -> Tensor:
            whole = w + 0.7 * b @ a
            return x @ (whole / whole.norm(dim=1, keepdim=True).detach() * m[:, None]).T

        return self.check(Adapted(base, a, b, 0.7, m), dora, [a, b, m])

    def test_a_weight_that_learns(self) -> None:
        w = leaf(20, 256, dtype=torch.float32)
        self.check(w, lambda x, w: x @ w.T, [w])

    def test_several_together(self) -> None:
        x, w, u = leaf(6, 64), leaf(5, 64), normal(8, 64)
        a, b = leaf(3, 64), leaf(8, 3)
        ws = [w, Adapted(u, a, b, 2.0), normal(4, 64)]
        assert torch.autograd.gradcheck(lambda *_: linear(Products(), x, ws), (x, w, a, b))

    def test_the_input_is_made_again(self) -> None:
        """What a recipe makes in one pass is not remembered: the gradients are the same to the bit."""
        x, n, up = (leaf(6, 64, dtype=torch.float32) for _ in range(3))
        a, b, g = (leaf(*s, dtype=torch.float32) for s in ((3, 64), (8, 3), (64,)))
        w = Adapted(normal(8, 64, dtype=torch.float32), a, b, 2.0)
        for y in (rms_norm(x, g.detach(), 1e-5), swiglu(n, up)):
            one = gradients(linear(Products(), y, [w])[0], [a, b], torch.ones(6, 8))
            del y.recipe
            other = gradients(linear(Products(), y, [w])[0], [a, b], torch.ones(6, 8))
            assert all(torch.equal(g, h) for g, h in zip(one, other, strict=True))


class TestPointwise:
    def test_gradients_in_float64(self) -> None:
        angles = normal(5, 3)
        assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (leaf(5, 6), leaf(6)))
        assert torch.autograd.gradcheck(swiglu, (leaf(5, 6), leaf(5, 6)))
        assert torch.autograd.gradcheck(lambda x: rope(x, angles.cos(), angles.sin()), (leaf(5, 12),))

    @pytest.mark.parametrize("n", [2, 16, 17, 100, 1024])
    def test_the_kernels_do_the_same(self, n: int) -> None:
        x, y, w, dy = normal(7, n), normal(7, n) * 3, normal(n), normal(7, n)
        angles = normal(7, n // 2)
        verbs: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
            (lambda x, w: rms_norm(x, w, 1e-5), [x, w]),
            (swiglu, [x, y]),
        ]
        if n % 2 == 0:
            verbs.append((lambda x: rope(x, angles.to(x.dtype).cos(), angles.to(x.dtype).sin()), [x]))
        for verb, its in verbs:
            exact = [t.clone().requires_grad_() for t in its]
            single = [t.float().requires_grad_() for t in its]
            near([verb(*single)], [verb(*exact)])
            near(gradients(verb(*single), single, dy), gradients(verb(*exact), exact, dy), 1e-5)


class TestAttention:
    @pytest.mark.parametrize("window", [None, 1, 5, 11, 12, 40])
    def test_against_the_reference_and_autograd(self, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bise.ops.torch.attention.BAND", 4)
        lengths = [1, 12, 7]
        q, k, v = leaf(20, 4 * 8), leaf(20, 2 * 8), leaf(20, 2 * 8)
        spans = np.array([[0, 0, 1, 0], [1, 1, 12, 0], [2, 13, 7, 0]], np.int32)
        y = attend_whole(q, k, v, spans, window, 8)
        reference = Reference()
        ring = reference.ring(3, 2, 32, 8, "f32")
        reference.store(ring, spans, *(t.detach().float().numpy() for t in (k, v)))
        near([y], [torch.from_numpy(reference.attend(q.detach().float().numpy(), ring, spans, window))])
        want = torch.cat([self.plain(*(t.split(lengths)[s] for t in (q, k, v)), window) for s in range(3)])
        dy = normal(20, 32)
        near(gradients(y, [q, k, v], dy), gradients(want, [q, k, v], dy), 1e-12)

    def plain(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        n = len(q)
        heads = q.view(n, 4, 8).transpose(0, 1)
        keys, values = (t.view(n, 2, 8).transpose(0, 1).repeat_interleave(2, 0) for t in (k, v))
        i, j = torch.arange(n)[:, None], torch.arange(n)
        seen = (j <= i) if window is None else (j <= i) & (j > i - window)
        scores = (heads @ keys.mT / 8**0.5).masked_fill(~seen, -torch.inf)
        return (scores.softmax(-1) @ values).transpose(0, 1).reshape(n, -1)

    def test_memory_of_a_long_sequence_is_linear(self) -> None:
        """Of 6,000 tokens in a window of 100, no 6,000 x 6,000 array: their floats alone would be 144 MB."""
        kept = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal kept
            kept += t.nbytes
            return t

        q, k, v = (leaf(6000, 8, dtype=torch.float32) for _ in "qkv")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            attend_whole(q, k, v, np.array([[0, 0, 6000, 0]], np.int32), 100, 8).sum().backward()
        assert kept < 40e6


class TestMemory:
    def test_what_was_dropped_is_used_again(self) -> None:
        like = torch.empty(1)
        one = memory.empty(like, 300, 1024)
        at = one.data_ptr()
        assert one.shape == (300, 1024) and one.is_contiguous() and at % 64 == 0
        part = one[100:200]  # torch holds the memory as long as anything of it is there
        del one
        assert memory.empty(like, 300, 1024).data_ptr() != at
        del part
        assert memory.empty(like, 290, 1024).data_ptr() == at  # at most an eighth less

    def test_there_is_never_more_than_was_used_at_once(self) -> None:
        pieces = memory.Pieces()
        held = [pieces.take(n << 20) for n in (4, 3, 2)]
        for piece in held:
            pieces.put_back(piece)
        sizes = [5 << 20, 4 << 20, 1 << 20]  # 5 fits nothing: the largest go for it
        held = [pieces.take(n) for n in sizes]
        assert pieces._used == 10 << 20 and pieces._used + pieces._idle <= pieces._most == 10 << 20
        for piece in held:
            pieces.put_back(piece)
        assert pieces._used == 0 and pieces._idle <= 10 << 20

    def test_small_and_other_arrays_are_torchs(self) -> None:
        small, double = memory.empty(torch.empty(1), 8, 8), memory.empty(torch.empty(1, dtype=F64), 300, 1024)
        assert (
            small.shape == (8, 8)
            and double.dtype == F64
            and memory.empty(torch.empty(1, device="meta"), 1 << 20).is_meta
        )


class TestEntropy:
    @pytest.mark.parametrize("kind", ["frozen", "quantised", "adapted", "trained"])
    def test_in_parts_is_the_whole(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(entropy, "LOGITS", 70 * 3)  # three rows at a time
        x, ids, dy = leaf(11, 256, dtype=torch.float32), torch.randint(0, 70, (11,), generator=chance), normal(11)
        w = normal(70, 256, dtype=torch.float32) / 8
        leaves: list[Tensor] = []
        output: object = w
        if kind == "quantised":
            output = Frozen(blocks("Q6_K", 70, 256), CPU)
            output.kernel = None
            output.decode(0, 70, w)
        if kind == "trained":
            output = w.requires_grad_()
            leaves = [w]
        if kind == "adapted":
            leaves = [leaf(2, 256, dtype=torch.float32), leaf(70, 2, dtype=torch.float32)]
            output = Adapted(w, *leaves, 0.1)
        exact = [t.detach().double().requires_grad_() for t in (x, *leaves)]
        whole = w.detach().double() + 0.1 * exact[2] @ exact[1] if kind == "adapted" else w.detach().double()
        logits = exact[0] @ (exact[1] if kind == "trained" else whole).T
        want = logits.log_softmax(1).gather(1, ids[:, None])[:, 0]
        got = logprobs(Products(), x, output, ids)
        near([got], [want], 1e-5)
        near(gradients(got, [x, *leaves], dy), gradients(want, exact, dy), 2e-5)
        with torch.no_grad():
            near([logprobs(Products(), x, output, ids)], [want], 1e-5)

    def test_unlikely_targets_stay_finite(self) -> None:
        x = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
        got = logprobs(Products(), x, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([2, 2]))
        np.testing.assert_allclose(got.detach().numpy(), [-2000, 0], atol=1e-6)


def test_a_file_kept_as_it_is_serves_as_well() -> None:
    """`keep="file"` answers as decoded floats do, or, in quantised types, as the CPU's own backend."""
    ops, kept, cpu = load_ops("torch"), type(load_ops("torch"))("cpu", "file"), load_ops("cpu")
    x = normal(3, 256, dtype=torch.float32)
    for type_ in ("F32", "F16", "Q4_K", "Q2_K", "IQ4_XS"):
        tensor = blocks(type_, 12, 256)
        want = torch.from_numpy(np.array(cpu.linear(x.numpy(), cpu.weight(tensor))))
        if TYPES[type_].block == 1:
            want = x.double() @ torch.from_numpy(np.array(tensor.dequantise())).double().T
        near([kept.linear(x, kept.weight(tensor))], [want], 2e-6 if TYPES[type_].block == 1 else 0)
        assert torch.equal(kept.embed(kept.table(tensor), [3, 0]), ops.embed(ops.table(tensor), [3, 0]))
