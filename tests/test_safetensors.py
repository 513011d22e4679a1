"""safetensors read and written against the official library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bise import safetensors
from bise.errors import FormatError, RequestError, UnsupportedError
from bise.quant import Planned, QTensor, quantise

X = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)


def test_the_official_library_reads_what_we_write(tmp_path: Path) -> None:
    official = pytest.importorskip("safetensors")
    load = pytest.importorskip("safetensors.torch").load_file
    tensors = {
        "f": quantise(X, "F32"),
        "h": quantise(X, "F16"),
        "b": quantise(X, "BF16"),
        "é": quantise(X[0, :3], "F32"),
    }
    safetensors.write(tmp_path / "t.safetensors", tensors, {"format": "pt", "note": "▁"})
    found = load(tmp_path / "t.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].float().numpy(), tensor.dequantise()), name
    with official.safe_open(tmp_path / "t.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "note": "▁"}


def test_we_read_what_the_official_library_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    x = torch.tensor(X)
    tensors = {"a": x, "b": x.bfloat16(), "c": x.half(), "s": torch.tensor(2.5),
               "n": torch.zeros(0, 3), "i": torch.arange(3)}  # fmt: skip
    save(tensors, tmp_path / "t.safetensors", {"k": "v"})
    file = safetensors.Safetensors(tmp_path / "t.safetensors")
    assert file.metadata == {"k": "v"} and set(file) == set(tensors) and len(file) == 6
    for name in "abcsn":
        assert np.array_equal(file[name].dequantise(), tensors[name].float().numpy())
    assert file["b"].type == "BF16" and file["s"].shape == () and file["n"].shape == (0, 3)
    with pytest.raises(UnsupportedError, match="tensor 'i' is I64, bise reads F32, F16, BF16"):
        file["i"]
    file.forget("a")
    assert np.array_equal(file["a"].dequantise(), X)


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = {f"t{i}": quantise(X + i, "F32") for i in range(5)}
    seen: list[tuple[int, int]] = []
    index = safetensors.write_shards(tmp_path, tensors, 2000, progress=lambda done, total: seen.append((done, total)))
    assert index.name == "model.safetensors.index.json"
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "model-00001-of-00003.safetensors"
    assert json.loads(index.read_text())["metadata"]["total_size"] == 4800
    assert seen == [(960 * i, 4800) for i in range(1, 6)]
    file = safetensors.Safetensors(index)
    assert all(np.array_equal(file[f"t{i}"].dequantise(), X + i) for i in range(5))
    assert safetensors.write_shards(tmp_path, tensors).name == "model.safetensors"


def test_planned_tensors(tmp_path: Path) -> None:
    plan = Planned("F32", (6, 40), lambda: quantise(X, "F32"))
    safetensors.write(tmp_path / "t.safetensors", {"a": plan})
    assert np.array_equal(safetensors.Safetensors(tmp_path / "t.safetensors")["a"].dequantise(), X)
    with pytest.raises(RequestError, match="planned as"):
        safetensors.write(tmp_path / "u.safetensors", {"a": Planned("F32", (6, 39), plan.make)})
    assert not (tmp_path / "u.safetensors").exists()


def test_quantised_tensors_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="'a' is Q8_0: a safetensors file holds F32, F16, BF16"):
        safetensors.write(tmp_path / "t.safetensors", {"a": QTensor.of(np.zeros((1, 32)), "Q8_0")})


@pytest.mark.parametrize(
    "shard",
    [
        "../t.safetensors",
        "/etc/t.safetensors",
        "a/t.safetensors",
        "a\\t.safetensors",
        ".t.safetensors",
        "t.bin",
        "",
        7,
        ["t"],
    ],
)
def test_an_index_names_only_plain_names(tmp_path: Path, shard: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(FormatError, match=r"expected a \.safetensors name in the same folder"):
        safetensors.Safetensors(index)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": null}'])
def test_an_index_without_a_map(tmp_path: Path, text: str) -> None:
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(FormatError, match="weight_map = "):
        safetensors.Safetensors(tmp_path / "i.json")


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    index = safetensors.write_shards(tmp_path, {f"t{i}": quantise(X, "F32") for i in range(2)}, 960)
    first, second = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"
    second.unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-00002\.safetensors: there is no such file"):
        safetensors.Safetensors(index)
    second.write_bytes(first.read_bytes())
    with pytest.raises(FormatError, match="'t0' is in another shard too"):
        safetensors.Safetensors(index)
    safetensors.write(second, {"u": quantise(X, "F32")})
    with pytest.raises(FormatError, match="has no tensor 't1', the index says it does"):
        safetensors.Safetensors(index)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    """A hub cache is made of links to files with other names."""
    safetensors.write(tmp_path / "blob", {"a": quantise(X, "F32")})
    (tmp_path / "model.safetensors").symlink_to("blob")
    assert list(safetensors.Safetensors(tmp_path / "model.safetensors")) == ["a"]


def test_what_a_program_keeps_for_itself(tmp_path: Path) -> None:
    """Arrays of other kinds than weights, exactly as they were; nothing is written of a kind that would not come back."""
    kept = {"codes": np.arange(7, dtype=np.uint8), "steps": np.array(3), "empty": np.zeros((0, 4), np.float32),
            "averages": np.random.default_rng(0).standard_normal((5, 3)), "w": np.eye(3, dtype=np.float32).T}  # fmt: skip
    safetensors.save(tmp_path / "kept.safetensors", kept, {"facts": '{"a": 1}'})
    found, facts = safetensors.load(tmp_path / "kept.safetensors")
    assert facts == {"facts": '{"a": 1}'} and found.keys() == kept.keys()
    for name, array in kept.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    safetensors.write(tmp_path / "half.safetensors", {"w": QTensor.of(np.ones((2, 2)), "F16")})
    with pytest.raises(FormatError, match="'w' is F16, expected one of"):
        safetensors.load(tmp_path / "half.safetensors")
