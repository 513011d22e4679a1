"""A SentencePiece vocabulary as Hugging Face's tokenizer.json, for programs that read nothing else.

Source: the format of huggingface/tokenizers. It has no scores but merges, in order: each way to put a piece together
from two others, those of the piece with the highest score first, since SentencePiece merges the best piece first.
"""

from __future__ import annotations

import json
from typing import Any

from .vocab import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Vocab


def to_json(vocab: Vocab) -> bytes:
    """The whole file. UNUSED pieces stand in it, so that ids stay, and nothing merges into them."""
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocab, i) for i, kind in enumerate(vocab.types)
                         if kind in (UNKNOWN, CONTROL, USER_DEFINED)],
        "normalizer": _sequence("normalizers", [
            *([{"type": "Prepend", "prepend": SPACE}] if vocab.space_prefix else []),
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ]),
        "pre_tokenizer": None,
        "post_processor": _template(vocab),
        "decoder": _sequence("decoders", [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocab.space_prefix else []),
        ]),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocab.tokens[vocab.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": BYTE in vocab.types,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocab.tokens)},
            "merges": merges(vocab),
        },
    }  # fmt: skip
    return json.dumps(tree, ensure_ascii=False, indent=2).encode() + b"\n"


def merges(vocab: Vocab) -> list[list[str]]:
    """[left, right] pairs, the best first. Of two ways to one piece that with the earlier left part comes first."""
    ids = {t: i for i, (t, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)) if kind == NORMAL}
    found = []
    for piece, i in ids.items():
        for at in range(1, len(piece)):
            left, right = ids.get(piece[:at]), ids.get(piece[at:])
            if left is not None and right is not None:
                found.append((-vocab.scores[i], i, left, right))
    return [[vocab.tokens[left], vocab.tokens[right]] for _, _, left, right in sorted(found)]


def _added(vocab: Vocab, i: int) -> dict[str, Any]:
    plain = vocab.types[i] == USER_DEFINED
    content = vocab.tokens[i].replace(SPACE, " ") if plain else vocab.tokens[i]
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": not plain}  # fmt: skip


def _sequence(what: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", what: parts}


def _template(vocab: Vocab) -> dict[str, Any] | None:
    """What a tokenizer puts in front of a text."""
    if vocab.bos is None or not vocab.add_bos:
        return None
    bos = vocab.tokens[vocab.bos]
    first, second = ([{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
                     for i, name in enumerate("AB"))  # fmt: skip
    special = {bos: {"id": bos, "ids": [vocab.bos], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": first, "pair": first + second, "special_tokens": special}
