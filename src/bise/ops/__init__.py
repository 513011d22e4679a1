"""The verbs that the model speaks: the page to read after model.py.

A backend is an object with these methods. There are three: `reference` (plain NumPy, the specification),
`cpu` (C++ kernels) and `torch` (autograd, GPU). The model calls nothing else, so a verb that is right here
is right everywhere: each backend is tested verb by verb against `reference`.

Letters in shapes: T tokens of this step (all sequences laid flat, no batch axis, no padding), S sequences,
H query heads, G key/value heads (H is a multiple of G), D head_dim, N slots of a ring.
Activations are float32. "Array" is the backend's own kind: numpy.ndarray or torch.Tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..quant import QTensor

Array = Any  # numpy.ndarray (reference, cpu) or torch.Tensor (torch)
Weight = Any  # what `weight` made of a QTensor: opaque to the model

TILE = 32  # keys per attention tile; ring sizes are multiples of it, tiles are aligned to absolute positions
KV_TYPES = ("f32", "f16", "q8_0")


@dataclass
class Ring:
    """One layer's keys and values for S sequences. Position p lives in slot p mod N; N is a multiple of TILE.

    k, v              (S, G, N, D) float32 | float16 | int8 ("q8_0")
    k_scale, v_scale  (S, G, N, D/32) float16 for "q8_0": value = int8 * scale, one scale per 32; else None
    """

    k: Array
    v: Array
    k_scale: Array = None
    v_scale: Array = None

    @property
    def size(self) -> int:
        return int(self.k.shape[2])

    @property
    def halves(self) -> tuple[tuple[str, Array, Array], tuple[str, Array, Array]]:
        """(name, values, scales) of the keys and of the values."""
        return ("k", self.k, self.k_scale), ("v", self.v, self.v_scale)

    @property
    def parts(self) -> list[Array]:
        """All that it holds: keys, values, and their scales where it has some."""
        return [part for part in (self.k, self.v, self.k_scale, self.v_scale) if part is not None]


def numpy_ring(sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
    """`Ops.ring` for the backends whose arrays are NumPy's."""
    shape = (sequences, kv_heads, size, head_dim)
    if kv == "q8_0":
        scales = (sequences, kv_heads, size, head_dim // 32)
        return Ring(*(np.zeros(shape, np.int8) for _ in "kv"), *(np.zeros(scales, np.float16) for _ in "kv"))
    return Ring(*(np.zeros(shape, {"f32": np.float32, "f16": np.float16}[kv]) for _ in "kv"))


class Pair(NamedTuple):
    """An adapter beside one weight: y becomes (y + (x A^T) B^T) * factor (Hu et al. 2021, eq. 3). a (rank, in); b (out,
    rank), the scale multiplied in; factor (out,), what DoRA makes of the sum, or None: 1."""

    a: Weight
    b: Weight
    factor: Array | None


def adapt_floats(
    x: Array, ys: tuple[Array, ...], rows: np.ndarray, pairs: tuple[tuple[Pair | None, ...], ...]
) -> None:  # fmt: skip
    """`Ops.adapt` for the backends whose matrices are arrays of floats."""
    for (first, end), group in zip(rows.tolist(), pairs, strict=True):
        for y, pair in zip(ys, group, strict=True):
            if pair is not None:
                y[first:end] += x[first:end] @ pair.a.T @ pair.b.T
                y[first:end] *= 1 if pair.factor is None else pair.factor


class Ops(Protocol):
    """One backend. `spans` is an int32 array (S', 4), one row per sequence present in this step:
    (sequence, first row in the flat batch, number of rows, position of the first row)."""

    name: str
    exact: bool  # what one token sees is the same to the bit whatever else is in the step

    # placing things on the backend, once, at load
    def weight(self, tensor: QTensor) -> Weight:
        """(n,) -> a float32 vector; (out, in) -> a matrix ready for `linear`."""

    def table(self, tensor: QTensor) -> Weight:
        """(vocab, dim) -> a table ready for `embed`."""

    def ring(self, sequences: int, kv_heads: int, size: int, head_dim: int, kv: str) -> Ring:
        """A ring of zeros; kv is one of KV_TYPES."""

    def array(self, values: np.ndarray) -> Array: ...
    def numpy(self, values: Array) -> np.ndarray: ...

    # the verbs
    def embed(self, table: Weight, tokens: np.ndarray) -> Array:
        """tokens (T,) int32 -> (T, dim)."""

    def linear(self, x: Array, *ws: Weight) -> Any:
        """x (T, in), each w (out_i, in) -> x @ w.T: one array (T, out) for one weight, a tuple for several.
        Several together, because a backend may prepare x once for all of them."""

    def adapt(
        self, x: Array, ys: tuple[Array, ...], rows: np.ndarray, pairs: tuple[tuple[Pair | None, ...], ...]
    ) -> None:
        """What `linear` made of x, (T, out_i) each, becomes what adapters make of it, in place: for each group of rows
        [first, end), `rows` (groups, 2) int32 in ascending order, and each y its pair, or None for what stays."""

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        """(T, n) -> x / sqrt(mean(x^2) + eps) * w   (Zhang & Sennrich 2019)."""

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        """x (T, H*D), cos and sin (T, D/2) -> each pair (x[2i], x[2i+1]) of every head turned by angle i
        (Su et al. 2021; interleaved pairs, as Mistral and GGUF store them). May write in place."""

    def swiglu(self, gate: Array, up: Array) -> Array:
        """silu(gate) * up, silu(z) = z / (1 + exp(-z))   (Shazeer 2020). May write in place."""

    def store(self, ring: Ring, spans: Array, k: Array, v: Array) -> None:
        """Write k, v (T, G*D) into the slots of their positions. A chunk is never longer than the ring."""

    def attend(self, q: Array, ring: Ring, spans: Array, window: int | None) -> Array:
        """q (T, H*D) -> (T, H*D). The query at position i sees key j iff i - window < j <= i (window None: j <= i);
        head h reads key/value head h // (H/G); scores are scaled by 1/sqrt(D). Everything is read back from the ring,
        the present chunk too, so that what a token sees does not depend on how the prompt was cut."""


def load_ops(name: str = "cpu", threads: int | None = None, device: str | None = None,
             isa: str = "") -> Ops:  # fmt: skip
    """The backend by name, imported when asked for: "reference" | "cpu" | "torch". isa: see `Cpu`."""
    from ..errors import RequestError, UnsupportedError

    if name == "reference":
        from .reference import Reference

        return Reference()
    if name == "cpu":
        from .cpu import Cpu

        try:
            return Cpu(threads, isa)
        except ValueError as error:  # what the extension says of threads and isa is one line already
            raise RequestError(str(error)) from None
    if name == "torch":
        try:
            from .torch import Torch
        except ImportError as error:
            raise UnsupportedError(f"the torch backend needs PyTorch ({error}): pip install 'bise[torch]'") from None
        return Torch(device or "cpu")
    raise RequestError(f"backend is {name!r}, expected reference, cpu or torch")
