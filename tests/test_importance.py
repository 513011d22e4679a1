"""The importance matrix in both of its files, against what llama.cpp and the gguf package make of them."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest

from bise import gguf
from bise.errors import BiseError, FormatError, UnsupportedError
from bise.importance import Importance, read, write
from bise.quant import QTensor
from bise.weights import expected_shapes
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(dim=256, hidden_dim=512, head_dim=64, vocab_size=288)


def made(seed: int = 0) -> Importance:
    rng = np.random.default_rng(seed)
    shapes = {
        name: shape for name, shape in expected_shapes(CONFIG).items() if len(shape) == 2 and name != "token_embd"
    }
    sums = {name: rng.lognormal(0, 3, shape[1]) * 1000 for name, shape in shapes.items()}
    return Importance(sums, dict.fromkeys(sums, 1000), chunks=2, chunk_size=500, datasets=("a.txt", "b.txt"))


@pytest.mark.parametrize("name", ["i.gguf", "i.dat"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    ours = made()
    write(tmp_path / name, ours)
    theirs = read(tmp_path / name)
    assert set(theirs) == set(ours) and theirs.chunks == 2
    for weight in ours:
        np.testing.assert_allclose(theirs[weight], ours[weight], rtol=1e-6)
    if name.endswith("gguf"):
        assert theirs.datasets == ours.datasets and theirs.counts == ours.counts and theirs.chunk_size == 500


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    """Names, shapes and keys as llama.cpp's own tool writes them: (cols, 1) and (1, 1) in ggml's order."""
    reader = pytest.importorskip("gguf").GGUFReader
    write(tmp_path / "i.gguf", made())
    theirs = reader(tmp_path / "i.gguf")
    tensors = {tensor.name: tensor for tensor in theirs.tensors}
    sums, counts = tensors["blk.1.ffn_down.weight.in_sum2"], tensors["blk.1.ffn_down.weight.counts"]
    assert sums.shape.tolist() == [512, 1] and counts.shape.tolist() == [1, 1]
    np.testing.assert_array_equal(sums.data.reshape(-1), made().sums["blk.1.ffn_down"].astype(np.float32))
    assert theirs.get_field("general.type").contents() == "imatrix"
    assert theirs.get_field("imatrix.chunk_count").contents() == 2
    assert theirs.get_field("imatrix.chunk_size").contents() == 500
    assert theirs.get_field("imatrix.datasets").contents() == ["a.txt", "b.txt"]
    assert [kind.name for kind in theirs.get_field("imatrix.chunk_count").types] == ["UINT32"]


def test_the_older_file_by_hand(tmp_path: Path) -> None:
    name = b"blk.0.attn_q.weight"
    values = np.array([2, 4, 8], "<f4")
    body = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 4, 3) + values.tobytes()
    (tmp_path / "old.dat").write_bytes(body)  # the oldest ones end here
    (tmp_path / "new.dat").write_bytes(body + struct.pack("<ii", 4, 5) + b"a.txt")
    for path in ("old.dat", "new.dat"):
        np.testing.assert_array_equal(read(tmp_path / path)["blk.0.attn_q"], values / 4)
    assert read(tmp_path / "new.dat").datasets == ("a.txt",) and read(tmp_path / "new.dat").chunks == 4


def quantised(source: Path, path: Path, importance: Importance | None) -> bytes:
    """What llama.cpp's quantiser makes of a file, Q4_K throughout."""
    from llama import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S, 1, True
    if importance is not None:
        arrays = {f"{name}.weight".encode(): importance[name] for name in importance}
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
        for entry, (name, array) in zip(entries, arrays.items(), strict=False):  # the last one stays empty: the end
            entry.name, entry.size = name, array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)) == 0
    return path.read_bytes()


def test_llama_cpp_quantises_with_it(tmp_path: Path) -> None:
    """It takes ours, makes other bytes of it, and these err less where the importance says that it matters."""
    arrays = tiny_weights(CONFIG)
    source = write_tiny_gguf(tmp_path / "f32.gguf", CONFIG, arrays)
    write(tmp_path / "i.dat", made())
    importance = read(tmp_path / "i.dat").of(expected_shapes(CONFIG))
    quantised(source, tmp_path / "without.gguf", None)
    quantised(source, tmp_path / "with.gguf", importance)
    errors = {}
    for how in ("without", "with"):
        tensors = gguf.GGUF(tmp_path / f"{how}.gguf").tensors
        weight = tensors["blk.0.ffn_down.weight"]
        assert weight.type == "Q4_K"
        off = (weight.dequantise() - arrays["blk.0.ffn_down"]) ** 2
        errors[how] = float((off * importance["blk.0.ffn_down"]).sum())
    assert errors["with"] < 0.9 * errors["without"]


