"""Ids become text as they come: whole characters, and stop strings never shown, not even their beginnings."""

import random

import pytest

from bise.errors import RequestError
from bise.speech import Speech
from bise.tokenizer import Tokenizer
from tiny import tiny_vocabulary

TOKENIZER = Tokenizer.from_gguf(tiny_vocabulary(288))


def speak(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """Every byte its own token: the hardest case."""
    speech = Speech(TOKENIZER, stop, start=False)
    pieces = [speech.push(3 + byte) for byte in text.encode()]
    return [*pieces, speech.flush()], speech.stopped


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 🦊!", "", "a\n\nb"])
def test_pieces_are_whole_characters_and_lose_nothing(text: str) -> None:
    pieces, stopped = speak(text, ())
    assert "".join(pieces) == text and not stopped
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one END two", ("END",), "one "),
        ("ENDless", ("END",), ""),
        ("an EN, an ENE and no more", ("END",), "an EN, an ENE and no more"),
        ("aab aaab", ("aaab",), "aab "),  # a false start inside the real one
        ("x###y", ("##", "###"), "x"),
        ("first B then A", ("A", "B"), "first "),
        ("ein Fuchs 🦊 hier", ("🦊",), "ein Fuchs "),
        ("waits until the E", ("END",), "waits until the E"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], shown: str) -> None:
    pieces, stopped = speak(text, stop)
    assert "".join(pieces) == shown
    assert stopped == any(s in text for s in stop)


def test_any_text_and_any_stop_agree_with_find() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        text = "".join(chance.choices("abé", k=chance.randint(0, 12)))
        stop = tuple("".join(chance.choices("abé", k=chance.randint(1, 4))) for _ in range(chance.randint(0, 2)))
        pieces, _ = speak(text, stop)
        # several stops may overlap: the one that is complete first ends the text
        first = min((text.find(s) + len(s) for s in stop if s in text), default=None)
        begins = [text.find(s) for s in stop if s in text and text.find(s) + len(s) <= (first or 0)]
        assert "".join(pieces) == (text[: min(begins)] if begins else text), (text, stop)


def test_what_cannot_be_a_stop_is_shown_at_once() -> None:
    speech = Speech(TOKENIZER, ("END",), start=False)
    assert [speech.push(3 + b) for b in b"an E"] == ["a", "n", " ", ""]
    assert speech.push(3 + ord("x")) == "Ex"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        Speech(TOKENIZER, ("",))
