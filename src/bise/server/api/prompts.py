"""Texts and ids as OpenAI's API lets one write them: one or many, checked by hand, because what is wrong should be
named and a list of a million ids should not be looked at four times."""

from __future__ import annotations

import json
from typing import Any

from .. import limits
from ..faults import Fault


def prompts_of(value: Any, vocab_size: int, name: str, most: int = limits.PROMPTS) -> list[str | list[int]]:
    """A string, a list of ids, or a list of these -> the list of them. Fault 400 names what is wrong."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise Fault(400, f"{name} is {_kind(value)}, expected a text, a list of token ids, or a list of these", name)
    if not value:
        raise Fault(400, f"{name} is empty: give at least one text or token", name)
    if all(type(v) is int for v in value):
        return [_ids(value, vocab_size, name)]
    if not isinstance(value[0], (str, list)):
        odd = next(i for i, v in enumerate(value) if type(v) is not int)
        raise Fault(400, f"{name}[{odd}] is {_kind(value[odd])}, expected a token id", name)
    if len(value) > most:
        raise Fault(400, f"{name} has {len(value):,} entries, expected at most {most}", name)
    return [_one(v, type(value[0]), vocab_size, f"{name}[{i}]") for i, v in enumerate(value)]


def _one(value: Any, kind: type, vocab_size: int, name: str) -> str | list[int]:
    if isinstance(value, str) and kind is str:
        return value
    if isinstance(value, list) and kind is list:
        return _ids(value, vocab_size, name)
    wanted = "a text" if kind is str else "a list of token ids"
    raise Fault(400, f"{name} is {_kind(value)}, expected {wanted} like the first", name)


def _ids(value: list[Any], vocab_size: int, name: str) -> list[int]:
    if not value:
        raise Fault(400, f"{name} has no tokens: give at least one", name)
    odd = next((i for i, v in enumerate(value) if type(v) is not int), None)
    if odd is not None:
        raise Fault(400, f"{name}[{odd}] is {_kind(value[odd])}, expected a token id", name)
    if min(value) < 0 or max(value) >= vocab_size:
        odd = next(i for i, v in enumerate(value) if not 0 <= v < vocab_size)
        raise Fault(400, f"{name}[{odd}] is {value[odd]!s:.20}, expected a token id from 0 to {vocab_size - 1}", name)
    return value


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), repr(value)[:20])
