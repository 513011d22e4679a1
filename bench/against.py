#!/usr/bin/env python3
"""The whole table, bise and llama.cpp in turns, on one's own file or on files made for it.

    python bench/against.py [MODEL.gguf] [--rounds 2] [--isa avx2] [--layers 32] [--save bench/results/NAME.json]
    python bench/against.py --write bench/results/NAME.json

Without a model: a file of Mistral 7B's shape in Q4_K_M, then files of the same shape with 8 layers in the other types,
each made when its turn has come and deleted after it. It takes 6 GB of disk and some fifteen minutes.
--write puts the table of a result file into README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import shape

from bise.api import BUILT_IN
from bise.bench import compare
from bise.cli.against import finish
from bise.cli.terminal import Doing
from bise.errors import BiseError

TYPES = ("Q8_0", "Q4_0", "Q5_K", "Q6_K", "IQ4_XS", "BF16")
LAYERS = 8  # of the files in these types: the biggest has 4 GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", default="")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--write", type=Path, metavar="RESULT.json")
    a = parser.parse_args()
    if a.write:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "figures"))
        import speed_page

        print(speed_page.write_numbers(a.write))
        return
    try:
        with tempfile.TemporaryDirectory() as folder, Doing() as doing:
            files = [a.model] if a.model else made(Path(folder), a.layers)
            found = compare([*files, BUILT_IN] if a.model else files, a.threads, a.rounds, a.isa, report=doing)
        finish(found, save=a.save)
    except BiseError as error:
        sys.exit(f"bise: {error}")


def made(folder: Path, layers: int) -> Iterator[Path]:
    """Files that are there while they are measured; the built-in model comes last."""
    for type, count in [("Q4_K_M", layers), *((type, min(LAYERS, layers)) for type in TYPES)]:
        file = folder / f"7B-shape-{count}-layers-{type}.gguf"
        shape.write(file, type, count)
        yield file
        file.unlink()
    yield BUILT_IN


if __name__ == "__main__":
    main()
