"""Rounding with error compensation through a whole model: layer after layer, on what the rounded layers before hand on.

A model reads a text one layer at a time. The second moments of a layer's inputs are measured, its matrices are rounded
with them (compensate.py), and the rounded ones take their place before the text goes on to the next layer, which so
learns what it will really be given (Frantar et al. 2022, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..errors import RequestError
from ..moments import Chunks, Loaded, layer_moments
from ..ops.cpu import Cpu
from ..quant import Floats, QTensor
from .compensate import DAMPING, Moment, compensate
from .lattice import LATTICES

CONTEXT, MOST = 512, 256  # tokens of a chunk; chunks that are read at most: 131,072 tokens


class Sequential:
    """A `Round` for `quantize.write`, which asks for tensors in the order of the forward pass.

    The model is used up: its layers are replaced by rounded ones. Matrices outside the layers, and types without
    blocks, are left to the ordinary search, which also chooses the scales of all blocks.
    """

    def __init__(self, model: Loaded, chunks: Chunks, cpu: Cpu, damping: float = DAMPING) -> None:
        self._model, self._cpu, self._damping = model, cpu, damping
        self._layers: Iterator[dict[str, Floats]] = layer_moments(model, chunks)
        self._moments: dict[str, Floats] = {}
        self._reached = -1
        self._made: dict[str, list[QTensor]] = {}  # of the layer at hand: name -> strips of rows
        self._factored: tuple[Floats, Moment] | None = None  # the last one: q, k and v share theirs

    def __call__(self, own: str, values: Floats, type: str, importance: Floats | None) -> QTensor:
        if not own.startswith("blk.") or type not in LATTICES:
            made = self._cpu.quantise(values, type, importance)
        else:
            self._reach(int(own.split(".")[1]))
            made = compensate(values, self._moment(own), type, self._cpu)
        self._made.setdefault(own, []).append(made)
        return made

    def _reach(self, layer: int) -> None:
        """Put the rounded matrices in place, and let the text go on up to this layer."""
        if layer < self._reached:
            raise RequestError(f"layer {layer} after layer {self._reached}: compensation goes forward only")
        while self._reached < layer:
            self._put_in_place()
            self._moments = next(self._layers)
            self._reached += 1

    def _put_in_place(self) -> None:
        parameters, ops = self._model.parameters, self._model.ops
        whole = {own: _joined(strips) for own, strips in self._made.items()}
        self._made = {}
        if self._reached < 0:
            if "token_embd" in whole:
                parameters.token_embd = ops.table(whole["token_embd"])
            return
        layer = {own.split(".")[2]: ops.weight(tensor) for own, tensor in whole.items()}
        parameters.blk[self._reached] = replace(parameters.blk[self._reached], **layer)

    def _moment(self, own: str) -> Moment:
        measured = self._moments[own]
        if self._factored is None or self._factored[0] is not measured:
            self._factored = None  # the old one's memory first
            self._factored = measured, Moment.of(measured, self._damping)
        return self._factored[1]


def _joined(strips: list[QTensor]) -> QTensor:
    rows = sum(strip.shape[0] for strip in strips)
    return QTensor(strips[0].type, (rows, strips[0].shape[1]), np.concatenate([strip.data for strip in strips]))
