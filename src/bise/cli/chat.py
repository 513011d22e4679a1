"""bise chat: a conversation at the terminal, or a script of one through a pipe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BiseError, RequestError
from . import app
from .options import ANSWER, FORMAT, MODEL, Ahead, Beside, Choosing, Loading, grouped, option, settle_format

if TYPE_CHECKING:
    from ..api import Model
    from ..session import Session

EXAMPLES = """[bold]Examples[/]

[cyan]bise chat[/]  talk to the built-in model; /help lists what else can be typed

[cyan]bise chat mistral-7b-instruct-v0.3.Q4_K_M.gguf --system "Answer in one sentence."[/]

[cyan]bise chat TheBloke/Mistral-7B-Instruct-v0.1-GGUF:Q4_K_M --kv q8_0[/]

[cyan]bise chat mistral-7b-instruct-v0.2.Q4_K_M.gguf --draft small.gguf[/]  a small one guesses ahead

[cyan]printf 'Tell me a story.\\nAnother one.\\n' | bise chat[/]  one message a line
"""


@app.command(epilog=EXAMPLES)
@grouped
def chat(
    *,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=MODEL)] = None,
    system: Annotated[str | None, option(None, "--system", metavar="TEXT",
        help="Instructions that stand before the conversation.")] = None,
    format: Annotated[str | None, option(None, "--format", metavar="v1|v2|v3", help=FORMAT)] = None,
    resume: Annotated[Path | None, option(None, "--resume", metavar="FILE",
        help="Go on with a conversation that /save wrote; nothing of it is read again.")] = None,
    quiet: Annotated[bool, option(None, "--quiet", "-q", help="Nothing on stderr but errors.")] = False,
    max_tokens: Annotated[int | None, option(ANSWER, "--max-tokens", "-n", metavar="N",
        help="The most tokens of one reply. Default: until it ends by itself.")] = None,
    temperature: Annotated[float, option(ANSWER, "--temperature", "-T", metavar="X",
        help="0 always takes the likeliest token; 0.7, the default, varies; above 1 it rambles.")] = 0.7,
    choosing: Choosing,
    loading: Loading,
    beside: Beside,
    ahead: Ahead,
) -> None:  # fmt: skip
    """Talk with a model.

    Ctrl-C stops a reply, and what was said so far stays; Ctrl-D or /quit ends the conversation.
    """
    from .terminal import listen

    listen(quiet)
    if sys.stdin.isatty():  # shells start background jobs with Ctrl-C ignored; at a terminal it has to count
        signal.signal(signal.SIGINT, signal.default_int_handler)
    loaded = loading.open(model, ahead, beside=beside)
    settle_format(loaded, format)
    options = choosing.options(loaded, temperature)
    options["max_tokens"] = loaded.context if max_tokens is None else max_tokens
    if choosing.seed is None:
        del options["seed"]  # every reply draws its own
    talk = Chat(loaded, loaded.session(system), options, quiet)
    if resume:
        talk.load(str(resume))
    talk.run(_typed() if sys.stdin.isatty() and sys.stdout.isatty() else _piped())


class Chat:
    """A session, and what may be typed into it."""

    def __init__(self, model: Model, session: Session, options: dict[str, Any], quiet: bool) -> None:
        self.model, self.session, self.options, self.quiet = model, session, options, quiet
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("", self.help),
            "/system": ("TEXT", self.system),
            "/save": ("FILE", self.save),
            "/load": ("FILE", self.load),
            "/retry": ("", self.retry),
            "/undo": ("", self.undo),
            "/new": ("", self.new),
            "/tokens": ("", self.tokens),
            "/quit": ("", self.quit),
        }

    def run(self, lines: Iterator[str]) -> None:
        """Until the lines end, or /quit. What one line gets wrong is told, and the next one is read."""
        if sys.stdin.isatty() and not self.quiet:
            self.tell("/help lists the commands, Ctrl-C stops a reply, Ctrl-D ends the conversation.")
        for line in lines:
            try:
                if line.startswith("/"):
                    self.obey(line)
                elif line.strip():
                    self.say(line)
            except EOFError:
                return
            except BiseError as error:
                if not sys.stdin.isatty():
                    raise
                self.tell(f"bise: {error}")

    def say(self, content: str) -> None:
        """One message and its reply. Ctrl-C ends the reply where it is."""
        from .terminal import Bar, note, say

        last, stopped = "", False
        try:
            with Bar("reading", "tokens") as bar:
                for last in self.session.stream_chat(content, progress=bar, **self.options):
                    bar.close()
                    say(last)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            stopped = True
        finally:
            if last and not last.endswith("\n"):
                say("\n")
        if stopped and not last:
            note("stopped before the reply began: the message is forgotten")
        elif sys.stderr.isatty() and not self.quiet:
            note(f"stopped; {self.summary()}" if stopped else self.summary())

    def summary(self) -> str:
        from .terminal import speed

        last = self.session.last
        used = f"{len(self.session.tokens):,} of {self.model.context:,} tokens of context used"
        return f"{speed(last)}; {used}" if last else used

    def obey(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name not in self.commands:
            raise RequestError(f"{name} is no command: there are {' '.join(self.commands)}")
        argument, command = self.commands[name]
        if bool(argument) != bool(rest.strip()) and name != "/system":
            raise RequestError(f"{name} takes {argument or 'nothing'} after it")
        command(rest.strip())

    def help(self, _: str) -> None:
        """this list"""
        for name, (argument, command) in self.commands.items():
            self.tell(f"  {f'{name} {argument}':<13} {command.__doc__}")
        self.tell("  A pasted text may have several lines; Alt-Enter begins a new one.")

    def system(self, text: str) -> None:
        """give instructions that stand before the conversation; no text: none"""
        self.session.system = text or None

    def save(self, path: str) -> None:
        """write the conversation to a file, with everything the model has read"""
        self.session.save(path)
        self.tell(f"saved {len(self.session.tokens):,} tokens to {path}")

    def load(self, path: str) -> None:
        """take up a saved conversation"""
        from ..session import Session

        self.session = Session.load(path, self.model)
        session = self.session
        self.tell(f"{path}: {len(session.messages)} messages, {len(session.tokens):,} tokens, nothing read again")

    def retry(self, _: str) -> None:
        """say the last message again, for another reply"""
        self.say(self.session.undo())

    def undo(self, _: str) -> None:
        """take back the last message and its reply"""
        self.tell(f"taken back: {self.session.undo()}")

    def new(self, _: str) -> None:
        """begin a new conversation, under the same instructions"""
        self.session.clear()

    def tokens(self, _: str) -> None:
        """show how much of the context is used, and the tokens of the last reply"""
        self.tell(self.summary())
        if self.session.last:
            self.tell(" ".join(self.model.tokenizer.name(i) for i in self.session.last.tokens))

    def quit(self, _: str) -> None:
        """end the conversation"""
        raise EOFError

    def tell(self, text: str) -> None:
        from .terminal import note

        note(text)


def _piped() -> Iterator[str]:
    """One message a line."""
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _typed() -> Iterator[str]:
    """Messages from a person: history with the arrow keys, pasted lines stay together, Ctrl-C clears the line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    path = _history_file()
    history = FileHistory(str(path)) if path else InMemoryHistory()
    asker: PromptSession[str] = PromptSession(history=history, key_bindings=keys)
    while True:
        try:
            yield asker.prompt("> ", prompt_continuation="  ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _history_file() -> Path | None:
    """Where typed messages are remembered, readable by their writer only; None where nothing can be written."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "bise"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "chat_history"
        path.touch(mode=0o600)
    except OSError:
        return None
    return path