def test_a_name_it_does_not_know_is_left_out(tmp_path: Path) -> None:
    keys = {"general.type": "imatrix", "imatrix.chunk_count": 1}
    one = QTensor.of(np.ones((1, 1), np.float32))
    tensors = {
        f"{name}.weight{end}": one for name in ("blk.0.attn_q", "blk.0.ssm_in") for end in (".in_sum2", ".counts")
    }
    gguf.write(tmp_path / "i.gguf", keys, tensors)
    assert list(read(tmp_path / "i.gguf")) == ["blk.0.attn_q"]


def test_what_was_never_seen_is_all_alike(tmp_path: Path) -> None:
    unseen = Importance({"blk.0.attn_q": np.zeros(4)}, {"blk.0.attn_q": 0})
    write(tmp_path / "i.gguf", unseen)
    assert read(tmp_path / "i.gguf")["blk.0.attn_q"].tolist() == [1, 1, 1, 1]


def test_texts_are_added() -> None:
    one, other = made(0), made(1)
    both = one + other
    name = "blk.0.attn_q"
    np.testing.assert_allclose(both[name], (one[name].astype(np.float64) + other[name]) / 2, rtol=1e-6)
    assert both.chunks == 4 and both.datasets == ("a.txt", "b.txt") and both.counts[name] == 2000
    part = Importance({"output": np.ones(256)}, {"output": 10})
    assert set(part + Importance({"blk.0.attn_q": np.ones(256)}, {"blk.0.attn_q": 10})) == {"output", "blk.0.attn_q"}
    with pytest.raises(FormatError, match="256 columns in one file and 8 in another"):
        _ = made() + Importance({"output": np.ones(8)}, {"output": 1})


def test_another_models_is_refused() -> None:
    with pytest.raises(FormatError, match="512 columns, the model has 256: it was measured on another model"):
        made().of(expected_shapes(tiny_config(dim=256, hidden_dim=256, head_dim=64)))
    with pytest.raises(FormatError, match="the model has no such weight"):
        made().of(expected_shapes(tiny_config(dim=256, hidden_dim=512, head_dim=64, n_layers=1)))


def bad(**change: object) -> dict[str, QTensor]:
    sums = np.ones((1, 4), np.float32)
    tensors = {"blk.0.attn_q.weight.in_sum2": QTensor.of(sums), "blk.0.attn_q.weight.counts": QTensor.of(sums[:, :1])}
    return {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (bad(**{"blk.0.attn_q.weight.in_sum2": QTensor.of(np.full((1, 4), np.nan))}), "holds NaN"),
        (bad(**{"blk.0.attn_q.weight.in_sum2": QTensor.of(np.full((1, 4), -1.0))}), "negative"),
        (bad(**{"blk.0.attn_q.weight.counts": QTensor.of(np.full((1, 1), np.inf))}), "infinite"),
        (bad(**{"blk.0.attn_q.weight.counts": None}), "its count None"),
        (bad(**{"blk.0.attn_q.weight.in_sum2": QTensor.of(np.ones((1, 4)), "F16")}), "is F16"),
        (bad(**{"blk.0.attn_q.weight.in_sum2": QTensor.of(np.ones((8, 4)))}), "mixture of experts"),
        ({"other": QTensor.of(np.ones(4))}, "without one weight"),
    ],
)
def test_bad_ggufs_are_refused(tmp_path: Path, tensors: dict[str, QTensor], says: str) -> None:
    gguf.write(tmp_path / "i.gguf", {"general.type": "imatrix"}, tensors)
    with pytest.raises((FormatError, UnsupportedError), match=says):
        read(tmp_path / "i.gguf")


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    config = tiny_config()
    with pytest.raises(FormatError, match="GGUF of 'llama', expected an importance matrix"):
        read(write_tiny_gguf(tmp_path / "m.gguf", config, tiny_weights(config)))


def test_any_cut_and_any_wild_number_is_refused(tmp_path: Path) -> None:
    """No length in the file is believed: each prefix, and each number turned huge or negative, ends in one line."""
    small = Importance({"blk.0.attn_q": np.ones(4), "output": np.ones(2)}, {"blk.0.attn_q": 1, "output": 1}, 1, 512)
    write(tmp_path / "i.dat", small)
    raw = (tmp_path / "i.dat").read_bytes()
    path = tmp_path / "cut.dat"
    whole = len(raw) - 4 - len("unknown") - 4  # what the oldest files have
    for end in range(1, len(raw)):
        path.write_bytes(raw[:end])
        if end == whole:
            assert len(read(path)) == 2
            continue
        with pytest.raises(BiseError):
            read(path)
    for at in range(0, len(raw) - 3):
        for value in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80"):
            path.write_bytes(raw[:at] + value + raw[at + 4 :])
            try:
                assert sum(map(len, read(path).sums.values())) <= 6  # never more than the file has
            except BiseError as error:
                assert "\n" not in str(error) and len(str(error)) < 400
