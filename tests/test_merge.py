"""Merging: the fused file against peft's own merge and against base and adapter; and what the card has to catch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise import gguf, lora, merge
from bise.api import BUILT_IN
from bise.chat import TEMPLATE_V1
from bise.errors import RequestError
from bise.lora import Adapter
from bise.merge.verify import BY_TYPE, Limits
from bise.weights import Weights
from steps import one_torch_thread  # noqa: F401
from test_cli import Cli, cli  # noqa: F401
from test_lora import SHAPE, random_adapter
from test_parity_transformers import mistral
from tiny import tiny_config, tiny_tensors, tiny_weights, write_tiny_gguf

SMALL = tiny_config(dim=64, sliding_window=24)
STRICT = Limits(1e-6, 0.01, 1e-6, 0.99)


def fused(base: Path, adapter: Adapter, out: Path, kind: str | None = None,
          kl: float | None = None) -> tuple[merge.Card, bise.Model]:  # fmt: skip
    """Merge, open, compare."""
    model = bise.load(base)
    model.adapters["x"], model.adapter = model.beside.place(adapter, "x"), "x"
    plan = merge.plan(model.weights, adapter, out, kind)
    merge.write(plan)
    export, seen = bise.load(out), merge.observe(model)
    card = merge.verify(seen, merge.observe(export, seen.texts), merge.limits(plan.types, model.weights.types(), kl))
    return card, export


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    return write_tiny_gguf(folder / "base.gguf", SMALL, tiny_weights(SMALL), **{"tokenizer.chat_template": TEMPLATE_V1})


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("kind", "out"), [(None, "m.gguf"), ("F16", "m.gguf"), ("BF16", "m"), (None, "m")])
def test_floats(base: Path, tmp_path: Path, kind: str | None, out: str, dora: bool) -> None:
    """From F32: the same model by the card, whatever the layout; what the adapter leaves alone keeps its bytes."""
    adapter = random_adapter(SMALL, dora=dora, of=lambda name: "ffn" not in name)
    card, export = fused(
        base, adapter, tmp_path / out, kind, 1e-3
    )  # a random model is more excitable than a trained one
    assert card.passed, card.faults
    assert card.adapter_kl > 0.1 and card.tokens > 300 and all(card.checks.values())
    weights = Weights.open(base)
    assert set(export.weights.types()) == ({"F32"} if kind is None else {kind, "F32"})
    if kind is None:
        for name in weights:
            if name in adapter.deltas:
                want = adapter.deltas[name].fused(weights[name].dequantise())
                assert np.array_equal(export.weights[name].dequantise(), want)
            else:
                assert np.array_equal(export.weights[name].data, weights[name].data)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_as_peft_merges(tmp_path: Path) -> None:
    """Every weight of the folder that is written, against merge_and_unload; and transformers opens it."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    mistral(SHAPE).save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(mistral(SHAPE), settings)
    for name, weight in theirs.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    want = theirs.merge_and_unload().state_dict()
    weights = Weights.open(tmp_path / "base")
    merge.write(merge.plan(weights, lora.read(tmp_path / "adapter", weights), tmp_path / "merged"))
    got = transformers.MistralForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert got.keys() == want.keys()
    for name in want:
        assert torch.allclose(got[name], want[name], atol=1e-6), name


def small(adapter: Adapter, by: float) -> Adapter:
    deltas = {n: lora.Delta(d.a, d.b * np.float32(by), d.scale, d.magnitude) for n, d in adapter.deltas.items()}
    return Adapter(deltas, adapter.alpha, adapter.base)


def test_into_a_quantised_base(tmp_path: Path) -> None:
    """puff in Q8_0: types stay, untouched matrices keep their bytes, the card passes; the same to bf16."""
    weights = Weights.open(BUILT_IN)
    adapter = small(random_adapter(weights.config, 4, of=lambda name: "attn" in name, base=weights.fingerprint), 0.05)
    card, export = fused(BUILT_IN, adapter, tmp_path / "m.gguf")
    assert card.passed and card.kl < 2e-3 < card.adapter_kl, card
    assert export.weights.types().keys() == weights.types().keys() and export.stop_ids == frozenset({2})
    for name in weights:
        assert (name in adapter.deltas) != np.array_equal(export.weights[name].data, weights[name].data)
    card, _ = fused(BUILT_IN, adapter, tmp_path / "m", "BF16")
    assert card.passed, card.faults


def test_rounding_that_drowns_the_adapter_is_told(tmp_path: Path) -> None:
    """A delta much smaller than the steps of the base's type: nothing of it is left, and the card says so, small as KL
    is; the same in bf16 passes."""
    path = write_tiny_gguf(tmp_path / "q4.gguf", SMALL, tiny_weights(SMALL), "Q4_0")
    adapter = small(random_adapter(SMALL), 0.004)
    card, _ = fused(path, adapter, tmp_path / "m.gguf")
    assert not card.passed and len(card.faults) == 1 and "of what was learnt" in card.faults[0], card
    assert card.adapter_kl and card.limits.kl > card.kl > 0.8 * card.adapter_kl
    assert fused(path, adapter, tmp_path / "b.gguf", "BF16", 0.01)[0].kl < card.kl


