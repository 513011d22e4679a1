"""What `bise tune` may be told, in groups: a page of its help each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from ..errors import RequestError
from .options import option

WAY, ROWS, LENGTH, STEP, KEPT = (
    "What is learnt, and how", "The rows", "How long", "Each step", "Looking on, keeping, going on",
)  # fmt: skip


# fmt: off
@dataclass
class Way:
    objective: Annotated[str | None, option(WAY, "--objective", metavar="sft|dpo|orpo|kto",
        help="sft imitates the answers; dpo and orpo learn from pairs of a better and a worse one, kto from answers "
             "that are good or bad. Default: sft.")] = None
    method: Annotated[str | None, option(WAY, "--method", metavar="lora|dora|full",
        help="lora trains a small adapter beside the frozen weights, whatever type these have; dora its lengths apart "
             "from its directions; full trains every weight (small models). Default: lora.")] = None
    from_scratch: Annotated[bool, option(WAY, "--from-scratch",
        help="Begin with random weights: MODEL gives the shape and the vocabulary. Muon for the matrices.")] = False
    rank: Annotated[int | None, option(WAY, "--rank", "-r", metavar="N",
        help="Rank of the adapter: how much it can hold. Default: 16.")] = None
    alpha: Annotated[float | None, option(WAY, "--alpha", metavar="X",
        help="The adapter counts alpha / rank times. Default: the rank.")] = None
    rslora: Annotated[bool, option(WAY, "--rslora",
        help="Divide by the root of the rank instead: for high ranks. Learns, and forgets, more.")] = False
    targets: Annotated[str | None, option(WAY, "--targets", metavar="NAME,NAME",
        help="Which weights of each layer get an adapter: attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down, "
             "and output. Default: the seven of the layers.")] = None
    base: Annotated[str | None, option(WAY, "--base", metavar="as-is|nf4|q8_0",
        help="The frozen weights: as the file has them, or those in 16 and 32 bits rounded, to 4 bits (QLoRA) or to 8, "
             "which is fastest on a CPU. Default: as-is.")] = None
    beta: Annotated[float | None, option(WAY, "--beta", metavar="X",
        help="How closely dpo and kto stay at the model as it was; the weight of orpo's comparison. Default: 0.1.",
        )] = None
    window: Annotated[str | None, option(WAY, "--window", metavar="N|none",
        help="Sliding window, in training as in use. Default: as the model was made.")] = None


@dataclass
class Rows:
    """How rows are read."""

    held_out: Annotated[str | None, option(ROWS, "--eval-split", metavar="SHARE|FILE,FILE",
        help="Rows that are held out to judge by: a share of all, or files. Up to 256 of them are read each time. "
             "0: none. Default: 0.05.")] = None
    max_length: Annotated[int | None, option(ROWS, "--max-length", metavar="N",
        help="The most tokens of a row. Default: the model's context, at most 2048.")] = None
    cut: Annotated[bool, option(ROWS, "--cut",
        help="Shorten longer conversations between two exchanges. Default: they are refused.")] = False
    last: Annotated[bool, option(ROWS, "--last",
        help="Learn the last answer of a conversation only. Default: all of the assistant's turns.")] = False
    no_eos: Annotated[bool, option(ROWS, "--no-eos",
        help="Do not teach that a plain text ends.")] = False
    format: Annotated[str | None, option(ROWS, "--format", metavar="v1|v2|v3",
        help="How messages are written. Default: as the model's files say.")] = None
    skip_bad: Annotated[bool, option(ROWS, "--skip-bad",
        help="Leave faulty rows out and list them in left-out.jsonl. Default: any is refused.")] = False


@dataclass
class Length:
    epochs: Annotated[float | None, option(LENGTH, "--epochs", metavar="X",
        help="So often through the data. Default: 10,000 rows in all, at least 1 and at most 10 times; 1 from "
             "preferences.")] = None
    steps: Annotated[int | None, option(LENGTH, "--steps", metavar="N", help="So many steps.")] = None
    budget: Annotated[str | None, option(LENGTH, "--budget", metavar="24h|20m|90s",
        help="So much time, everything included: the speed is measured, the steps are set so that the schedule lands, "
             "and it ends in time with the best weights.")] = None
    patience: Annotated[int | None, option(LENGTH, "--patience", metavar="N",
        help="End after N evaluations without a better loss. Default: never.")] = None


@dataclass
class Each:
    rate: Annotated[float | None, option(STEP, "--rate", "--lr", metavar="X",
        help="Peak learning rate. Default: 2e-4; full 2e-5; from preferences a fortieth; small models ten times that.",
        )] = None
    schedule: Annotated[str | None, option(STEP, "--schedule", metavar="cosine|linear|constant",
        help="How the rate falls after the warm-up. Default: cosine.")] = None
    warmup: Annotated[float | None, option(STEP, "--warmup", metavar="N|SHARE",
        help="Steps, or the share of them, in which the rate rises. Default: 0.1.")] = None
    floor: Annotated[float | None, option(STEP, "--floor", metavar="SHARE",
        help="The share of the peak at which the rate ends. Default: 0.")] = None
    batch: Annotated[str | None, option(STEP, "--batch", metavar="N|Nt",
        help="What a step learns from: rows (16) or tokens (4096t). Default: 16.")] = None
    memory: Annotated[str | None, option(STEP, "--memory", metavar="16g",
        help="The most memory that a process may take: what it will need is computed before it begins, micro-batch and "
             "checkpointing are chosen so that it fits, and where nothing does it says so with numbers. Default: nine "
             "tenths of what is free; of several processes on a machine, each gets its part.")] = None
    micro: Annotated[int | None, option(STEP, "--micro", metavar="TOKENS",
        help="What is computed at once. Fewer take less memory and come to the same. Default: as --memory allows.",
        )] = None
    noise: Annotated[float | None, option(STEP, "--noise", metavar="X",
        help="NEFTune: noise on the embeddings, usually 5. Default: none.")] = None
    ratio: Annotated[float | None, option(STEP, "--ratio", metavar="X",
        help="LoRA+: B learns so many times as fast as A, usually 16. Default: 1.")] = None
    decay: Annotated[float | None, option(STEP, "--decay", metavar="X",
        help="Weight decay of AdamW. Default: 0.")] = None
    clip: Annotated[float | None, option(STEP, "--clip", metavar="X",
        help="The longest that a step's gradient may be. Default: 1.")] = None
    bits: Annotated[int | None, option(STEP, "--optimiser-bits", metavar="32|8",
        help="Of the optimiser's averages: 8 take a quarter of the memory. Default: 32; full and not small: 8.",
        )] = None
    checkpointing: Annotated[str | None, option(STEP, "--checkpointing", metavar="on|off",
        help="Forget what happened inside the layers and compute it again: less memory, a third more time. Default: as "
             "--memory needs it.")] = None


@dataclass
class Seen:
    out: Annotated[Path | None, option(KEPT, "--out", "-o", metavar="FOLDER",
        help="The run folder: adapter, card, metrics, checkpoints. Default: runs/ and the name of the data.")] = None
    resume: Annotated[Path | None, option(KEPT, "--resume", metavar="FOLDER",
        help="Go on with a run, exactly as if it had not stopped. What is not as it was (model, data, options, "
             "versions) is named and refused.")] = None
    look: Annotated[bool, option(KEPT, "--look",
        help="Show the exact tokens of five rows, with those that are learnt marked, and train nothing; with --out "
             "also as a page, look.html.")] = False
    eval_every: Annotated[int | None, option(KEPT, "--eval-every", metavar="N",
        help="Steps between two looks at the held-out rows. Default: ten in a run.")] = None
    save_every: Annotated[int | None, option(KEPT, "--save-every", metavar="N",
        help="Steps between two checkpoints. Default: at every evaluation, and every five minutes.")] = None
    samples: Annotated[int | None, option(KEPT, "--samples", metavar="N",
        help="Held-out prompts that are answered before and after, in samples.md. Default: 3.")] = None
    seed: Annotated[int | None, option(KEPT, "--seed", metavar="N",
        help="Order of the rows, beginning of the adapter, noise: same seed, same result. Default: 0.")] = None
    device: Annotated[str | None, option(KEPT, "--device", metavar="NAME",
        help="cpu, cuda, cuda:1. Default: cpu.")] = None
    threads: Annotated[int | None, option(KEPT, "--threads", "-t", metavar="N",
        help="Processor threads. Default: one per core.")] = None
    json: Annotated[bool, option(KEPT, "--json", help="Print the run's card as one line of JSON at the end.")] = False
    quiet: Annotated[bool, option(KEPT, "--quiet", "-q", help="Nothing on stderr but errors.")] = False
    # fmt: on


def asked(way: Way, rows: Rows, length: Length, step: Each, seen: Seen) -> dict[str, Any]:
    """What was given, under the names of `Job` and `Settings`."""
    from ..tune.budget import seconds
    from ..tune.memory import read_size

    given: dict[str, Any] = {}
    for group in (way, rows, length, step, seen):
        found = {f.name: getattr(group, f.name) for f in fields(group)}
        given |= {name: value for name, value in found.items() if value is not None and value is not False}
    for name in ("out", "resume", "look", "json", "quiet"):
        given.pop(name, None)
    flags = ("from_scratch", "scratch", True), ("cut", "long", "cut"), ("no_eos", "append_eos", False)
    for name, own, value in flags:
        if given.pop(name, None):
            given[own] = value
    readers: Mapping[str, Callable[[str], Any]] = {
        "budget": seconds, "held_out": _held_out, "targets": lambda text: tuple(text.split(",")),
        "base": lambda text: text.replace("as-is", "as it is"), "checkpointing": _switch, "memory": read_size,
    }  # fmt: skip
    for name, read in readers.items():
        if name in given:
            given[name] = read(given[name])
    if "format" in given:
        given["chat"] = given.pop("format")
    if given.get("scratch"):
        given.setdefault("method", "full")
    return given


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise RequestError(f"--checkpointing is {text!r}, expected on or off")
    return text == "on"


def _held_out(text: str) -> float | tuple[str, ...]:
    try:
        return float(text)
    except ValueError:
        return tuple(text.split(","))
