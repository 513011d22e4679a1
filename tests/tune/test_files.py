"""Rows out of files: every line is a row or a named fault, whatever the bytes are."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bise.errors import BiseError, FormatError
from bise.tune.data import files
from bise.tune.data.faults import BadRow
from bise.tune.data.files import Rows

ROW = {"text": "ünï"}


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def values(path: Path) -> list[tuple[int, object]]:
    """(line, value, or the reason of the fault)"""
    return [(row.line, row.value.reason if isinstance(row.value, BadRow) else row.value) for row in Rows(path)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_json_lines(tmp_path, mark, end):
    row = json.dumps(ROW, ensure_ascii=False).encode()
    path = write(tmp_path / "a.jsonl", mark + end.join([row, b"", b"  ", row]))
    assert values(path) == [(1, ROW), (4, ROW)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_array(tmp_path, mark, indent):
    rows = [{"text": f"row {i}\n{'x' * (i % 50)}", "n": [i, {"a": None}]} for i in range(3000)]
    path = write(tmp_path / "a.json", mark + json.dumps(rows, indent=indent).encode() + b"\n")
    found = values(path)
    assert [value for _, value in found] == rows
    if indent:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        assert all(lines[line - 1].strip() == "{" for line, _ in found)


def test_an_array_longer_than_the_window(tmp_path):
    rows = ["a" * 700_000, {"text": "é" * 900_000}, "b" * 2_500_000, {"text": "end"}]
    assert [v for _, v in values(write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False)))] == rows


def test_the_digest_is_the_whole_files(tmp_path):
    for name, data in (
        ("a.jsonl", b'{"text": "a"}\nnonsense\n'),
        ("b.json", b'[{"text": 1}, oops\n\n more'),
        ("c.txt", b"x\ny"),
    ):
        rows = Rows(write(tmp_path / name, data))
        assert list(rows) and (rows.sha256, rows.size) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"text": "a"', "not JSON"),
    (b"{'text': 'a'}", "not JSON"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
    (b'{"text": "a\x00b"}', "NUL byte"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": ' + b"9" * 10_000 + b"}", "not JSON"),
    (b'{"text": "a"} {"text": "b"}', "not JSON"),
])  # fmt: skip
def test_bad_lines_are_named_and_the_next_one_is_read(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n')
    assert values(path) == [(1, {"text": "first"}), (2, reason), (3, {"text": "last"})]


def test_a_line_of_a_gigabyte_is_passed_over_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW", 1000)
    long = b'{"text": "' + b"a" * 20_000 + b'"}\n'
    assert values(write(tmp_path / "a.jsonl", long + b'{"text": "b"}')) == [(1, "row too large"), (2, {"text": "b"})]
    assert values(write(tmp_path / "b.jsonl", long[:-1])) == [(1, "row too large")], "without an end of line"
    just = b'{"text": "' + b"a" * 987 + b'"}\n'
    assert len(just) == 1000 and len(values(write(tmp_path / "c.jsonl", just))[0][1]["text"]) == 987
    monkeypatch.setattr(files, "MAX_ROW", 2 << 20)
    assert values(write(tmp_path / "d.json", '["' + "a" * (4 << 20) + '"]')) == [(1, "row too large")]


@pytest.mark.parametrize(
    "text", ['[{"a": 1}', '[{"a": 1},', '[{"a": 1} {"b": 2}]', '[{"a": 1},]', '[{"a": 1}] x', '[{"a": 1}, "b]']
)
def test_broken_arrays(tmp_path, text):
    assert values(write(tmp_path / "a.json", text)) in ([(1, {"a": 1}), (1, "not JSON")],)


def test_array_that_is_not_utf8(tmp_path):
    assert values(write(tmp_path / "a.json", b'[\n{"a": "\xff"}]'))[-1][1] == "not UTF-8"


def test_empty_array(tmp_path):
    assert values(write(tmp_path / "a.json", " [ ] ")) == []


# --- texts


def test_a_text_is_one_row(tmp_path):
    assert values(write(tmp_path / "a.txt", "\ufeff\r\n\r\nA line.\r\n\r\nAnother.\r\n\r\n")) == [
        (3, "A line.\n\nAnother.")
    ]


def test_texts_between_marks(tmp_path):
    path = write(
        tmp_path / "a.txt", "one\ntwo\n<|endoftext|>\n\n  \n<|endoftext|>\nthree <|endoftext|>\nfour\n<|endoftext|>\n"
    )
    assert values(path) == [(1, "one\ntwo"), (7, "three <|endoftext|>\nfour")]


def test_a_long_text_is_cut_at_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DOCUMENT", 100)
    lines = [f"line {i}" for i in range(100)]
    found = values(write(tmp_path / "a.txt", "\n".join(lines)))
    assert "\n".join(text for _, text in found).split("\n") == lines and all(len(text) < 120 for _, text in found)
    assert [line for line, _ in found][:2] == [1, 1 + found[0][1].count("\n") + 1]


def test_a_damaged_text(tmp_path):
    path = write(tmp_path / "a.txt", b"good\nb\x00d\n\xff\nfine\n")
    assert sorted(values(path)) == [(1, "good\nfine"), (2, "NUL byte"), (3, "not UTF-8")]


# --- other kinds of files


@pytest.mark.parametrize(("name", "data", "says"), [
    ("a.parquet", b"PAR1....PAR1", "Parquet.*read_parquet"),
    ("a.jsonl", b"PAR1....PAR1", "Parquet"),
    ("a.arrow", b"ARROW1\0\0", "Arrow.*read_feather"),
    ("a.csv", b"a,b\n1,2\n", "CSV.*read_csv"),
    ("a.py", b"import os", "program"),
    ("a.pkl", pickle.dumps({"text": "a"}), "pickle"),
    ("a.dat", pickle.dumps({"text": "a"}), "pickle"),
    ("a.jsonl.gz", gzip.compress(b"{}"), "unpack"),
    ("a.dat", gzip.compress(b"{}"), "unpack"),
    ("a.html", b"<!doctype html><p>404", "HTML"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16"),
    ("a.dat", b"hello there", "expected rows"),
    ("a.dat", b"", "empty, expected"),
])  # fmt: skip
def test_other_files_are_refused_with_a_way_out(tmp_path, name, data, says):
    with pytest.raises(FormatError, match=f"(?s){says}") as error:
        Rows(write(tmp_path / name, data))
    assert "\n" not in str(error.value)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.jsonl"):
        with pytest.raises(FormatError):
            Rows(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300),
    st.sampled_from(["a.jsonl", "a.json", "a.txt", "a"]),
    st.sampled_from([b"", b"{", b"[", b'[{"a": ']),
)
def test_any_bytes(tmp_path, data, name, start):
    """Rows and named faults, or one refusal of the file."""
    path = write(tmp_path / name, start + data)
    try:
        rows = Rows(path)
    except BiseError:
        return
    found = list(rows)
    assert rows.sha256 == hashlib.sha256(start + data).hexdigest()
    assert all(1 <= row.line <= 1 + data.count(b"\n") for row in found)
