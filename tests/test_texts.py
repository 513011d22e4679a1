"""Texts: how they are read from files, and where they are cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bise import texts
from bise.api import BUILT_IN
from bise.errors import BiseError, FormatError, RequestError
from bise.texts import Cut, cut, digest, read
from bise.tokenizer import Tokenizer
from bise.weights import Weights

IDS = np.arange(100, 200, dtype=np.int32)


def test_the_cut_is_llama_cpps() -> None:
    """BOS and the text in one row; chunks follow each other; BOS overwrites the first token of each; the rest falls
    away; rows n/2 to n - 2 predict the tokens that are scored."""
    how = Cut(context=16)
    chunks = how.chunks(IDS, bos=1)
    assert chunks.shape == (6, 16) and chunks.dtype == np.int32
    assert chunks[0].tolist() == [1, *range(100, 115)]
    assert chunks[1].tolist() == [1, *range(116, 131)]  # 115 stood where BOS is now
    assert (how.first, how.scored) == (8, 7)
    assert (Cut(context=512).first, Cut(context=512).scored) == (256, 255)
    assert (Cut(context=9).first, Cut(context=9).scored) == (4, 4)


def test_without_bos_nothing_is_overwritten() -> None:
    assert Cut(context=16).chunks(IDS, bos=None)[1].tolist() == list(range(116, 132))


def test_all_positions() -> None:
    how = Cut(context=16, all_positions=True)
    assert (how.first, how.scored) == (0, 15)


def test_a_stride_scores_every_token_once() -> None:
    how = Cut(context=16, stride=5)
    chunks = how.chunks(IDS, bos=None)
    assert how.scored == 5
    scored = chunks[:, how.first + 1 :].reshape(-1).tolist()
    assert scored == list(range(111, 111 + len(scored))) and scored[-1] >= 195


def test_most() -> None:
    assert len(Cut(context=16, most=2).chunks(IDS, bos=1)) == 2
    assert len(Cut(context=16, most=20).chunks(IDS, bos=1)) == 6


def test_a_short_text_is_refused_with_its_numbers() -> None:
    assert Cut(context=101).chunks(IDS, bos=1).shape == (1, 101)
    with pytest.raises(RequestError, match=r"the text has 101 tokens, a chunk 102: take a longer text"):
        Cut(context=102).chunks(IDS, bos=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"context": 1}, "--context is 1, expected 2 or more"),
        ({"stride": 0}, "--stride is 0"),
        ({"stride": 16}, "expected less than the context"),
        ({"most": 0}, "--chunks is 0"),
        ({"stride": 3, "all_positions": True}, "choose one"),
    ],
)
def test_impossible_cuts_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Cut(**{"context": 16, **change})


def test_a_text_is_tokenised_whole() -> None:
    tokenizer = Tokenizer.of(Weights.open(BUILT_IN))
    assert tokenizer is not None
    text = "Once upon a time there was a fox. " * 30
    ids = [tokenizer.bos, *tokenizer.encode(text)]
    chunks = cut(tokenizer, text, Cut(context=32))
    assert chunks[:, 0].tolist() == [tokenizer.bos] * len(chunks)
    assert chunks[:, 1:].tolist() == [ids[at + 1 : at + 32] for at in range(0, len(ids) - 31, 32)]


def test_the_digest_is_of_the_cut_too() -> None:
    a = Cut(context=16).chunks(IDS, bos=None)
    assert digest(a) == digest(a.copy()) != digest(a[:-1])
    assert digest(a) != digest(a.reshape(-1, 8))


def test_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three", "id": 1}\n\n"four"\n')
    (tmp_path / "c.json").write_text(json.dumps(["five", {"text": "six"}]))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfseven"))
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "eight"}'))
    whole = read([tmp_path / name for name in ("a.txt", "b.jsonl", "c.json", "d.txt.gz", "e.jsonl.gz")])
    assert whole == "one\ntwo\n\n\nthree\n\nfour\n\nfive\n\nsix\n\nseven\n\neight"


def test_a_folder_is_wikitexts(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "wiki.valid.tokens").write_text("validation")
    assert read([tmp_path]) == "validation"
    (tmp_path / "wiki.test.raw.gz").write_bytes(gzip.compress(b"test"))
    assert read([tmp_path]) == "test"
    assert " = Homarus gammarus = " in read([shared / "data" / "wikitext2"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "empty|no text"),
        ("a.txt", b" \n", "there is no text in it"),
        ("a.txt", b"GGUF\xff\xfe", "a GGUF file"),
        ("a.txt", b"x" * 100 + b"\xff", "byte 100 is no UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl: line 2: no JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n', "row 1 has 'prompt': expected a string"),
        ("a.jsonl", b"7\n", "row 1 is int"),
        ("a.json", b'{"text": "x"}', "dict, expected a list of texts"),
        ("a.json", b"[" * 100_000, "no JSON"),
        ("a.txt.gz", b"not packed", "cannot be unpacked"),
        ("a.txt.gz", gzip.compress(b"x" * 1000)[:-9], "cannot be unpacked"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BiseError, match=says) as error:
        read([tmp_path / name])
    assert "\n" not in str(error.value) and name in str(error.value)


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * 10_000))
    monkeypatch.setattr(texts, "MOST", 9_000)
    with pytest.raises(FormatError, match="unpacks to more than 9,000 bytes"):
        read([tmp_path / "a.txt.gz"])


def test_no_file_and_no_wikitext(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read([tmp_path / "a.txt"])
    with pytest.raises(FormatError, match="a folder without wiki.test.raw"):
        read([tmp_path])
    with pytest.raises(RequestError, match="name one or more files"):
        read([])
