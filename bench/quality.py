#!/usr/bin/env python3
"""What quantising costs, type by type: bise's quantiser beside llama.cpp's, on the same model and text.

    python bench/quality.py [--save FILE.json]              puff, on children's stories
    python bench/quality.py MODEL.gguf TEXT [--types Q4_K_M,Q3_K_M] [--ways bise,llama.cpp] [--compensate Q4_K_M]

MODEL is the full model: a GGUF of floats. (puff's own file is Q8_0: dequantised it is the full model, with nothing but
its own weights to lose.) The first half of the text (at most --calibrate chunks of it) makes the importance matrix and
is what compensation reads. The other half judges (--chunks of it): KL from the full model's predictions, how often both
find the same token likeliest, the ratio of perplexities, all as `bise eval kl` has them. Every file is judged by the
same arithmetic (--backend reference leaves the rounding of activations out). llama.cpp's quantiser is given the
importance matrix that bise measured and wrote. Compensation takes longest, so only some types have it (--compensate).
"bise, --bits" is a file of the type's size whose bytes were spent where bise measured the largest errors, without
importance; how errors are weighed for that was measured on puff itself, so with puff it does well.

The text is a list of 1,000 different stories in ../shared/data beside the checkout unless one is named: halves of one
list, because the lists there all begin with the same stories. Prints a table, --json one line, --save writes a file;
docs/figures/quantising_page.py makes a page of that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import bise
from bise import gguf, importance, names, texts
from bise.api import BUILT_IN
from bise.bench import machine, others
from bise.evaluate import divergence, full_logits
from bise.moments import collect
from bise.quant import Planned, QTensor
from bise.quantize import plan
from bise.score import Estimate
from bise.texts import Cut
from bise.tokenizer import Tokenizer
from bise.weights import Weights

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinystories" / "tinystories_1000.json.gz"
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K")
COMPENSATED = ("Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS")
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Given:
    """What a quantiser may be given: the full model, the importance matrix on disk, the text that it was made of."""

    model: Path
    importance: Path
    text: Path


Make = Callable[[Given, Path, str], None]  # (what is given, the new file, its type)


def by_llama_cpp(given: Given, out: Path, type: str, informed: bool) -> None:
    import llama_cpp

    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}"), 2
    if informed:
        what = importance.read(given.importance)
        arrays = {names.spelled(name, "gguf").encode(): what[name] for name in what}
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()  # an empty one is the end
        for entry, (name, array) in zip(entries, arrays.items(), strict=False):
            entry.name, entry.size = name, array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(str(given.model).encode(), str(out).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not make {type} of {given.model}")


@cache
def _silent() -> Any:
    """Kept for ever: C calls it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def by_bise(given: Given, out: Path, type: str, *, informed: bool = False, more: bool = False) -> None:
    """more: with error compensation, too."""
    asked = ["--type", type, *["--imatrix", given.importance] * informed, *["--compensate", given.text] * more]
    _quantize(given.model, out, asked)


def by_size(given: Given, out: Path, type: str) -> None:
    """As many bytes as the type takes, wherever they do most."""
    bits = plan(Weights.open(given.model), out, type).bits
    _quantize(given.model, out, ["--bits", f"{bits + 1e-6:.6f}"])


def _quantize(model: Path, out: Path, asked: list[Any]) -> None:
    command = [sys.executable, "-m", "bise", "quantize", model, out, "--quiet", *asked]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


WAYS: dict[str, Make] = {
    "llama.cpp": partial(by_llama_cpp, informed=False),
    "llama.cpp, importance": partial(by_llama_cpp, informed=True),
    "bise": by_bise,
    "bise, importance": partial(by_bise, informed=True),
    "bise, compensated": partial(by_bise, informed=True, more=True),
    "bise, --bits": by_size,
}


def full_model(path: Path, folder: Path) -> Path:
    """The model itself, or a copy in which every tensor is F32."""
    weights = Weights.open(path)
    if weights.layout != "gguf":
        raise SystemExit(f"{path}: llama.cpp's quantiser wants a GGUF: bise convert {path}")
    if all(entry.type in FLOATS for entry in weights.entries.values()):
        return path
    out = folder / f"{path.stem}.f32.gguf"
    tensors = {
        names.spelled(name, "gguf"): Planned("F32", entry.shape, lambda n=name: QTensor.of(weights[n].dequantise()))
        for name, entry in weights.entries.items()
    }
    gguf.write(out, dict(weights.metadata), tensors)
    return out


