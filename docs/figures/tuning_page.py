"""docs/tuning.md's figures, written between its markers, and its pictures.

    python docs/figures/tuning_page.py                              # what the planner foresees; nothing is measured
    python docs/figures/tuning_page.py bench/results/tuning-*.json  # of bench/tuning.py and bench/adapters.py
    python docs/figures/tuning_page.py --example tuning             # what examples/tuning found, into its README.md

A test makes tables and pictures again, and compares: no figure is typed by hand.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import content
import tuning_charts
from speed_page import put, short, table, where

from bise.quantize import recipe
from bise.tune import memory
from bise.tune.student import TARGETS
from bise.weights import expected_shapes

ROOT = Path(__file__).resolve().parents[2]
PAGE, EXAMPLE = ROOT / "docs" / "tuning.md", ROOT / "examples" / "tuning" / "README.md"
GIB, THREADS = 1 << 30, 2
Result = dict[str, Any]
Row = dict[str, Any]


def write(results: Sequence[Path], page: Path = PAGE) -> list[Path]:
    """Each result in its place, and what the planner foresees; a place without a result keeps what it has."""
    text, folder = put(page.read_text(encoding="utf-8"), "memory", foreseen_table(foreseen())), page.parent / "figures"
    folder.mkdir(exist_ok=True)
    drawn = [tuning_charts.draw("memory", foreseen(), folder)]
    for path in results:
        result = json.loads(path.read_text(encoding="utf-8"))
        text = filled(text, result, os.path.relpath(path, page.parent))
        if result["what"] == "tuning":
            drawn.append(tuning_charts.draw("speed", medians(result["rows"]), folder))
    page.write_text(text, encoding="utf-8")
    return [page, *drawn]


def filled(text: str, result: Result, name: str) -> str:
    """name: of the result file, as the page links to it."""
    what = result["what"]
    if f"<!-- {what} -->" not in text:
        raise ValueError(f"the page has no place for {what}")
    return put(text, what, f"Measured {where(result, name)}\n\n{SHOWN[what](result)}")


# what is measured


def tuning(result: Result) -> str:
    rows, versions = medians(result["rows"]), result["versions"]
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    shape = (
        f"{result['layers']} layers of width {result['dim']}, feed-forward {result['hidden']}, {result['vocab']:,} "
        f"tokens of vocabulary; {result['batch']} x {result['length']:,} tokens a step, LoRA of rank {result['rank']} "
        f"on all linear layers, {result['threads']} threads; {said}. Medians of {result['rounds']} rounds, in turns; "
        "`times peft`: to peft on F32."
    )
    return (
        f"{shape}\n\n![Tokens per second and peak memory](figures/tuning-speed.svg)\n\n{sides(rows)}\n\n{again(rows)}"
    )


KEYS = ("tokens/s", "peak MiB")


def medians(rows: Sequence[Row]) -> list[Row]:
    """A row for each side and base, in the order in which they were measured. ratios: to peft, which has float32, in
    the same round."""
    found = []
    for who, base in dict.fromkeys((row["who"], row["base"]) for row in rows):
        mine, theirs = _of(rows, who, base), _of(rows, who.replace("bise", "peft"), "F32")
        figures = {key: round(statistics.median(row[key] for row in mine), 1) for key in KEYS}
        ratios = [statistics.median(a[key] / b[key] for a, b in zip(mine, theirs, strict=False))
                  for key in KEYS if theirs and who.startswith("bise")]  # fmt: skip
        found.append({"who": who, "base": base, **figures, "ratios": ratios, "losses": mine[0]["losses"]})
    return found


def _of(rows: Sequence[Row], who: str, base: str) -> list[Row]:
    return [row for row in rows if (row["who"], row["base"]) == (who, base)]


def sides(rows: Sequence[Row]) -> str:
    """All that was measured, and of bise the ratios to peft on the same terms."""
    lines = []
    for row in rows:
        speed, peak = (f"{ratio:.2f}" for ratio in row["ratios"]) if row["ratios"] else ("", "")
        lines.append([row["who"], row["base"], short(row["tokens/s"]), speed, f"{row['peak MiB']:,.0f}", peak])
    return table(["", "base", "tokens/s", "times peft", "peak memory, MiB", "times peft"], lines)


def again(rows: Sequence[Row]) -> str:
    """Both compute the same: the loss of every step, on the same weights and batches."""
    losses = {base: [row["losses"] for row in rows if row["base"] == base] for base in ("F32", "Q8_0")}
    first = losses["F32"][0][0]
    apart = max(abs(a - first) for a, *_ in losses["F32"])
    said = (
        f"All read the same weights: the first batch's loss is {first:.5f}, and on F32 the sides differ by {apart:.1g}"
    )
    if losses["Q8_0"]:
        other = losses["Q8_0"][0]
        said += f"; on Q8_0, rounded when it is loaded and multiplied in 8 bits, it is {other[0]:.5f}"
    return f"{said}."


def step(result: Result) -> str:
    row = {key: statistics.median(r[key] for r in result["rows"]) for key in ("tokens/s", "peak MiB")}
    tokens = result["length"] * result["batch"]
    return (
        f"{result['file']} ({result['bytes'] / GIB:.2f} GiB): one step of {tokens:,} tokens, rank {result['rank']} on "
        f"all linear layers, layers computed again on the way back, took {tokens / row['tokens/s']:,.0f} s "
        f"({short(row['tokens/s'])} tokens/s) and {row['peak MiB'] / 1024:.2f} GiB, Python and its libraries included."
    )


def adapters(result: Result) -> str:
    rows = result["rows"]
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = {row["round"]: row for row in rows if row["case"] == case}
        plain = {row["round"]: row for row in rows if row["case"] == case.split(",")[0] + ", none"}
        cells = []
        for key in ("prefill", "decode"):
            ratio = statistics.median(mine[i][key] / plain[i][key] for i in mine)
            cells += [short(statistics.median(row[key] for row in mine.values())), f"{ratio:.2f}"]
        lines.append([case, *cells])
    each = f"{result['bytes'] / 2**20:.1f} MiB each"
    about = f"{result['file']}, adapters of rank {result['rank']} on all linear layers, {each}."
    heads = ["sequences, adapters", "prefill, tokens/s", "times none", "decode, tokens/s", "times none"]
    return f"{about}\n\n{table(heads, lines)}"


SHOWN: dict[str, Callable[[Result], str]] = {"tuning": tuning, "step": step, "adapters": adapters}


# what is foreseen


CASES = (  # what, types of the file, base, rank, tokens at once, more than one sequence, bits of the averages
    ("Q4_K_M as it is", "Q4_K_M", "as it is", 16, 256, False, 32),
    ("Q4_K_M as it is", "Q4_K_M", "as it is", 16, 2048, False, 32),
    ("Q8_0, rounded", "BF16", "q8_0", 16, 2048, False, 32),
    ("NF4", "BF16", "nf4", 16, 2048, False, 32),
    ("Q4_K_M, a pair", "Q4_K_M", "as it is", 128, 2048, True, 32),
    ("Q4_K_M, a pair, 8-bit averages", "Q4_K_M", "as it is", 128, 2048, True, 8),
    ("bfloat16", "BF16", "as it is", 16, 2048, False, 32),
)


def foreseen() -> list[Row]:
    """For each case the planner's GiB by part, with layers computed again on the way back, and the sum without."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return [_foreseen(*case) for case in CASES]
    finally:
        torch.set_num_threads(before)


