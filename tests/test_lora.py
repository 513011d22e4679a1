"""Adapters' files: PEFT itself and llama.cpp read what is written here, and the other way; what is refused, and why."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise import gguf, lora, safetensors
from bise.errors import BiseError, FormatError, RequestError, UnsupportedError
from bise.lora import Adapter, Delta
from bise.lora.adapter import targets
from bise.quant import QTensor
from bise.weights import Weights
from steps import one_torch_thread  # noqa: F401
from test_parity_transformers import Shape, mistral
from tiny import tiny_config, tiny_weights, write_tiny_gguf

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
CONFIG = tiny_config()
IDS = np.random.default_rng(0).integers(3, 120, 40)
SHAPE = Shape(8, 2, 16, layers=2)


def random_adapter(config: Any, rank: int = 4, seed: int = 0, base: str = "", dora: bool = False,
                   of: Callable[[str], bool] = lambda name: True) -> Adapter:  # fmt: skip
    """B A of about the size of the weights themselves, for the weights that `of` chooses."""
    rng, deltas = np.random.default_rng(seed), {}
    for name, (rows, cols) in targets(config).items():  # type: ignore[misc]
        a, b = rng.standard_normal((rank, cols)), rng.standard_normal((rows, rank))
        magnitude = rng.uniform(0.7, 1.3, rows).astype(np.float32) if dora else None
        if of(name):
            a, b = (a / np.sqrt(cols)).astype(np.float32), (b / np.sqrt(rank)).astype(np.float32)
            deltas[name] = Delta(a, b, 2.0, magnitude)
    return Adapter(deltas, 2.0 * rank, base, "random")


def same(a: Adapter, b: Adapter) -> None:
    assert a.id == b.id and list(a.deltas) == list(b.deltas)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    mistral(SHAPE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", CONFIG, tiny_weights(CONFIG))


KINDS: dict[str, dict[str, Any]] = {
    "plain": dict(target_modules=["q_proj", "v_proj"]),
    "all, rsLoRA, head": dict(target_modules=["q_proj", "k_proj", "o_proj", "lm_head"], use_rslora=True),
    "DoRA": dict(target_modules="all-linear", use_dora=True),
    "patterns": dict(target_modules="all-linear", rank_pattern={"k_proj": 2}, alpha_pattern={r"layers\.1\.mlp.*": 3}),
    "one layer": dict(target_modules=["k_proj", "down_proj"], layers_to_transform=[1]),
}


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft and transformers about each other
@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_back(base: Path, tmp_path: Path, kind: str) -> None:
    """PEFT makes and runs an adapter, bise reads it: the same logits. bise writes it, PEFT reads that: the same bits."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    theirs = peft.get_peft_model(
        mistral(SHAPE), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **KINDS[kind])
    )
    torch.manual_seed(1)
    for name, weight in theirs.named_parameters():
        if "lora_magnitude" in name:
            weight.data *= torch.empty_like(weight).uniform_(0.7, 1.3)
        elif "lora_" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    want = logits_of(theirs)
    for backend in "cpu", "reference", "torch":
        model = bise.load(base, backend=backend, kv="f32", adapter=tmp_path / "theirs")
        assert np.abs(model.logits(IDS) - want).max() < 1e-4 < 1 < np.abs(model.logits(IDS, adapter=None) - want).max()
    read = lora.read(tmp_path / "theirs", model.weights)
    lora.write_peft(tmp_path / "ours", replace(read, base=model.weights.fingerprint), model.config)
    again = peft.PeftModel.from_pretrained(mistral(SHAPE), tmp_path / "ours").eval()
    assert np.array_equal(logits_of(again), want)
    same(lora.read(tmp_path / "ours", model.weights), read)
    if kind in ("plain", "all, rsLoRA, head"):
        told = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
        assert (told["r"], told["lora_alpha"]) == (4, 8) and told["use_rslora"] == (kind != "plain")
        assert sorted(told["target_modules"]) == sorted(KINDS[kind]["target_modules"])


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(IDS[None]), use_cache=False).logits[0].numpy())


def test_llama_cpp_reads_ours(tiny: Path, tmp_path: Path) -> None:
    """Deltas with scales and ranks of their own, under llama.cpp's one alpha."""
    from llama import llama_cpp

    adapter = random_adapter(CONFIG, base=Weights.open(tiny).fingerprint)
    first = next(iter(adapter.deltas))
    deltas = {**adapter.deltas, first: replace(adapter.deltas[first], scale=0.7)}
    lora.write_gguf(tmp_path / "a.gguf", Adapter(deltas, 8.0, adapter.base, "mine"))
    model = bise.load(tiny, adapter=tmp_path / "a.gguf")
    theirs = llama_cpp.Llama(str(tiny), lora_path=str(tmp_path / "a.gguf"), n_ctx=64, logits_all=True, verbose=False,
                             n_threads=1)  # fmt: skip
    theirs.eval(IDS.tolist())
    want = np.array(theirs.scores[: len(IDS)])
    theirs.close()
    got, plain = model.logits(IDS), model.logits(IDS, adapter=None)
    assert np.abs(got - want).max() < 0.02 < 1 < np.abs(plain - want).max()
    assert model.adapters["a"].name == "a" and lora.read(tmp_path / "a.gguf", model.weights).base == adapter.base


