"""Logits against transformers: it makes a random model, runs it in float32 with eager attention and saves it;
bise opens the folder, so that names, the order of q and k rows, config.json and the arithmetic are proven together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise.cache import Cache, whole
from bise.model import forward
from bise.names import canonical, interleaved, turned
from steps import Step, alone, mixed, one_torch_thread, read  # noqa: F401

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.usefixtures("one_torch_thread")
BACKENDS = "reference", "torch", "cpu"
VOCAB, LENGTH, CLOSE = 128, 150, 1e-4


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    window: int | None
    head_dim: int = 32
    theta: float = 10_000.0
    eps: float = 1e-5
    dim: int = 64
    layers: int = 3


SHAPES = {
    "1:1 window 8": Shape(8, 8, 8, head_dim=16),
    "2:1 window 16": Shape(4, 2, 16, eps=1e-3),
    "3:1 window 13": Shape(6, 2, 13, head_dim=64, dim=96, layers=2),
    "4:1 no window": Shape(8, 2, None, theta=1e6),
    "8:1 window 64": Shape(8, 1, 64, head_dim=128),
}
FIXED = dict(vocab_size=VOCAB, intermediate_size=160, max_position_embeddings=1024, initializer_range=0.12,
             attn_implementation="eager")  # fmt: skip


def mistral(shape: Shape, seed: int = 0, **more: Any) -> Any:
    config = transformers.MistralConfig(
        hidden_size=shape.dim, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, sliding_window=shape.window,
        rms_norm_eps=shape.eps, rope_parameters={"rope_type": "default", "rope_theta": shape.theta}, **FIXED, **more,
    )  # fmt: skip
    return random_model(transformers.MistralForCausalLM, config, seed)


def random_model(kind: Any, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = kind(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):  # made as ones, which would forgive a norm in the wrong place
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length)


def theirs(model: Any, text: np.ndarray) -> np.ndarray:
    """(T,) -> (T, VOCAB): the whole text in one pass, no cache."""
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(text[None]), use_cache=False).logits[0].float().numpy())


@dataclass(frozen=True)
class Saved:
    folder: Path
    model: Any

    def load(self, backend: str) -> bise.Model:
        return bise.load(self.folder, backend=backend, kv="f32", threads=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Saved:
        model = mistral(SHAPES[name])
        folder = tmp_path_factory.mktemp("mistral")
        model.save_pretrained(folder)
        return Saved(folder, model)

    return make


def check(got: np.ndarray, want: np.ndarray, close: float = CLOSE) -> None:
    assert got.shape == want.shape
    assert np.ptp(want) > 4, "logits this flat prove nothing"
    assert np.abs(got - want).max() <= close


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHAPES)
def test_config_and_logits(saved: Any, name: str, backend: str) -> None:
    """The whole text at once, far past the window; then short prompts, at the window and one beside it."""
    made, shape = saved(name), SHAPES[name]
    model = made.load(backend)
    c = model.config
    assert (c.n_heads, c.n_kv_heads, c.head_dim, c.sliding_window) == (
        shape.heads, shape.kv_heads, shape.head_dim, shape.window,
    )  # fmt: skip
    assert (c.rope_theta, c.norm_eps, c.dim, c.hidden_dim) == (shape.theta, shape.eps, shape.dim, 160)
    check(model.logits(ids(LENGTH)), theirs(made.model, ids(LENGTH)))
    window = shape.window or 31
    for length in {1, 2, window - 1, window, window + 1}:
        text = ids(length, seed=length)
        assert np.abs(model.logits(text) - theirs(made.model, text)).max() <= CLOSE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHAPES)
def test_any_chunks(saved: Any, name: str, backend: str) -> None:
    """One text through the rolling buffer in equal chunks and in parts of 1 to n tokens."""
    made = saved(name)
    model, want = made.load(backend), theirs(made.model, ids(LENGTH))
    for steps in (alone(LENGTH, 1), alone(LENGTH, 7), alone(LENGTH, 64), mixed([LENGTH], LENGTH, seed=1)):
        ring = Cache(model.ops, model.config, 1, context=256, kv="f32")
        check(read(model, ring, [ids(LENGTH)], steps)[0], want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHAPES)
def test_unequal_lengths_then_decode(saved: Any, name: str, backend: str) -> None:
    """Prompts of unequal lengths in one flat batch, cut at random; then one token each, all together."""
    made, lengths, decoded = saved(name), [3, 40, 111, 64], 12
    model = made.load(backend)
    texts = [ids(n + decoded, seed=n) for n in lengths]
    ring = Cache(model.ops, model.config, len(lengths), context=256, kv="f32")
    together: list[Step] = [[(s, 1) for s in range(len(lengths))]] * decoded
    got = read(model, ring, texts, mixed(lengths, 50, seed=2) + together)
    for mine, text in zip(got, texts, strict=True):
        check(mine, theirs(made.model, text))


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_wraps(saved: Any, backend: str) -> None:
    """1,000 tokens, window 8: the ring of 288 slots goes round more than three times."""
    made = saved("1:1 window 8")
    model, text = made.load(backend), ids(1000)
    ring = Cache(model.ops, model.config, 1, kv="f32")
    assert ring.size < 320
    check(read(model, ring, [text], mixed([1000], 200, seed=3))[0], theirs(made.model, text))


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_continuation_is_generates(saved: Any, backend: str) -> None:
    """Against `generate` with transformers' own sliding cache."""
    made, prompt, more = saved("2:1 window 16"), ids(20), 40
    with torch.no_grad():
        want = made.model.generate(
            torch.from_numpy(prompt[None]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=more,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )[0].numpy()  # fmt: skip
    model = made.load(backend)
    ring, text = Cache(model.ops, model.config, 1, context=256, kv="f32"), prompt
    for step in [[(0, len(prompt))], *alone(more - 1, 1)]:
        logits = read(model, ring, [text], [step])[0]
        text = np.append(text, logits[-1].argmax())
    assert text.tolist() == want.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_llama(tmp_path: Path, backend: str) -> None:
    """A Llama-1/2 shape: one key/value head per head, no window, head_dim not in the file; linear RoPE scaling."""
    config = transformers.LlamaConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}, **FIXED,
    )  # fmt: skip
    theirs_model = random_model(transformers.LlamaForCausalLM, config)
    theirs_model.save_pretrained(tmp_path)
    model = bise.load(tmp_path, backend=backend, kv="f32", threads=2)
    assert (model.config.sliding_window, model.config.n_kv_heads, model.config.rope_factor) == (None, 4, 4.0)
    check(model.logits(ids(LENGTH)), theirs(theirs_model, ids(LENGTH)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_embeddings(tmp_path: Path, backend: str) -> None:
    tied = mistral(SHAPES["2:1 window 16"], tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    model = bise.load(tmp_path, backend=backend, kv="f32", threads=2)
    check(model.logits(ids(LENGTH)), theirs(tied, ids(LENGTH)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sharded_index(saved: Any, tmp_path: Path, backend: str) -> None:
    made = saved("4:1 no window")
    made.model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = bise.load(tmp_path, backend=backend, kv="f32", threads=2)
    check(model.logits(ids(LENGTH)), theirs(made.model, ids(LENGTH)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16(tmp_path: Path, backend: str) -> None:
    """bf16 weights stay bf16. The torch backend multiplies in that type, so it is held to transformers in bf16's own
    error; the others keep float32 activations and are held to the same weights run in float32."""
    half = mistral(SHAPES["2:1 window 16"]).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    model = bise.load(tmp_path, backend=backend, kv="f32", threads=2)
    assert model.weights["blk.0.attn_q"].type == "BF16"
    full = transformers.MistralForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    got, rounded, want = model.logits(ids(LENGTH)), theirs(half, ids(LENGTH)), theirs(full, ids(LENGTH))
    if backend == "torch":
        check(got, want, close=0.1)
        assert np.abs(got - want).mean() <= np.abs(rounded - want).mean()
    else:
        check(got, want)


def test_gradients(saved: Any) -> None:
    """Backpropagation through the torch backend: every weight's gradient is transformers'."""
    made, text = saved("2:1 window 16"), ids(LENGTH)
    model = made.load("torch")
    leaves = dict(named(model))
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    batch = whole(model.ops, model.config, [LENGTH])
    targets = torch.from_numpy(ids(LENGTH, seed=9))
    logits = forward(model.ops, model.config, model.parameters, text, batch)
    torch.nn.functional.cross_entropy(logits, targets).backward()

    made.model.zero_grad()
    torch.nn.functional.cross_entropy(made.model(torch.from_numpy(text[None])).logits[0], targets).backward()
    seen = set()
    for spelling, weight in made.model.named_parameters():
        name = canonical(spelling, "huggingface")
        assert name is not None
        want = weight.grad.numpy()
        if turned(name):
            want = interleaved(want, model.config.head_dim)
        np.testing.assert_allclose(leaves[name].grad.numpy(), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
        seen.add(name)
    assert seen == set(leaves)


def named(model: bise.Model) -> Any:
    """(canonical name, tensor) of every placed weight."""
    p = model.parameters
    yield from (("token_embd", p.token_embd), ("output_norm", p.output_norm), ("output", p.output))
    for i, layer in enumerate(p.blk):
        yield from ((f"blk.{i}.{name}", weight) for name, weight in vars(layer).items())
