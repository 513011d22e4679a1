"""bise generate: continue a text, or answer one message."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import FormatError, RequestError
from . import app
from .options import ANSWER, FORMAT, MODEL, Ahead, Beside, Choosing, Loading, grouped, option, settle_format

if TYPE_CHECKING:
    from ..session import Session

EXAMPLES = """[bold]Examples[/]

[cyan]bise generate "Once upon a time"[/]  the built-in model tells a story

[cyan]bise generate -m mistral-7b-v0.1.Q4_K_M.gguf --file essay.txt --max-tokens 100[/]

[cyan]git diff | bise generate -m mistral-7b-instruct-v0.3.Q4_K_M.gguf --chat --stop "\\n\\n"[/]

[cyan]bise generate "The mistral is" --json | jq .logprobs[/]
"""


@app.command(epilog=EXAMPLES)
@grouped
def generate(
    *,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", show_default=False,
        help="The text to continue; '-', or nothing, reads it from standard input.")] = None,
    model: Annotated[str | None, option(None, "--model", "-m", metavar="MODEL", help=MODEL)] = None,
    file: Annotated[Path | None, option(None, "--file", "-f", metavar="FILE",
        help="Read the prompt from a file.")] = None,
    chat: Annotated[bool, option(None, "--chat",
        help="The prompt is a message to be answered, not a text to be continued.")] = False,
    system: Annotated[str | None, option(None, "--system", metavar="TEXT",
        help="With --chat: instructions that stand before the message.")] = None,
    format: Annotated[str | None, option(None, "--format", metavar="v1|v2|v3", help="With --chat: " + FORMAT)] = None,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    max_tokens: Annotated[int, option(ANSWER, "--max-tokens", "-n", metavar="N",
        help="The most tokens to write (a token is about three quarters of a word). Default: 512.")] = 512,
    temperature: Annotated[float, option(ANSWER, "--temperature", "-T", metavar="X",
        help="0, the default, always takes the likeliest token; 0.7 varies; above 1 it rambles.")] = 0.0,
    echo: Annotated[bool, option(ANSWER, "--echo",
        help="Print the prompt in front of what was written.")] = False,
    json: Annotated[bool, option(ANSWER, "--json",
        help="Print one JSON object: text, tokens, log-probabilities, counts, seconds, seed.")] = False,
    choosing: Choosing,
    loading: Loading,
    beside: Beside,
    ahead: Ahead,
) -> None:  # fmt: skip
    """Continue a text.

    The text goes to standard output as it is written, and nothing else does.
    """
    from .terminal import listen

    listen(quiet)
    text = _prompt(prompt, file)
    if (system or format) and not chat:
        raise RequestError(f"{'--system' if system else '--format'} is for messages: add --chat")
    started = time.perf_counter()
    loaded = loading.open(model, ahead, beside=beside)
    if chat:
        settle_format(loaded, format)
    options = choosing.options(loaded, temperature) | {"max_tokens": max_tokens}
    load_seconds = time.perf_counter() - started
    session = loaded.session(system)
    if json:
        about = {"model": str(loaded.path), "prompt": text, "seed": options["seed"], "load_seconds": load_seconds}
        _print_json(session, text, chat, options, about)
    else:
        _print_text(session, text, chat, options, text if echo else "")


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The text, from one of its three sources; the newline at the end of a file or a pipe is not part of it."""
    if file is not None:
        if prompt is not None:
            raise RequestError("both a prompt and --file were given: choose one")
        return _text(_bytes(file), str(file))
    if prompt not in (None, "-"):
        return str(prompt)
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise RequestError('no prompt: bise generate "Once upon a time", or --file FILE, or a pipe into bise generate')
    return _text(sys.stdin.buffer.read(), "standard input")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FormatError(f"{file}: {error.strerror}") from None


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: byte {error.start:,} is no UTF-8: the prompt must be text") from None


def _print_text(session: Session, prompt: str, chat: bool, options: dict[str, Any], before: str) -> None:
    from .terminal import note, say, speed

    last = before
    try:
        for piece in _pieces(session, prompt, chat, options, before):
            last = piece or last
            say(piece)
    finally:
        if last and not last.endswith("\n"):
            say("\n")
    if sys.stderr.isatty() and session.last:
        note(speed(session.last))


def _pieces(session: Session, prompt: str, chat: bool, options: dict[str, Any], before: str = "") -> Any:
    """The answer as it comes, after `before`, with a bar while a long prompt is read."""
    from .terminal import Bar

    stream = session.stream_chat if chat else session.stream
    with Bar("reading", "tokens") as bar:
        for piece in stream(prompt, progress=bar, **options):
            bar.close()
            yield before + piece
            before = ""
    yield before


def _print_json(session: Session, prompt: str, chat: bool, options: dict[str, Any], about: dict[str, Any]) -> None:
    import json

    interrupted = False
    try:
        for _ in _pieces(session, prompt, chat, options):
            pass
    except KeyboardInterrupt:
        if session.last is None:
            raise
        interrupted = True
    assert session.last is not None
    result = about | asdict(session.last) | {"completion_tokens": len(session.last.tokens)}
    if interrupted:
        result["finish_reason"] = "interrupted"
    print(json.dumps(result, ensure_ascii=False))
    if interrupted:
        raise KeyboardInterrupt
