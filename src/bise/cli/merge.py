"""bise merge: an adapter becomes part of its model, and the result is proven to be what was trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BiseError, RequestError
from . import app
from .options import option

if TYPE_CHECKING:
    import numpy as np

    from ..api import Model
    from ..merge import Card, Plan, Seen
    from ..weights import Weights

MODEL = "The model that the adapter was trained on: a .gguf file, a safetensors folder, or a hub id."
EXAMPLES = """[bold]Examples[/]

[cyan]bise merge adapter mistral.Q4_K_M.gguf run/adapter merged.gguf[/]  rounded again into the types of the base

[cyan]bise merge adapter Mistral-7B-v0.1 run/adapter folder --type bf16[/]  for transformers, or for bise quantize

[cyan]bise merge adapter mistral.Q4_K_M.gguf run/adapter merged.gguf --imatrix mistral.imatrix --text held-out.txt[/]

What was written is opened and compared with base and adapter as they were trained. The card lies beside it as
merged.card.json, or card.json in the folder; where it does not pass, the result is renamed to merged.gguf.refused and
the exit code is 2.
"""
merging = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)
app.add_typer(merging, name="merge", help="Make an adapter part of its model, and prove it.", epilog=EXAMPLES)


@merging.callback()
def merge() -> None:
    """Merge: what was trained beside a model becomes part of it."""


@merging.command(epilog=EXAMPLES)
def adapter(
    *,
    base: Annotated[str, typer.Argument(metavar="BASE", show_default=False, help=MODEL)],
    path: Annotated[Path, typer.Argument(metavar="ADAPTER", show_default=False,
        help="A PEFT folder, or a GGUF adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False,
        help="A .gguf file, or a folder that is made, in Hugging Face's layout.")],
    type: Annotated[str | None, option(None, "--type", metavar="bf16|f16|f32",
        help="The type of all matrices. Default: those of the base, rounded again where the adapter changes them; bf16 "
             "for a folder from a quantised base.")] = None,
    imatrix: Annotated[Path | None, option(None, "--imatrix", metavar="FILE",
        help="An importance matrix (bise eval importance), for rounding into block formats.")] = None,
    text: Annotated[list[Path] | None, option(None, "--text", metavar="FILE",
        help="Compare on this text too, up to 2,048 tokens of it. Default: on what the trained model says to a few "
             "built-in beginnings.")] = None,
    kl: Annotated[float | None, option(None, "--kl", metavar="X",
        help="The most KL divergence, nats a token, from the model that was trained. Default: by the type, 0.0001 for "
             "bf16 from a float base, 0.05 for Q4_K.")] = None,
    any_base: Annotated[bool, option(None, "--any-base",
        help="Take an adapter that was trained on other weights of the same shapes.")] = False,
    threads: Annotated[int | None, option(None, "--threads", "-t", metavar="N",
        help="Processor threads. Default: one per core.")] = None,
    json: Annotated[bool, option(None, "--json", help="Print the card as one JSON object.")] = False,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:  # fmt: skip
    """Fuse an adapter into its base, and verify the export.

    Tensors pass one by one. Then the file is opened and compared with base and adapter side by side: KL divergence, how
    often both find the same token likeliest, tokenizer, stop tokens and chat template.
    """
    from .. import lora
    from .. import merge as craft
    from ..api import find, load
    from ..weights import Weights
    from .terminal import Bar, listen

    listen(quiet)
    kind = _kind(type)
    with Bar("pulling", "bytes") as bar:
        weights = Weights.open(find(base, bar))
    learnt = lora.read(path, weights, any_base)
    made = craft.plan(weights, learnt, out, kind, _importance(imatrix, weights))
    limits = craft.limits(made.types, weights.types(), kl)
    with Bar("loading the base", "bytes") as bar:
        model = load(weights.path, threads=threads, progress=bar)
    model.adapters["trained"] = model.beside.place(learnt, "trained")
    model.adapter = "trained"
    trained = craft.observe(model, more=_more(model, text))
    del model  # one at a time in memory
    with Bar("merging", "bytes") as bar:
        craft.write(made, bar)
    try:
        export = _observed(out, trained, threads)
    except BiseError as error:
        raise RequestError(f"{error}; kept as {_refused(out)}") from None
    card = craft.verify(trained, export, limits)
    _settle(card, made, json)


def _observed(out: Path, trained: Seen, threads: int | None) -> Seen:
    from .. import merge as craft
    from ..api import load
    from .terminal import Bar

    with Bar("opening the export", "bytes") as bar:
        return craft.observe(load(out, threads=threads, progress=bar), trained.texts)


def _settle(card: Card, made: Plan, json: bool) -> None:
    """Print the card, write it beside the export, refuse what does not pass."""
    import json as writer

    from ..disk import replacing
    from .terminal import print_facts

    out, facts = made.out, card.facts()
    beside = out / "card.json" if out.is_dir() else out.with_suffix(".card.json")
    with replacing(beside) as file:
        file.write(writer.dumps({"export": out.name, "base": made.weights.fingerprint, **facts}, indent=2).encode())
    if json:
        print(writer.dumps(facts))
    else:
        print_facts(f"{out.name}: {'PASS' if card.passed else 'FAIL'}", _lines(card))
    if not card.passed:
        raise RequestError(f"{out.name} is not the model that was trained ({'; '.join(card.faults)}): kept as "
                           f"{_refused(out)}; try --type bf16, or serve the adapter beside its base")  # fmt: skip


def _lines(card: Card) -> dict[str, str]:
    kl = f"{card.kl:.2e} ± {card.kl_error:.0e} nats a token, largest {card.kl_most:.2g}"
    found = {
        "KL": f"{kl}; at most {card.limits.kl:.0e} expected",
        "adapter": f"{card.adapter_kl or 0:.2e} nats a token from the base",
        "same top": f"{card.same_top:.2%} of {card.tokens:,} positions, at least {card.limits.same_top:.0%}",
    }
    return found | {what: "same" if same else "DIFFERS" for what, same in card.checks.items()}


def _refused(out: Path) -> str:
    """Out of the way of those who would take it for the model."""
    aside = out.with_name(out.name + ".refused")
    try:
        os.replace(out, aside)
    except OSError as error:
        raise RequestError(f"{out} does not pass and cannot be renamed: {error.strerror}: delete it") from None
    return aside.name


def _kind(type: str | None) -> str | None:
    if type is not None and type not in ("f32", "f16", "bf16"):
        raise RequestError(f"--type is {type!r:.40}, expected bf16, f16 or f32 (or none: the base's own types)")
    return type and type.upper()


def _importance(path: Path | None, weights: Weights) -> dict[str, np.ndarray] | None:
    if path is None:
        return None
    from .. import importance
    from ..rounding import prepared

    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    return {name: prepared(mean) for name, mean in importance.read(path).of(shapes).items()}


def _more(model: Model, paths: list[Path] | None, context: int = 256, most: int = 8) -> list[list[int]]:
    """Up to so many chunks of the user's text."""
    if not paths:
        return []
    from .. import texts

    ids = model.tokenizer.encode(texts.read(paths), bos=True)
    return [ids[at : at + context] for at in range(0, min(len(ids), context * most), context)]
