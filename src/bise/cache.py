"""Who may see whom, and where a key lies: Batch (one step) and Cache (the rolling buffer between steps).

The rolling buffer (Jiang et al. 2023, figure 2): position p lives in slot p mod N, so the memory never grows.
A chunk is written first and attends afterwards, so the keys of [old window | chunk] must be alive together:
N >= W + chunk - 1. With W = 4, chunks of 3 and N = 6 (in the real thing N is a multiple of 32):

    the cat sat on the mat and purred        positions 0 1 2 3 4 5 6 7
    chunk 0..2   slots 0 1 2                 "sat" (2) sees 0 1 2
    chunk 3..5   slots 3 4 5                 "mat" (5) sees 2 3 4 5        (i - W < j <= i)
    chunk 6..7   slots 0 1, over 0 and 1     "and" (6) sees 3 4 5 6: slots 3 4 5 0

Nothing that 6 or 7 may see was overwritten: that is the whole trick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import Config
from .errors import ContextError, FormatError, RequestError
from .ops import KV_TYPES, TILE, Array, Ops, Ring
from .quant import QTensor

CHUNK = 256  # the most tokens of one sequence in one step
_ALL = ...


@dataclass
class Batch:
    """One step: which rows belong to which sequence, where they stand, and the rings they write and read.

    spans   int32 (S', 4): sequence, first row, rows, position of the first row
    cos,sin (T, D/2): the RoPE rotation of every row, one table for all layers
    wanted  index of the rows whose logits are wanted
    """

    spans: np.ndarray
    cos: Array
    sin: Array
    ring: Callable[[int], Ring]
    window: int | None
    wanted: Any = _ALL

    def attend(self, ops: Ops, layer: int, q: Array, k: Array, v: Array) -> Array:
        """The only seam between model and cache: q (T, H*D), k and v (T, G*D) -> (T, H*D)."""
        ring = self.ring(layer)
        ops.store(ring, self.spans, k, v)
        return ops.attend(q, ring, self.spans, self.window)


def whole(ops: Ops, config: Config, lengths: Sequence[int], kv: str = "f32") -> Batch:
    """Sequences from their first token to their last, nothing kept afterwards: scoring and training."""
    size = _round_up(max(lengths))

    def fresh(layer: int) -> Ring:
        return ops.ring(len(lengths), config.n_kv_heads, size, config.head_dim, kv)

    return _batch(ops, config, [(s, n, 0) for s, n in enumerate(lengths)], fresh)


class Cache:
    """The keys and values of a fixed number of sequences, in rings whose memory is fixed at the start."""

    def __init__(
        self, ops: Ops, config: Config, sequences: int = 1, context: int | None = None, kv: str = "f16"
    ) -> None:
        if kv == "q8_0" and config.head_dim % 32:
            raise RequestError(f"kv is q8_0 and head_dim {config.head_dim}: blocks of 32 do not fit, use f16")
        self.ops, self.config, self.kv = ops, config, kv
        self.context = context or config.context
        self.size = ring_size(config, self.context)
        self.rings = [
            ops.ring(sequences, config.n_kv_heads, self.size, config.head_dim, kv) for _ in range(config.n_layers)
        ]
        self.lengths = [0] * sequences  # tokens each sequence has read; the last one stands at length - 1
        self.oldest = [0] * sequences  # the oldest position of each that no later one has overwritten

    def batch(self, parts: Sequence[tuple[int, int]], wanted: str = "last") -> Batch:
        """The next n tokens of each (sequence, n), n <= CHUNK. wanted "last": logits of each part's last row; "all"."""
        rows = []
        for sequence, n in parts:
            start = self.lengths[sequence]
            if start + n > self.context:
                raise ContextError(
                    f"the sequence would have {start + n:,} tokens, context is {self.context:,}: "
                    "shorten it or pass --context"
                )
            if n > CHUNK:
                raise RequestError(f"a part has {n} tokens, a step takes at most {CHUNK} of one sequence")
            rows.append((sequence, n, start))
            self.oldest[sequence] = max(self.oldest[sequence], start + n - self.size)
        batch = _batch(self.ops, self.config, rows, self.rings.__getitem__)
        if wanted == "last":
            batch.wanted = batch.spans[:, 1] + batch.spans[:, 2] - 1
        return batch

    def advance(self, batch: Batch) -> None:
        """The step is done: its tokens are now part of their sequences."""
        for sequence, _, n, start in batch.spans.tolist():
            self.lengths[sequence] = start + n

    def rewind(self, sequence: int, length: int) -> bool:
        """Forget what follows the first `length` tokens. False, and nothing done, if keys that position `length` may
        see have been overwritten: then the sequence has to be read again from its start."""
        if not self.can_rewind(sequence, length):
            return False
        if length == 0:
            self.oldest[sequence] = 0
        self.lengths[sequence] = length
        return True

    def can_rewind(self, sequence: int, length: int) -> bool:
        """Whether all that the token at position `length` sees is still there."""
        return length == 0 or self.first_visible(length) >= self.oldest[sequence]

    def first_visible(self, position: int) -> int:
        """The oldest key that the token at `position` sees."""
        window = self.config.sliding_window
        return 0 if window is None else max(0, position - window + 1)

    def read(self, sequence: int, start: int, parts: Sequence[np.ndarray]) -> None:
        """Copy what lies from position start on, within one turn of the ring, into `parts`: arrays (G, n, ...), one for
        each part of each layer's ring. `write` puts it back, into any sequence."""
        slots = self._slots(start, start + parts[0].shape[1])
        for held, part in zip(self._parts(), parts, strict=True):
            part[:] = self.ops.numpy(held[sequence][:, slots])

    def write(self, sequence: int, start: int, parts: Sequence[np.ndarray]) -> None:
        """Lay down from position start on what `read` gave. `lengths` and `oldest` are the caller's to set."""
        slots = self._slots(start, start + parts[0].shape[1])
        for held, part in zip(self._parts(), parts, strict=True):
            held[sequence][:, slots] = self.ops.array(part)

    def room(self, tokens: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each array that `read` fills with so many tokens."""
        held = [self.ops.numpy(part[:1, :, :1]) for part in self._parts()]
        return [((h.shape[1], tokens, h.shape[3]), h.dtype) for h in held]

    def _parts(self) -> list[Array]:
        return [part for ring in self.rings for part in ring.parts]

    def _slots(self, start: int, end: int) -> slice:
        return slice(start % self.size, start % self.size + end - start)

    def save(self, sequence: int, end: int) -> dict[str, QTensor]:
        """The keys and values that a token at position `end` may see, by position: "0.k", "0.v", "1.k" ... (G*J, D)."""
        if end == 0:
            return {}
        slots, numpy = np.arange(self.first_visible(end), end) % self.size, self.ops.numpy
        return {
            f"{i}.{name}": _pack(
                numpy(values)[sequence][:, slots], scales if scales is None else numpy(scales)[sequence][:, slots]
            )
            for i, ring in enumerate(self.rings)
            for name, values, scales in ring.halves
        }

    def restore(self, sequence: int, length: int, tensors: Mapping[str, QTensor], source: str) -> None:
        """Put back what `save` gave for a sequence of `length` tokens. FormatError where shapes do not fit."""
        if length == 0:
            return
        first = self.first_visible(length)
        slots = np.arange(first, length) % self.size
        kind = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}[self.kv]
        shape = (self.config.n_kv_heads * len(slots), self.config.head_dim)
        for i in range(self.config.n_layers):
            for name in (f"{i}.k", f"{i}.v"):
                found = tensors.get(name)
                if found is None or (found.type, found.shape) != (kind, shape):
                    raise FormatError(
                        f"{source}: tensor {name} is {found and (found.type, found.shape)}, expected {(kind, shape)}"
                    )
        for i, ring in enumerate(self.rings):
            for name, values, scales in ring.halves:
                saved, saved_scales = _unpack(tensors[f"{i}.{name}"], self.config.n_kv_heads)
                values[sequence][:, slots] = self.ops.array(saved)
                if saved_scales is not None:
                    scales[sequence][:, slots] = self.ops.array(saved_scales)
        self.lengths[sequence], self.oldest[sequence] = length, first

    @property
    def nbytes(self) -> int:
        return len(self.lengths) * cache_bytes(self.config, self.context, self.kv)


def ring_size(config: Config, context: int) -> int:
    """Slots per sequence: the window and the chunk that is being read, or the whole context where that is less."""
    if config.sliding_window is None:
        return _round_up(context)
    return _round_up(min(context, config.sliding_window + CHUNK - 1))


def cache_bytes(config: Config, context: int | None = None, kv: str = "f16") -> int:
    """Bytes of keys and values for one sequence, known before anything is loaded."""
    if kv not in KV_TYPES:
        raise RequestError(f"kv is {kv!r}, expected one of {', '.join(KV_TYPES)}")
    bytes_of_32 = {"f32": 128, "f16": 64, "q8_0": 34}[kv]
    vectors = 2 * config.n_layers * config.n_kv_heads * ring_size(config, context or config.context)
    return vectors * config.head_dim * bytes_of_32 // 32


def _batch(ops: Ops, config: Config, parts: Sequence[tuple[int, int, int]], ring: Callable[[int], Ring]) -> Batch:
    """parts: (sequence, rows, position of the first row)."""
    spans = np.empty((len(parts), 4), np.int32)
    positions = []
    row = 0
    for i, (sequence, n, start) in enumerate(parts):
        spans[i] = sequence, row, n, start
        positions.append(np.arange(start, start + n))
        row += n
    angles = np.concatenate(positions)[:, None] * config.frequencies  # float64: 32k positions keep their digits
    cos, sin = ops.array(np.cos(angles).astype(np.float32)), ops.array(np.sin(angles).astype(np.float32))
    return Batch(spans, cos, sin, ring, config.sliding_window)


def _pack(values: np.ndarray, scales: np.ndarray | None) -> QTensor:
    """(G, J, D) of a ring -> (G*J, D); int8 and its scales become Q8_0, which is what they are."""
    rows, dim = values.shape[0] * values.shape[1], values.shape[2]
    if scales is None:
        kind = {4: "F32", 2: "F16"}[values.itemsize]
        return QTensor(kind, (rows, dim), np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    blocks = np.empty((rows * dim // 32, 34), np.uint8)
    blocks[:, :2] = np.ascontiguousarray(scales).reshape(-1, 1).view(np.uint8)
    blocks[:, 2:] = values.reshape(-1, 32).view(np.uint8)
    return QTensor("Q8_0", (rows, dim), blocks.reshape(-1))


def _unpack(tensor: QTensor, kv_heads: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(G*J, D) -> (G, J, D) as a ring holds it, and the scales of Q8_0."""
    shape = (kv_heads, -1, tensor.shape[1])
    if tensor.type != "Q8_0":
        return tensor.data.view({"F32": np.float32, "F16": np.float16}[tensor.type]).reshape(shape), None
    blocks = tensor.data.reshape(-1, 34)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).reshape(kv_heads, -1, tensor.shape[1] // 32)
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).reshape(shape), scales


def _round_up(n: int) -> int:
    return -(-n // TILE) * TILE
