"""bise quantize: the same model in fewer bits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from . import app
from .options import option

if TYPE_CHECKING:
    from ..quantize import Informed, Plan
    from ..weights import Weights

MODEL = "A .gguf file, a safetensors folder or a hub id: of F32, F16 or BF16 if you can."
PAGE = """[bold]Types[/], and bits per weight of a Mistral 7B

  [cyan]Q8_0[/] 8.5, [cyan]Q6_K[/] 6.6           as good as the original, for all that one can measure
  [cyan]Q5_K_M[/] 5.7, [cyan]Q5_K_S[/] 5.5       hardly worse
  [cyan]Q4_K_M[/] 4.8, [cyan]Q4_K_S[/] 4.6       the usual choice
  [cyan]IQ4_XS[/] 4.3, [cyan]IQ4_NL[/] 4.5, [cyan]Q4_0[/] 4.6  smaller than Q4_K; IQ4 is the better
  [cyan]Q3_K_L[/] 4.3, [cyan]Q3_K_M[/] 3.9, [cyan]Q3_K_S[/] 3.5  where memory is short
  [cyan]Q2_K[/] 3.0                      a last resort

The letters after a K say how many of the matrices that feel it most get more bits.

[bold]Examples[/]

[cyan]bise quantize mistral.BF16.gguf mistral.Q4_K_M.gguf --type Q4_K_M[/]

[cyan]bise quantize Mistral-7B-v0.1 small.gguf --type Q3_K_M --imatrix mistral.imatrix.gguf[/]  weights that matter more lose less

[cyan]bise quantize Mistral-7B-v0.1 small.gguf --type Q4_K_M --compensate text.txt[/]  slower, and nearer to the original

[cyan]bise quantize model.gguf out.gguf --type Q4_K_M --keep output=Q8_0 --keep attn_v=Q6_K[/]

[cyan]bise quantize model.gguf out.gguf --bits 4.5[/]  measures where bits do most, and spends them there

[cyan]bise quantize model.gguf out.gguf --type Q5_K_M --dry-run[/]  what each matrix would be, and how large
"""  # noqa: E501


# fmt: off
@app.command(epilog=PAGE)
def quantize(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)],
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The .gguf file to make.")],
    type: Annotated[str | None, option(None, "--type", metavar="NAME",
        help="Which types the matrices get: see below. Default: Q4_K_M.")] = None,
    bits: Annotated[float | None, option(None, "--bits", metavar="X",
        help="In place of --type: X bits per weight in all, spent where they take off most of the measured error.",
        )] = None,
    imatrix: Annotated[Path | None, option(None, "--imatrix", metavar="FILE",
        help="An importance matrix, made here or by llama.cpp: columns that meet large inputs are rounded with more "
             "care.")] = None,
    compensate: Annotated[Path | None, option(None, "--compensate", metavar="TEXT",
        help="Let the original read this text, layer by layer, and round so that each matrix makes up for its own "
             "errors (GPTQ). Slower; the original has to fit into memory.")] = None,
    keep: Annotated[list[str] | None, option(None, "--keep", metavar="NAME=TYPE",
        help="This matrix, or this matrix of every layer, in another type. May be given several times.")] = None,
    threads: Annotated[int | None, option(None, "--threads", "-t", metavar="N",
        help="Processor threads. Default: one per core.")] = None,
    dry_run: Annotated[bool, option(None, "--dry-run", help="Say what would be made, and make nothing.")] = False,
    json: Annotated[bool, option(None, "--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:
    # fmt: on
    """Write a model in fewer bits per weight, as one GGUF file.

    For every block of weights the scales and levels are searched that leave the least error. Files and types are
    llama.cpp's. Tensors pass one by one, so a model of any size needs little memory; the file appears whole or not
    at all.
    """
    from ..api import find
    from ..quantize import plan, write
    from ..quantize.tensors import by_kernels
    from ..weights import Weights
    from .terminal import Bar, listen

    listen(quiet)
    if bits is not None and type is not None:
        raise RequestError("--type and --bits say the same thing: give one of them")
    kept, round = dict(map(_kept, keep or [])), by_kernels(threads)
    with Bar("pulling", "bytes") as bar:
        path = find(model, bar)
    weights, informed = Weights.open(path), _informed(imatrix)
    types = None if bits is None else _searched(weights, bits, informed, round)
    named = None if types else (type or "Q4_K_M").upper()
    made = plan(weights, out, named, informed, kept, types)
    started = time.perf_counter()
    if compensate is not None and not dry_run:
        round = _compensating(path, compensate, threads)
    if not dry_run:
        with Bar("quantising", "bytes") as bar:
            write(made, bar, round)
    _report(made, None if dry_run else time.perf_counter() - started, json, quiet)


def _kept(text: str) -> tuple[str, str]:
    name, equals, kind = text.partition("=")
    if not (name and equals and kind):
        raise RequestError(f"--keep is {text!r:.60}, expected NAME=TYPE, for example output=Q8_0")
    return name, kind.upper()


def _informed(path: Path | None) -> Informed | None:
    if path is None:
        return None
    from .. import importance
    from ..quantize import Informed

    found = importance.read(path)
    return Informed(found, str(path), ", ".join(found.datasets), found.chunks)


def _compensating(path: Path, text: Path, threads: int | None) -> Any:
    """The rounding that makes up for its errors, on the model's own inputs when it reads the text."""
    from .. import texts
    from ..api import load
    from ..ops.cpu import Cpu
    from ..quantize.sequential import CONTEXT, MOST, Sequential
    from .terminal import Bar

    read = texts.read([text])
    with Bar("loading", "bytes") as bar:
        model = load(path, kv="f32", threads=threads, progress=bar)
    cut = texts.Cut(min(CONTEXT, model.config.context), most=MOST)
    return Sequential(model, list(texts.cut(model.tokenizer, read, cut)), Cpu(threads))