def test_a_tied_output_comes_apart(tmp_path: Path) -> None:
    """Where the adapter changes the output and the base has none of its own, the export has one."""
    arrays = tiny_weights(SMALL, tied=True)
    path = write_tiny_gguf(tmp_path / "tied.gguf", SMALL, arrays)
    for out in "m.gguf", "m":
        card, export = fused(path, random_adapter(SMALL, of=lambda n: n == "output"), tmp_path / out)
        assert card.passed and not export.weights.tied, card.faults
        assert np.array_equal(export.weights["token_embd"].dequantise(), arrays["token_embd"])


def spoilt(base: Path, tmp_path: Path, **changes: Any) -> bise.Model:
    file = gguf.GGUF(base)
    keys = {key: value for key, value in {**file.keys, **changes}.items() if value is not None}
    gguf.write(tmp_path / "spoilt.gguf", keys, file.tensors)
    return bise.load(tmp_path / "spoilt.gguf")


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("chat template", {"tokenizer.chat_template": None}),
        ("chat template", {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0]['content'] }}"}),
        ("stop tokens", {"tokenizer.ggml.eos_token_id": 1}),
        ("tokenizer", {"tokenizer.ggml.add_space_prefix": False}),
        ("shape and window", {"llama.attention.sliding_window": 23}),
        ("shape and window", {"llama.rope.freq_base": 20_000.0}),
    ],
)
def test_what_the_card_catches(base: Path, tmp_path: Path, what: str, changes: dict[str, Any]) -> None:
    model = bise.load(base)
    seen = merge.observe(model)
    same = merge.verify(seen, merge.observe(bise.load(base), seen.texts), STRICT)
    assert same.passed and same.kl == 0 and same.same_top == 1, same.faults
    card = merge.verify(seen, merge.observe(spoilt(base, tmp_path, **changes), seen.texts), STRICT)
    assert not card.passed and not card.checks[what] and f"{what} differs" in card.faults


def test_rows_in_another_order_are_caught(tmp_path: Path, base: Path) -> None:
    """The classic: q and k written in Hugging Face's order into a GGUF."""
    from bise.names import half_split

    arrays = {n: half_split(a, SMALL.head_dim) if n.endswith("attn_k") else a for n, a in tiny_weights(SMALL).items()}
    gguf.write(tmp_path / "turned.gguf", gguf.GGUF(base).keys, tiny_tensors(arrays))
    seen = merge.observe(bise.load(base))
    card = merge.verify(seen, merge.observe(bise.load(tmp_path / "turned.gguf"), seen.texts), BY_TYPE["Q4_K"])
    assert not card.passed and all(card.checks.values()) and card.kl > 0.1


def test_plans_refused(base: Path, tmp_path: Path) -> None:
    weights = Weights.open(base)
    for out, kind, says in (
        (base, None, "exists"), (tmp_path / "no" / "m.gguf", None, "no folder"), (tmp_path / "m.gguf", "Q4_K", "bise quantize"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=says):
            merge.plan(weights, random_adapter(SMALL), out, kind)


def test_command(cli: Cli, base: Path, tmp_path: Path) -> None:  # noqa: F811
    """A card beside the file; a card that does not pass: renamed, one line, exit code 2."""
    lora.write_peft(tmp_path / "tune", random_adapter(SMALL, base=Weights.open(base).fingerprint), SMALL)
    (tmp_path / "text.txt").write_text("it was the best of winds " * 20)
    done = cli("merge", "adapter", str(base), str(tmp_path / "tune"), str(tmp_path / "m.gguf"), "--json", "-q",
               "--text", str(tmp_path / "text.txt"))  # fmt: skip
    assert done.code == 0, done.err
    card = json.loads(done.out)
    beside = json.loads((tmp_path / "m.card.json").read_text())
    assert card["passed"] and beside == {**beside, **card} and beside["export"] == "m.gguf"
    done = cli(
        "merge", "adapter", str(base), str(tmp_path / "tune"), str(tmp_path / "b"), "--type", "bf16", "--kl", "1e-12"
    )
    assert done.code == 2 and "FAIL" in done.out and "b.refused" in done.err.splitlines()[-1]
    assert (
        not (tmp_path / "b").exists() and not json.loads((tmp_path / "b.refused" / "card.json").read_text())["passed"]
    )
    done = cli("merge", "adapter", str(BUILT_IN), str(tmp_path / "tune"), str(tmp_path / "c.gguf"))
    assert done.code == 2 and "another model" in done.err and not (tmp_path / "c.gguf").exists()
