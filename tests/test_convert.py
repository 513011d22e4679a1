"""bise convert: from each layout to each, read by bise and by those who invented the layouts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise import convert, gguf, names
from bise.chat import TEMPLATE_V1
from bise.config import Config
from bise.convert import Plan, plan, write
from bise.convert.tensors import retyped, strips
from bise.errors import BiseError, FormatError, RequestError, UnsupportedError
from bise.quant import quantise
from bise.safetensors import Safetensors, write_shards
from bise.tokenizer import Tokenizer
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf, write_tiny_mistral

CONFIG = tiny_config(sliding_window=16, vocab_size=320)
ARRAYS = tiny_weights(CONFIG)
TEXT = np.random.default_rng(3).integers(3, 300, 60).tolist()
FACTS = {"general.name": "tiny north wind", "general.license": "apache-2.0", "general.languages": ["en", "fr"],
         "wind.speed": 7, "tokenizer.chat_template": TEMPLATE_V1, "tokenizer.ggml.padding_token_id": 0,
         "tokenizer.ggml.eot_token_id": 319}  # fmt: skip
WRITERS = {"huggingface": write_tiny_hf, "mistral": write_tiny_mistral}
TARGETS = {"gguf": "out.gguf", "huggingface": "out-hf", "mistral": "out-mistral"}


def made(folder: Path, layout: str, config: Config = CONFIG, type: str = "BF16") -> Path:
    """The same tiny model in each layout, by other hands than those that are tested."""
    if layout == "gguf":
        return write_tiny_gguf(folder / "tiny.gguf", config, ARRAYS, type, **FACTS)
    return WRITERS[layout](folder / layout, config, ARRAYS, type)


def logits(path: Path) -> np.ndarray:
    return bise.load(path, backend="reference", kv="f32").logits(TEXT)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("layout", TARGETS)
def test_each_to_each(layout: str, to: str, tmp_path: Path) -> None:
    """Same configuration, same values in every tensor, same logits; a sharded copy where source and target agree."""
    source, out = made(tmp_path, layout), tmp_path / TARGETS[to]
    files = convert.convert(source, out, to, shard=100_000 if layout == to else None)
    before, after = Weights.open(source), Weights.open(files[0] if to == "gguf" else out)
    assert files and all(file.exists() for file in files) and after.layout == to
    assert layout != to or len(after.files) > 1
    assert _told(after.config) == _told(before.config)
    for own in before:
        np.testing.assert_array_equal(after[own].dequantise(), before[own].dequantise(), err_msg=own)
    assert all(after[own].type == "BF16" for own in after if after[own].shape != (CONFIG.dim,))
    np.testing.assert_array_equal(logits(after.path), logits(source))


def _told(config: Config) -> Config:
    return dataclasses.replace(config, window_reason="", norm_eps=float(np.float32(config.norm_eps)))


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("layout", WRITERS)
def test_round_trip_gives_the_same_bytes(layout: str, type: str, tmp_path: Path) -> None:
    """A folder -> GGUF -> the folder: every tensor's bytes. And once more: every file, and the GGUF too."""
    source = made(tmp_path, layout, type=type)
    one, back, two, again = (tmp_path / name for name in ("1.gguf", "back", "2.gguf", "again"))
    convert.convert(source, one)
    convert.convert(one, back, layout)
    stem = convert.STEMS[layout]
    before, after = (Safetensors(folder / f"{stem}.safetensors") for folder in (source, back))
    assert set(before) == set(after)
    for name in before:
        assert (after[name].type, after[name].shape) == (before[name].type, before[name].shape)
        assert after[name].data.tobytes() == before[name].data.tobytes()
    convert.convert(back, two)
    convert.convert(two, again, layout)
    assert contents(again) == contents(back)
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("to", WRITERS)
def test_gguf_round_trip(to: str, tmp_path: Path) -> None:
    """GGUF -> folder -> GGUF: the same tensors, the same values of all keys that were there."""
    source, out = made(tmp_path, "gguf"), tmp_path / "again.gguf"
    convert.convert(source, tmp_path / "folder", to)
    convert.convert(tmp_path / "folder", out)
    before, after = gguf.GGUF(source), gguf.GGUF(out)
    assert list(before.tensors) == list(after.tensors)
    for name, tensor in before.tensors.items():
        assert (after.tensors[name].type, after.tensors[name].data.tobytes()) == (tensor.type, tensor.data.tobytes())
    lost = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.padding_token_id"} if to == "mistral" else set()
    assert {key for key, value in before.keys.items() if after.keys.get(key) != value} == lost


def test_what_ends_an_answer_is_kept(tmp_path: Path) -> None:
    """Also a piece that no list of names knows, as a GGUF's eot or a folder's generation_config.json has it."""
    source = made(tmp_path, "gguf")
    convert.convert(source, tmp_path / "folder")
    ends = [Tokenizer.of(Weights.open(path)).stop_ids for path in (source, tmp_path / "folder")]
    assert ends[0] == ends[1] == {2, 319}
    assert bise.load(tmp_path / "folder").stop_ids == {2, 319}
    (tmp_path / "folder" / "generation_config.json").write_text('{"eos_token_id": [2, 7, 99999, -1, true, "x"]}')
    assert Tokenizer.of(Weights.open(tmp_path / "folder")).stop_ids == {2, 7}


