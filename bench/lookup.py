#!/usr/bin/env python3
"""How much reading ahead saves on texts that people wrote (prompt lookup, src/bise/draft.py).

    python bench/lookup.py --count [--tokenizer FILE]      tokens per step, counted: no model, no clock
    python bench/lookup.py MODEL.gguf [--kinds rewriting,prose] [--tasks 3] [--tokens 128] [--rounds 2]
    python bench/lookup.py MODEL.gguf --own                what a trained model says by itself, greedily

What the model says is given, not sampled: a human's text takes its place. The answers are the same news at an easier
reading level (OneStopEnglish: a human's rewriting of the prompt), functions of HumanEval and MBPP with one thing
changed, answers of people to questions about a text (Dolly), and, where nothing should be lost, books and children's
stories. Each step costs what it costs on MODEL, whatever its weights say. So what is measured is how often real text
repeats itself and what reading ahead costs, not what a trained model would have written; for that there is --own.

The texts are read from ../shared/data beside the checkout. --count wants a SentencePiece tokenizer.model, by default
Mistral's own from the mistral-common package. Timing is done in turns, without and with guesses, A B A B, after the
prompt has been read; it prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from gzip import decompress
from pathlib import Path

import bise
from bise.chat import ChatFormat
from bise.draft import Draft
from bise.engine import ROWS, Engine, Request
from bise.sampler import Sampler, Sampling
from bise.tokenizer import Tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ROW = 0.03  # of a step, what one more row adds to it: for --count, which has no clock
PROMPT, ANSWER = 600, 600  # words of a book


@dataclass
class Task:
    """What a user asks (text, or "" for a text that is simply continued), what there is before, what comes of it."""

    name: str
    asked: str
    answer: str


# --- the texts


def rewriting() -> Iterator[Task]:
    """Advanced -> intermediate and intermediate -> elementary: what a teacher made of a newspaper's article."""
    with tarfile.open(DATA / "onestop_english" / "onestop_texts.tar.gz") as tar:
        texts = {Path(m.name).name: tar.extractfile(m).read().decode("utf-8-sig", "replace")  # type: ignore[union-attr]
                 for m in tar.getmembers() if m.name.endswith(".txt")}  # fmt: skip
    for name in sorted(n for n in texts if n.endswith("-adv.txt")):
        for harder, easier in (("adv", "int"), ("int", "ele")):
            pair = [texts.get(name.replace("-adv", f"-{level}")) for level in (harder, easier)]
            if all(pair):
                before, after = (_clean(t) for t in pair if t)
                yield Task(name, f"Rewrite this article in simpler English.\n\n{before}", after)


