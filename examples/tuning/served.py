"""A server of bise for as long as a `with` block lasts, and questions put to it over HTTP."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from scores import Ask

CLIENTS = 8  # at once: what one is told does not depend on the others


@contextmanager
def server(command: str, model: str) -> Iterator[Ask]:
    """command: serve and its options; model: whom the requests name, an adapter here."""
    words = [sys.executable, "-m", "bise", *shlex.split(command), "--port", "0", "--data", "served", "--quiet"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()  # it says so when it is ready
        found = re.search(r"http://\S+", line)
        if not found:
            sys.exit(process.wait() or 1)
        yield lambda prompt, most: ask(found[0], model, prompt, most)
    finally:
        process.terminate()
        process.wait()


def together(ask: Ask, prompts: Sequence[tuple[str, int]]) -> list[str]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda prompt: ask(*prompt), prompts))


def ask(address: str, model: str, prompt: str, most: int) -> str:
    body = {"model": model, "temperature": 0, "max_tokens": most, "messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"]).strip()
