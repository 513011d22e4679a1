"""A recipe for a size: types are chosen so that the measured errors add up to the least that so many bytes allow.

What is measured is the relative error of each matrix's outputs, sum h_j (w_ij - w'_ij)^2 / sum h_j w_ij^2 with h the
importance of column j, from real roundings of a sample of its rows. How much such an error changes what a model says
depends on where it happens (HARM); the errors of all matrices are added with these factors. To spend a budget of bytes
on independent choices is Shoham and Gersho's allocation (1988): for a price per byte each matrix takes the type of
least error + price * bytes; the price is found by halving, and what is left over buys the upgrade with the largest gain
per byte, as long as one fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ..errors import RequestError
from ..quant import Floats, nbytes
from ..weights import Weights
from .recipe import fitting
from .tensors import Round

LADDER = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # what may be chosen
SAMPLE = 128  # rows that are measured of each matrix, evenly spaced
HALVINGS = 60
# KL divergence in nats per unit of relative squared error, where one matrix at a time was rounded to 3 bits: medians
# over the layers of puff, which has 5 of them. What one layer adds to the residual stream, and so its harm, is taken to
# fall with their number.
HARM = {"token_embd": 1.8, "output": 2.2, "attn_q": 0.11, "attn_k": 0.09, "attn_v": 0.67, "attn_output": 0.52,
        "ffn_gate": 0.29, "ffn_up": 0.22, "ffn_down": 0.33}  # fmt: skip
HARM_LAYERS = 5
Costs = dict[str, tuple[int, float]]  # type -> (bytes, error)
Progress = Callable[[int, int], None]


def measured(
    weights: Weights, importance: Mapping[str, Floats], round: Round, progress: Progress | None = None
) -> dict[str, Costs]:
    """Canonical name -> what each type would cost, for every matrix. progress gets (matrices done, in all)."""
    matrices = [own for own, entry in weights.entries.items() if len(entry.shape) == 2]
    found = {}
    for done, own in enumerate(matrices):
        found[own] = _costs(weights, own, importance.get(own), round)
        weights.forget(own)
        if progress:
            progress(done + 1, len(matrices))
    return found


def _costs(weights: Weights, own: str, importance: Floats | None, round: Round) -> Costs:
    tensor, factor = weights[own], harm(own, weights)
    rows = np.unique(np.linspace(0, tensor.shape[0] - 1, SAMPLE).astype(int))
    values = tensor.rows(rows)
    weight = np.ones(tensor.shape[1]) if importance is None else importance.astype(np.float64)
    size = float((np.square(values, dtype=np.float64) @ weight).sum()) or 1.0
    costs = {}
    for type in dict.fromkeys(fitting(kind, tensor.shape) for kind in LADDER):
        error = np.square(round(own, values, type, importance).dequantise() - values, dtype=np.float64) @ weight
        costs[type] = nbytes(type, tensor.shape), factor * float(error.sum()) / size
    return costs


def harm(own: str, weights: Weights) -> float:
    """Of one matrix; an embedding that is the output, too, does both."""
    found = HARM[own.split(".")[-1]]
    if own.startswith("blk."):
        return found * HARM_LAYERS / weights.config.n_layers
    return found + HARM["output"] if weights.tied else found


def choose(costs: Mapping[str, Costs], budget: int) -> dict[str, str]:
    """Name -> type, at most `budget` bytes in all, of about the least sum of errors. RequestError if none fits."""
    least = sum(min(size for size, _ in options.values()) for options in costs.values())
    if least > budget:
        raise RequestError(f"{budget:,} bytes for the matrices, the smallest types need {least:,}")

    def at(price: float) -> dict[str, str]:
        return {
            own: min(options, key=lambda type: options[type][1] + price * options[type][0])
            for own, options in costs.items()
        }

    low, high = 1e-20, 1.0  # errors per byte; at the high price every matrix takes its smallest type
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _size(at(middle), costs) > budget else (low, middle)
    return _filled(at(high), costs, budget)


def _size(chosen: Mapping[str, str], costs: Mapping[str, Costs]) -> int:
    return sum(costs[own][type][0] for own, type in chosen.items())


def _filled(chosen: dict[str, str], costs: Mapping[str, Costs], budget: int) -> dict[str, str]:
    """Spend what is left, each time on the upgrade that takes off most error per byte."""
    left = budget - _size(chosen, costs)
    while True:
        best, gain = None, 0.0
        for own, type in chosen.items():
            size, error = costs[own][type]
            for other, (larger, smaller) in costs[own].items():
                if size < larger <= size + left and (error - smaller) / (larger - size) > gain:
                    best, gain = (own, other), (error - smaller) / (larger - size)
        if best is None:
            return chosen
        left -= costs[best[0]][best[1]][0] - costs[best[0]][chosen[best[0]]][0]
        chosen[best[0]] = best[1]


def search(
    weights: Weights, bits: float, importance: Mapping[str, Floats], round: Round, progress: Progress | None = None
) -> dict[str, str]:
    """Canonical name -> type for every tensor, at most `bits` per weight in all, norms (F32) included. RequestError."""
    entries = weights.entries
    weights_in_all = sum(math.prod(entry.shape) for entry in entries.values())
    norms = {own: "F32" for own, entry in entries.items() if len(entry.shape) == 1}
    spent = sum(nbytes("F32", entries[own].shape) for own in norms)
    costs = measured(weights, importance, round, progress)
    try:
        return norms | choose(costs, int(bits * weights_in_all / 8) - spent)
    except RequestError as error:
        raise RequestError(f"--bits {bits:g}: {error}: ask for more") from None