def editing() -> Iterator[Task]:
    """A function, and the same function with a name changed, or with a line added. The edits are made here."""
    chance = random.Random(0)
    for name, code in _functions():
        names = [n for n in re.findall(r"\b[a-z_]\w{2,}(?=\s*(?:=[^=]|,|\)|:))", code) if n not in KEYWORDS]
        lines = code.split("\n")
        if len(lines) < 6 or not names:
            continue
        old = chance.choice(names)
        yield Task(
            name, f"Rename {old} to new_{old} in this function:\n\n{code}", re.sub(rf"\b{old}\b", f"new_{old}", code)
        )
        at = chance.randrange(len(lines) // 2, len(lines))
        indent = re.match(r"\s*", lines[at])[0]  # type: ignore[index]
        added = [*lines[:at], f'{indent}print("here", {old})', *lines[at:]]
        yield Task(name, f"Print {old} before line {at + 1} of this function:\n\n{code}", "\n".join(added))


KEYWORDS = {"None", "True", "False", "return", "else", "lambda", "self", "and", "not", "for", "int", "str", "len"}


def _functions() -> Iterator[tuple[str, str]]:
    for line in _unzip(DATA / "humaneval" / "HumanEval.first40.jsonl.gz").splitlines():
        task = json.loads(line)
        yield task["task_id"], (task["prompt"] + task["canonical_solution"]).strip()
    for line in (DATA / "mbpp" / "mbpp.dev.jsonl").read_text().splitlines()[:160]:
        task = json.loads(line)
        yield f"mbpp/{task['task_id']}", task["code"].replace("\r\n", "\n").replace("\t", "    ").strip()


def answering() -> Iterator[Task]:
    """Questions about a text, and summaries of one; people answered, some of them by quoting."""
    for number, line in enumerate((DATA / "dolly_hhrlhf" / "dolly_hhrlhf_train_small.jsonl").read_text().splitlines()):
        task = json.loads(line)
        asked = task["prompt"].partition("### Instruction:\n")[2].removesuffix("\n\n### Response:\n")
        if len(asked) > 1000 and len(task["response"]) > 150:
            yield Task(f"dolly/{number}", asked, task["response"])


def prose() -> Iterator[Task]:
    """Books, continued from somewhere in the middle, and whole stories for children."""
    for path in sorted((DATA / "gutenberg").glob("*.txt.gz")):
        words = _unzip(path).split(" ")
        for at in (len(words) // 3, len(words) // 2):
            yield Task(path.name, " ".join(words[at - PROMPT : at]), " ".join(words[at : at + ANSWER]))
    stories = _unzip(DATA / "tinystories" / "gusjengis_2MiB_endoftext.txt.gz").split("<|endoftext|>")
    for number, story in enumerate(s.strip() for s in stories[:60] if len(s) > 400):
        yield Task(f"story/{number}", "Tell me a story.", story)


KINDS: dict[str, Callable[[], Iterator[Task]]] = {
    "rewriting": rewriting, "editing": editing, "answering": answering, "prose": prose,
}  # fmt: skip


def _clean(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line and line not in ("Advanced", "Intermediate", "Elementary"))


def _unzip(path: Path) -> str:
    return decompress(path.read_bytes()).decode(errors="replace").replace("\r\n", "\n")


def encode(task: Task, format: ChatFormat) -> tuple[list[int], list[int]]:
    """(prompt, answer) in a model's own tokens."""
    prompt = format.encode([{"role": "user", "content": task.asked}])
    return prompt, format.tokenizer.encode(task.answer)


# --- counting


def count(prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, int, int]:
    """-> steps after the first token, guesses, right guesses."""
    draft, at, steps, made, came = Draft([*prompt, answer[0]]), 1, 0, 0, 0
    while at < len(answer):
        guesses = draft.guess(min(ROWS - 1, len(answer) - at - 1))
        right = 0
        while right < len(guesses) and guesses[right] == answer[at + right]:
            right += 1
        draft.extend(answer[at : at + right + 1])
        if guesses:
            draft.judge(right)
        at, steps, made, came = at + right + 1, steps + 1, made + len(guesses), came + right
    return steps, made, came


def count_all(format: ChatFormat, kinds: Sequence[str]) -> None:
    print(f"{'':10} {'tasks':>6} {'tokens':>8} {'tokens/step':>12} {'right':>7} {'worst':>8} {'quicker':>8}")
    for kind in kinds:
        pairs = [encode(task, format) for task in KINDS[kind]()]
        tokens = [len(answer) - 1 for _, answer in pairs]
        counted = [count(*pair) for pair in pairs]
        cost = [steps + ROW * made for steps, made, _ in counted]
        steps, made, came = map(sum, zip(*counted, strict=True))
        worst = min(n / c for n, c in zip(tokens, cost, strict=True))
        print(f"{kind:10} {len(pairs):6} {sum(tokens):8,} {sum(tokens) / steps:12.2f} {came / max(1, made):7.0%}"
              f" {worst:10.2f}x {sum(tokens) / sum(cost):7.2f}x")  # fmt: skip
    print(f"quicker: if each row that is read ahead costs {ROW:.0%} of a step")


# --- timing


class Said:
    """A sampler that says a given text. It takes its time: the logits are looked at as greedy sampling does."""

    def __init__(self, vocab_size: int, prompt: Sequence[int], answer: Sequence[int]) -> None:
        self.vocab_size, self._text = vocab_size, [*prompt, *answer]
        self._greedy = Sampler(Sampling(), vocab_size)

    def sample(self, logits: object, history: Sequence[int] = ()) -> tuple[int, float]:
        self._greedy.sample(logits)  # type: ignore[arg-type]
        return self._text[len(history)], 0.0


def turn(
    engine: Engine, prompt: list[int], sampler: Sampler, tokens: int, lookup: bool
) -> tuple[float, int, list[int]]:
    """-> seconds and steps after the first token, and the tokens."""
    engine.lookup = lookup
    request = Request(prompt, sampler, tokens)
    engine.submit(request)
    while not request.tokens:
        engine.step()
    started, steps = time.perf_counter(), 0
    while engine.running:
        engine.step()
        steps += 1
    return time.perf_counter() - started, steps, request.tokens


def compare(model: bise.Model, kind: str, arguments: argparse.Namespace) -> dict[str, object]:
    """A kind's tasks, taken evenly from all of them, in turns."""
    engine, format = model.engine(), ChatFormat.named("v1", model.tokenizer)
    pairs = [encode(task, format) for task in KINDS[kind]()]
    pairs = [(p, a) for p, a in pairs if len(p) + arguments.tokens < model.context and len(a) >= arguments.tokens]
    pairs = pairs[:: max(1, len(pairs) // arguments.tasks)][: arguments.tasks]
    ratios, tokens, steps, seconds = [], 0, 0, {False: 0.0, True: 0.0}
    for prompt, answer in pairs:
        for _ in range(arguments.rounds):
            texts, took = [], []
            for lookup in (False, True):
                own = Sampler(Sampling(), model.vocab_size)
                given: Sampler = own if arguments.own else Said(model.vocab_size, prompt, answer)  # type: ignore[assignment]
                took.append(turn(engine, prompt, given, arguments.tokens, lookup))
                texts.append(took[-1][2])
                seconds[lookup] += took[-1][0]
            assert texts[0] == texts[1], "guesses changed the text"
            ratios.append(took[0][0] / took[1][0])
            tokens, steps = tokens + len(texts[1]) - 1, steps + took[1][1]
    return {
        "kind": kind, "tasks": len(pairs), "plain": tokens / seconds[False], "ahead": tokens / seconds[True],
        "tokens_per_step": tokens / steps, "quicker": statistics.median(ratios),
        "quicker_in_all": seconds[False] / seconds[True], "least": min(ratios), "most": max(ratios),
    }  # fmt: skip


def time_all(arguments: argparse.Namespace) -> None:
    model = bise.load(arguments.model, threads=arguments.threads, context=arguments.context)
    print(f"{'':10} {'tasks':>6} {'plain t/s':>10} {'ahead t/s':>10} {'tokens/step':>12} {'quicker':>8}   least - most")
    rows = []
    for kind in arguments.kinds:
        rows.append(row := compare(model, kind, arguments))
        print(f"{kind:10} {row['tasks']:6} {row['plain']:10.2f} {row['ahead']:10.2f} {row['tokens_per_step']:12.2f}"
              f" {row['quicker_in_all']:7.2f}x   {row['least']:.2f} - {row['most']:.2f}", flush=True)  # fmt: skip
    print(json.dumps({"model": model.path.name, "own": arguments.own, "tokens": arguments.tokens, "rows": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--tokenizer")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    for name, value in (("tasks", 3), ("tokens", 128), ("rounds", 2), ("context", 4096), ("threads", None)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    if not DATA.is_dir() or not set(arguments.kinds) <= set(KINDS):
        sys.exit(f"kinds are {', '.join(KINDS)}, and their texts lie in {DATA}")
    if arguments.count:
        file = arguments.tokenizer or mistral_tokenizer()
        count_all(ChatFormat.named("v1", Tokenizer.from_file(file)), arguments.kinds)
    else:
        time_all(arguments)


def mistral_tokenizer() -> Path:
    """tokenizer.model.v1 of the mistral-common package."""
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        sys.exit("--count needs mistral-common, or --tokenizer FILE")
    return Path(found.origin).parent / "data" / "tokenizer.model.v1"


if __name__ == "__main__":
    main()