def test_canonical_files(tmp_path: Path) -> None:
    """What a Hugging Face folder says."""
    convert.convert(made(tmp_path, "gguf"), tmp_path / "folder")
    read = {name: json.loads((tmp_path / "folder" / name).read_bytes()) for name in (
        "config.json", "generation_config.json", "tokenizer_config.json")}  # fmt: skip
    config, tokenizer = read["config.json"], read["tokenizer_config.json"]
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (10_000.0, 10_000.0)
    assert (config["sliding_window"], config["head_dim"], config["rms_norm_eps"]) == (16, 16, 1e-5)
    assert (config["torch_dtype"], config["tie_word_embeddings"]) == ("bfloat16", False)
    assert read["generation_config.json"] == {"bos_token_id": 1, "eos_token_id": [2, 319], "pad_token_id": 0}
    assert (tokenizer["chat_template"], tokenizer["add_bos_token"]) == (TEMPLATE_V1, True)
    assert [tokenizer[f"{name}_token"] for name in ("bos", "eos", "unk", "pad")] == ["<s>", "</s>", "<unk>", "<unk>"]


def test_quantised_becomes_floats(tmp_path: Path) -> None:
    """Each value within half a step of float16 of what the block says; as bf16 and f32 too."""
    source = made(tmp_path, "gguf", type="Q8_0")
    for dtype, close in ((None, 2**-11), ("BF16", 2**-8), ("F32", 0)):
        p = plan(Weights.open(source), tmp_path / f"folder-{dtype}", dtype=dtype)
        assert p.dequantised() == ["Q8_0"] and p.main_type == (dtype or "F16")
        write(p)
        before, after = Weights.open(source), Weights.open(p.out)
        for own in before:
            want = before[own].dequantise()
            np.testing.assert_allclose(after[own].dequantise(), want, rtol=close, atol=1e-7 if close else 0)


def test_quantised_stays_in_a_gguf(tmp_path: Path) -> None:
    """Another GGUF of the same blocks: parts of a split file put together."""
    source = made(tmp_path, "gguf", type="Q8_0")
    parts = convert.convert(source, tmp_path / "part.gguf", shard=100_000)
    assert [part.name for part in parts] == ["part-00001-of-00002.gguf", "part-00002-of-00002.gguf"]
    (whole,) = convert.convert(parts[1], tmp_path / "whole.gguf", shard=10**9)
    assert whole.read_bytes() == source.read_bytes()
    convert.convert(whole, tmp_path / "floats.gguf", dtype="F32")
    assert gguf.GGUF(tmp_path / "floats.gguf").keys == gguf.GGUF(source).keys | {"general.file_type": 0}


def test_tied_embeddings(tmp_path: Path) -> None:
    arrays = tiny_weights(CONFIG, tied=True)
    source = write_tiny_gguf(tmp_path / "tied.gguf", CONFIG, arrays, "BF16")
    convert.convert(source, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_bytes())["tie_word_embeddings"] is True
    convert.convert(tmp_path / "hf", tmp_path / "mistral", "mistral")
    convert.convert(tmp_path / "mistral", tmp_path / "again.gguf")
    assert "output.weight" not in gguf.GGUF(tmp_path / "again.gguf").tensors
    np.testing.assert_array_equal(logits(tmp_path / "again.gguf"), logits(source))


@pytest.mark.parametrize("window", [None, 4096])
def test_window_of_the_7b_shape(window: int | None, tmp_path: Path) -> None:
    """A GGUF without the key is taken for v0.1 by its dimensions; one that was converted says what it is."""
    config = Config(4096, 32, 32, 8, 128, 14_336, 32_000, sliding_window=window)
    shapes = {"token_embd": (32_000, 4096)}
    assert _told(Config.from_gguf({"general.architecture": "llama"} | config.to_gguf(), shapes)) == _told(config)
    assert _told(Config.from_hf(config.to_hf(), shapes)) == _told(config)
    assert _told(Config.from_params(config.to_params(), shapes)) == _told(config)


def test_stretched_positions(tmp_path: Path) -> None:
    config = tiny_config(rope_factor=4.0)
    assert _told(Config.from_hf(config.to_hf(), {})) == _told(config)
    assert _told(Config.from_gguf({"general.architecture": "llama"} | config.to_gguf(), {})) == _told(config)
    with pytest.raises(UnsupportedError, match="stretched 4 times"):
        config.to_params()