def halves(paths: list[Path], tokenizer: Tokenizer, most: int) -> tuple[str, str]:
    """Some `most` tokens of the first half of a text, and the other half."""
    text = texts.read(paths)
    middle = text.index("\n", len(text) // 2)
    share = min(1, most / len(tokenizer.encode(text[:middle])))
    return text[: int(share * middle)], text[middle:]


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    source = full_model(options.model, folder)
    told = {"backend": options.backend, "kv": options.kv, "threads": options.threads}
    model = bise.load(source, **told)
    first, other = halves(options.text, model.tokenizer, options.context * options.calibrate)
    given, cut = (
        Given(source, folder / "importance.gguf", folder / "first.txt"),
        Cut(options.context, most=options.chunks),
    )
    given.text.write_text(first, encoding="utf-8")
    calibration = texts.cut(model.tokenizer, first, Cut(options.context))
    importance.write(given.importance, collect(model, list(calibration), [path.name for path in options.text]))
    chunks = texts.cut(model.tokenizer, other, cut)
    full = full_logits(model.weights, chunks, cut, told, lambda path: model)
    rows = []
    for type in options.types:
        for way in ways(options, type):
            out = folder / f"{type}.gguf"
            started = time.perf_counter()
            WAYS[way](given, out, type)
            seconds = time.perf_counter() - started
            found = divergence(bise.load(out, **told), full, chunks, cut)
            rows.append({"type": type, "way": way, "seconds": seconds, **size(out), **found.facts()})
            show(rows[-1])
            out.unlink()
    return rows


def ways(options: argparse.Namespace, type: str) -> list[str]:
    named = [way for way in WAYS if way.split(",")[0] in options.ways]
    without = ["bise, compensated"] * (type not in options.compensate) + ["bise, --bits"] * (type == "Q8_0")
    return [way for way in named if way not in without]


def size(path: Path) -> dict[str, float]:
    entries = Weights.open(path).entries.values()
    nbytes, count = sum(entry.nbytes for entry in entries), sum(math.prod(entry.shape) for entry in entries)
    return {"bytes": nbytes, "bits": 8 * nbytes / count}


def show(row: dict[str, Any]) -> None:
    kl = Estimate(row["kl"]["value"], row["kl"]["error"])
    top, ratio = Estimate(**row["same_top"]), Estimate(**row["perplexity_ratio"])
    figures = f"KL {kl}  same top {top.percent()}  perplexity x {ratio}  {row['seconds']:.2f} s"
    print(f"{row['type']:7} {row['way']:22} {row['bits']:5.2f} bits  {figures}", file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """KL by type and way, and in brackets how it compares with llama.cpp's without importance."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = [f"| type | bits | {' | '.join(ways)} |", "| --- | ---: |" + " ---: |" * len(ways)]
    for type in dict.fromkeys(row["type"] for row in rows):
        own = {row["way"]: row for row in rows if row["type"] == type}
        base = own.get("llama.cpp")
        cells = [_cell(own[way], base) if way in own else "" for way in ways]
        lines.append(f"| {type} | {next(iter(own.values()))['bits']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], base: dict[str, Any] | None) -> str:
    kl = row["kl"]["value"]
    return f"{kl:.5f}" + (f" ({kl / base['kl']['value']:.2f})" if base and row is not base else "")


def listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=BUILT_IN)
    parser.add_argument("text", nargs="*", type=Path, default=[TEXT])
    parser.add_argument("--types", type=listed, default=TYPES)
    parser.add_argument("--ways", type=listed, default=["llama.cpp", "bise"])
    parser.add_argument("--compensate", type=listed, default=COMPENSATED, metavar="TYPES")
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--calibrate", type=int, default=200)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    load = others()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    settings = {name: getattr(options, name) for name in ("context", "chunks", "calibrate", "backend", "kv")}
    settings["text"] = [path.name for path in options.text]
    result = {
        "scenario": "quality", "file": options.model.name, "settings": settings, "rows": rows,
        "load_average": load, "machine": machine(),
    }  # fmt: skip
    if options.save:
        options.save.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else table(rows))


if __name__ == "__main__":
    main()
