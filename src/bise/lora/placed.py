"""Adapters beside a base: to the rows of a step that ask for one, `linear` adds scale * B A x (Hu et al. 2021, (3)).

The base is multiplied once for everybody, whatever adapters they have; then each adapter's own rows, which lie
together, go through its A and B (as in Punica, Chen et al. 2023, and S-LoRA, Sheng et al. 2023). A row's sums are its
own, so a token is the same to the bit among others, and rows without an adapter are what they are without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np

from ..ops import Array, Ops, Weight
from ..quant import STRIP, QTensor
from ..weights import Parameters, Weights
from .adapter import Adapter, Delta, lengths

Rows = Sequence[tuple[slice, "Placed"]]


class Named(NamedTuple):
    """A matrix of the base that adapters may add to, and its canonical name."""

    base: Weight
    name: str


class Pair(NamedTuple):
    """A, and B with the scale multiplied in, as the backend holds them; factor (out,): what DoRA makes of the sum."""

    a: Weight
    b: Weight
    factor: Array | None


@dataclass(eq=False)
class Placed:
    """An adapter on a backend. id: Adapter.id; what was read with another is never taken for its own."""

    name: str
    id: str
    pairs: Mapping[str, Pair]
    nbytes: int


class Adapters:
    """One base, and what is needed to put adapters beside it."""

    def __init__(self, ops: Ops, weights: Weights, parameters: Parameters) -> None:
        self.ops, self.weights = ops, weights
        self.parameters = _adapted(parameters)

    def nbytes(self, adapter: Adapter) -> int:
        """What `place` will take."""
        floats = {name: 4 if self._kind(name) == "F32" else 2 for name in adapter.deltas}
        return sum(
            floats[name] * (delta.a.size + delta.b.size) + (0 if delta.magnitude is None else delta.magnitude.nbytes)
            for name, delta in adapter.deltas.items()
        )

    def place(self, adapter: Adapter, name: str = "") -> Placed:
        """Put an adapter's matrices on the backend. DoRA's needs every row of the weights that it changes, once."""
        pairs = {}
        for weight, delta in adapter.deltas.items():
            kind = self._kind(weight)
            a, b = QTensor.of(delta.a, kind), QTensor.of(delta.b * np.float32(delta.scale), kind)
            factor = None if delta.magnitude is None else self._factor(weight, delta)
            pairs[weight] = Pair(self.ops.weight(a), self.ops.weight(b), factor)
        return Placed(name or adapter.name, adapter.id, pairs, self.nbytes(adapter))

    def beside(self, rows: Rows, count: int, wanted: Rows, wanted_count: int) -> tuple[Ops, Parameters]:
        """The verbs and the weights of one step. rows: which of its `count` rows have which adapter; wanted: which of
        those `wanted_count` that the last layer hands on."""
        return cast(Ops, _Beside(self.ops, {count: rows, wanted_count: wanted}.__getitem__)), self.parameters

    def everywhere(self, placed: Placed) -> tuple[Ops, Parameters]:
        """The verbs and the weights of a model all of whose rows have this adapter."""
        return cast(Ops, _Beside(self.ops, lambda count: [(slice(0, count), placed)])), self.parameters

    def _kind(self, weight: str) -> str:
        """A and B are kept at 16 bits beside a weight that has no more: its own rounding is far coarser. Not by torch,
        which would round the activations to 16 bits as well."""
        entries = self.weights.entries
        if not self.ops.exact:
            return "F32"
        return "F32" if entries[weight if weight in entries else "token_embd"].type == "F32" else "F16"

    def _factor(self, weight: str, delta: Delta) -> Array:
        """DoRA (Liu et al. 2024, eq. 5): magnitude / length of each row of W + scale * B A. A tied output is the
        embedding."""
        tensor = self.weights[weight if weight in self.weights else "token_embd"]
        assert delta.magnitude is not None
        out, bare = np.empty(len(delta.b), np.float32), replace(delta, magnitude=None)
        step = max(1, STRIP * 8 // tensor.shape[1])
        for at in range(0, len(out), step):
            rows = tensor.rows(np.arange(at, min(at + step, len(out))))
            out[at : at + step] = delta.magnitude[at : at + step] / lengths(bare.fused(rows, at))
        return self.ops.array(out)


class _Beside:
    """A backend for one step: `linear` adds what adapters add, every other verb is the backend's own."""

    def __init__(self, ops: Ops, rows: Callable[[int], Rows]) -> None:
        """rows: by how many there are. All of a step's, and those that its last layer hands on; where these are as
        many, they are the same ones."""
        self._ops, self._rows = ops, rows

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._ops, verb)

    def linear(self, x: Array, *ws: Named) -> Any:
        ys = self._ops.linear(x, *(w.base for w in ws))
        each = ys if len(ws) > 1 else (ys,)
        for rows, placed in self._rows(len(x)):
            changed = [(y, pair) for y, w in zip(each, ws, strict=True) if (pair := placed.pairs.get(w.name))]
            if changed:
                self._add(x[rows], [(y[rows], pair) for y, pair in changed])
        return ys

    def _add(self, x: Array, changed: Sequence[tuple[Array, Pair]]) -> None:
        """Into each y, a view of one adapter's rows."""
        low = self._ops.linear(x, *(pair.a for _, pair in changed))
        lows = low if len(changed) > 1 else (low,)
        for (y, pair), low in zip(changed, lows, strict=True):
            y += self._ops.linear(low, pair.b)
            if pair.factor is not None:
                y *= pair.factor


def grouped(parts: Iterable[tuple[Placed | None, int]]) -> Rows:
    """(adapter, rows) of each part of a step, in its order -> runs of rows with the same adapter."""
    found: list[tuple[slice, Placed]] = []
    at = 0
    for placed, count in parts:
        if placed is not None and found and found[-1][1] is placed and found[-1][0].stop == at:
            found[-1] = slice(found[-1][0].start, at + count), placed
        elif placed is not None and count:
            found.append((slice(at, at + count), placed))
        at += count
    return found


def _adapted(parameters: Parameters) -> Parameters:
    """The same parameters, each matrix with its name."""

    def named(layer: Any, i: int) -> Any:
        matrices = {f.name: getattr(layer, f.name) for f in fields(layer) if not f.name.endswith("_norm")}
        return replace(layer, **{part: Named(w, f"blk.{i}.{part}") for part, w in matrices.items()})

    blk = [named(layer, i) for i, layer in enumerate(parameters.blk)]
    return replace(parameters, blk=blk, output=Named(parameters.output, "output"))
