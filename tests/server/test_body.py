"""Bodies are read strictly: catalogue C1 to C5."""

import json
import time

import pytest

from bise.errors import RequestError
from bise.server import limits
from bise.server.api.body import parse


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"b": {"a": 1, "c": 3, "a": 2}}', "'a' is given twice"),
        (b"[" * 100_000, "deep"),
        (b"[" * 65 + b"]" * 65, "deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deep"),
        (b'{"a": "\n"}', "not JSON"),
    ],
)
def test_refused(body, says):
    start = time.monotonic()
    with pytest.raises(RequestError, match=says) as caught:
        parse(body)
    assert time.monotonic() - start < 1 and "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        "text",
        1.5,
        {"a": [1, {"b": "🇫🇷 \x00 \ue000"}]},
        [[]] * 1000,
        {"a": "\\ud800 is not an escape here"},
    ],
)
def test_what_is_json_is_read(value):
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


def test_depth_at_the_limit():
    assert parse(b"[" * limits.DEPTH + b"]" * limits.DEPTH)


def test_a_full_body_is_read_quickly():
    ids = json.dumps([[i] for i in range(100_000)]).encode()
    start = time.monotonic()
    parse(ids)
    assert time.monotonic() - start < 5
