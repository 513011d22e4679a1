"""The full model beside the one that is judged: the same tokens for both, and its logits, kept or made now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError
from ..texts import Cut, Ids, cut, digest
from ..tokenizer import Tokenizer
from ..weights import Weights
from .kept import Kept, find, identity, make_room, path_of
from .run import Loaded, Watch, keep


def common_chunks(full: Weights, other: Weights, text: str, how: Cut) -> Ids:
    """The chunks of a text for both models. RequestError where their tokens are not the same."""
    ours, theirs = _tokenizer(full), _tokenizer(other)
    chunks = cut(ours, text, how)
    if ours.vocab.tokens != theirs.vocab.tokens or not np.array_equal(chunks, cut(theirs, text, how)):
        raise RequestError(f"{other.path} makes other tokens of this text than {full.path}: they do not compare")
    return chunks


def full_logits(
    full: Weights, chunks: Ids, how: Cut, arithmetic: Mapping[str, Any], load: Callable[[Path], Loaded],
    watch: Watch | None = None,
) -> Kept:  # fmt: skip
    """The full model's logits at the scored tokens: those that were kept, or made now and kept.

    arithmetic  what else they depend on: window, kv, backend ...
    load        called with the file that is about to be written, where there are none: gives the model, which is
                forgotten afterwards
    """
    about = identity(
        {"model": full.fingerprint, "ids": digest(chunks), "first": how.first, "arithmetic": dict(arithmetic)}
    )
    path = path_of(full.path.stem, about)
    kept = find(path, about)
    if kept is None:
        make_room(chunks.shape[0] * how.scored * (2 * full.config.vocab_size + 4), len(chunks))
        keep(load(path), chunks, how, path, about, watch)
        kept = Kept(path, about)
    return kept


def _tokenizer(weights: Weights) -> Tokenizer:
    found = Tokenizer.of(weights)
    if found is None:
        raise RequestError(f"{weights.path} has no tokenizer: put tokenizer.model beside it")
    return found
