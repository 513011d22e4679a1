"""A stranger's chat template is a guest: it runs in Jinja's sandbox, in a process of its own, on a short lease.

Jinja2's sandbox keeps a template from Python's insides, not from eating time and memory; the process does that.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import TemplateError

CPU_SECONDS = 1.0
WALL_SECONDS = 15.0  # a busy machine may take its time to start a process
MEMORY = 256 << 20  # bytes, on top of what Python and Jinja2 take
OUTPUT = 32 << 20  # bytes of JSON: 4 Mi characters
MAX_TEMPLATE = 256 << 10  # characters; the longest in use have about 30,000
_CHILD = str(Path(__file__).with_name("template_child.py"))


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a Jinja chat template makes of JSON-like variables (messages, bos_token, eos_token, tools ...).

    Raises TemplateError with the template's own message where it raises, and with the limit where it passes one.
    """
    return _run(_request(template, variables))


class Guest:
    """`render` for thousands of conversations: the process stays, with CPU time and clock counted anew for each text.
    One that broke a limit is dead, its conversation refused, and the next one gets a new process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._due = math.inf  # when the text that is being rendered has to be there
        self._done = threading.Event()

    def __call__(self, template: str, variables: Mapping[str, Any]) -> str:
        """As `render`."""
        request = _request(template, variables)
        if self._process is None:
            self._process, self._done = _start(), threading.Event()
            threading.Thread(target=self._watch, args=(self._process, self._done), daemon=True).start()
        process = self._process
        assert process.stdin and process.stdout
        self._due = time.monotonic() + WALL_SECONDS
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline(OUTPUT)
        except BrokenPipeError:
            answer = b""
        finally:
            self._due = math.inf
        if not answer.endswith(b"\n"):
            self.close()
            raise TemplateError(f"the chat template was stopped: {_reason(process.returncode)}")
        return _text(answer)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _watch(self, process: subprocess.Popen[bytes], done: threading.Event) -> None:
        """One thread for all texts: starting a clock for each would take longer than the text."""
        while not done.wait(WALL_SECONDS / 16):
            if time.monotonic() > self._due:
                process.kill()

    def close(self) -> None:
        """End the process."""
        self._done.set()
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin and process.stdout
            with contextlib.suppress(OSError):  # what was not taken any more
                process.stdin.close()
            try:
                process.wait(1.0)  # it ends when nothing more comes; one that was stopped leaves its reason
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _request(template: str, variables: Mapping[str, Any]) -> str:
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(f"the chat template has {len(template):,} characters, expected up to {MAX_TEMPLATE:,}")
    limits = {"cpu_seconds": CPU_SECONDS, "memory": MEMORY, "output": OUTPUT}
    try:
        return json.dumps({"template": template, "variables": variables, **limits})
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"messages and tools must be made of JSON's kinds of values: {error}") from None


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", _CHILD, "stay"]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise TemplateError(f"the chat template's process cannot be started: {error}") from None


@lru_cache(maxsize=16)  # a conversation is rendered again and again as it grows
def _run(request: str) -> str:
    with tempfile.TemporaryFile() as out:  # a file, so that the child's limit on file size bounds what comes back
        try:
            command = [sys.executable, "-I", _CHILD]
            done = subprocess.run(
                command,
                input=request.encode(),
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=WALL_SECONDS,
                check=False,
            )
        except OSError as error:
            raise TemplateError(f"the chat template's process cannot be started: {error}") from None
        except subprocess.TimeoutExpired:
            raise TemplateError(f"the chat template took longer than {WALL_SECONDS:g} s") from None
        out.seek(0)
        answer = out.read()
    if done.returncode:
        raise TemplateError(f"the chat template was stopped: {_reason(done.returncode)}")
    return _text(answer)


def _text(answer: bytes) -> str:
    try:
        found = json.loads(answer)
        text = found.get("text")
    except (ValueError, AttributeError, RecursionError):
        raise TemplateError("the chat template's process gave no answer that can be read") from None
    if not isinstance(text, str):
        raise TemplateError(f"the chat template says: {' '.join(str(found.get('error')).split())}")
    return text


def _reason(code: int) -> str:
    if -code in (signal.SIGPROF, signal.SIGXCPU, signal.SIGKILL):
        return f"it used more than {CPU_SECONDS:g} s of CPU time"
    if code < 0:
        return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with code {code}"
