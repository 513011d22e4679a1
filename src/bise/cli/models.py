"""bise models: what is in the cache of hub models, and how it comes and goes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from . import app
from .options import option

ID = "ORG/REPO takes the best file for running; ORG/REPO:Q4_K_M that type; ORG/REPO/file.gguf that file."
EXAMPLES = """[bold]Examples[/]

[cyan]bise models pull TheBloke/Mistral-7B-Instruct-v0.1-GGUF[/]  the Q4_K_M of it, 4.1 GiB

[cyan]bise models list[/]

[cyan]bise chat TheBloke/Mistral-7B-Instruct-v0.1-GGUF[/]  pulls it, if it is not here yet

Files lie in the cache that all programs of the Hugging Face hub share. HF_HUB_CACHE moves it,
HF_ENDPOINT names another hub, HF_TOKEN opens private models, HF_HUB_OFFLINE=1 forbids the network.
Packed weights, which --keep-packed leaves behind, lie in ~/.cache/bise; BISE_CACHE moves them.
"""

models = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)
app.add_typer(
    models, name="models", help="List, pull and remove models of the Hugging Face hub.", epilog=EXAMPLES,
    invoke_without_command=True,
)  # fmt: skip


@models.callback()
def default(context: typer.Context) -> None:
    """Without a word after it, `bise models` lists."""
    if context.invoked_subcommand is None:
        show()


@models.command("list")
def show(json: Annotated[bool, option(None, "--json", help="Print one JSON array.")] = False) -> None:
    """Show the models that are here, and what --keep-packed has left, with their sizes."""
    import json as writer

    from ..hub import held
    from ..panels import kept
    from .terminal import note, print_table, size

    models, packed = held(), kept()
    if json:
        rows = [
            {"id": m.id, "bytes": m.nbytes, "path": str(m.path), "files": len(m.files), "packed": False} for m in models
        ]
        rows += [
            {"id": str(p.model or p.path), "bytes": p.nbytes, "path": str(p.path), "files": 1, "packed": True}
            for p in packed
        ]
        print(writer.dumps(rows))
        return
    if models:
        print_table(["model", ">size", "last read"], [[m.id, size(m.nbytes), _day(m.used)] for m in models])
    if packed:
        lines = [[str(p.model or f"{p.path} (damaged)"), size(p.nbytes), _day(p.used)] for p in packed]
        print_table(["packed weights of", ">size", "last read"], lines)
    if not models and not packed:
        note("no models here yet: bise models pull ORG/REPO")


@models.command()
def pull(id: Annotated[str, typer.Argument(metavar="ID", help=ID)]) -> None:
    """Download a model, or what is missing of it; prints the path.

    A download that broke off goes on where it stopped. Large files are checked against the SHA-256 that the hub states.
    """
    from .. import hub
    from .terminal import Bar

    with Bar("pulling", "bytes") as bar:
        path = hub.pull(id, bar, refresh=True)
    print(path)


@models.command()
def remove(
    id: Annotated[str, typer.Argument(metavar="ID", help="As 'bise models list' shows it; ORG/REPO is all of it.")],
) -> None:
    """Delete a model from the cache, with its packed weights; of a model elsewhere only the packed weights."""
    from .. import hub, panels
    from .terminal import size

    freed = panels.remove(id)
    what = f"the packed weights of {id}" if freed else id
    if not freed:
        freed = hub.remove(id) + panels.sweep()
    print(f"removed {what}, {size(freed)}", file=sys.stderr)


def _day(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d", time.localtime(seconds))
