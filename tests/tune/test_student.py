"""Student: its losses and gradients, alone and packed, on weights of every kind, and beside transformers + peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import bise  # noqa: E402
from bise import names  # noqa: E402
from bise.errors import RequestError  # noqa: E402
from bise.quant import TYPES  # noqa: E402
from bise.tune.sample import Sample  # noqa: E402
from bise.tune.student import TARGETS, Student  # noqa: E402
from tiny import tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf  # noqa: E402

SHAPE = dict(dim=128, hidden_dim=256, head_dim=32, vocab_size=300)


def sample(n: int, rng: np.random.Generator, share: float = 0.6) -> Sample:
    learnt = rng.random(n) < share
    learnt[0], learnt[-1] = False, True
    return Sample(rng.integers(0, 300, n).astype(np.int32), learnt)


def samples() -> list[Sample]:
    rng = np.random.default_rng(5)
    return [sample(n, rng) for n in (9, 40, 2, 33)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(**SHAPE)
    return write_tiny_hf(tmp_path_factory.mktemp("tiny") / "hf", config, tiny_weights(config))


def stirred(student: Student, seed: int = 1) -> Student:
    """Every trained tensor away from where it begins."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in student.trained.values():
            t += 0.05 * torch.randn(t.shape, generator=chance)
    return student


def learnt(student: Student, lot: list[Sample]) -> tuple[float, dict[str, Any]]:
    for t in student.trained.values():
        t.grad = None
    loss = student.loss(lot)
    loss.backward()
    return float(loss.detach()), {name: t.grad.clone() for name, t in student.trained.items()}


def near(got: dict[str, Any], want: dict[str, Any], within: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert float((got[name] - want[name]).abs().max()) <= within * float(want[name].abs().max()), name


METHODS: list[dict[str, Any]] = [
    {"method": "lora"}, {"method": "lora", "rslora": True, "alpha": 4}, {"method": "dora"}, {"method": "full"},
    {"method": "lora", "targets": ("attn_q", "output")}, {"method": "lora", "base": "nf4"},
]  # fmt: skip


@pytest.mark.parametrize("how", METHODS, ids=str)
def test_packed_is_alone_and_checkpointed_is_not(model: Path, how: dict[str, Any]) -> None:
    student = stirred(Student.open(model, rank=4, window=16, **how))
    loss, grads = learnt(student, samples())
    alone = [learnt(student, [one]) for one in samples()]
    assert loss == pytest.approx(sum(one for one, _ in alone), rel=1e-6)
    near(grads, {name: sum(g[name] for _, g in alone) for name in grads}, 2e-5)
    student.checkpointing = True
    again, same = learnt(student, samples())
    assert again == loss
    assert all(torch.equal(grads[name], same[name]) for name in grads)


@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0", "Q4_0"])
def test_log_probabilities_are_those_of_inference(tmp_path: Path, type: str) -> None:
    """Of the file as it is, with its window, against `logits` of the reference backend, or of the CPU's own, which
    rounds what quantised weights meet: there a last bit of attention may become a whole step of 127."""
    config = tiny_config(**SHAPE, sliding_window=16)
    path = write_tiny_gguf(tmp_path / "m.gguf", config, tiny_weights(config), type)
    got = Student.open(path).logprobs(samples()).detach().numpy()
    quantised = TYPES[type].block > 1
    reference = bise.load(path, backend="cpu" if quantised else "reference", kv="f32")
    want = []
    for one in samples():
        logits = reference.logits(one.ids.tolist())[:-1].astype(np.float64)
        likely = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        want += [likely[i, one.ids[i + 1]] for i in range(len(one) - 1) if one.learnt[i + 1]]
    np.testing.assert_allclose(got, want, atol=2e-3 if quantised else 2e-5)


def test_the_window_is_obeyed(model: Path) -> None:
    """A token further back than every layer's window together changes nothing; the one before it does."""
    student = Student.open(model, window=4)  # 2 layers: 2 * (4 - 1) tokens back
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 300, 20).astype(np.int32), np.arange(20) == 19  # predicted from position 18
    base = student.logprobs([Sample(ids, mask)])
    for back, seen in ((6, True), (7, False)):
        other = ids.copy()
        other[18 - back] = (other[18 - back] + 1) % 300
        assert bool((student.logprobs([Sample(other, mask)]) != base).item()) == seen


