"""A model is taught, corrected, served, merged and quantised, and sits the same exam after every step.

    python examples/tuning/run.py [--data ../shared/data] [--work WORK] [--quick]

Each step is a command of bise, printed before it runs; scores.py says what is asked. What is done is not done again:
called a second time it goes on where it stopped, in the middle of a training too. results.json has all figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data
import scores
import served

import bise
from bise import machine
from bise.disk import replacing

HERE = Path(__file__).resolve().parent
HEADS = {"feelings": "{:.1%}", "instructions": "{:.1f}", "polite": "{:.1%}", "rude": "{:.1%}", "margin": "{:+.2f}",
         "stories": "{:.2f}"}  # fmt: skip
LESSON = "tune feelings.jsonl:8 instructions.jsonl replay.jsonl --out lesson --epochs 1 --rank 64 --rate 3e-3"
MANNERS = "tune taught.gguf pairs.jsonl --objective dpo --out manners --rate 5e-4"
Facts = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """command: of bise; makes: a file or a run folder; model and adapter: who sits the exam. A step that serves is the
    exam itself."""

    name: str
    command: str = ""
    makes: str = ""
    model: str | None = None
    adapter: str | None = None


STEPS = (
    Step("puff as it is"),
    Step("taught: an adapter beside it", LESSON, "lesson", None, "lesson/adapter"),
    Step("merged", "merge adapter {puff} lesson/adapter taught.gguf --type f16", "taught.gguf", "taught.gguf"),
    Step("with manners: another adapter", MANNERS, "manners", "taught.gguf", "manners/adapter"),
    Step("the same, served", "serve taught.gguf --adapter manners=manners/adapter"),
    Step("merged again", "merge adapter taught.gguf manners/adapter polite.gguf --type f16", "polite.gguf",
         "polite.gguf"),
    Step("in 4 bits", "quantize polite.gguf small.gguf --type Q4_K_M --compensate calibration.txt", "small.gguf",
         "small.gguf"),
)  # fmt: skip
QUICK = {"lesson": " --steps 100", "manners": " --steps 30"}  # in place of --epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data", help="see README.md")
    parser.add_argument("--work", type=Path, help="where everything is made; default: tuning, or tuning-quick")
    parser.add_argument("--quick", action="store_true", help="a fifth of the first lesson, a third of the exam")
    args = parser.parse_args()
    work = args.work or Path("tuning-quick" if args.quick else "tuning")
    if not args.data.is_dir():
        sys.exit(f"{args.data} is not here: README.md says which data sets belong into it; --data names another folder")
    data.make(args.data, work)
    os.chdir(work)
    course = Course(scores.Exam(Path(), each=3 if args.quick else 1), args.quick)
    try:
        for step in STEPS:
            course.take(step)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    course.close()


class Course:
    """The steps, one after the other. results.json: what has been done, each step under a key that the commands and
    rows before it go into, so that a change makes everything after it be done again."""

    def __init__(self, exam: scores.Exam, quick: bool) -> None:
        self.exam, self.quick, self.path = exam, quick, Path("results.json")
        self.key = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path().glob("*.jsonl")))).hexdigest()
        self.before: list[Facts] = json.loads(self.path.read_text())["steps"] if self.path.exists() else []
        self.steps: list[Facts] = []
        self.load = round(os.getloadavg()[0], 1)  # of others, before it begins

    def take(self, step: Step) -> None:
        command = quick(step) if self.quick else step.command
        self.key = hashlib.sha256(f"{self.key} {step.name} {command} {self.exam.each}".encode()).hexdigest()
        known = next((facts for facts in self.before if facts["key"] == self.key), None)
        if known and "scores" in known and Path(step.makes).exists():
            self.steps.append(known)
            return print(f"\n{step.name}: done before\n  {shown(known['scores'])}", flush=True)
        facts: Facts = {"name": step.name, "command": command, "key": self.key}
        print(f"\n{step.name}", flush=True)
        started = time.monotonic()
        self.note(facts)  # that it has been begun
        if step.makes:
            make(command, Path(step.makes), begun=known is not None)
        facts |= self.served(command) if command.startswith("serve") else self.examined(step)
        if "--objective dpo" in command:
            facts["rewarded"] = self.rewarded(facts["margins"])
        facts["seconds"] = round(time.monotonic() - started)
        self.note(facts)
        self.steps.append(facts)
        print(f"  {facts['seconds']} s; {shown(facts['scores'])}", flush=True)

    def examined(self, step: Step) -> Facts:
        model = bise.load(step.model, adapter=step.adapter) if step.model else bise.load(adapter=step.adapter)
        ask = scores.asking(model)
        answers = [ask(*prompt) for prompt in self.exam.prompts]
        margins = self.exam.margins(model)
        found = {**self.exam.said(answers), **self.exam.likely(model), "margin": scores.mean(margins)}
        return {"scores": found, "answers": answers, "margins": margins}

    def served(self, command: str) -> Facts:
        """The adapter by name, over HTTP, many at once: it has to say what this process said."""
        print(f"$ bise {command}", flush=True)
        with served.server(command, "manners") as ask:
            answers = served.together(ask, self.exam.prompts)
        same = sum(a == b for a, b in zip(answers, self.steps[-1]["answers"], strict=True))
        print(f"  {same} of {len(answers)} answers are those of this process", flush=True)
        if same < len(answers):
            sys.exit("the server says something else")
        return {"scores": self.exam.said(answers), "answers": answers, "same": same, "of": len(answers)}

    def rewarded(self, margins: list[float]) -> float:
        """The accuracy of DPO's implicit reward (Rafailov et al. 2023, section 4): in how many held-out pairs the
        polite answer has gained on the rude one, seen from the model of the step before, the reference."""
        gained = [now > then for now, then in zip(margins, self.steps[-1]["margins"], strict=True)]
        print(f"  {sum(gained)} of {len(gained)} held-out pairs are rewarded as they should be", flush=True)
        return scores.mean(gained)

    def note(self, facts: Facts) -> None:
        kept = {"processor": machine.processor(), "cores": machine.cores(), "load": self.load, "quick": self.quick,
                "asked": [prompt for prompt, _ in self.exam.prompts]}  # fmt: skip
        with replacing(self.path) as file:
            file.write(json.dumps({**kept, "steps": [*self.steps, facts]}, indent=1, ensure_ascii=False).encode())

    def close(self) -> None:
        print("\n" + table(self.steps))
        print(f"\n{sum(facts['seconds'] for facts in self.steps)} s; {self.path.resolve()} has it all")


def quick(step: Step) -> str:
    return step.command.replace(" --epochs 1", "") + QUICK.get(step.makes, "")


def make(command: str, made: Path, begun: bool) -> None:
    """One command of bise; its result is on disk. begun: by the same command, which may have been stopped."""
    if begun and (made / "run.json").exists():
        command = f"tune --resume {made}"
    elif made.is_dir():
        shutil.rmtree(made)
    else:
        made.unlink(missing_ok=True)
    print(f"$ bise {command.format(puff='puff.gguf')}", flush=True)
    words = shlex.split(command.format(puff=bise.api.BUILT_IN))
    process, code = subprocess.Popen([sys.executable, "-m", "bise", *words], stdout=subprocess.DEVNULL), None
    while code is None:
        with suppress(KeyboardInterrupt):  # the command has had it too, and writes a checkpoint
            code = process.wait()
    if code:
        sys.exit(code)


def shown(found: scores.Scores) -> str:
    return "   ".join(f"{name} {form.format(found[name])}" for name, form in HEADS.items() if name in found)


def table(steps: list[Facts]) -> str:
    """In Markdown."""
    lines = [["after", *HEADS], ["---", *["---:"] * len(HEADS)]]
    for facts in steps:
        found = facts["scores"]
        lines.append(
            [facts["name"], *(form.format(found[name]) if name in found else "" for name, form in HEADS.items())]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
