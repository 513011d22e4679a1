"""Files that lie, and files that are something else: each refused in under a second, in one line, for little memory.

Every case is made here, byte by byte. "One line" means: the file's path first, then the field, its value and what was
expected, as a BiseError and nothing else. The last tests turn seeded noise loose on both parsers.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bise import gguf, safetensors
from bise.config import Config
from bise.errors import BiseError, FormatError, UnsupportedError
from bise.quant import QTensor, nbytes, quantise
from bise.weights import Weights, expected_shapes
from tiny import tiny_config, tiny_keys, tiny_tensors, tiny_weights, write_tiny_gguf, write_tiny_hf, write_tiny_mistral

CONFIG = tiny_config(n_layers=1, dim=32, head_dim=8, hidden_dim=32)
ARRAYS = tiny_weights(CONFIG)
RUNS = 10_000
MOST_MEMORY = 64 << 20
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
EXTREME = (0, 1, 2, 7, 8, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


@contextmanager
def frugally() -> Iterator[None]:
    """Under a second, and under 64 MB at the peak, whatever the file says."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        yield
        seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < 1 and peak < MOST_MEMORY, (seconds, peak)


def one_line(message: str) -> bool:
    return "\n" not in message and "\r" not in message and "\x1b" not in message and len(message) < 1000


def refused(path: Path, *expected: str) -> None:
    with frugally(), pytest.raises(BiseError) as caught:
        Weights.open(path)
    message = str(caught.value)
    assert one_line(message) and message.startswith(str(path)), message
    for part in expected:
        assert part in message, message


# a GGUF by hand: counts, keys and tensors say whatever a case wants them to say


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return U64.pack(len(raw) if length is None else length) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + U32.pack(kind) + payload


def tensor(
    name: str | bytes = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, n: int | None = None
) -> bytes:
    head = text(name) + U32.pack(len(dims) if n is None else n)
    return head + b"".join(U64.pack(dim) for dim in dims) + U32.pack(kind) + U64.pack(offset)


def by_hand(keys: list[bytes], tensors: list[bytes], data: int = 16, version: int = 3, n_kv: int | None = None,
            n_tensors: int | None = None, alignment: int = 32) -> bytes:  # fmt: skip
    counts = U64.pack(len(tensors) if n_tensors is None else n_tensors) + U64.pack(len(keys) if n_kv is None else n_kv)
    head = b"GGUF" + U32.pack(version) + counts + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


ARCH = key("general.architecture", 8, text("llama"))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4368439584\n"