def _searched(weights: Weights, bits: float, informed: Informed | None, round: Any) -> dict[str, str]:
    from ..quantize import bits as allocation
    from ..quantize import weighed
    from .terminal import Bar

    if not 1 <= bits <= 32:
        raise RequestError(f"--bits is {bits:g}, expected a number of bits per weight from 2.7 to 8.5")
    shapes = {own: entry.shape for own, entry in weights.entries.items()}
    with Bar("measuring", "matrices") as bar:
        return allocation.search(weights, bits, weighed(informed, shapes), round, bar)


def _report(made: Plan, seconds: float | None, json: bool, quiet: bool) -> None:
    import json as writer

    facts: dict[str, Any] = {
        "out": str(made.out), "written": seconds is not None, "bytes": made.nbytes, "bytes_before": made.source.nbytes,
        "bits": round(made.bits, 4), "seconds": None if seconds is None else round(seconds, 3),
        "types": {kind: {"tensors": n, "bytes": b} for kind, (n, b) in made.by_type().items()},
        "tensors": dict(made.types), "quantised_before": made.again,
    }  # fmt: skip
    if json:
        print(writer.dumps(facts))
        return
    if seconds is None:
        _table(made)
    else:
        print(made.out)
    if not quiet:
        _summary(made, seconds)


def _summary(made: Plan, seconds: float | None) -> None:
    from .terminal import note, size

    done = ": nothing written" if seconds is None else f", in {seconds:.1f} s"
    note(f"{size(made.source.nbytes)} to {size(made.nbytes)}, {made.bits:.2f} bits per weight{done}")


def _table(made: Plan) -> None:
    """Each tensor; layers whose tensors have the same types are one line."""
    from ..quant import nbytes
    from .terminal import print_table, size

    rows = []
    for own, entry in made.source.entries.items():
        if len(entry.shape) == 2:
            shape = f"{entry.shape[0]:,} x {entry.shape[1]:,}"
            kind = made.types[own]
            rows.append([own, shape, entry.type, kind, size(entry.nbytes), size(nbytes(kind, entry.shape))])
    print_table(["matrix", ">shape", "from", "to", ">before", ">after"], rows)
    rows = [[kind, f"{n:,}", size(b)] for kind, (n, b) in made.by_type().items()]
    print_table(["type", ">tensors", ">size"], rows, f"{made.out}, not written")
