"""The names of tensors in the three dialects, and the order of q and k rows that goes with them.

Inside, tensors have GGUF's names without ".weight", and RoPE turns interleaved pairs (2i, 2i+1) of each head, as in
Mistral's own files and in GGUF. Hugging Face's files turn (i, i + D/2) (half-split), so there the rows of q and k, and
of a LoRA B for q or k, lie in another order. Whole rows move, so this works on quantised bytes as well.
"""

from __future__ import annotations

import re
from typing import TypeVar

import numpy as np

from .quant import QTensor

# canonical: (GGUF, Hugging Face, Mistral); N is the layer
TABLE = {
    "token_embd": ("token_embd", "model.embed_tokens", "tok_embeddings"),
    "blk.N.attn_norm": ("blk.N.attn_norm", "model.layers.N.input_layernorm", "layers.N.attention_norm"),
    "blk.N.attn_q": ("blk.N.attn_q", "model.layers.N.self_attn.q_proj", "layers.N.attention.wq"),
    "blk.N.attn_k": ("blk.N.attn_k", "model.layers.N.self_attn.k_proj", "layers.N.attention.wk"),
    "blk.N.attn_v": ("blk.N.attn_v", "model.layers.N.self_attn.v_proj", "layers.N.attention.wv"),
    "blk.N.attn_output": ("blk.N.attn_output", "model.layers.N.self_attn.o_proj", "layers.N.attention.wo"),
    "blk.N.ffn_norm": ("blk.N.ffn_norm", "model.layers.N.post_attention_layernorm", "layers.N.ffn_norm"),
    "blk.N.ffn_gate": ("blk.N.ffn_gate", "model.layers.N.mlp.gate_proj", "layers.N.feed_forward.w1"),
    "blk.N.ffn_up": ("blk.N.ffn_up", "model.layers.N.mlp.up_proj", "layers.N.feed_forward.w3"),
    "blk.N.ffn_down": ("blk.N.ffn_down", "model.layers.N.mlp.down_proj", "layers.N.feed_forward.w2"),
    "output_norm": ("output_norm", "model.norm", "norm"),
    "output": ("output", "lm_head", "output"),
}
LAYOUTS = ("gguf", "huggingface", "mistral")
LAYER = tuple(name[6:] for name in TABLE if name.startswith("blk.N."))  # attn_norm, attn_q, ... ffn_down

_LAYER_NUMBER = re.compile(r"\.(0|[1-9]\d{0,5})\.")
_CANONICAL = {layout: {names[i]: canonical for canonical, names in TABLE.items()} for i, layout in enumerate(LAYOUTS)}

Rows = TypeVar("Rows", np.ndarray, QTensor)


def canonical(name: str, layout: str) -> str | None:
    """The canonical name of a file's tensor; None if no model here has such a tensor.

    >>> canonical("model.layers.7.self_attn.q_proj.weight", "huggingface")
    'blk.7.attn_q'
    """
    if not name.endswith(".weight"):
        return None
    number = _LAYER_NUMBER.search(name)
    general = _LAYER_NUMBER.sub(".N.", name[: -len(".weight")], count=1)
    found = _CANONICAL[layout].get(general)
    if found is None or (".N." in found) != (number is not None):
        return None
    return found.replace("N", number[1]) if number else found


def spelled(name: str, layout: str) -> str:
    """A canonical name as a file of `layout` spells it, with ".weight". KeyError if it is not a canonical name.

    >>> spelled("blk.7.attn_q", "mistral")
    'layers.7.attention.wq.weight'
    """
    number = _LAYER_NUMBER.search(name)
    general = TABLE[_LAYER_NUMBER.sub(".N.", name, count=1)][LAYOUTS.index(layout)]
    return (general.replace("N", number[1], 1) if number else general) + ".weight"


def turned(name: str) -> bool:
    """Whether RoPE turns what this tensor makes, so that its rows lie in another order in Hugging Face's files."""
    return name.endswith((".attn_q", ".attn_k"))


def interleaved(rows: Rows, head_dim: int) -> Rows:
    """Hugging Face's order -> interleaved: rows (heads * head_dim, n), of a weight or of a LoRA B, quantised or not."""
    return _gather(rows, _row_order(rows.shape[0], head_dim))


def half_split(rows: Rows, head_dim: int) -> Rows:
    """Interleaved -> Hugging Face's order: the inverse of `interleaved`."""
    return _gather(rows, np.argsort(_row_order(rows.shape[0], head_dim)))


def _row_order(rows: int, head_dim: int) -> np.ndarray:
    """(rows,) ids: row 2i + s of a head comes from row i + s * D/2."""
    ids = np.arange(rows).reshape(-1, 2, head_dim // 2)  # (head, s, i)
    return ids.swapaxes(1, 2).reshape(-1)


def _gather(rows: Rows, ids: np.ndarray) -> Rows:
    return rows.take(ids) if isinstance(rows, QTensor) else np.take(rows, ids, axis=0)
