"""tokenizer.json that we write, read by the tokenizers library, against sentencepiece on the same vocabulary."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from bise.tokenizer import Tokenizer
from bise.tokenizer_json import merges, to_json
from bise.vocab import Vocab

tokenizers = pytest.importorskip("tokenizers", reason="transformers is not installed")
mistral_common = pytest.importorskip("mistral_common", reason="mistral-common is not installed")

DATA = Path(mistral_common.__file__).parent / "data"
FILES = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"
TEXTS = [
    "", " ", "a", "Once upon a time, there was a north wind.", "  two spaces,  twice", "tab\tand\nline\n\n",
    "Grüße aus Köln, Ωμέγα, 你好, 🦊🌬️", "x" * 40, "def f(x):\n    return x ** 2  # square\n", "1234567890 3.14",
]  # fmt: skip


@pytest.fixture(scope="module", params=FILES)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    ours = Tokenizer.from_file(DATA / request.param)
    return ours, tokenizers.Tokenizer.from_str(to_json(ours.vocab).decode())


def test_same_ids(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in TEXTS[1:]:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), text


def test_same_ids_on_stories(pair: tuple[Tokenizer, Any], shared: Path) -> None:
    ours, theirs = pair
    with gzip.open(shared / "data" / "tinystories" / "gusjengis_2MiB_endoftext.txt.gz", "rt") as file:
        text = file.read(200_000)
    stories = [story.strip() for story in text.split("<|endoftext|>")][:100]
    for story in stories:
        assert theirs.encode(story, add_special_tokens=False).ids == ours.encode(story)


def test_beginning_and_control_tokens(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert theirs.encode("Hello").ids == ours.encode("Hello", bos=True)
    assert theirs.encode("</s>", add_special_tokens=False).ids == [ours.eos]


def test_text_comes_back(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in TEXTS:
        assert theirs.decode(ours.encode(text)) == text


def test_read_back(pair: tuple[Tokenizer, Any]) -> None:
    """By our own reader: the same pieces, types and cuts."""
    ours, _ = pair
    again = Tokenizer(Vocab.from_json(to_json(ours.vocab)))
    assert (again.vocab.tokens, again.vocab.types) == (ours.vocab.tokens, ours.vocab.types)
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_merges_by_hand() -> None:
    """A piece abc may be a+bc or ab+c; its score is the better one, so both ways come before that to "ab"."""
    vocab = Vocab(["<unk>", "a", "b", "c", "bc", "abc", "ab"], [0, -9, -9, -9, -2, -1, -3], [2, 1, 1, 1, 1, 1, 1], 0)
    assert merges(vocab) == [["a", "bc"], ["ab", "c"], ["b", "c"], ["a", "b"]]