def _foreseen(what: str, kind: str, base: str, rank: int, tokens: int, many: bool, bits: int) -> Row:
    """Without the process itself, which the planner measures when it plans."""
    shapes = expected_shapes(content.MISTRAL)
    types = dict.fromkeys(shapes, kind) if kind == "BF16" else recipe.types(kind, shapes, 4)
    subject = memory.Subject(content.MISTRAL, types, "lora", rank, TARGETS, base, bits)
    load = memory.Load(tokens, tokens, many)
    found = {}
    for again in (True, False):
        parts = memory.predict(subject, load, again, process=0)
        found[again] = {
            "frozen weights": parts["frozen weights"] + parts["decoded weights"],
            "adapter, gradients, averages": parts["trained"] + parts["gradients"] + parts["optimiser"],
            "what a step keeps": parts["kept for the way back"] + parts["work"],
        }
    gib = {name: round(size / GIB, 2) for name, size in found[True].items()}
    return {
        "what": what,
        "rank": rank,
        "tokens": tokens,
        "parts": gib,
        "kept": round(sum(found[False].values()) / GIB, 2),
    }


def foreseen_table(rows: Sequence[Row]) -> str:
    parts = list(rows[0]["parts"])
    lines = [
        [row["what"], str(row["rank"]), f"{row['tokens']:,}", *(f"{row['parts'][part]:.2f}" for part in parts),
         f"**{sum(row['parts'].values()):.1f}**", f"{row['kept']:.1f}"]
        for row in rows
    ]  # fmt: skip
    heads = ["Mistral 7B on", "rank", "tokens at once", *parts, "GiB in all", "without computing layers again"]
    picture = "![Memory of a step of Mistral 7B on several bases, by part](figures/tuning-memory.svg)"
    return f"{picture}\n\n{table(heads, lines)}"


