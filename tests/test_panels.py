"""Packed weights on disk: the same numbers, believed only where everything agrees, written whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bise
from bise import _kernels, disk, gguf, names, panels, quant
from bise.errors import FormatError, RequestError
from bise.ops.cpu import Cpu
from bise.quant import QTensor
from bise.weights import Weights
from tiny import tiny_config, tiny_keys, tiny_tensors, tiny_weights, write_tiny_gguf, write_tiny_hf

CONFIG = tiny_config(dim=256, head_dim=64, hidden_dim=512, sliding_window=64)
TYPES = {"blk.0.attn_k": "Q4_0", "blk.0.ffn_gate": "BF16", "output": "Q8_0", "token_embd": "Q8_0"}
RANDOM = {
    "blk.0.attn_q": "Q4_K",
    "blk.0.attn_v": "Q6_K",
    "blk.1.ffn_down": "Q5_K",
    "blk.1.ffn_up": "Q5_1",
    "blk.1.attn_k": "Q3_K",
}
IDS = [1, 5, 9, 260, 17]
MATRICES = 7 * CONFIG.n_layers + 1


def tensors(seed: int = 0) -> dict[str, QTensor]:
    """Types that have kernels and types that become others; blocks of random bits where bise has no quantiser."""
    rng = np.random.default_rng(seed)
    found = tiny_tensors(tiny_weights(CONFIG, seed), TYPES)
    for own, type in RANDOM.items():
        name, kind = names.spelled(own, "gguf"), quant.TYPES[type]
        data = rng.integers(0, 256, (found[name].shape[0] * found[name].shape[1] // kind.block, kind.nbytes), np.uint8)
        for at in kind.scales:
            data[:, at : at + 2] = np.full(1, 1e-3, np.float16).view(np.uint8)
        found[name] = QTensor(type, found[name].shape, data.reshape(-1))
    return found


def write(path: Path, seed: int = 0) -> Path:
    gguf.write(path, tiny_keys(CONFIG), tensors(seed))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The types of the matrices that were packed since."""
    found: list[str] = []
    weight = Cpu.weight

    def watched(self: Cpu, tensor: Any) -> Any:
        if len(tensor.shape) == 2:
            found.append(tensor.type)
        return weight(self, tensor)

    monkeypatch.setattr(Cpu, "weight", watched)
    yield found


def load(path: Path | None, **options: Any) -> bise.Model:
    return bise.load(path, threads=2, keep_packed=True, **options)


