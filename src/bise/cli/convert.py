"""bise convert: the same model in another kind of files."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from . import app
from .options import option

if TYPE_CHECKING:
    from ..convert import Plan

LAYOUTS = {"gguf": "gguf", "hf": "huggingface", "mistral": "mistral"}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
MODEL = "A .gguf file, a safetensors folder (Hugging Face's or Mistral's), or a hub id."
EXAMPLES = """[bold]Examples[/]

[cyan]bise convert Mistral-7B-Instruct-v0.3 mistral.gguf[/]  one file that bise, llama.cpp and others run

[cyan]bise convert mistral.gguf folder --dtype bf16[/]  for transformers

[cyan]bise convert Mistral-7B-Instruct-v0.3 folder --to mistral[/]  consolidated.safetensors and params.json

[cyan]bise convert mistral.gguf part.gguf --shard-size 2G[/]  part-00001-of-00003.gguf and so on

[cyan]bise convert mistral.Q4_K_M.gguf folder --dry-run[/]  what would be written, and how large it would be
"""


@app.command(epilog=EXAMPLES)
def convert(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)],
    out: Annotated[Path, typer.Argument(metavar="OUT", show_default=False,
        help="A .gguf file, or a folder that is made.")],
    to: Annotated[str | None, option(None, "--to", metavar="gguf|hf|mistral",
        help="The layout of OUT. Default: GGUF if its name ends so, else Hugging Face's.")] = None,
    dtype: Annotated[str | None, option(None, "--dtype", metavar="f32|f16|bf16",
        help="The type of the numbers. Default: as stored; what is quantised becomes f16 in a folder.")] = None,
    shard_size: Annotated[str | None, option(None, "--shard-size", metavar="SIZE",
        help="The most bytes per file, such as 500M or 2G. Default: 5G for Hugging Face's layout, else one file.",
        )] = None,
    dry_run: Annotated[bool, option(None, "--dry-run", help="Say what would be done, and do nothing.")] = False,
    json: Annotated[bool, option(None, "--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:  # fmt: skip
    """Write a model in another layout: GGUF, Hugging Face's safetensors, Mistral's own.

    Weights keep their bytes unless --dtype says otherwise. The vocabulary, the chat template, the window and all other
    facts come along. Tensors pass one by one, so that a model of any size needs little memory; what is written
    appears whole or not at all.
    """
    from ..api import find
    from ..convert import plan, write
    from ..weights import Weights
    from .terminal import Bar, listen

    listen(quiet)
    layout, kind, shard = _layout(to), _dtype(dtype), _bytes(shard_size)
    with Bar("pulling", "bytes") as bar:
        path = find(model, bar)
    made = plan(Weights.open(path), out, layout, kind, shard)
    if not quiet:
        _say(made)
    started, files = time.perf_counter(), []
    if not dry_run:
        with Bar("converting", "bytes") as bar:
            files = write(made, bar)
    _report(made, files, time.perf_counter() - started, json)


def _layout(to: str | None) -> str | None:
    if to is not None and to not in LAYOUTS:
        raise RequestError(f"--to is {to!r:.40}, expected gguf, hf or mistral")
    return None if to is None else LAYOUTS[to]


def _dtype(dtype: str | None) -> str | None:
    if dtype is not None and dtype not in ("f32", "f16", "bf16"):
        raise RequestError(f"--dtype is {dtype!r:.40}, expected f32, f16 or bf16 (bise quantize makes the other types)")
    return None if dtype is None else dtype.upper()


def _bytes(text: str | None) -> int | None:
    """500M, 2GiB, 1.5G -> bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([KMG]I?|)B?", text.upper())
    if match is None:
        raise RequestError(f"--shard-size is {text!r:.40}, expected a number of bytes such as 500M, 2G or 2GiB")
    return int(float(match[1]) * UNITS[match[2]])


def _say(made: Plan) -> None:
    """What will be lost, and what is decided."""
    from .terminal import note, size

    before, after = size(made.source.nbytes), size(made.nbytes)
    c = made.source.config
    window = f"window {c.sliding_window:,}" if c.sliding_window else "no window"
    note(f"{c.version}, {window} ({c.window_reason}); {made.source.layout} {before} -> {made.layout} {after}")
    if lost := made.dequantised():
        note(f"{', '.join(lost)} become {made.main_type}: {before} -> {after}; what quantising took does not come back")
    if made.release.vocab is None:
        note("no vocabulary comes with this model: the result is for token ids only")


def _report(made: Plan, files: list[Path], seconds: float, json: bool) -> None:
    import json as writer

    from .terminal import print_table, size

    done = made.out if made.out.exists() else files[0] if files else made.out
    if json:
        facts: dict[str, Any] = {
            "out": str(done), "layout": made.layout, "written": bool(files), "files": [str(path) for path in files],
            "tensors": len(made.tensors), "bytes": made.nbytes, "bytes_before": made.source.nbytes,
            "types": {kind: {"tensors": n, "bytes": b} for kind, (n, b) in made.types().items()},
            "dequantised": made.dequantised(), "seconds": round(seconds, 3),
        }  # fmt: skip
        print(writer.dumps(facts))
    elif files:
        print(done)
    else:
        rows = [[kind, f"{n:,}", size(b)] for kind, (n, b) in made.types().items()]
        print_table(["type", ">tensors", ">size"], rows, f"{made.out}, not written")