@pytest.mark.parametrize("type", ["F32", "F16"])
def test_gguf_as_converters_write_it(tiny: Path, tmp_path: Path, type: str) -> None:
    """Written with the gguf package, as convert_lora_to_gguf.py does."""
    package = pytest.importorskip("gguf", reason="the gguf package is not installed")
    want = random_adapter(CONFIG, of=lambda name: "attn" in name)
    writer = package.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    kind = np.float16 if type == "F16" else np.float32
    for name, delta in want.deltas.items():
        writer.add_tensor(f"{name}.weight.lora_a", delta.a.astype(kind))
        writer.add_tensor(f"{name}.weight.lora_b", delta.b.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rounded = {n: Delta(*(x.astype(kind).astype(np.float32) for x in (d.a, d.b)), 2.0) for n, d in want.deltas.items()}
    same(lora.read(tmp_path / "theirs.gguf", Weights.open(tiny)), replace(want, deltas=rounded))


def test_both_kinds_agree(tiny: Path, tmp_path: Path) -> None:
    weights = Weights.open(tiny)
    adapter = random_adapter(CONFIG, base=weights.fingerprint)
    lora.write_gguf(tmp_path / "a.gguf", adapter)
    lora.write_peft(tmp_path / "folder", adapter, CONFIG)
    same(lora.read(tmp_path / "a.gguf", weights), adapter)
    same(lora.read(tmp_path / "folder" / "adapter_model.safetensors", weights), adapter)
    with pytest.raises(RequestError, match="DoRA"):
        lora.write_gguf(tmp_path / "dora.gguf", random_adapter(CONFIG, dora=True))


def test_base_is_checked(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shapes, other weights: refused by fingerprint, unless it is meant so."""
    monkeypatch.setattr(logging.getLogger("bise"), "propagate", True)  # the command line's tests turn it off
    caplog.set_level(logging.WARNING, "bise")
    weights = Weights.open(tiny)
    other = Weights.open(write_tiny_gguf(tmp_path / "other.gguf", CONFIG, tiny_weights(CONFIG, seed=1)))
    lora.write_peft(tmp_path / "a", random_adapter(CONFIG, base=weights.fingerprint), CONFIG)
    assert lora.read(tmp_path / "a", weights).base == weights.fingerprint and not caplog.records
    with pytest.raises(FormatError, match="--any-base"):
        lora.read(tmp_path / "a", other)
    lora.read(tmp_path / "a", other, any_base=True)
    lora.write_peft(tmp_path / "b", random_adapter(CONFIG), CONFIG)
    lora.read(tmp_path / "b", other)
    assert "does not say which model" in caplog.text
    untaught = {n: replace(d, b=np.zeros_like(d.b)) for n, d in random_adapter(CONFIG).deltas.items()}
    lora.write_gguf(tmp_path / "zero.gguf", Adapter(untaught, 8.0, weights.fingerprint))
    lora.read(tmp_path / "zero.gguf", weights)
    assert "has not learnt" in caplog.text


Q = "base_model.model.model.layers.0.self_attn.q_proj"
BAD: list[tuple[str, Callable[[dict[str, Any], dict[str, np.ndarray]], Any], str]] = [
    ("rank of A and B", lambda c, t: t.update({f"{Q}.lora_B.weight": np.ones((64, 3), np.float32)}), "ranks"),
    ("rank of the settings", lambda c, t: c.update(r=8), "rank 8"),
    ("half of a pair", lambda c, t: t.pop(f"{Q}.lora_A.weight"), "has no A"),
    ("another model's shape", lambda c, t: t.update({f"{Q}.lora_A.weight": np.ones((4, 80), np.float32)}), "another model"),
    ("a layer too many", lambda c, t: [t.update({n.replace("s.1.", "s.7."): t.pop(n)}) for n in list(t) if "s.1." in n],
     "'model.layers.7"),
    ("an unknown module", lambda c, t: [t.update({n.replace("q_proj", "query"): t.pop(n)}) for n in list(t) if "q_p" in n],
     "query"),
    ("nothing at all", lambda c, t: t.clear() or t.update({"x": np.ones(4, np.float32)}), "'x'"),
    ("a target without tensors", lambda c, t: [t.pop(n) for n in list(t) if "v_proj" in n], "'v_proj'"),
    ("NaN", lambda c, t: t[f"{Q}.lora_A.weight"].__setitem__((0, 0), np.nan), "1 NaN"),
    ("alpha 0", lambda c, t: c.update(lora_alpha=0), "lora_alpha = 0"),
    ("alpha text", lambda c, t: c.update(lora_alpha="16"), "lora_alpha = '16'"),
    ("alpha huge", lambda c, t: c.update(lora_alpha=1e9), "scale"),
    ("alpha of a pattern", lambda c, t: c.update(alpha_pattern={"q_proj": 0}), "alpha = 0"),
    ("pattern that takes long", lambda c, t: c.update(rank_pattern={"(a+)+b": 2}), "too involved"),
    ("pattern that is none", lambda c, t: c.update(rank_pattern={"[": 2}), "no regular expression"),
    ("r", lambda c, t: c.update(r=0), "r = 0"),
    ("modules_to_save", lambda c, t: c.update(modules_to_save=["lm_head"]), "modules_to_save"),
    ("another method", lambda c, t: c.update(peft_type="IA3"), "IA3"),
    ("bias", lambda c, t: c.update(bias="all"), "bias"),
    ("a changed base", lambda c, t: c.update(init_lora_weights="pissa_niter_4"), "pissa"),
    ("fan_in_fan_out", lambda c, t: c.update(fan_in_fan_out=True), "fan_in_fan_out"),
    ("embedding", lambda c, t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 9), "f4")}),
     "embed"),
    ("more words", lambda c, t: t.update({"base_model.model.lm_head.base_layer.weight": np.ones((290, 64), "f4")}), "words"),
    ("DoRA half way", lambda c, t: c.update(use_dora=True), "magnitude"),
    ("a magnitude unasked", lambda c, t: t.update({f"{Q}.lora_magnitude_vector": np.ones(64, "f4")}), "use_dora"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "spoil", "says"), BAD, ids=[bad[0] for bad in BAD])
def test_peft_refused(tiny: Path, tmp_path: Path, what: str, spoil: Any, says: str) -> None:
    adapter = random_adapter(CONFIG, of=lambda name: name.endswith(("attn_q", "attn_v")))
    lora.write_peft(tmp_path, adapter, CONFIG)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = {
        n: t.dequantise().copy() for n, t in safetensors.Safetensors(tmp_path / "adapter_model.safetensors").items()
    }
    spoil(settings, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    safetensors.write(tmp_path / "adapter_model.safetensors", {n: QTensor.of(a) for n, a in tensors.items()})
    with pytest.raises((FormatError, UnsupportedError)) as error:
        lora.read(tmp_path, Weights.open(tiny))
    assert says in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
    ("keys", "drop", "says"),
    [
        ({"general.type": "model"}, "", "not an adapter"),
        ({"adapter.type": "control"}, "", "adapter.type"),
        ({"general.architecture": "gemma"}, "", "gemma"),
        ({"adapter.lora.alpha": 0.0}, "", "alpha = 0.0"),
        ({"adapter.lora.alpha": float("nan")}, "", "alpha = nan"),
        ({"adapter.lora.alpha": 1e7}, "", "scale"),
        ({}, "blk.0.attn_q.weight.lora_a", "other half"),
    ],
)
def test_gguf_refused(tiny: Path, tmp_path: Path, keys: dict[str, Any], drop: str, says: str) -> None:
    lora.write_gguf(tmp_path / "a.gguf", random_adapter(CONFIG))
    file = gguf.GGUF(tmp_path / "a.gguf")
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != drop}
    gguf.write(tmp_path / "bad.gguf", {**file.keys, **keys}, tensors)
    with pytest.raises((FormatError, UnsupportedError), match=says):
        lora.read(tmp_path / "bad.gguf", Weights.open(tiny))
    with pytest.raises(FormatError, match="not an adapter"):
        lora.read(tiny, Weights.open(tiny))


def test_a_run_folder_is_its_adapter(tiny: Path, tmp_path: Path) -> None:
    weights = Weights.open(tiny)
    lora.write_peft(tmp_path / "chats" / "adapter", random_adapter(CONFIG, base=weights.fingerprint), CONFIG)
    run, inside = (lora.read(tmp_path / path, weights) for path in ("chats", "chats/adapter"))
    assert run.name == "chats"
    assert all(np.array_equal(run.deltas[name].a, delta.a) for name, delta in inside.deltas.items())


def test_pickles_and_empty_folders(tiny: Path, tmp_path: Path) -> None:
    weights = Weights.open(tiny)
    with pytest.raises(FormatError, match="no adapter in this folder"):
        lora.read(tmp_path, weights)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02")
    for path in tmp_path, tmp_path / "adapter_model.bin":
        with pytest.raises(FormatError, match="never loads pickles"):
            lora.read(path, weights)


def test_load_refuses_before_it_loads(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BiseError, match="no such file"):
        bise.load(tiny, adapter=tmp_path / "none.gguf")
    shutil.copy(tiny, tmp_path / "model.gguf")
    with pytest.raises(FormatError, match="is it a model"):
        bise.load(tiny, adapter=tmp_path / "model.gguf")
