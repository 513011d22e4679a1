"""Recipes: which tensor of a model gets which type. The names and what they mean are llama.cpp's, so that a Q4_K_M made
here has the same types, tensor by tensor, as one made there; tests/quantize/test_recipe.py compares them.

A recipe has a type for most matrices and exceptions for those that feel rounding most: the values of the attention,
what comes back into the residual stream, the first and the last layers, and the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..errors import RequestError
from ..quant import TYPES
from ..weights import Shapes

# where the rows of a matrix are no whole number of 256: a type with blocks of 32 of about as many bits
NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class Spot:
    """What an exception may depend on. group: query heads per key/value head; informed: importance is known."""

    layer: int
    layers: int
    group: int
    informed: bool


When = Callable[[Spot], bool]
Exceptions = Mapping[str, tuple[tuple[str, When], ...]]  # part of a layer -> (type, when), the last that holds counts


def always(spot: Spot) -> bool:
    return True


def first(fraction: int) -> When:
    """In the first layers, one of `fraction`, rounded down."""
    return lambda spot: spot.layer < spot.layers // fraction


def half_of_all(spot: Spot) -> bool:
    """The first and the last eighth, and of those between every third."""
    eighth = spot.layers // 8
    return spot.layer < eighth or spot.layer >= 7 * spot.layers // 8 or (spot.layer - eighth) % 3 == 2


def before(layer: int) -> When:
    return lambda spot: spot.layer < layer


def shared(spot: Spot) -> bool:
    """Four query heads or more read each key/value head: its matrix is small, and an error in it spreads."""
    return spot.group >= 4


def eighty_layers(spot: Spot) -> bool:
    """Llama 2 70B, where the values of the attention are small for the rest."""
    return spot.layers == 80 and spot.group > 1


def uninformed(when: When) -> When:
    return lambda spot: not spot.informed and when(spot)


def informed(when: When) -> When:
    return lambda spot: spot.informed and when(spot)


@dataclass(frozen=True)
class Recipe:
    """file_type: llama.cpp's number for it (general.file_type); base: for all matrices but these; output: for the
    output matrix, or the embedding that stands in for it."""

    file_type: int
    base: str
    output: str = "Q6_K"
    exceptions: Exceptions = field(default_factory=dict)


_BIG = ("Q5_K", eighty_layers)
_Q3 = {"attn_output": (("Q4_K", always),)}

RECIPES: dict[str, Recipe] = {
    "Q8_0": Recipe(7, "Q8_0", "Q8_0"),
    "Q6_K": Recipe(18, "Q6_K"),
    "Q5_K_M": Recipe(17, "Q5_K", exceptions={
        "attn_v": (("Q6_K", half_of_all),), "ffn_down": (("Q6_K", half_of_all),)}),
    "Q5_K_S": Recipe(16, "Q5_K"),
    "Q5_1": Recipe(9, "Q5_1"),
    "Q5_0": Recipe(8, "Q5_0", exceptions={"ffn_down": (("Q5_1", informed(first(8))),)}),
    "Q4_K_M": Recipe(15, "Q4_K", exceptions={
        "attn_v": (_BIG, ("Q6_K", half_of_all)), "ffn_down": (("Q6_K", half_of_all),)}),
    "Q4_K_S": Recipe(14, "Q4_K", exceptions={
        "attn_v": (_BIG, ("Q5_K", before(4))), "ffn_down": (("Q5_K", first(8)),)}),
    "Q4_1": Recipe(3, "Q4_1"),
    "Q4_0": Recipe(2, "Q4_0", exceptions={"ffn_down": (("Q4_1", informed(first(8))),)}),
    "IQ4_NL": Recipe(25, "IQ4_NL", exceptions={
        "attn_v": (("Q5_K", shared),), "ffn_down": (("Q5_K", uninformed(first(8))),)}),
    "IQ4_XS": Recipe(30, "IQ4_XS", exceptions={
        "attn_v": (("Q5_K", shared),), "ffn_down": (("Q5_K", uninformed(first(8))),)}),
    "Q3_K_M": Recipe(12, "Q3_K", exceptions={
        "attn_v": (("Q4_K", always), ("Q5_K", before(2)), _BIG),
        "ffn_down": (("Q4_K", always), ("Q5_K", first(16))), "attn_output": (("Q4_K", always),)}),
    "Q3_K_L": Recipe(13, "Q3_K", exceptions={
        "attn_v": (("Q5_K", always),), "ffn_down": (("Q5_K", always),), "attn_output": (("Q5_K", always),)}),
    "Q3_K_S": Recipe(11, "Q3_K", exceptions={"attn_v": (_BIG,)}),
    "Q2_K": Recipe(10, "Q2_K", exceptions={
        "attn_v": (("Q3_K", always), ("Q4_K", shared), _BIG),
        "ffn_down": (("Q3_K", always),), "attn_output": (("Q3_K", always),)}),
}  # fmt: skip


def types(name: str, shapes: Shapes, group: int, informed: bool = False) -> dict[str, str]:
    """Canonical name -> type, for the tensors of `shapes`. group: query heads per key/value head; informed: an
    importance matrix will be used. Vectors stay F32. RequestError if there is no such recipe."""
    if name not in RECIPES:
        raise RequestError(f"there is no type {name!r:.40}: expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    layers = 1 + max((int(own.split(".")[1]) for own in shapes if own.startswith("blk.")), default=-1)
    found = {}
    for own, shape in shapes.items():
        if len(shape) == 1:
            found[own] = "F32"
        elif own == ("output" if "output" in shapes else "token_embd"):
            found[own] = _output(recipe, shape)
        else:
            found[own] = fitting(_wanted(recipe, own, layers, group, informed), shape)
    return found


def fitting(type: str, shape: tuple[int, ...]) -> str:
    """The type, or another that rows of this length are whole blocks of."""
    type = NARROWER.get(type, type) if shape[-1] % TYPES[type].block else type
    return "F16" if shape[-1] % TYPES[type].block else type


def _output(recipe: Recipe, shape: tuple[int, ...]) -> str:
    """The output matrix: more bits than the rest, and 8 where rows are no whole number of 256."""
    return fitting("Q8_0" if shape[-1] % 256 else recipe.output, shape)


def _wanted(recipe: Recipe, own: str, layers: int, group: int, informed: bool) -> str:
    type = recipe.base
    if own.startswith("blk."):
        _, layer, part = own.split(".")
        spot = Spot(int(layer), layers, group, informed)
        for other, when in recipe.exceptions.get(part, ()):
            type = other if when(spot) else type
    return type