def test_reference_is_the_model_before(model: Path) -> None:
    student = Student.open(model, method="dora")
    before = student.logprobs(samples()).detach()
    stirred(student)
    with torch.no_grad(), student.reference():
        plain = student.logprobs(samples())
    torch.testing.assert_close(plain, before, rtol=0, atol=1e-5)  # DoRA at the start: W / |W| * |W|
    assert float((student.logprobs(samples()).detach() - before).abs().max()) > 0.1


def test_nothing_learnt_is_no_loss(model: Path) -> None:
    student = Student.open(model)
    nothing = Sample(np.arange(5, dtype=np.int32), np.zeros(5, bool))
    assert student.logprobs([nothing]).shape == (0,)
    assert torch.equal(student.logprobs([nothing, *samples()]), student.logprobs(samples()))


def test_noise_comes_again_with_the_state(model: Path) -> None:
    student = stirred(Student.open(model, seed=3))
    still = learnt(student, samples())[0]
    student.noise = 5.0
    state = student.state()
    loss, grads = learnt(student, samples())
    other, _ = learnt(student, samples())
    student.restore(state)
    again, same = learnt(student, samples())
    assert len({still, loss, other}) == 3
    assert again == loss and all(torch.equal(grads[name], same[name]) for name in grads)
    with torch.no_grad():
        assert float(student.loss(samples())) == pytest.approx(still, rel=1e-6), "none where nothing is learnt"


def test_a_state_of_another_shape_is_refused(model: Path) -> None:
    with pytest.raises(RequestError, match="28 trained tensors differ.*resume with the same rank"):
        Student.open(model, rank=8).restore(Student.open(model, rank=4).state())


@pytest.mark.parametrize(
    "how", [{"method": "qlora"}, {"base": "int3"}, {"rank": 0}, {"targets": ("wq",)}, {"targets": ()}]
)
def test_nonsense_is_refused(model: Path, how: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="expected"):
        Student.open(model, **how)


def test_rows_that_nf4_cannot_cut_are_refused(tmp_path: Path) -> None:
    config = tiny_config(**{**SHAPE, "hidden_dim": 96})
    path = write_tiny_gguf(tmp_path / "m.gguf", config, tiny_weights(config))
    with pytest.raises(RequestError, match=r"blk.0.ffn_down has rows of 96 .* multiples of 64: take --base as-is"):
        Student.open(path, base="nf4")
    assert Student.open(path).trained


def test_full_has_no_adapter(model: Path) -> None:
    with pytest.raises(RequestError, match="no adapter"):
        Student.open(model, method="full").adapter()


def test_tied_weights_learn_as_one(tmp_path: Path) -> None:
    config = tiny_config(**SHAPE)
    path = write_tiny_gguf(tmp_path / "m.gguf", config, tiny_weights(config, tied=True))
    student = Student.open(path, method="full")
    assert "output" not in student.trained and student.parameters.output is student.trained["token_embd"]
    _, grads = learnt(student, samples())
    ids = sorted({int(i) for one in samples() for i in one.ids})
    missing = next(i for i in range(300) if i not in ids)
    assert float(grads["token_embd"][missing].abs().max()) > 0, "as an output row it is a wrong answer to everything"


