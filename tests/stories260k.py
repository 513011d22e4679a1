"""stories260K, a small real model (karpathy/tinyllamas), from llama2.c's file into the two layouts that bise reads.

The layout, from its SOURCE.txt in ../shared/data: seven int32 (dim, hidden, layers, heads, kv_heads, vocab, context),
then float32 tensors, each kind for all layers at once, in Meta's (so Mistral's) order of q and k rows.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from bise import gguf
from bise.config import Config
from tiny import Arrays, tiny_keys, tiny_tensors, write_tiny_mistral

UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1


def tensors(path: Path) -> tuple[Config, Arrays]:
    """-> the shape, and canonical name -> float32 array. The output is the embedding again."""
    raw = path.read_bytes()
    d, f, n, heads, kv_heads, v, context = struct.unpack("<7i", raw[:28])
    config = Config(d, n, heads, kv_heads, d // heads, f, v, context=context)
    kv = config.head_dim * kv_heads
    order: list[tuple[str, tuple[int, ...]]] = [
        ("attn_norm", (d,)), ("attn_q", (d, d)), ("attn_k", (kv, d)), ("attn_v", (kv, d)), ("attn_output", (d, d)),
        ("ffn_norm", (d,)), ("ffn_gate", (f, d)), ("ffn_down", (d, f)), ("ffn_up", (f, d)),
    ]  # fmt: skip
    floats, at = np.frombuffer(raw, "<f4", offset=28), v * d
    found: Arrays = {"token_embd": floats[:at].reshape(v, d)}
    for part, shape in order:
        for layer in range(n):
            size = math.prod(shape)
            found[f"blk.{layer}.{part}"] = floats[at : at + size].reshape(shape)
            at += size
    found["output_norm"] = floats[at : at + d]
    return config, found


def vocabulary(path: Path) -> dict[str, object]:
    """tok512.bin -> tokenizer.ggml.* keys. llama2.c has spaces for SentencePiece's mark and newlines round <s>."""
    raw, at = path.read_bytes(), 4
    pieces, scores = [], []
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) - 259)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            p.strip("\n") if k == CONTROL else p.replace(" ", "\u2581") for p, k in zip(pieces, types, strict=True)
        ],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def as_gguf(source: Path, path: Path, type: str = "F32") -> Path:
    """One GGUF with its tokenizer. Norms stay F32."""
    config, found = tensors(source / "stories260K.bin")
    keys = {**tiny_keys(config, vocabulary=False), **vocabulary(source / "tok512.bin")}
    gguf.write(path, keys, tiny_tensors(found, type))
    return path


def as_folder(source: Path, folder: Path) -> Path:
    """Mistral's own layout: consolidated.safetensors and params.json, the output written out."""
    config, found = tensors(source / "stories260K.bin")
    return write_tiny_mistral(folder, config, {**found, "output": found["token_embd"]}, "F32")