def kept_file(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def same(model: bise.Model, path: Path | None) -> bool:
    return np.array_equal(model.logits(IDS), bise.load(path, threads=2).logits(IDS))


# the same numbers


def split(path: Path) -> Path:
    """Three parts, as llama.cpp splits; the second is what is opened."""
    listed = list(tensors().items())
    for number in range(3):
        own: dict[str, Any] = tiny_keys(CONFIG) if number == 0 else {"general.architecture": "llama"}
        counts = {"split.no": np.uint16(number), "split.count": np.uint16(3)}
        keys = own | counts | {"split.tensors.count": np.int32(len(listed))}
        gguf.write(path / f"m-{number + 1:05}-of-00003.gguf", keys, dict(listed[number::3]))
    return path / "m-00002-of-00003.gguf"


MODELS: dict[str, Callable[[Path], Path | None]] = {
    "one file": lambda path: write(path / "m.gguf"),
    "split": split,
    "safetensors": lambda path: write_tiny_hf(path / "hf", CONFIG, tiny_weights(CONFIG), "BF16", 200_000),
    "tied": lambda path: write_tiny_gguf(path / "t.gguf", CONFIG, tiny_weights(CONFIG, tied=True), "Q4_0"),
    "puff": lambda path: None,
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_logits_and_nothing_packed_again(tmp_path: Path, folder: Path, packed: list[str], kind: str) -> None:
    path = MODELS[kind](tmp_path)
    first = load(path)
    matrices = 7 * first.config.n_layers + 1
    assert len(packed) == matrices and same(first, path)
    stamp = kept_file(folder).stat()
    packed.clear()
    second = load(path)
    assert not packed
    assert np.array_equal(second.logits(IDS), first.logits(IDS))
    assert kept_file(folder).stat().st_mtime_ns == stamp.st_mtime_ns
    assert second.generate(IDS, max_tokens=9).tokens == first.generate(IDS, max_tokens=9).tokens


def test_the_matrices_lie_in_the_mapped_file(model: Path) -> None:
    load(model)
    matrix = load(model).parameters.blk[0].attn_q
    address = np.frombuffer(matrix, np.uint8).ctypes.data
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if ".panels" in line]
    ranges = [[int(end, 16) for end in part[0].split("-")] + [part[1]] for part in maps]
    assert any(low <= address < high and rights.startswith("r--") for low, high, rights in ranges)
    assert matrix.type == "Q4_K" and memoryview(matrix).readonly


def test_every_part_of_a_split_model_finds_the_same_file(tmp_path: Path, folder: Path, packed: list[str]) -> None:
    load(split(tmp_path))
    packed.clear()
    load(tmp_path / "m-00001-of-00003.gguf")
    assert not packed and kept_file(folder).name.startswith("m-00001-of-00003-")


# what is not believed


def again(path: Path, why: str, packed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """The next load says why it packs again, and packs; the one after that does not."""
    packed.clear()
    with caplog.at_level(logging.INFO, logger="bise"):
        model = load(path)
    [line] = [record.getMessage() for record in caplog.records if "packing again" in record.getMessage()]
    assert why in line and "\n" not in line
    assert len(packed) == MATRICES and same(model, path)
    packed.clear()
    load(path)
    assert not packed


def test_a_model_that_was_touched(model: Path, packed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    load(model)
    os.utime(model, ns=(1, 1))
    again(model, "files of another size or time", packed, caplog)


def test_another_model_in_its_place(
    model: Path, folder: Path, packed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    load(model)
    status = model.stat()
    write(model, seed=1)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert model.stat().st_size == status.st_size and model.stat().st_mtime_ns == status.st_mtime_ns
    again(model, "another model", packed, caplog)
    assert kept_file(folder)  # in the place of the old one


def test_two_models_of_one_name(model: Path, tmp_path: Path, folder: Path, packed: list[str]) -> None:
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / model.name, seed=1)
    for path in (model, other, model, other):
        assert same(load(path), path)
    assert len(list(folder.iterdir())) == 2


def test_another_layout(
    model: Path, packed: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(model)
    monkeypatch.setattr(panels, "layout", lambda ops: "another")
    again(model, "another version of bise", packed, caplog)


def test_the_layout_names_how_every_type_is_packed() -> None:
    class Other:
        """Packs one type as it would be with one weight elsewhere."""

        def __init__(self, type: str) -> None:
            self.real, self.type = _kernels.Verbs(1), type
            self.verbs = self

        def pack(self, type: str, data: np.ndarray, rows: int, cols: int) -> Any:
            matrix = self.real.pack(type, data, rows, cols)
            if type != self.type:
                return matrix
            moved = np.zeros(matrix.nbytes + 64, np.uint8)
            moved = moved[-moved.ctypes.data % 64 :][: matrix.nbytes]
            moved[:] = np.frombuffer(matrix, np.uint8)
            moved[-1] ^= 1
            return self.real.adopt(matrix.type, moved, rows, cols)

    layouts = {panels.layout(Other(type)) for type in ("none", "Q4_K", "F32", "Q5_1", "IQ4_XS")}  # type: ignore[arg-type]
    assert len(layouts) == 5
    assert {panels.layout(Cpu(threads, isa)) for threads in (1, 2) for isa in _kernels.isas()} <= layouts


def test_flipped_bytes(model: Path, folder: Path) -> None:
    """In the panels: found, and named. Anywhere: found, or in the padding where it changes nothing."""
    load(model)
    path, weights, ops = kept_file(folder), Weights.open(model), Cpu(2)
    origin, shapes = panels._origin(weights, ops), panels._shapes(weights)
    sound = {name: bytes(memoryview(m)) for name, m in panels.read(path, origin, shapes, ops).items()}
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    places = gguf.parse(whole, len(whole), "")
    for _ in range(200):
        name = rng.choice(list(places.tensors))
        place = places.tensors[name]
        flip(path, whole, place.begin + int(rng.integers(place.nbytes)), 1 << int(rng.integers(8)))
        with pytest.raises(FormatError, match=f"{name} is damaged"):
            panels.read(path, origin, shapes, ops)
    for _ in range(200):
        flip(path, whole, int(rng.integers(20_000)), 1 << int(rng.integers(8)))
        try:
            found = panels.read(path, origin, shapes, ops)
        except bise.BiseError:
            continue
        assert {name: bytes(memoryview(m)) for name, m in found.items()} == sound


def flip(path: Path, whole: bytes, at: int, mask: int) -> None:
    path.unlink()  # a mapped file is not changed under those who read it
    path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "page", "text", "session"])
def test_a_damaged_file_is_made_anew(
    model: Path, folder: Path, packed: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    load(model)
    path = kept_file(folder)
    whole = path.read_bytes()
    at = len(whole) // 8192 * 4096
    changed, why = {
        "flipped": (whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :], "is damaged"),
        "short": (whole[:at], "download it again"),
        "empty": (b"", "the file is empty"),
        "page": (whole[:at] + bytes(4096) + whole[at + 4096 :], "is damaged"),
        "text": (b"hello", "not a GGUF file"),
        "session": (whole.replace(panels.KIND.encode(), b"bise-panels-0"), "is not this version's"),
    }[damage]
    path.unlink()
    path.write_bytes(changed)
    again(model, why, packed, caplog)
    assert path.read_bytes() == whole


def test_a_file_that_lies_is_refused(model: Path, folder: Path) -> None:
    """With a sound digest of its own, too: sizes are checked against types in C++."""
    load(model)
    path, weights, ops = kept_file(folder), Weights.open(model), Cpu(2)
    file = gguf.GGUF(path)
    about = json.loads(file.keys[panels.ABOUT])
    about["matrices"]["output"][0] = "Q4_0"
    text = json.dumps(about)
    keys = {**file.keys, panels.ABOUT: text, panels.CHECK: panels._digest(text)}
    gguf.write(path, keys, file.tensors)
    with pytest.raises(FormatError, match="output: panels has shape"):
        panels.read(path, panels._origin(weights, ops), panels._shapes(weights), ops)


# writing


def in_child(work: Callable[[], Any]) -> int:
    """-> process id; its exit status is 0 if `work` returns something true."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("where", ["while writing", "before the rename"])
def test_killed_while_writing(model: Path, folder: Path, packed: list[str], where: str) -> None:
    def dies(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        if where == "while writing":
            made, count = gguf.made, iter(range(9))
            gguf.made = lambda tensor: made(tensor) if next(count) < 5 else dies()
        else:
            disk.os.replace = dies  # type: ignore[attr-defined]
        load(model)

    assert ended(in_child(work)) == -signal.SIGKILL
    [part] = folder.iterdir()
    assert part.suffix == ".part" and part.stat().st_size > 0
    assert same(load(model), model) and len(packed) == 2 * MATRICES  # `same` packs too
    assert part.exists()  # its writer might still be at it
    packed.clear()
    load(model)
    assert not packed
    os.utime(part, (0, time.time() - 2 * panels.ABANDONED))
    assert panels.sweep() > 0 and kept_file(folder).suffix == ".panels"


def test_several_writing_at_once(model: Path, folder: Path, packed: list[str]) -> None:
    want = bise.load(model, threads=2).logits(IDS)
    start, go = os.pipe()

    def work() -> bool:
        os.close(go)
        os.read(start, 1)  # until the parent closes it
        return all(np.array_equal(load(model).logits(IDS), want) for _ in range(5))

    children = [in_child(work) for _ in range(3)]
    os.close(go)
    os.close(start)
    assert [ended(child) for child in children] == [0, 0, 0]
    packed.clear()
    assert np.array_equal(load(model).logits(IDS), want)
    assert not packed and kept_file(folder).suffix == ".panels"


def test_no_room(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    not_kept(model, "has 1,000 bytes free, ", caplog)
    assert not list(folder.iterdir())


def test_a_disk_that_fills_up(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", full)
    not_kept(model, "No space left on device", caplog)
    assert not list(folder.iterdir())


def test_a_cache_folder_that_cannot_be_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BISE_CACHE", str(model / "below a file"))
    not_kept(model, "Not a directory", caplog)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_folder(model: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir(mode=0o500)
    not_kept(model, "Permission denied", caplog)


def not_kept(model: Path, why: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bise"):
        assert same(load(model), model)
    [line] = [record.getMessage() for record in caplog.records if "not kept" in record.getMessage()]
    assert why in line and "\n" not in line


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_other_backends_refuse(model: Path, folder: Path, backend: str) -> None:
    with pytest.raises(RequestError, match=f"cpu backend's: {backend}"):
        load(model, backend=backend)
    assert not folder.exists()


# the folder


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert panels.folder() == tmp_path / "bise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert panels.folder() == Path.home() / ".cache" / "bise"


def test_listed_and_removed(model: Path, folder: Path) -> None:
    assert panels.kept() == [] and panels.remove(model) == 0
    load(model)
    [found] = panels.kept()
    assert found.model == model and found.nbytes == kept_file(folder).stat().st_size
    assert panels.sweep() == 0
    assert panels.remove(model) == found.nbytes and model.exists() and panels.kept() == []
    load(model)
    model.unlink()
    assert panels.sweep() == found.nbytes and panels.kept() == []
    folder.joinpath("junk.panels").write_bytes(b"junk")
    [junk] = panels.kept()
    assert junk.model is None and panels.sweep() == 0 and panels.remove(junk.path) == 4