def test_fresh_learns() -> None:
    student = Student.fresh(tiny_config(**SHAPE), seed=1)
    optimiser = torch.optim.AdamW(student.trained.values(), 3e-3)
    count = sum(one.targets for one in samples())
    losses = []
    for _ in range(30):
        loss = student.loss(samples()) / count
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(300), rel=0.05) and losses[-1] < 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers in an old way
class TestBesidePeft:
    """The same LoRA step as transformers + peft in float32 (peft's q and k rows lie in Hugging Face's order)."""

    RANK = 4

    def pair(self, model: Path, dora: bool, rslora: bool) -> tuple[Student, Any]:
        peft = pytest.importorskip("peft")
        from transformers import MistralForCausalLM

        student = Student.open(model, method="dora" if dora else "lora", rank=self.RANK, alpha=8, rslora=rslora)
        theirs = MistralForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
        modules = [names.spelled(f"blk.0.{part}", "huggingface").split(".")[-2] for part in TARGETS]
        theirs = peft.get_peft_model(
            theirs,
            peft.LoraConfig(r=self.RANK, lora_alpha=8, target_modules=modules, use_dora=dora, use_rslora=rslora),
        )
        with torch.no_grad():
            for name, tensor in self.matched(student, theirs):
                tensor.copy_(self.turned(name, student.trained[name].detach()))
        return student, theirs

    def matched(self, student: Student, theirs: Any) -> list[tuple[str, Any]]:
        parameters = dict(theirs.named_parameters())
        kinds = {
            "a": "lora_A.default.weight",
            "b": "lora_B.default.weight",
            "magnitude": "lora_magnitude_vector.default.weight",
        }
        found = []
        for name in student.trained:
            own, _, kind = name.rpartition(".")
            module = names.spelled(own, "huggingface").removesuffix(".weight")
            found.append((name, parameters[f"base_model.model.{module}.{kinds[kind]}"]))
        assert len(found) == sum(p.requires_grad for p in parameters.values())
        return found

    def turned(self, name: str, tensor: Any) -> Any:
        """Into Hugging Face's order of rows."""
        if names.turned(name.rpartition(".")[0]) and not name.endswith(".a"):
            return torch.from_numpy(names.half_split(tensor.numpy(), 32))
        return tensor

    def lots(self) -> list[list[Sample]]:
        """Pairs of samples of one length, so that a batch of theirs needs no padding."""
        rng = np.random.default_rng(2)
        return [[sample(24, rng) for _ in "ab"] for _ in range(4)]

    def their_loss(self, theirs: Any, lot: list[Sample]) -> Any:
        ids = torch.from_numpy(np.stack([one.ids for one in lot])).long()
        labels = ids.masked_fill(~torch.from_numpy(np.stack([one.learnt for one in lot])), -100)
        return theirs(input_ids=ids, labels=labels).loss

    @pytest.mark.parametrize(("dora", "rslora"), [(False, False), (True, False), (False, True)])
    def test_gradients_and_losses_of_20_steps(self, model: Path, dora: bool, rslora: bool) -> None:
        student, theirs = self.pair(model, dora, rslora)
        optimisers = [
            torch.optim.AdamW(student.trained.values(), 5e-3),
            torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], 5e-3),
        ]
        losses: list[tuple[float, float]] = []
        for step in range(20):
            lot = self.lots()[step % 4]
            mine = student.loss(lot) / sum(one.targets for one in lot)
            other = self.their_loss(theirs, lot)
            for loss, optimiser in zip((mine, other), optimisers, strict=True):
                optimiser.zero_grad()
                loss.backward()
            if step in (0, 1, 7):
                for name, tensor in self.matched(student, theirs):
                    want, got = tensor.grad, self.turned(name, student.trained[name].grad)
                    assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max()) + 1e-8, (step, name)
            for optimiser in optimisers:
                optimiser.step()
            losses.append((float(mine.detach()), float(other.detach())))
        np.testing.assert_allclose(*np.array(losses).T, rtol=0, atol=1e-4)
        assert losses[-1][0] < losses[0][0] - 0.5