def test_padded_embedding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An embedding of more rows than pieces: the rest of the pieces is there, and unused."""
    source = made(tmp_path, "gguf")
    convert.convert(source, tmp_path / "hf")
    config = tiny_config(sliding_window=16, vocab_size=352)
    padded = write_tiny_hf(tmp_path / "padded", config, tiny_weights(config))
    shutil.copy(tmp_path / "hf" / "tokenizer.model", padded)
    with caplog.at_level("WARNING", "bise"):
        convert.convert(padded, tmp_path / "padded.gguf")
    assert "320 pieces for 352 rows" in caplog.text
    keys = gguf.GGUF(tmp_path / "padded.gguf").keys
    assert keys["tokenizer.ggml.tokens"][320:322] == ["[PAD320]", "[PAD321]"]
    assert keys["tokenizer.ggml.token_type"][319:] == [1] + [5] * 32


def test_no_vocabulary(tmp_path: Path) -> None:
    source = made(tmp_path, "huggingface")
    assert plan(Weights.open(source), tmp_path / "x.gguf").release.vocab is None
    convert.convert(source, tmp_path / "ids.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "ids.gguf"), logits(source))


def test_strips_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bise.convert.tensors.STRIP", 200)
    values = np.random.default_rng(0).standard_normal((37, 64)).astype(np.float32)
    tensor = quantise(values, "Q8_0")
    assert len(strips(tensor)) == 13
    assert retyped(tensor, "BF16").data.tobytes() == quantise(tensor.dequantise(), "BF16").data.tobytes()


def test_overflow_is_named(tmp_path: Path) -> None:
    """A value that float16 cannot hold: refused, and nothing is left behind."""
    arrays = {**ARRAYS, "blk.1.ffn_down": ARRAYS["blk.1.ffn_down"].copy()}
    arrays["blk.1.ffn_down"][3, 5] = -70_000
    source = write_tiny_gguf(tmp_path / "big.gguf", CONFIG, arrays)
    for out in ("folder", "half.gguf"):
        with pytest.raises(RequestError, match=r"ffn_down': 1 values are beyond F16's 65,504, .* 70000: use --dtype"):
            convert.convert(source, tmp_path / out, dtype="F16")
    with pytest.raises(RequestError, match="beyond F16"):
        convert.convert(source, tmp_path / "part.gguf", dtype="F16", shard=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["big.gguf"]


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    arrays = {**ARRAYS, "blk.0.attn_v": ARRAYS["blk.0.attn_v"].copy()}
    arrays["blk.0.attn_v"][7, 0] = np.nan
    source = write_tiny_gguf(tmp_path / "bad.gguf", CONFIG, arrays)
    with pytest.raises(FormatError, match=r"'blk.0.attn_v' \(F32\) has 1 NaN or infinite values, first in row 7"):
        convert.convert(source, tmp_path / "folder")


@pytest.mark.parametrize(
    "out, told, words",
    [
        ("there.gguf", {"dtype": "F16"}, "exists: name another"),
        ("full", {}, "exists: name another"),
        ("no/such.gguf", {"dtype": "F16"}, "there is no folder"),
        ("new.gguf", {}, "is gguf already"),
        ("new.gguf", {"to": "huggingface"}, "for the layout huggingface name a folder"),
        ("new", {"to": "gguf"}, "name the name of a .gguf file"),
        ("new", {"to": "onnx"}, "layout 'onnx', expected one of gguf"),
        ("new", {"dtype": "Q4_K"}, "dtype 'Q4_K', expected F32"),
        ("new", {"shard": 10}, "shards of 10 bytes"),
    ],
)
def test_refusals(out: str, told: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = made(tmp_path, "gguf")
    (tmp_path / "there.gguf").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RequestError, match=words):
        plan(Weights.open(source), tmp_path / out, **told)


def test_too_small_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bise.convert.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(RequestError, match=r"bytes are needed, 10 are free: free .* more"):
        plan(Weights.open(made(tmp_path, "gguf")), tmp_path / "out")


def test_strangers_notes(tmp_path: Path) -> None:
    """__metadata__.gguf of a stranger's file: what is no key of a GGUF, or not for it to say, is left out."""
    folder = made(tmp_path, "huggingface")
    entries = Weights.open(folder).entries
    notes = {"general.name": "n", "general.architecture": "x", "llama.block_count": 9, "a": [1, "x"], "b": {"c": 1}}
    tensors = {names.spelled(own, "huggingface"): entry for own, entry in entries.items()}
    write_shards(folder, tensors, metadata={"format": "pt", "gguf": json.dumps(notes)})
    assert plan(Weights.open(folder), tmp_path / "x.gguf").release.facts == {"general.name": "n"}
    write_shards(folder, tensors, metadata={"gguf": "[1]"})
    with pytest.raises(BiseError, match="__metadata__.gguf"):
        plan(Weights.open(folder), tmp_path / "x.gguf")


def test_progress_and_kept_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar ends at the end, and every tensor's pages are given back once."""
    told: list[tuple[int, int]] = []
    forgotten: list[str] = []
    monkeypatch.setattr(Weights, "forget", lambda self, name: forgotten.append(name))
    for to, shard in (("gguf", 100_000), ("huggingface", 100_000)):
        p: Plan = plan(Weights.open(made(tmp_path, "mistral", type="F32")), tmp_path / TARGETS[to], shard=shard)
        write(p, lambda done, total: told.append((done, total)))
        assert told[-1][0] == told[-1][1] and [d for d, _ in told] == sorted(d for d, _ in told)
        assert sorted(forgotten) == sorted(p.source)
        told.clear(), forgotten.clear()
        shutil.rmtree(tmp_path / "mistral")