BAD_GGUF: dict[str, tuple[bytes, str]] = {
    "A1 empty": (b"", "the file is empty"),
    "A2 four bytes": (b"GGUF", "version ends at byte 8, the file has 4: download it again"),
    "A2 twenty-three bytes": (by_hand([], [])[:23], "n_kv ends at byte 24, the file has 23"),
    "A3 magic": (b"GGUX" + by_hand([], [])[4:], "not a GGUF file: it is unknown data that begins 47 47 55 58"),
    "A4 zip": (b"PK\x03\x04" + bytes(60), "bise never loads pickles"),
    "A4 pickle": (b"\x80\x02}q\x00X" + bytes(60), "bise never loads pickles"),
    "A4 html": (b"\n <!DOCTYPE html>\n<html><title>404</title>", "an HTML page"),
    "A4 404": (b"Entry not found", "a text that begins 'Entry not found'"),
    "A4 lfs": (LFS, "a git-LFS pointer, not the file itself"),
    "A4 safetensors": (U64.pack(66) + b'{"__metadata__":{"format":"pt"}}', "a safetensors file"),
    "A4 ggml": (b"tjgg" + bytes(60), "older than GGUF"),
    "A4 gzip": (b"\x1f\x8b\x08" + bytes(60), "a gzip archive"),
    "A4 zeros": (bytes(4096), "zeros (a download that was reserved and never filled)"),
    "A5 version 0": (by_hand([], [], version=0), "GGUF version = 0, expected 2 or 3"),
    "A5 version 1": (by_hand([], [], version=1), "GGUF version = 1, expected 2 or 3"),
    "A5 version 99": (by_hand([], [], version=99), "GGUF version = 99, expected 2 or 3"),
    "A6 big-endian": (by_hand([], [], version=3 << 24), "a big-endian GGUF file"),
    **{f"A7 n_kv {n}": (by_hand([ARCH], [], n_kv=n), f"n_kv = {n:,}, expected at most")
       for n in (2**32, 2**63, 2**64 - 1)},
    **{f"A7 n_tensors {n}": (by_hand([], [tensor()], n_tensors=n), f"n_tensors = {n:,}, expected at most")
       for n in (2**32, 2**63, 2**64 - 1)},
    "A7 n_kv beyond the file": (by_hand([ARCH], [], n_kv=4000), "n_kv = 4,000 needs 56,000 bytes"),
    "A7 one key too many": (by_hand([ARCH], [], 16, n_kv=2), "key 1 '' is empty"),
    "A8 key length": (by_hand([U64.pack(2**64 - 1) + b"x"], []), "length of key 0 = 18,446,744,073,709,551,615"),
    "A8 text length": (by_hand([key("k", 8, U64.pack(2**64 - 1))], []), "length of 'k' = 18,446,744,073,709,551,615"),
    "A9 text beyond the file": (by_hand([key("k", 8, text("abc", 300))], []), "length of 'k' = 300 needs 300 bytes"),
    "A10 array count": (by_hand([key("k", 9, U32.pack(4) + U64.pack(2**40))], []),
     "elements of 'k' = 1,099,511,627,776"),
    "A10 array of texts": (by_hand([key("k", 9, U32.pack(8) + U64.pack(2**20))], []),
     "elements of 'k' = 1,048,576 needs"),
    "A10 text in an array": (
        by_hand([key("k", 9, U32.pack(8) + U64.pack(2) + text("a") + U64.pack(2**63) + bytes(16))], []),
        "'k'[1] is longer than the rest of the file",
    ),
    "A10 nested array": (
        by_hand([key("k", 9, U32.pack(9) + U64.pack(1) + U32.pack(4) + U64.pack(0))], []),
        "'k' is an array of value type 9, expected numbers, booleans or strings",
    ),
    "A11 duplicate key": (by_hand([ARCH, ARCH], []), "key 1 'general.architecture' is there twice"),
    "A11 empty key": (by_hand([key("", 4, U32.pack(1))], []), "key 0 '' is empty"),
    "A12 value type": (by_hand([key("k", 13, U32.pack(1))], []), "'k' has value type 13, expected 0 to 12"),
    "A12 boolean 2": (by_hand([key("k", 7, b"\x02")], []), "'k' = 2, expected a boolean, 0 or 1"),
    "A13 key not UTF-8": (by_hand([key(b"\xff\xfe", 4, U32.pack(1))], []), "key 0 is not UTF-8"),
    "A13 text not UTF-8": (by_hand([key("k", 8, text(b"\xc3("))], []), "'k' is not UTF-8"),
    "A13 piece not UTF-8": (by_hand([key("k", 9, U32.pack(8) + U64.pack(1) + text(b"\xc3("))], []),
     "'k'[0]: 'utf-8' codec"),
    "a key that writes lines": (by_hand([key("k\n\x1b[2J", 13, U32.pack(1))], []), r"'k\n\x1b[2J' has value type 13"),
    **{f"A14 alignment {n}": (by_hand([key("general.alignment", 4, U32.pack(n))], []), f"alignment = {n}, expected")
       for n in (0, 1, 13, 2**31)},
    "A15 alignment type": (by_hand([key("general.alignment", 8, text("32"))], []),
     "general.alignment = '32', expected a power"),
    "A15 alignment array": (
        by_hand([key("general.alignment", 9, U32.pack(4) + U64.pack(1) + U32.pack(32))], []),
     "general.alignment = [32]"),
    **{f"A16 n_dims {n}": (by_hand([], [tensor(n=n)]), f"tensor 't': n_dims = {n}, expected 1 to 4")
       for n in (0, 5, 2**32 - 1)},
    "A17 dim 0": (by_hand([], [tensor(dims=(4, 0))]), "tensor 't': dims = [4, 0], expected no 0"),
    "A17 dim 2^63": (by_hand([], [tensor(dims=(2**63,))]), "needs 36,893,488,147,419,103,"),
    "A18 row not whole blocks": (by_hand([], [tensor(dims=(100, 2), kind=12)]),
     "a row of 100 values is not a multiple of Q4_K's"),
    "A19 product wraps": (by_hand([], [tensor(dims=(2**32, 2**32))]), "download it again"),
    "A19 product wraps to zero": (by_hand([], [tensor(dims=(2**21, 2**21, 2**11, 2**11))]), "download it again"),
    "A20 unknown type": (by_hand([], [tensor(kind=4000)]), "tensor 't': type = 4000, which GGML does not have"),
    "A20 type of another engine": (by_hand([], [tensor(kind=16)]), "tensor 't' is IQ2_XXS, bise reads F32"),
    "A21 offset past the end": (by_hand([], [tensor(offset=2**63)]), "tensor 't' needs 9,223,372,036,854,775,"),
    "A21 offset not aligned": (by_hand([], [tensor(offset=4)]), "tensor 't': offset = 4, expected a multiple of 32"),
    "A22 overlap": (by_hand([], [tensor("a", (16,)), tensor("b", offset=32)], 256),
     "tensors 'a' and 'b' overlap at offset 32"),
    "A22 same place": (by_hand([], [tensor("a"), tensor("b")], 256), "overlap at offset 0"),
    "A23 one byte over": (by_hand([], [tensor()], 15), "the file is 79 bytes, tensor 't' needs 80: download it again"),
    "A26 duplicate tensor": (by_hand([], [tensor(), tensor(offset=32)], 64), "only 1 different names"),
    "A26 tensor name not UTF-8": (by_hand([], [tensor(b"\xff")]), "name of tensor 0 is not UTF-8"),
    "A26 tensor name too long": (by_hand([], [tensor("x" * 200)]),
     "length of name of tensor 0 = 200, expected at most 127"),
    "A27 no architecture": (by_hand([], [tensor()]), "general.architecture = None"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GGUF)
def test_a_gguf_that_lies(tmp_path: Path, case: str) -> None:
    content, expected = BAD_GGUF[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(path, expected)


def test_by_hand_is_sound_where_no_case_bends_it() -> None:
    raw = by_hand([ARCH], [tensor("a"), tensor("b", (32, 2), 2, 32)], 68)
    header = gguf.parse(raw, len(raw), "sound")
    assert header.keys == {"general.architecture": "llama"}
    assert {name: (place.type, place.shape) for name, place in header.tensors.items()} == {
        "a": ("F32", (4,)),
        "b": ("Q4_0", (2, 32)),
    }


def test_trailing_data_are_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", CONFIG, ARRAYS)
    path.write_bytes(path.read_bytes() + b"x" * 100)
    Weights.open(path)
    assert "100 bytes after the last tensor are ignored" in caplog.text


def test_a24_a_truncated_download_anywhere(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "t.gguf", CONFIG, ARRAYS).read_bytes()
    header = gguf.parse(whole, len(whole), "t")
    borders = [place.begin for place in header.tensors.values()] + [
        place.begin + 1 for place in header.tensors.values()
    ]
    cuts = {*range(24, len(whole), len(whole) // 16), *borders, len(whole) - 1, *range(25, 200, 7)}
    for cut in cuts:
        with pytest.raises(FormatError, match=r"download it again|is longer than the rest of the file"):
            gguf.parse(whole[:cut], cut, "t")
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, f"the file is {len(whole) // 2:,} bytes", f"needs {len(whole):,}: download it again")


def vocabulary_with(**changes: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


BAD_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "A27 qwen": ({"general.architecture": "qwen2"}, "'qwen2'"),
    "A27 mixtral": ({"llama.expert_count": 8}, "expert_count = 8"),
    "A27 llama 3": (vocabulary_with(model="gpt2"), "Llama 3 and its relatives"),
    "A27 an endless architecture": ({"general.architecture": "x" * 10**6}, "general.architecture"),
    "A27 architectures": ({"general.architecture": ["llama"]}, "general.architecture"),
    "A28 other dims": ({"llama.embedding_length": 64}, "the configuration needs"),
    "A28 no dims": ({"llama.embedding_length": 0}, "embedding_length = 0"),
    "A28 text for dims": ({"llama.embedding_length": "32"}, "embedding_length = '32'"),
    "A28 heads by layer": ({"llama.attention.head_count_kv": [2, 2]}, "head_count_kv = [2, 2]"),
    "A29 kv heads 0": ({"llama.attention.head_count_kv": 0}, "head_count_kv = 0"),
    "A29 heads 0": ({"llama.attention.head_count": 0}, "head_count = 0"),
    "A29 kv heads no divisor": ({"llama.attention.head_count_kv": 3}, "divisor"),
    "A30 layers 0": ({"llama.block_count": 0}, "block_count = 0"),
    "A30 layers 10^9": ({"llama.block_count": 10**9}, "llama.block_count = 1000000000, expected a whole number"),
    "A30 context 0": ({"llama.context_length": 0}, "context_length = 0"),
    "A30 context 2^31": ({"llama.context_length": 2**31}, "context_length = 2147483648"),
    "A31 theta nan": ({"llama.rope.freq_base": float("nan")}, "rope.freq_base = nan"),
    "A31 theta 0": ({"llama.rope.freq_base": 0.0}, "0.0, expected a finite number above 0"),
    "A31 theta below 0": ({"llama.rope.freq_base": -1e4}, "-10000.0, expected a finite number above 0"),
    "A31 epsilon infinite": ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, "epsilon = inf"),
    "A31 window below 0": ({"llama.attention.sliding_window": -4}, "sliding_window = -4"),
    "A31 another stretch": ({"llama.rope.scaling.type": "yarn"}, "'yarn'"),
    "A32 fewer scores": (vocabulary_with(scores=[0.0] * 287), "tokenizer.ggml.scores: expected an array of 288"),
    "A32 fewer types": (vocabulary_with(token_type=[1] * 287), "tokenizer.ggml.token_type: expected an array of 288"),
    "A33 scores as bytes": (vocabulary_with(scores=np.zeros(288, np.int8)), "scores: expected an array of 288 floats"),
    "A33 types as floats": (vocabulary_with(token_type=[1.0] * 288), "token_type: expected an array of 288 ints"),
    "A33 a text for pieces": (vocabulary_with(tokens="abc"), "tokenizer.ggml.tokens is not an array of strings"),
    "A33 numbers for pieces": (vocabulary_with(tokens=[1] * 288), "tokenizer.ggml.tokens is not an array of strings"),
    "A34 bos beyond": (vocabulary_with(bos_token_id=288), "bos_token_id = 288, expected less than the 288 pieces"),
    "A34 eos below 0": (vocabulary_with(eos_token_id=-1), "eos_token_id = -1, expected less than"),
    "A35 fewer pieces": (vocabulary_with(tokens=["a"] * 280), "has 280 pieces, the embedding 288 rows"),
    "A35 vocabulary by the key": ({"llama.vocab_size": 32_000}, "vocab_size = 32,000, but the embedding has 288 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_sound_file_with_values_that_cannot_be(tmp_path: Path, case: str) -> None:
    changes, expected = BAD_KEYS[case]
    gguf.write(tmp_path / "t.gguf", tiny_keys(CONFIG) | changes, tiny_tensors(ARRAYS))
    refused(tmp_path / "t.gguf", expected)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a37_a_value_that_is_no_number_is_found_at_load(tmp_path: Path, type: str) -> None:
    from bise.ops import load_ops

    tensors = tiny_tensors(ARRAYS, type)
    data = tensors["blk.0.attn_v.weight"].data.reshape(CONFIG.n_kv_heads * CONFIG.head_dim, -1)
    data[3, 0:4] = 0xFF
    gguf.write(tmp_path / "t.gguf", tiny_keys(CONFIG), tensors)
    weights = Weights.open(tmp_path / "t.gguf")
    with pytest.raises(FormatError) as caught:
        weights.place(load_ops("reference"))
    assert "tensor 'blk.0.attn_v'" in str(caught.value) and "first in row 3" in str(caught.value)


# paths that are no file


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # in the current folder: the name of a socket has to be short


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "B18 fifo": (make_fifo, "is a FIFO, expected a regular file"),
    "B18 socket": (make_socket, "model.gguf: "),
    "B18 device": (lambda path: path.symlink_to("/dev/zero"), "is a character device, expected a regular file"),
    "B18 dangling link": (lambda path: path.symlink_to("nowhere"), "is a link to a file that does not exist"),
    "B18 looping link": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "B18 nothing": (lambda path: None, "there is no such file"),
    "B18 empty folder": (lambda path: path.mkdir(), "no model in this folder"),
}


@pytest.mark.skipif(os.name != "posix", reason="POSIX file kinds")
@pytest.mark.parametrize("case", NO_FILES)
def test_b18_a_path_that_is_no_file(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, expected = NO_FILES[case]
    make(tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", expected)


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="null"):
        Weights.open("model\0.gguf")


# safetensors


def by_json(header: Any, data: int = 16, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return U64.pack(len(raw) if length is None else length) + raw + bytes(data)


def entry(begin: Any = 0, end: Any = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "B1 empty": (b"", "the file is empty"),
    "B1 seven bytes": (b"\x10\0\0\0\0\0\0", "header length"),
    "B1 header beyond the file": (by_json({"t": entry()}, 0, 5000), "its header alone needs 5,008: download it again"),
    "B1 header over 100 MB": (by_json({"t": entry()}, 0, 100_000_001), "header length = 100,000,001"),
    "B1 header of 2^64 - 1": (by_json({"t": entry()}, 0, 2**64 - 1), "header length = 18,446,744,073,709,551,615"),
    "B1 header of 1": (by_json({"t": entry()}, 0, 1), "header length = 1, expected 2 to"),
    "B2 a list": (by_json(b"[1, 2, 3]"), "header length = 9, expected 2 to 100,000,000 and a '{' at byte 8"),
    "B2 html": (b"<!doctype html><html><head><title>Sign in</title>", "it is an HTML page"),
    "B2 lfs": (LFS, "a git-LFS pointer"),
    "B2 gguf": (by_hand([ARCH], []), "it is a GGUF file"),
    "B2 zip": (b"PK\x03\x04" + bytes(100), "bise never loads pickles"),
    "B3 not UTF-8": (by_json(b'{"\xff": 1}'), "not JSON: 'utf-8' codec"),
    "B3 not JSON": (by_json(b'{"a": }'), "not JSON: Expecting value"),
    "B3 two objects": (by_json(b"{}{}", 0), "not JSON: Extra data"),
    "B3 10^6 brackets": (by_json(b'{"a":' + b"[" * 10**6), "nested too deeply"),
    "B3 10^6 braces": (by_json(b'{"a":' * 10**6), "nested too deeply"),
    "B3 a number without end": (by_json(b'{"a": ' + b"9" * 10**5 + b"}"), "not JSON"),
    "B3 NaN": (by_json(b'{"a": NaN}'), "holds NaN"),
    "B4 hole at the start": (by_json({"t": entry(4, 20)}, 20), "leaves a hole before it"),
    "B4 hole": (by_json({"a": entry(), "b": entry(20, 36)}, 36), "leaves a hole before it"),
    "B4 overlap": (by_json({"a": entry(), "b": entry(8, 24)}, 24), "overlaps the tensor before it"),
    "B4 rest": (by_json({"t": entry()}, 17), "the rest belongs to nothing"),
    "B4 beyond the file": (by_json({"t": entry()}, 15), "bytes, needs 8", ),
    "B4 begin after end": (by_json({"t": entry(16, 0)}), "data_offsets = [16, 0], expected [begin, end]"),
    "B4 negative": (by_json({"t": entry(-16, 0)}), "data_offsets = [-16, 0]"),
    "B4 floats": (by_json({"t": entry(0.0, 16.0)}), "data_offsets = [0.0, 16.0]"),
    "B4 booleans": (by_json({"t": entry(False, 16)}), "data_offsets = [False, 16]"),
    "B4 one offset": (by_json({"t": {"dtype": "F32", "shape": [4], "data_offsets": [16]}}), "data_offsets = [16]"),
    "B5 shape and dtype": (by_json({"t": entry(shape=[5])}), "data_offsets hold 16 bytes, F32 [5] needs 20"),
    "B5 product wraps": (by_json({"t": entry(shape=[2**32, 2**32])}), "needs 73,786,976,294,838,206,464"),
    "B5 negative shape": (by_json({"t": entry(shape=[-4])}), "shape = [-4]"),
    "B5 nine dimensions": (by_json({"t": entry(shape=[1] * 8 + [4])}), "expected at most 8 whole numbers"),
    "B5 unknown dtype": (by_json({"t": entry(dtype="F31")}), "dtype = 'F31', expected one of BOOL"),
    "B5 dtype a list": (by_json({"t": entry(dtype=["F32"])}), "dtype = ['F32']"),
    "B6 duplicate key": (by_json(b'{"t": 1, "t": 1}'), "the key 't' is there twice"),
    "B6 metadata of numbers": (by_json({"__metadata__": {"a": 1}, "t": entry()}), "__metadata__ = {'a': 1}, expected"),
    "B6 metadata a list": (by_json({"__metadata__": ["a"], "t": entry()}), "__metadata__ = ['a'], expected"),
    "B6 a field more": (by_json({"t": {**entry(), "code": 1}}), "expected dtype, shape and data_offsets"),
    "B6 no fields": (by_json({"t": 7}), "'t' = 7, expected dtype, shape and data_offsets"),
    "a name that writes lines": (by_json({"t\n\x1b[2J": 7}), r"'t\n\x1b[2J' = 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_a_safetensors_file_that_lies(tmp_path: Path, case: str) -> None:
    content, expected = BAD_SAFETENSORS[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with frugally(), pytest.raises(BiseError) as caught:
        safetensors.Safetensors(path)
    message = str(caught.value)
    assert one_line(message) and message.startswith(str(path)) and expected in message, message


def test_b7_b8_indices(tmp_path: Path) -> None:
    folder = write_tiny_hf(tmp_path, CONFIG, ARRAYS, shard_bytes=20_000)
    index = folder / "model.safetensors.index.json"
    sound = json.loads(index.read_text())
    first = next(iter(sound["weight_map"]))
    for shard in ("../model-00001-of-00009.safetensors", "/etc/passwd.safetensors", "no.safetensors", 7):
        index.write_text(json.dumps({"weight_map": sound["weight_map"] | {first: shard}}))
        refused(folder, "no.safetensors" if shard == "no.safetensors" else f"weight_map names {shard!r}")
    index.write_text(
        json.dumps({"weight_map": sound["weight_map"] | {"model.norm.weight": sound["weight_map"][first]}})
    )
    refused(folder, "has no tensor 'model.norm.weight', the index says it does")


@pytest.mark.parametrize(
    "names", [["pytorch_model.bin"], ["consolidated.00.pth", "params.json"], ["model.pt", "config.json"]]
)
def test_b9_pickles_are_refused_with_the_way_out(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(100))
    refused(tmp_path, names[0], "bise never loads pickles", ".safetensors or .gguf")
    refused(tmp_path / names[0], "bise never loads pickles")


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "B10 a list": (b"[]", "a JSON list, expected an object"),
    "B10 NaN": (b'{"rope_theta": NaN}', "holds NaN"),
    "B10 broken": (b'{"hidden_size": 32', "not JSON"),
    "B10 nothing": (b"", "not JSON"),
    "B10 empty": (b"{}", "model_type = None"),
    "B10 deep": (b'{"a":' * 10**5, "nested too deeply"),
    "B11 50 MB": (b'{"a": "' + b"x" * 50_000_000 + b'"}', "50,000,009 bytes, expected at most 4,194,304"),
    "B10 twice": (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_b10_b11_config_json(tmp_path: Path, case: str) -> None:
    write_tiny_hf(tmp_path, CONFIG, ARRAYS)
    content, expected = BAD_JSON[case]
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, expected)


BAD_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"hidden_size": "32"}, "hidden_size = '32'"),
    "truth for a number": ({"num_hidden_layers": True}, "num_hidden_layers = True"),
    "a list for a number": ({"num_attention_heads": [4]}, "num_attention_heads = [4]"),
    "none for a number": ({"intermediate_size": None}, "intermediate_size = None"),
    "a fraction": ({"hidden_size": 32.5}, "hidden_size = 32.5"),
    "an endless number": ({"hidden_size": 10**400}, "hidden_size = 1000"),
    "a theta of text": ({"rope_theta": "1e6"}, "rope_theta = '1e6'"),
    "a window of text": ({"sliding_window": "4096"}, "sliding_window = '4096'"),
    "rope as a list": ({"rope_scaling": [1]}, "[1]"),
    "another activation": ({"hidden_act": "gelu"}, "'gelu'"),
    "a model type of lists": ({"model_type": ["mistral"]}, "model_type = ['mistral']"),
    "another vocabulary": ({"vocab_size": 289}, "289"),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_b10_values_that_cannot_be(tmp_path: Path, case: str) -> None:
    changes, expected = BAD_CONFIG[case]
    refused(write_tiny_hf(tmp_path, CONFIG, ARRAYS, **changes), expected)


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 2**70, 10**400, 0.5, -0.0, 1e308, float("inf"), "", "mistral", "8", [], [8], [[1]],
    {}, {"rope_type": "linear", "factor": 0}, {"rope_type": ["linear"]}, {"rope_theta": [1]},
    {"type": "linear", "factor": "x"},
)  # fmt: skip


@pytest.mark.parametrize("layout", ["gguf", "huggingface", "mistral"])
def test_every_field_with_every_odd_value(tmp_path: Path, layout: str) -> None:
    """Config either refuses in one line or takes a value that it can hold; nothing else ever happens."""
    if layout == "gguf":
        read, sound = Config.from_gguf, {key: value for key, value in tiny_keys(CONFIG, False).items()}
        sound |= {"llama.attention.sliding_window": 64, "llama.expert_count": 0, "llama.rope.scaling.factor": 2.0,
                  "llama.rope.scaling.type": "linear"}  # fmt: skip
    elif layout == "huggingface":
        folder = write_tiny_hf(tmp_path, CONFIG, ARRAYS)
        read, sound = Config.from_hf, json.loads((folder / "config.json").read_text())
        sound |= {"rope_scaling": None, "rope_parameters": None, "quantization_config": None}
    else:
        folder = write_tiny_mistral(tmp_path, CONFIG, ARRAYS)
        read, sound = Config.from_params, json.loads((folder / "params.json").read_text())
        sound |= {"moe": None, "sliding_window": None, "max_seq_len": 64}
    shapes = expected_shapes(CONFIG)
    assert read(sound, shapes).dim == CONFIG.dim
    for field in sound:
        for odd in ODD:
            try:
                config = read(sound | {field: odd}, shapes)
            except BiseError as error:
                assert one_line(str(error)), (field, odd)
                continue
            assert np.isfinite(config.frequencies).all() and config.context > 0, (field, odd)
            assert type(config.sliding_window) in (int, type(None)), (field, odd)


def test_params_json_of_mixtral(tmp_path: Path) -> None:
    refused(write_tiny_mistral(tmp_path, CONFIG, ARRAYS, moe={"num_experts": 8}), "Mixtral")


# noise


def noisy(raw: bytes, chance: random.Random, upto: int) -> bytes:
    """`raw` with one to four small disasters among its first `upto` bytes."""
    out = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(min(upto, len(out)) or 1)
        kind = chance.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([out[at] ^ 1 << chance.randrange(8)]) if out else b""
        elif kind == 1:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            out[at : at + 8] = U64.pack(chance.choice(EXTREME))
        elif kind == 3:
            out[at : at + 4] = U32.pack(chance.choice(EXTREME) & 0xFFFFFFFF)
        elif kind == 4:
            del out[at : at + chance.randrange(1, 40)]
        elif kind == 5:
            out[at:at] = out[chance.randrange(len(out) or 1) :][: chance.randrange(1, 40)]
        else:
            out = out[: chance.randrange(len(out) + 1)]
    return bytes(out)


def test_a39_ten_thousand_noisy_gguf_headers(tmp_path: Path) -> None:
    raw = small_gguf(tmp_path)
    chance, sound = random.Random(7), 0
    with frugally_in_sum():
        for run in range(RUNS):
            noise = noisy(raw, chance, len(raw) - 3000)
            try:
                header = gguf.parse(noise, len(noise), "noise")
            except BiseError as error:
                assert one_line(str(error)), (run, str(error))
                continue
            sound += 1
            for place in header.tensors.values():
                assert place.begin > 0 and place.begin + place.nbytes <= len(noise), run
                assert place.nbytes == nbytes(place.type, place.shape), run
    assert RUNS // 20 < sound < RUNS // 2, sound  # noise that is always noticed, or never, would prove little


def test_b6_ten_thousand_noisy_safetensors_headers(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.w": quantise(np.ones((i + 1, 8)), "F32") for i in range(6)}
    safetensors.write(tmp_path / "t", tensors, {"format": "pt"})
    raw = (tmp_path / "t").read_bytes()
    chance, sound = random.Random(7), 0
    with frugally_in_sum():
        for run in range(RUNS):
            noise = noisy(raw, chance, len(raw) - 700)
            try:
                header = safetensors.parse(noise, len(noise), "noise")
            except BiseError as error:
                assert one_line(str(error)), (run, str(error))
                continue
            sound += 1
            assert sum(place.end - place.begin for place in header.tensors.values()) < len(noise), run
            assert all(0 < place.begin <= place.end <= len(noise) for place in header.tensors.values()), run
    assert RUNS // 100 < sound < RUNS // 2, sound


def test_a39_bit_flips_through_the_whole_door(tmp_path: Path) -> None:
    """Weights.open on files with flipped header bits: every model that opens has tensors of the shapes it claims."""
    raw, path = small_gguf(tmp_path), tmp_path / "t.gguf"
    chance, sound = random.Random(11), 0
    for run in range(1000):
        path.write_bytes(noisy(raw, chance, len(raw) - 3000))
        try:
            weights = Weights.open(path)
        except BiseError as error:
            assert one_line(str(error).replace(str(path), "")), (run, str(error))
            continue
        sound += 1
        assert all(tensor.dequantise().shape == tensor.shape for tensor in weights.values()), run
    assert sound > 20, sound


def small_gguf(folder: Path) -> bytes:
    config = tiny_config(n_layers=1, dim=8, head_dim=4, n_heads=2, n_kv_heads=1, hidden_dim=8, vocab_size=24)
    keys = tiny_keys(config) | vocabulary_with(model="llama", tokens=[f"p{i}" for i in range(24)], scores=[0.0] * 24)
    gguf.write(folder / "small.gguf", keys, tiny_tensors(tiny_weights(config)))
    return (folder / "small.gguf").read_bytes()


@contextmanager
def frugally_in_sum() -> Iterator[None]:
    """Like `frugally` for thousands of runs: the process's own peak grows by less than that."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


def test_errors_are_of_the_tree() -> None:
    assert issubclass(FormatError, BiseError) and issubclass(UnsupportedError, BiseError)
    with pytest.raises(FormatError):
        QTensor("F32", (3,), np.zeros(3, np.uint8))
    assert re.fullmatch("[A-Z].*Error", FormatError.__name__)
