"""A model that can be made to call tools: Mistral v3's vocabulary and format over random weights.

It has learnt nothing. Where a grammar holds it, a logit_bias on quotes and closing brackets makes it end every value as
soon as it may, so that whole calls and objects come out in a few tokens, always the same ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bise import gguf
from bise.tokenizer import Tokenizer
from tiny import tiny_config, tiny_keys, tiny_tensors, tiny_weights

BIAS = {'"': 60, "}": 50, "]": 50, "3": 25, " ": 12}


def v3_tokenizer() -> Tokenizer:
    """From mistral-common, which has the file; skips where that is missing."""
    folder = pytest.importorskip("mistral_common").__path__[0]
    return Tokenizer.from_file(Path(folder) / "data" / "mistral_instruct_tokenizer_240323.model.v3")


def write_v3(path: Path) -> Path:
    """4 MB."""
    config = tiny_config(vocab_size=32_768, context=4096)
    keys = tiny_keys(config, vocabulary=False) | v3_tokenizer().gguf_keys()
    gguf.write(path, keys, tiny_tensors(tiny_weights(config), "Q8_0"))
    return path


def hasty() -> dict[str, int]:
    """logit_bias that ends values; where a number has to begin, it is 3 (what LangChain's tests ask for)."""
    tokenizer = v3_tokenizer()
    ids = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    return {str(ids[text.encode()]): bias for text, bias in BIAS.items()}
