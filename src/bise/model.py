"""The model, once: the forward pass of Mistral 7B (Jiang et al. 2023) over the verbs of ops.

Tokens lie flat: T = all tokens of all sequences in this step, no batch axis, no padding. Which token belongs to
whom, where it stands and what it may see is the batch's affair (cache.py); what a number is, and on which machine,
is the affair of ops. So this page serves every backend, every kind of weight, prefill and decode, training and
serving, with the rolling buffer or without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cache import Batch
from .config import Config
from .ops import Array, Ops
from .weights import Layer, Parameters

Tap = Callable[[int, Array], Array]  # (layer, (T, dim)) -> (T, dim): what every layer hands on may be read and written
# (the last layer hands on only the rows whose logits are wanted)


def forward(
    ops: Ops, config: Config, weights: Parameters, tokens: Array, batch: Batch, tap: Tap | None = None
) -> Array:
    """tokens (T,) -> logits (R, vocab_size) of the R rows that the batch wants."""
    return ops.linear(states(ops, config, weights, tokens, batch, tap), weights.output)


def at_once(block: Callable[..., Array], *its: Any) -> Array:
    return block(*its)


def states(
    ops: Ops, config: Config, weights: Parameters, tokens: Array, batch: Batch, tap: Tap | None = None,
    run: Callable[..., Array] = at_once,
) -> Array:  # fmt: skip
    """tokens (T,) -> (R, dim): what the output matrix reads. run: how a block is computed; training forgets what
    happened inside and computes it once more on its way back (Chen et al. 2016)."""
    x = ops.embed(weights.token_embd, tokens)  # (T, dim)
    for i, w in enumerate(weights.blk):
        x = run(block, ops, config, w, x, batch, i)
        if tap:
            x = tap(i, x)
    return ops.rms_norm(x, weights.output_norm, config.norm_eps)


def block(ops: Ops, config: Config, w: Layer, x: Array, batch: Batch, layer: int) -> Array:
    """One layer. (T, dim) -> (T, dim), the last one (R, dim): of the other rows only keys and values were wanted."""
    x = x + attention(ops, w, ops.rms_norm(x, w.attn_norm, config.norm_eps), batch, layer)
    if layer == config.n_layers - 1:
        x = x[batch.wanted]
    return x + feed_forward(ops, w, ops.rms_norm(x, w.ffn_norm, config.norm_eps))


def attention(ops: Ops, w: Layer, x: Array, batch: Batch, layer: int) -> Array:
    """Grouped-query attention (Ainslie et al. 2023): H query heads share G key/value heads. (T, dim) -> (T, dim)."""
    q, k, v = ops.linear(x, w.attn_q, w.attn_k, w.attn_v)  # (T, H*D), (T, G*D), (T, G*D)
    q = ops.rope(q, batch.cos, batch.sin)
    k = ops.rope(k, batch.cos, batch.sin)
    return ops.linear(batch.attend(ops, layer, q, k, v), w.attn_output)


def feed_forward(ops: Ops, w: Layer, x: Array) -> Array:
    """SwiGLU (Shazeer 2020). (T, dim) -> (T, dim)."""
    gate, up = ops.linear(x, w.ffn_gate, w.ffn_up)  # (T, hidden_dim) each
    return ops.linear(ops.swiglu(gate, up), w.ffn_down)
