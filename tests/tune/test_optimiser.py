"""AdamW against PyTorch's own, its 8-bit averages against its 32-bit ones, Muon against what examples/puff had."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bise.tune.flat import BLOCK, Flat  # noqa: E402
from bise.tune.moment import Moment, codebook  # noqa: E402
from bise.tune.muon import orthogonal  # noqa: E402
from bise.tune.optimiser import STRIP, AdamW, Optimiser  # noqa: E402

SHAPES = {"blk.0.attn_q.a": (4, 100), "blk.0.attn_q.b": (70, 4), "norm": (33,), "blk.0.big": (520, 520)}


def leaves(seed: int = 0) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance).requires_grad_() for name, shape in SHAPES.items()}


def loss_of(tensors: dict[str, Any], step: int) -> Any:
    """Something curved that changes from step to step."""
    aims = leaves(100 + step % 3)
    return sum(((t - aims[name].detach()).square() * (1 + i)).mean() for i, (name, t) in enumerate(tensors.items()))


def test_flat_keeps_values_and_collects_gradients() -> None:
    tensors, before = leaves(), leaves()
    flat = Flat(tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    assert all(t.storage_offset() % BLOCK == 0 for t in tensors.values())
    for _ in range(2):
        loss_of(tensors, 0).backward()
    loss_of(before, 0).backward()
    flat.values += 1  # and they are one and the same memory
    for name, t in tensors.items():
        begin = t.storage_offset()
        found = flat.gradient[begin : begin + t.numel()].view(t.shape)
        torch.testing.assert_close(found, 2 * before[name].grad)
        torch.testing.assert_close(t.detach(), before[name].detach() + 1)
    flat.zero()
    assert not any(t.grad.any() for t in tensors.values())


def test_adamw_is_pytorchs() -> None:
    ours, theirs = leaves(), leaves()
    optimiser = Optimiser.adamw(ours, 1e-2, (0.9, 0.99), decay=0.1)
    vectors = [t for t in theirs.values() if t.ndim < 2]
    matrices = [t for t in theirs.values() if t.ndim == 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
    reference = torch.optim.AdamW(groups, 1e-2, (0.9, 0.99))
    assert sum(map(torch.numel, ours.values())) > STRIP
    for step in range(12):
        share = 1 - step / 20
        for tensors in (ours, theirs):
            loss_of(tensors, step).backward()
        norm = optimiser.clip(0.05)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(list(theirs.values()), 0.05)), rel=1e-5)
        for group in reference.param_groups:
            group["lr"] = 1e-2 * share
        optimiser.step(share)
        reference.step()
        optimiser.zero()
        reference.zero_grad()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_lora_plus_moves_b_faster() -> None:
    tensors, before = leaves(), leaves()
    optimiser = Optimiser.adamw(tensors, 1e-3, ratio=16)
    loss_of(tensors, 0).backward()
    optimiser.step(1.0)
    moved = {name: float((t - before[name]).detach().abs().max()) for name, t in tensors.items()}
    assert moved["blk.0.attn_q.b"] == pytest.approx(16e-3, rel=0.01)
    assert moved["blk.0.attn_q.a"] == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("signed", [True, False])
def test_codebook(signed: bool) -> None:
    """256 values in order, with both ends and nothing; dense towards nothing: a few per cent apart in every decade."""
    book = codebook(signed)
    assert len(book) == 256 and bool((book.diff() > 0).all())
    assert float(book[-1]) == 1 and 0 in book and float(book[0]) == pytest.approx(-0.993 if signed else 0, abs=0.001)
    small = torch.tensor([0.7, 0.07, 0.007, 7e-4])
    errors = (small[:, None] - book).abs().amin(1) / small
    assert float(errors.max()) < (0.08 if signed else 0.04)


@pytest.mark.parametrize("signed", [True, False])
def test_a_moment_in_8_bits(signed: bool) -> None:
    x = torch.randn(BLOCK * 6, generator=torch.Generator().manual_seed(1))
    x[BLOCK : 2 * BLOCK] *= 1e-9  # a block has a scale of its own
    x[2 * BLOCK : 3 * BLOCK] = 0
    x = x if signed else x.square()
    moment = Moment(len(x), 8, signed, torch.device("cpu"))
    assert not moment.read(slice(0, len(x))).any()
    moment.write(slice(0, len(x)), x)
    found = moment.read(slice(0, len(x)))
    size = x.abs() if signed else x.sqrt()
    largest = size.view(-1, BLOCK).amax(1, keepdim=True).expand(-1, BLOCK).reshape(-1)
    wrong = (found - x).abs() if signed else (found.sqrt() - size).abs()
    assert bool((wrong <= 0.01 * largest).all()) and not found[2 * BLOCK : 3 * BLOCK].any()
    assert sum(t.numel() * t.element_size() for t in moment.state(slice(0, len(x))).values()) < 1.02 * len(x)


@pytest.mark.parametrize("bits", [32, 8])
def test_state_goes_on_exactly(bits: int) -> None:
    def run(tensors: dict[str, Any], optimiser: Optimiser, begin: int, end: int) -> None:
        for step in range(begin, end):
            optimiser.zero()
            loss_of(tensors, step).backward()
            optimiser.step(1.0)

    straight = leaves()
    run(straight, Optimiser.adamw(straight, 1e-2, bits=bits), 0, 10)
    first = leaves()
    before = Optimiser.adamw(first, 1e-2, bits=bits)
    run(first, before, 0, 6)
    again = {name: t.detach().clone().requires_grad_() for name, t in first.items()}
    after = Optimiser.adamw(again, 1e-2, bits=bits)
    after.restore({name: t.numpy().copy() for name, t in before.state().items()})
    run(again, after, 6, 10)
    assert all(torch.equal(straight[name], again[name]) for name in straight)


def test_8_bits_follow_32() -> None:
    """The same descent, within a few per cent of the way."""
    finals = {}
    for bits in (32, 8):
        tensors = leaves()
        optimiser = Optimiser.adamw(tensors, 2e-2, bits=bits)
        for step in range(30):
            optimiser.zero()
            loss = loss_of(tensors, step)
            loss.backward()
            optimiser.step(1.0)
        finals[bits] = float(loss.detach())
    begin = float(loss_of(leaves(), 29).detach())
    assert abs(finals[8] - finals[32]) < 0.02 * (begin - finals[32])


def test_small_gradients_beside_a_large_one() -> None:
    """Constant gradients, whatever their size, move each weight by the rate a step: in 8 bits too, roughly, for
    gradients four decades apart in one block. Kept as squares, the smallest would move 3.7 times as far."""
    flat = Flat({"w": torch.zeros(BLOCK).requires_grad_()})
    flat.gradient.copy_(torch.logspace(-4, 0, BLOCK))
    adam = AdamW(flat, 1e-2, bits=8)
    for step in range(20):
        adam.step(1.0, step + 1)
    torch.testing.assert_close(flat.values, torch.full_like(flat.values, -0.2), rtol=0.3, atol=0)


def test_an_adam_of_strips_is_one_of_the_whole() -> None:
    flat = Flat({"w": torch.randn(STRIP + 300, generator=torch.Generator().manual_seed(2)).requires_grad_()})
    flat.gradient.copy_(torch.randn(len(flat.values), generator=torch.Generator().manual_seed(3)))
    before = flat.values.clone()
    AdamW(flat, 1e-2).step(1.0, 1)
    torch.testing.assert_close(flat.values, before - 1e-2 * flat.gradient.sign(), rtol=0, atol=1e-4)


def test_orthogonal() -> None:
    g = torch.randn(3, 40, 90, generator=torch.Generator().manual_seed(4))
    for matrices in (g, g.mT.contiguous()):
        singular = torch.linalg.svdvals(orthogonal(matrices))
        assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    tensors, before = leaves(), leaves()
    optimiser = Optimiser.muon(tensors, 1e-3, 2e-2)
    assert set(optimiser.parts["blocks"].flat.tensors) == {n for n in SHAPES if n.startswith("blk")}
    loss_of(tensors, 0).backward()
    optimiser.step(0.5)
    move = before["blk.0.big"].detach() - tensors["blk.0.big"].detach()
    singular = torch.linalg.svdvals(move / 1e-2)
    assert 0.5 < float(singular.median()) < 1.3
    assert float((tensors["norm"] - before["norm"]).detach().abs().max()) == pytest.approx(5e-4, rel=0.01)
