"""A program, never imported: renders one Jinja template inside its own process, with limits that it cannot lift again.

JSON on stdin: {"template", "variables", "cpu_seconds", "memory", "output"}; JSON on stdout: {"text"} or {"error"}.
With the argument `stay` one line of JSON after another: the bound on memory is the first one's, and the CPU time is
counted anew for each.
It uses the standard library and Jinja2 alone, so that it starts fast. Run by `template.render` only.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


def limit(cpu_seconds: float | None, memory: int, output: int) -> None:
    """From here on: so many seconds of CPU time, so many more bytes of memory, so many bytes of output; no files."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock and the sandbox are what remains
        return
    bounds = {"RLIMIT_FSIZE": output, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    if cpu_seconds is not None:
        used = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        bounds["RLIMIT_CPU"] = used + math.ceil(cpu_seconds)
    try:
        with open("/proc/self/statm") as file:
            bounds["RLIMIT_AS"] = int(file.read().split()[0]) * resource.getpagesize() + memory
    except OSError:  # macOS has no /proc and does not enforce RLIMIT_AS
        pass
    for name, most in bounds.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system has every one
            resource.setrlimit(getattr(resource, name), (most, most))


def lease(cpu_seconds: float) -> None:
    """So many seconds of CPU time from now on, and then death."""
    if not hasattr(signal, "setitimer"):  # Windows
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # its default is to kill, in the middle of anything
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message)[:500])


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape < > & for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """The names that chat templates expect, as Hugging Face's apply_chat_template documents them."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    del jinja.globals["lipsum"]
    jinja.filters["tojson"] = tojson
    jinja.globals["raise_exception"] = raise_exception
    jinja.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return jinja


@lru_cache(maxsize=1)
def compiled(template: str) -> Template:
    return environment().from_string(template)


def render(request: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in compiled(request["template"]).generate(request["variables"]):
        size += len(piece)
        if size > request["output"] // 8:  # JSON may write a character as 6 bytes
            raise TemplateError(f"it prints more than {request['output'] // 8:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> str:
    lease(request["cpu_seconds"])
    try:
        answer = {"text": render(request)}
    except MemoryError:
        answer = {"error": f"it needs more than {request['memory'] >> 20} MB of memory"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:  # whatever a guest raises is its answer
        answer = {"error": f"{str(error) or type(error).__name__}"[:500]}
    return json.dumps(answer)


def main() -> None:
    if sys.argv[1:] != ["stay"]:
        request = json.load(sys.stdin.buffer)
        limit(request["cpu_seconds"], request["memory"], request["output"])
        sys.stdout.write(answer(request))
        return
    for at, line in enumerate(sys.stdin.buffer):
        request = json.loads(line)
        if not at:
            limit(None, request["memory"], request["output"])
        sys.stdout.write(answer(request) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
