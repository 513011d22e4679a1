"""Run the commands that the README shows, and write into it what they say: python docs/tour.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```)", re.DOTALL | re.MULTILINE)


def toured(text: str) -> str:
    """The text with fresh output under every `$ command` of its console blocks. model.gguf is puff there, and page.gguf
    what a browser saves when the address was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "src" / "bise" / "models" / "puff.gguf", Path(folder, "model.gguf"))
        Path(folder, "page.gguf").write_text("<!DOCTYPE html><title>404</title>")
        return BLOCK.sub(_again(folder), text)


def _again(folder: str) -> Callable[[re.Match[str]], str]:
    """A block -> the same commands with what they say today."""

    def run(block: re.Match[str]) -> str:
        commands = re.findall(r"^\$ (.*)", block[0], re.MULTILINE)
        return "\n".join(f"$ {command}\n{said(command, folder)}" for command in commands)

    return run


def said(command: str, folder: str) -> str:
    """What a person sees, stdout and stderr together, without the blanks at the ends of lines."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip().splitlines())


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(toured(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{page.name}: {len(BLOCK.findall(page.read_text(encoding='utf-8')))} console blocks")
