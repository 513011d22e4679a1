"""Adapters beside a base: to the rows of a step that ask for one, `linear` adds scale * B A x (Hu et al. 2021, (3)).

The base is multiplied once for everybody, whatever adapters they have; then one call of `adapt` takes the rows of each
adapter, which lie together, through its A and B (as in Punica, Chen et al. 2023, and S-LoRA, Sheng et al. 2023). The
sums of a row are its own, so a token is the same to the bit among others, and rows without an adapter are what they
are without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np

from ..ops import Array, Ops, Pair, Weight
from ..quant import STRIP, QTensor
from ..weights import Parameters, Weights
from .adapter import Adapter, Delta, lengths


class Named(NamedTuple):
    """A matrix of the base that adapters may add to, and its canonical name."""

    base: Weight
    name: str


@dataclass(eq=False)
class Placed:
    """An adapter on a backend. id: Adapter.id; what was read with another is never taken for its own."""

    name: str
    id: str
    pairs: Mapping[str, Pair]
    nbytes: int


class Groups(NamedTuple):
    """Runs of rows with the same adapter: [first, end) of each in rows (groups, 2) int32, ascending."""

    rows: np.ndarray
    placed: list[Placed]


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

    def beside(self, groups: Groups, count: int, wanted: Groups, wanted_count: int) -> tuple[Ops, Parameters]:
        """The verbs and the weights of one step. groups: which of its `count` rows have which adapter; wanted: which of
        those `wanted_count` that the last layer hands on."""
        return cast(Ops, _Beside(self.ops, {count: groups, wanted_count: wanted}.__getitem__)), self.parameters

    def everywhere(self, placed: Placed) -> tuple[Ops, Parameters]:
        """The verbs and the weights of a model all of whose rows have this adapter."""
        return cast(Ops, _Beside(self.ops, lambda count: grouped([(placed, count)]))), self.parameters

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

    def __init__(self, ops: Ops, groups: Callable[[int], Groups]) -> None:
        """groups: by how many rows there are. All of a step's, and those that its last layer hands on; where these are
        as many, they are the same ones."""
        self._ops, self._groups = ops, groups

    def __getattr__(self, verb: str) -> Any:
        self.__dict__[verb] = found = getattr(self._ops, verb)  # every layer will ask for it
        return found

    def linear(self, x: Array, *ws: Named) -> Any:
        bases, names = zip(*ws, strict=True)
        ys = self._ops.linear(x, *bases)
        rows, placed = self._groups(len(x))
        pairs = tuple([tuple(map(one.pairs.get, names)) for one in placed])
        self._ops.adapt(x, ys if len(ws) > 1 else (ys,), rows, pairs)
        return ys


def grouped(parts: Iterable[tuple[Placed | None, int]]) -> Groups:
    """(adapter, rows) of each part of a step, in its order."""
    rows: list[list[int]] = []
    found: list[Placed] = []
    at = 0
    for placed, count in parts:
        if placed is not None and found and found[-1] is placed and rows[-1][1] == at:
            rows[-1][1] = at + count
        elif placed is not None and count:
            rows.append([at, at + count])
            found.append(placed)
        at += count
    return Groups(np.array(rows, np.int32).reshape(-1, 2), found)


def _adapted(parameters: Parameters) -> Parameters:
    """The same parameters, each matrix with its name."""

    def named(layer: Any, i: int) -> Any:
        matrices = {f.name: getattr(layer, f.name) for f in fields(layer) if not f.name.endswith("_norm")}
        return replace(layer, **{part: Named(w, f"blk.{i}.{part}") for part, w in matrices.items()})

    blk = [named(layer, i) for i, layer in enumerate(parameters.blk)]
    return replace(parameters, blk=blk, output=Named(parameters.output, "output"))
