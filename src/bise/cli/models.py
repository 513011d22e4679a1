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
    """Show the models that are here, with their sizes."""
    import time

    from ..hub import held
    from .terminal import note, print_table, size

    found = held()
    if json:
        import json as writer

        rows = [{"id": m.id, "bytes": m.nbytes, "path": str(m.path), "files": len(m.files)} for m in found]
        print(writer.dumps(rows))
    elif found:
        used = [time.strftime("%Y-%m-%d", time.localtime(m.used)) for m in found]
        lines = [[m.id, size(m.nbytes), day] for m, day in zip(found, used, strict=True)]
        print_table(["model", ">size", "last read"], lines)
    else:
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
    """Delete a model from the cache."""
    from .. import hub
    from .terminal import size

    print(f"removed {id}, {size(hub.remove(id))}", file=sys.stderr)