# the example


FORMS = {"feelings": "{:.1%}", "instructions": "{:.1f}", "polite": "{:.1%}", "rude": "{:.1%}", "margin": "{:+.2f}",
         "stories": "{:.2f}"}  # fmt: skip
SPEAKERS = {0: "puff", 1: "taught", -1: "with manners, in 4 bits"}  # step -> who speaks
EACH = 27  # so many questions from one that is quoted to the next
QUOTED = 96  # characters of a question or an answer


def example(folder: Path, page: Path = EXAMPLE) -> list[Path]:
    """What examples/tuning left in `folder`: its figures beside the page, as tables and as curves."""
    found = shortened(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    kept = page.parent / "results.json"
    kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    runs = {name: _metrics(folder / name / "metrics.jsonl") for name in ("lesson", "manners")}
    picture = tuning_charts.draw("loss", runs, page.parent)
    text = put(page.read_text(encoding="utf-8"), "loss", f"![Loss of every step and of held-out rows]({picture.name})")
    page.write_text(told(text, found), encoding="utf-8")
    return [page, kept, picture]


def shortened(found: Result) -> Result:
    """Without what no page shows; of questions and answers some."""
    some = slice(EACH // 2, None, EACH)
    steps = [
        {**{key: value for key, value in step.items() if key not in ("key", "margins")},
         "answers": step["answers"][some]} for step in found["steps"]
    ]  # fmt: skip
    return {**found, "asked": found["asked"][some], "steps": steps}


def told(text: str, found: Result) -> str:
    """The page with the exam's table, and some answers."""
    return put(put(text, "scores", exam(found)), "answers", quoted(found))


def exam(found: Result) -> str:
    steps = found["steps"]
    lines = []
    for step in steps:
        score = step["scores"]
        lines.append(
            [step["name"], *(form.format(score[name]) if name in score else "" for name, form in FORMS.items())]
        )
    minutes = sum(step["seconds"] for step in steps) / 60
    rewarded = next(step["rewarded"] for step in steps if "rewarded" in step)
    same, of = next((step["same"], step["of"]) for step in steps if "same" in step)
    return (
        f"{table(['after', *FORMS], lines)}\n\n"
        f"The server gave {same} of {of} answers as the process before it had, letter for letter. DPO's implicit "
        f"reward is on the polite side in {rewarded:.0%} of the held-out pairs. All of it took {minutes:.0f} "
        f"minutes on {found['cores']} cores that had a load of {found['load']:.1f} from other work when it began."
    )


def quoted(found: Result) -> str:
    """What was said at first, after the first lesson and at the end."""
    said = [found["steps"][i]["answers"] for i in SPEAKERS]
    lines = [[_cell(text) for text in texts] for texts in zip(found["asked"], *said, strict=True)]
    return table(["asked", *SPEAKERS.values()], lines).replace("---:", "---")


def _cell(text: str) -> str:
    short = text if len(text) <= QUOTED else text[:QUOTED].rsplit(" ", 1)[0] + " ..."
    return short.replace("\n", " / ").replace("|", "\\|")


def _metrics(path: Path) -> dict[str, list[list[float]]]:
    """Of a step its loss, of an evaluation the loss on held-out rows: (step, loss) each."""
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {key: [[fact["step"], round(fact[key], 4)] for fact in facts if fact.get(key) is not None]
            for key in ("loss", "held_out")}  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    made = example(Path(given[1])) if given[:1] == ["--example"] else write([Path(name) for name in given])
    print(*made, sep="\n")
