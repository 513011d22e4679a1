"""A program, never imported: renders one Jinja template inside its own process, with limits that it cannot lift again.

JSON on stdin: {"template", "variables", "cpu_seconds", "memory", "output"}; JSON on stdout: {"text"} or {"error"}.
It uses the standard library and Jinja2 alone, so that it starts fast. Run by `template.render` only.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


def limit(cpu_seconds: float, memory: int, output: int) -> None:
    """From here on: so many seconds of CPU time, so many more bytes of memory, so many bytes of output; no files."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock and the sandbox are what remains
        return
    used = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    bounds = {"RLIMIT_CPU": used + math.ceil(cpu_seconds), "RLIMIT_FSIZE": output, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    try:
        with open("/proc/self/statm") as file:
            bounds["RLIMIT_AS"] = int(file.read().split()[0]) * resource.getpagesize() + memory
    except OSError:  # macOS has no /proc and does not enforce RLIMIT_AS
        pass
    for name, most in bounds.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system has every one
            resource.setrlimit(getattr(resource, name), (most, most))
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


def environment() -> ImmutableSandboxedEnvironment:
    """The names that chat templates expect, as Hugging Face's apply_chat_template documents them."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    del jinja.globals["lipsum"]
    jinja.filters["tojson"] = tojson
    jinja.globals["raise_exception"] = raise_exception
    jinja.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return jinja


def render(request: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in environment().from_string(request["template"]).generate(request["variables"]):
        size += len(piece)
        if size > request["output"] // 8:  # JSON may write a character as 6 bytes
            raise TemplateError(f"it prints more than {request['output'] // 8:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def main() -> None:
    request = json.load(sys.stdin.buffer)
    limit(request["cpu_seconds"], request["memory"], request["output"])
    try:
        answer = {"text": render(request)}
    except MemoryError:
        answer = {"error": f"it needs more than {request['memory'] >> 20} MB of memory"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:  # whatever a guest raises is its answer
        answer = {"error": f"{str(error) or type(error).__name__}"[:500]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
