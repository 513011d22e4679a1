"""GGUF read and written against the gguf package and llama.cpp's own loader."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gguf as official
import numpy as np
import pytest

from bise import gguf
from bise.disk import replacing
from bise.errors import BiseError, FormatError, RequestError, UnsupportedError
from bise.quant import Planned, QTensor, quantise
from bise.weights import Weights
from tiny import tiny_config, tiny_keys, tiny_tensors, tiny_vocabulary, tiny_weights, write_tiny_gguf

KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "text": "the mistral é 风",
    "yes": True,
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "ratio": 0.5,
    "words": ["a", "", "▁b"],
    "whole": [1, -2, 3],
    "parts": [0.25, 2.0],
    "flags": [True, False],
}


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    tensors = {"m.weight": quantise(x, "Q8_0"), "v": quantise(x[0, :5], "F32"), "h": quantise(x, "BF16")}
    gguf.write(tmp_path / "t.gguf", KEYS, tensors)
    reader = official.GGUFReader(tmp_path / "t.gguf")
    assert {key: reader.get_field(key).contents() for key in KEYS} == KEYS
    types = {key: [kind.name for kind in reader.get_field(key).types] for key in KEYS}
    assert types["small"] == ["UINT32"] and types["negative"] == ["INT32"] and types["large"] == ["UINT64"]
    assert types["ratio"] == ["FLOAT32"] and types["yes"] == ["BOOL"] and types["whole"] == ["ARRAY", "INT32"]
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        mine = tensors[tensor.name]
        assert tensor.tensor_type.name == mine.type and tuple(reversed(tensor.shape.tolist())) == mine.shape
        assert np.array_equal(np.asarray(tensor.data).reshape(-1).view(np.uint8), mine.data)


def test_we_read_what_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = official.GGUFWriter(tmp_path / "t.gguf", "llama")
    numbers = {"uint8": 200, "int8": -5, "uint16": 60000, "int16": -300, "uint32": 2**31, "int32": -9, "uint64": 2**63,
               "int64": -(2**40), "float32": 0.5, "float64": 0.1, "bool": True, "string": "▁é"}  # fmt: skip
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    writer.add_array("k.words", ["x", "yy"])
    writer.add_array("k.numbers", [1.5, 2.5])
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("x", x)
    writer.add_tensor("y", official.quants.quantize(x, official.GGMLQuantizationType.Q4_0),
                      raw_dtype=official.GGMLQuantizationType.Q4_0)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.GGUF(tmp_path / "t.gguf")
    for kind, value in numbers.items():
        assert file.keys[f"k.{kind}"] == value and type(file.keys[f"k.{kind}"]) is type(value)
    assert file.keys["k.words"] == ["x", "yy"] and file.keys["k.numbers"] == [1.5, 2.5]
    assert np.array_equal(file.tensors["x"].dequantise(), x)
    assert file.tensors["y"].type == "Q4_0" and file.tensors["y"].shape == (4, 64)
    assert np.array_equal(file.tensors["y"].data, quantise(x, "Q4_0").data)


def test_a_numpy_scalar_is_stored_as_its_own_type(tmp_path: Path) -> None:
    keys = {"a": np.uint64(7), "b": np.float64(0.1), "c": np.int8(-3), "d": np.array([1, 2], np.uint16), "e": []}
    gguf.write(tmp_path / "t.gguf", keys, {})
    fields = official.GGUFReader(tmp_path / "t.gguf").fields
    assert [fields[key].types[-1].name for key in "abcd"] == ["UINT64", "FLOAT64", "INT8", "UINT16"]
    assert gguf.GGUF(tmp_path / "t.gguf").keys == {"a": 7, "b": 0.1, "c": -3, "d": [1, 2], "e": []}


def test_alignment_is_kept_by_writer_and_reader(tmp_path: Path) -> None:
    tensors = {f"t{i}": quantise(np.full(i + 1, float(i), np.float32), "F32") for i in range(5)}
    gguf.write(tmp_path / "t.gguf", {"general.alignment": 256}, tensors)
    file = gguf.GGUF(tmp_path / "t.gguf")
    assert {name: tensor.dequantise().tolist() for name, tensor in file.tensors.items()} == {
        f"t{i}": [float(i)] * (i + 1) for i in range(5)
    }
    reader = official.GGUFReader(tmp_path / "t.gguf")
    assert [tensor.data.tolist() for tensor in reader.tensors] == [[float(i)] * (i + 1) for i in range(5)]


def test_llama_cpp_loads_what_we_write(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    config = tiny_config()
    path = write_tiny_gguf(tmp_path / "t.gguf", config, tiny_weights(config), "Q8_0")
    llama = llama_cpp.Llama(str(path), n_ctx=32, n_threads=1, verbose=False)
    assert llama.n_vocab() == config.vocab_size and llama.metadata["general.name"] == "tiny"
    llama.eval([1, 5, 9])
    assert np.isfinite(llama.scores[2] if llama.scores.ndim > 1 else llama.scores).all()
    llama.close()


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    gguf.write(tmp_path / "t.gguf", tiny_vocabulary(32_000), {})
    begin = time.perf_counter()
    assert len(gguf.GGUF(tmp_path / "t.gguf").keys["tokenizer.ggml.tokens"]) == 32_000
    assert time.perf_counter() - begin < 0.3


def test_planned_tensors_are_made_once_and_one_at_a_time(tmp_path: Path) -> None:
    made: list[int] = []

    def plan(i: int) -> Planned:
        def make() -> QTensor:
            made.append(i)
            return quantise(np.full((2, 32), i, np.float32), "Q8_0")

        return Planned("Q8_0", (2, 32), make)

    seen: list[tuple[int, int]] = []
    gguf.write(
        tmp_path / "t.gguf", {}, {f"t{i}": plan(i) for i in range(3)}, lambda done, total: seen.append((done, total))
    )
    assert made == [0, 1, 2] and seen == [(96, 288), (192, 288), (288, 288)]
    assert gguf.GGUF(tmp_path / "t.gguf").tensors["t2"].dequantise()[0, 0] == pytest.approx(2, abs=1e-3)


def test_a_plan_that_is_not_kept_leaves_no_file(tmp_path: Path) -> None:
    wrong = Planned("Q8_0", (2, 32), lambda: quantise(np.zeros((1, 32)), "Q8_0"))
    with pytest.raises(RequestError, match="planned as Q8_0"):
        gguf.write(tmp_path / "t.gguf", {}, {"t": wrong})
    assert list(tmp_path.iterdir()) == []


def test_writing_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o022))


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BiseError, match="cannot be written: No such file or directory"):
        gguf.write(tmp_path / "no" / "t.gguf", {}, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is swapped for /dev/full, so that the first flush fails as on a full disk."""

    def full(fd: int, mode: str) -> Any:
        os.close(fd)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr("bise.disk.os.fdopen", full)
    with pytest.raises(BiseError, match="No space left on device"):
        gguf.write(tmp_path / "t.gguf", {}, {"t": quantise(np.zeros((64, 4096)), "F32")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [None, {"a": 1}, [[1]], b"x", [1, "a"], 2**64, np.zeros((2, 2)), [None], [[1], [1, 2]]]
)
def test_values_without_a_gguf_type_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(RequestError, match=r"key 'k': .* has no GGUF type"):
        gguf.write(tmp_path / "t.gguf", {"k": value}, {})


def write_split(folder: Path, parts: int, **changes: Any) -> list[Path]:
    config = tiny_config()
    tensors = tiny_tensors(tiny_weights(config), "F16")
    names, paths = list(tensors), []
    for number in range(parts):
        keys: dict[str, Any] = tiny_keys(config) if number == 0 else {}
        keys |= {
            "split.no": np.uint16(number),
            "split.count": np.uint16(parts),
            "split.tensors.count": np.int32(len(names)),
        }
        path = folder / f"tiny-{number + 1:05}-of-{parts:05}.gguf"
        gguf.write(path, keys | changes, {name: tensors[name] for name in names[number::parts]})
        paths.append(path)
    return paths


def test_any_part_of_a_split_file_opens_all(tmp_path: Path) -> None:
    config = tiny_config()
    paths = write_split(tmp_path, 3)
    for path in [*paths, tmp_path]:
        weights = Weights.open(path)
        assert len(weights) == 21 and weights.config.dim == config.dim
        assert np.array_equal(weights["output"].data, quantise(tiny_weights(config)["output"], "F16").data)
        weights.forget("output")


def test_split_files_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second = write_split(tmp_path, 2)
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(FormatError, match=r"tiny-00002-of-00002.gguf: there is no such file"):
        gguf.GGUF(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(FormatError, match="is in another part too"):
        gguf.GGUF(first)
    gguf.write(second, {"split.no": 0, "split.count": 2}, {})
    with pytest.raises(FormatError, match=r"split.no, split.count = \(0, 2\), expected \(1, 2\)"):
        gguf.GGUF(first)
    gguf.write(second, {"split.no": 1, "split.count": 2}, {})
    with pytest.raises(FormatError, match=r"split\.tensors\.count = 21, the parts hold 11"):
        gguf.GGUF(first)
    second.write_bytes(whole)
    other = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match=r"expected a name that ends in -00001-of-00002\.gguf"):
        gguf.GGUF(other)


def test_a_type_that_is_not_run_is_named(tmp_path: Path) -> None:
    tensors = {"t": quantise(np.zeros((2, 256)), "F32")}
    gguf.write(tmp_path / "t.gguf", {}, tensors)
    raw = bytearray((tmp_path / "t.gguf").read_bytes())
    at = raw.index((256).to_bytes(8, "little") + (2).to_bytes(8, "little")) + 16
    raw[at] = 16
    with pytest.raises(UnsupportedError, match="tensor 't' is IQ2_XXS, bise reads F32, F16, BF16, Q4_0"):
        gguf.parse(bytes(raw), len(raw), "t.gguf")
