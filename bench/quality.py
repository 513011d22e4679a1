#!/usr/bin/env python3
"""What quantising costs, type by type: bise's quantiser beside llama.cpp's, on the same model and text.

    python bench/quality.py                                 puff, on children's stories
    python bench/quality.py MODEL.gguf TEXT [--types Q4_K_M,Q3_K_M] [--chunks 100] [--calibrate 200] [--save FILE.json]

MODEL is the full model: a GGUF of floats. (puff's own file is Q8_0: dequantised it is the full model, with nothing but
its own weights to lose.) The first --calibrate chunks of the text make the importance matrix, the --chunks after them
judge: KL from the full model's predictions, how often both find the same token likeliest, the ratio of perplexities,
all as `bise eval kl` has them. Every file is judged by the same arithmetic (--backend reference leaves the rounding of
activations out). What llama.cpp's quantiser is given is the importance matrix as bise measured and wrote it.

Texts are read from ../shared/data beside the checkout unless one is named. Prints a table, and with --json one line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import bise
from bise import gguf, importance, names, texts
from bise.api import BUILT_IN
from bise.evaluate import divergence, full_logits
from bise.importance import Importance
from bise.moments import collect
from bise.quant import Planned, QTensor
from bise.score import Estimate
from bise.texts import Cut
from bise.weights import Weights

TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinystories" / "tinystories_1000.json.gz"
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K")
FLOATS = ("F32", "F16", "BF16")
Maker = Callable[[Path, Path, str, "Importance | None"], None]  # (full model, new file, type, what is important)


def by_llama_cpp(source: Path, out: Path, type: str, what: Importance | None) -> None:
    import llama_cpp

    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}"), 2
    if what is not None:
        arrays = {names.spelled(name, "gguf").encode(): what[name] for name in what}
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()  # an empty one is the end
        for entry, (name, array) in zip(entries, arrays.items(), strict=False):
            entry.name, entry.size = name, array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not make {type} of {source}")


@cache
def _silent() -> Any:
    """Kept for ever: C calls it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def by_bise(source: Path, out: Path, type: str, what: Importance | None) -> None:
    from bise.quantize import Informed, quantize

    quantize(source, out, type, Informed(what, chunks=what.chunks) if what else None)


MAKERS: dict[str, Maker] = {"llama.cpp": by_llama_cpp, "bise": by_bise}


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


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    source = full_model(options.model, folder)
    told = {"backend": options.backend, "kv": options.kv, "threads": options.threads}
    model = bise.load(source, **told)
    how = Cut(options.context, most=options.calibrate + options.chunks)
    chunks = texts.cut(model.tokenizer, texts.read(options.text), how)
    before, after = chunks[: options.calibrate], chunks[options.calibrate :]
    if len(after) < options.chunks:
        raise SystemExit(f"the text has {len(chunks)} chunks, {how.most} are wanted: --chunks, --calibrate, --context")
    importance.write(folder / "importance.gguf", collect(model, list(before), [path.name for path in options.text]))
    what = importance.read(folder / "importance.gguf")
    cut = Cut(options.context)
    full = full_logits(model.weights, after, cut, told, lambda path: model)
    rows = []
    for type in options.types:
        for maker in options.makers:
            for used in (None, what):
                out = folder / f"{type}.gguf"
                started = time.perf_counter()
                MAKERS[maker](source, out, type, used)
                seconds = time.perf_counter() - started
                rows.append(judged(out, type, maker, used is not None, seconds, (full, after, cut), told))
                show(rows[-1])
                out.unlink()
    return rows


def judged(path: Path, type: str, maker: str, informed: bool, seconds: float, by: Any, told: Any) -> dict[str, Any]:
    full, chunks, cut = by
    model = bise.load(path, **told)
    found = divergence(model, full, chunks, cut)
    weights = sum(entry.data.size for entry in (model.weights[name] for name in model.weights))
    count = sum(model.weights[name].dequantise().size for name in model.weights)
    return {
        "type": type, "maker": maker, "importance": informed, "bytes": weights, "bits": 8 * weights / count,
        "seconds": seconds, "kl": found.kl.facts(), "same_top": found.same_top.facts(),
        "ratio": found.ratio.facts(), "perplexity": found.other.facts(), "quantiles": found.quantiles,
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    kl, top, ratio = (Estimate(**row[name]) for name in ("kl", "same_top", "ratio"))
    how = f"{row['maker']}{', importance' if row['importance'] else ''}"
    figures = f"KL {kl}  same top {top.percent()}  perplexity x {ratio}  {row['seconds']:.2f} s"
    print(f"{row['type']:7} {how:22} {row['bits']:5.2f} bits  {figures}", file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """KL by type: one column for each way, and how each compares with llama.cpp without importance."""
    ways = list(dict.fromkeys((row["maker"], row["importance"]) for row in rows))
    lines = ["| type | bits | " + " | ".join(m + (", importance" if i else "") for m, i in ways) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(ways))
    for type in dict.fromkeys(row["type"] for row in rows):
        own = {(row["maker"], row["importance"]): row for row in rows if row["type"] == type}
        base = own.get(("llama.cpp", False))
        cells = []
        for way in ways:
            kl = own[way]["kl"]["value"]
            cells.append(f"{kl:.5f}" + (f" ({kl / base['kl']['value']:.2f})" if base and own[way] is not base else ""))
        lines.append(f"| {type} | {next(iter(own.values()))['bits']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=BUILT_IN)
    parser.add_argument("text", nargs="*", type=Path, default=[TEXT])
    parser.add_argument("--types", type=lambda text: text.split(","), default=TYPES)
    parser.add_argument("--makers", type=lambda text: text.split(","), default=list(MAKERS))
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--calibrate", type=int, default=200)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    told = {name: getattr(options, name) for name in ("context", "chunks", "calibrate", "backend", "kv")}
    result = {"model": options.model.name, "text": [path.name for path in options.text], **told, "rows": rows}
    if options.save:
        options.save.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else table(rows))


if __name__ == "__main__":
    main()
