"""What the linear weights of a model are given when it reads a text: mean squares, and whole second moments.

The mean squares make the importance matrix (importance.py). Where the columns of a weight are not taken as independent,
it is the second moment x x^T of its input that tells how much an error costs (GPTQ, Frantar et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from .cache import Batch, whole
from .config import Config
from .errors import RequestError
from .importance import Doubles, Floats, Importance
from .model import block, states
from .ops import Array, Ops
from .weights import Layer, Parameters, Weights

Progress = Callable[[int, int], None]
Chunks = Sequence[NDArray[np.int32]]  # token ids, each a sequence of its own, BOS included where it belongs
TOGETHER = 2048  # tokens whose products are added up at once: a matrix of sums is not touched for fewer
LINEAR = tuple(part.name for part in fields(Layer) if not part.name.endswith("norm"))


class Loaded(Protocol):
    """What is measured: a `bise.Model`, seen from below."""

    ops: Ops
    config: Config
    weights: Weights
    parameters: Parameters
    kv: str


class Watched:
    """A backend of which every call of `linear` is seen: `see` is called with the names of the weights and their common
    input, as the backend holds it. All else is the backend's own."""

    def __init__(self, model: Loaded, see: Callable[[list[str], Array], None]) -> None:
        self._ops, self._see = model.ops, see
        self._names: dict[int, str] = {}
        for i, layer in enumerate(model.parameters.blk):
            self._names |= _named(i, layer)

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._ops, verb)

    def linear(self, x: Array, *ws: Any) -> Any:
        self._see([self._names[id(w)] for w in ws], x)
        return self._ops.linear(x, *ws)


def _named(index: int, layer: Layer) -> dict[int, str]:
    return {id(getattr(layer, part.name)): f"blk.{index}.{part.name}" for part in fields(layer)}


def output_name(model: Loaded) -> str:
    """The name under which the file has the output matrix."""
    return "token_embd" if model.weights.tied else "output"


def collect(
    model: Loaded, chunks: Chunks, datasets: Sequence[str] = (), progress: Progress | None = None
) -> Importance:
    """Let the model read each chunk as a sequence of its own, and add up. progress: (tokens read, tokens in all).

    Of the output matrix, too (under "token_embd" where the file ties them); it is not multiplied with for that.
    """
    sums: dict[str, Doubles] = {}
    counts: dict[str, float] = {}

    def see(weights: list[str], x: Array) -> None:
        values = model.ops.numpy(x)
        squares = np.square(values, dtype=np.float64).sum(axis=0)
        for name in weights:
            sums[name] = sums.get(name, 0) + squares
            counts[name] = counts.get(name, 0) + len(values)

    watched = cast(Ops, Watched(model, see))
    for ids, batch in _read(model, chunks, progress):
        see([output_name(model)], states(watched, model.config, model.parameters, ids, batch))
    return Importance(sums, counts, len(chunks), max(map(len, chunks), default=0), tuple(datasets))


def moments(
    model: Loaded, chunks: Chunks, wanted: Iterable[str], progress: Progress | None = None
) -> dict[str, Floats]:
    """Weight name -> (cols, cols) float32, the mean of x x^T over all tokens; weights that read the same input (q, k
    and v; gate and up) share one array. The diagonal is what `collect` gives. Only as many layers are run as needed.

    RequestError for a name that is no linear weight of a layer. `layer_moments` is for all of them, layer by layer.
    """
    wanted = set(wanted)
    layers = {f"blk.{i}.{part}": i for i in range(len(model.parameters.blk)) for part in LINEAR}
    if unknown := wanted - set(layers):
        raise RequestError(f"moments of {sorted(unknown)[0]!r}: expected linear weights such as 'blk.0.attn_q'")
    sums = Grams(model.ops, wanted)
    watched = cast(Ops, Watched(model, sums.see))
    last = max((layers[name] for name in wanted), default=-1)
    for ids, batch in _read(model, chunks if wanted else [], progress):
        x = watched.embed(model.parameters.token_embd, ids)
        for i in range(last + 1):
            x = block(watched, model.config, model.parameters.blk[i], x, batch, i)
    return sums.means()


def layer_moments(model: Loaded, chunks: Chunks, progress: Progress | None = None) -> Iterator[dict[str, Floats]]:
    """`moments` of one layer after the other, and of nothing else at the same time. Between layers the states of all
    tokens are held, (tokens, dim) float32: 1 GiB for 64k tokens of a 7B model.

    Whoever puts another `Layer` into model.parameters.blk[i] while it has the moments of layer i (a rounded one) makes
    the next layers see what that one hands on. progress: (tokens x layers done, in all).
    """
    ops, config, blk = model.ops, model.config, model.parameters.blk
    xs = [ops.embed(model.parameters.token_embd, ids) for ids in chunks]
    done, total = 0, sum(map(len, chunks)) * len(blk)
    for i, layer in enumerate(list(blk)):
        sums = Grams(ops, {f"blk.{i}.{part}" for part in LINEAR})
        watched, after = cast(Ops, Watched(model, sums.see)), []
        for ids, x in zip(chunks, xs, strict=True):
            after.append(block(watched, config, layer, x, whole(ops, config, [len(ids)], model.kv), i))
            done += len(ids)
            if progress:
                progress(done, total)
        yield sums.means()
        if blk[i] is not layer:
            batches = [whole(ops, config, [len(ids)], model.kv) for ids in chunks]
            after = [block(ops, config, blk[i], x, batch, i) for x, batch in zip(xs, batches, strict=True)]
        xs = after


class Grams:
    """Sums of x x^T of the inputs of the weights that are wanted, one for all weights that read the same input."""

    def __init__(self, ops: Ops, wanted: set[str]) -> None:
        self._ops, self._wanted = ops, wanted
        self._sums: dict[tuple[str, ...], tuple[Floats, int]] = {}
        self._waiting: dict[tuple[str, ...], list[Floats]] = {}

    def see(self, weights: list[str], x: Array) -> None:
        group = tuple(name for name in weights if name in self._wanted)
        if group:
            waiting = self._waiting.setdefault(group, [])
            waiting.append(np.array(self._ops.numpy(x)))  # (a copy: a backend may write over its own)
            if sum(map(len, waiting)) >= TOGETHER:
                self._add(group)

    def _add(self, group: tuple[str, ...]) -> None:
        values = np.concatenate(self._waiting.pop(group))
        product = values.T @ values  # NumPy sees that both are one, and computes half of it
        before, count = self._sums.get(group, (None, 0))
        if before is not None:
            product += before
        self._sums[group] = product, count + len(values)

    def means(self) -> dict[str, Floats]:
        """Name -> mean; the sums are given up."""
        for group in list(self._waiting):
            self._add(group)
        means: dict[str, Floats] = {}
        for group, (product, count) in self._sums.items():
            product /= np.float32(count)
            means |= dict.fromkeys(group, product)
        self._sums = {}
        return means


def _read(model: Loaded, chunks: Chunks, progress: Progress | None) -> Iterator[tuple[NDArray[np.int32], Batch]]:
    """Each chunk and its batch."""
    done, total = 0, sum(map(len, chunks))
    for ids in chunks:
        yield ids, whole(model.ops, model.config, [len(ids)], model.kv)
        done += len(ids)
        if progress:
            progress(done, total)
