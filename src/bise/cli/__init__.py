"""The door for the command line: `bise VERB`. Each verb is a file; this one is the front page and every way out."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from ..errors import BiseError

app = typer.Typer(
    name="bise", add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"bise {__version__}")
        raise typer.Exit


@app.callback(epilog="Each verb has its own page: [cyan]bise chat --help[/].")
def bise(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Mistral 7B, the whole system, on one machine.

    Runs GGUF files, safetensors folders and models of the Hugging Face hub; with none named, the small built-in model.
    """


def main() -> None:
    """What the `bise` command calls. Exit codes: 0 done, 2 refused (one line says why), 130 stopped with Ctrl-C."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began: the next file must not be taken for it
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an odd locale must not end a story
    try:
        code = app(prog_name="bise", standalone_mode=False)
        sys.stdout.flush()
    except BiseError as error:
        code = _refuse(str(error))
    except BrokenPipeError:  # whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # Typer's own complaints about the command line have it
            raise
        code = _refuse(_mistake(error)) if error.format_message() else 0  # bise alone has shown the page of verbs
    sys.exit(code)


def _mistake(error: Any) -> str:
    """A mistake on the command line, and where to read how it goes."""
    context = getattr(error, "ctx", None)
    page = context.command_path if context else "bise"
    return f"{error.format_message().rstrip('.')} (see {page} --help)"


def _refuse(line: str) -> int:
    print(f"bise: {line}", file=sys.stderr)
    return 2


from . import chat, generate, serve, info, models, bench, convert, quantize, tune, merge, eval  # noqa: E402, F401, I001  # each adds its verb, in the order of the help page
