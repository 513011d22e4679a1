"""bise serve: the model for other programs, and for people with a browser."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RequestError
from . import app
from .options import FORMAT, MODEL, Ahead, Beside, Loading, grouped, option

WHO, MANY = "Who may come in", "How many, and with how much memory"
EXAMPLES = """[bold]Examples[/]

[cyan]bise serve[/]  the built-in model, on http://127.0.0.1:8080: a page, and OpenAI's API under /v1

[cyan]bise serve mistral-7b-instruct-v0.3.Q4_K_M.gguf --context 8192 --kv q8_0 --slots 8[/]

[cyan]openssl rand -hex 24 > key && chmod 600 key && bise serve model.gguf --host 0.0.0.0 --key-file key[/]  for others

[cyan]bise serve model.gguf --adapter law=tunes/law --adapter cook=cook.gguf[/]  a request's "model" says which

[cyan]curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\\\[/]
[cyan]  -d '{"messages": \\[{"role": "user", "content": "Tell me a story."}]}'[/]

From Python: [cyan]openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")[/]
"""


@app.command(epilog=EXAMPLES)
@grouped
def serve(
    *,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)] = None,
    host: Annotated[str, option(None, "--host", metavar="ADDRESS",
        help="Where to listen. Default: 127.0.0.1, for this machine only; 0.0.0.0, for all others, wants a key.",
        )] = "127.0.0.1",
    port: Annotated[int, option(None, "--port", "-p", metavar="N",
        help="The port; 0 takes a free one and prints it. Default: 8080.")] = 8080,
    name: Annotated[str | None, option(None, "--name", metavar="ID",
        help="What programs call the model. Default: its file's name.")] = None,
    format: Annotated[str | None, option(None, "--format", metavar="v1|v2|v3",
        help=FORMAT.replace("base models: v1.", "base models have none, and only continue texts."))] = None,
    data: Annotated[Path | None, option(None, "--data", metavar="DIR",
        help="Where the page's conversations and saved sessions are kept, in plain files. "
             "Default: ~/.local/share/bise, or BISE_DATA.")] = None,
    drain: Annotated[float, option(None, "--drain", metavar="SECONDS",
        help="At the end (Ctrl-C, SIGTERM): how long running requests may take to finish. A second signal ends at "
             "once. Default: 30.")] = 30.0,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="No line on stderr for each request.")] = False,
    key_file: Annotated[Path | None, option(WHO, "--key-file", metavar="FILE",
        help="Keys, one a line, of at least 16 characters; # begins a comment. Each is a tenant with a fair share of "
             "the machine, and with sessions and conversations of its own. Or one key in BISE_KEY. "
             "Default: whoever reaches the server may use it.")] = None,
    allow_host: Annotated[list[str] | None, option(WHO, "--allow-host", metavar="NAME",
        help="A name besides localhost by which browsers may call a server that listens on this machine only. May be "
             "given several times.")] = None,
    slots: Annotated[int | None, option(MANY, "--slots", metavar="N",
        help="Requests that are served at once, each with keys and values of its own. Default: what fits into half of "
             "the free memory, at most 8.")] = None,
    queue: Annotated[int, option(MANY, "--queue", metavar="N",
        help="Requests that may wait beside them; more are refused with status 429. Default: 64.")] = 64,
    reuse: Annotated[float | None, option(MANY, "--reuse", metavar="GIB",
        help="Memory for what was read before, so that a long conversation is not read again. Default: as much as two "
             "slots.")] = None,
    adapters: Annotated[Path | None, option(MANY, "--adapters", metavar="FOLDER",
        help="Adapters (PEFT folders, GGUF files) that POST /v1/adapters may load by name while it serves. "
             "Default: none but those of --adapter.")] = None,
    adapter_memory: Annotated[float | None, option(MANY, "--adapter-memory", metavar="GIB",
        help="Memory for adapters; those unused for longest make room. Default: what --adapter names take, and 1 with "
             "--adapters.")] = None,
    loading: Loading,
    beside: Beside,
    ahead: Ahead,
) -> None:  # fmt: skip
    """Serve a model to programs that speak OpenAI's or Anthropic's API, and to people, at / in a browser.

    Many are served at once, and what one gets does not depend on the others. The memory that it takes is printed before
    it is loaded, and stays that. Only this machine is let in unless --host says otherwise. One line per request goes to
    stderr; never a prompt or an answer.
    """
    from ..server import Serving
    from ..server import serve as run
    from .terminal import Bar, listen, note

    _check(name, slots, queue, reuse, drain, loading.context, adapter_memory)
    listen(quiet)
    reused = None if reuse is None else int(reuse * (1 << 30))
    told = Serving(
        model, loading.told(ahead), name, format, host, port, slots, queue, reused, key_file, allow_host or [], data,
        drain, quiet, beside.named(), adapters, None if adapter_memory is None else int(adapter_memory * (1 << 30)),
        beside.any_base,
    )  # fmt: skip
    with Bar("loading", "bytes") as bar:

        def say(line: str) -> None:
            bar.close()
            with contextlib.suppress(OSError):  # nobody listens: serving goes on
                print(line, flush=True)

        raise typer.Exit(run(told, say, note, bar))


def _check(
    name: str | None, slots: int | None, queue: int, reuse: float | None, drain: float, context: int | None,
    adapter_memory: float | None,
) -> None:  # fmt: skip
    if name is not None and not re.fullmatch(r"[\w./:@+-]{1,128}", name):
        raise RequestError(f"--name is {name!r:.60}, expected letters, digits and . / : @ + - _ only, at most 128")
    for option_name, value, least, most in (
        ("slots", slots, 1, 256), ("queue", queue, 0, 100_000), ("reuse", reuse, 0, 4096), ("drain", drain, 0, 86_400),
        ("context", context, 1, 1 << 24), ("adapter-memory", adapter_memory, 0, 4096),
    ):  # fmt: skip
        if value is not None and not least <= value <= most:
            raise RequestError(f"--{option_name} is {value:g}, expected {least} to {most:,}")
