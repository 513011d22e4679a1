"""What a model can do, asked the same way after every step.

sql      of held-out questions about tables, how many queries come out right to the letter
polite   of held-out pairs of answers, how often the polite one is the likelier, per token
stories  perplexity of stories that the model was never trained on: what it has forgotten shows here
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data import Rows, read

import bise
from bise.score import Perplexity

QUERY = re.compile(r"SELECT ((COUNT|MAX|MIN|SUM|AVG) )?(?P<what>.+) FROM (?P<table>\S+) WHERE (?P<where>.+?) [=<>] .+")
CHUNK = 256  # tokens of stories that are read at once
Answer = Callable[[str], str]  # question -> what the model says to it, with the likeliest token every time


@dataclass(frozen=True)
class Scores:
    sql: float
    polite: float
    stories: float

    def __str__(self) -> str:
        return f"SQL {self.sql:5.1%}   polite {self.polite:5.1%}   stories {self.stories:6.2f}"


def of(model: bise.Model, work: Path) -> Scores:
    return Scores(
        sql(lambda question: says(model, question), read(work / "sql-test.jsonl")),
        polite(model, read(work / "pairs-test.jsonl")),
        stories(model, (work / "stories.txt").read_text(encoding="utf-8")),
    )


def says(model: bise.Model, question: str) -> str:
    return model.chat([{"role": "user", "content": question}], max_tokens=100, temperature=0).text


def sql(answer: Answer, rows: Rows) -> float:
    questions = [row["messages"][0]["content"] for row in rows]
    return float(np.mean([could_run(answer(question).strip(), question) for question in questions]))


def could_run(query: str, question: str) -> bool:
    """A question's first lines are `table: NAME` and `columns: A, B, C`."""
    table, columns, _ = (line.partition(": ")[2] for line in question.split("\n"))
    found = QUERY.fullmatch(query)
    return found is not None and found["table"] == table and {found["what"], found["where"]} <= set(columns.split(", "))


def polite(model: bise.Model, rows: Rows) -> float:
    better = [
        likely(model, row["prompt"], row["chosen"]) > likely(model, row["prompt"], row["rejected"]) for row in rows
    ]
    return float(np.mean(better))


def likely(model: bise.Model, prompt: str, answer: str) -> float:
    """Mean log-probability of the answer's tokens."""
    asked = model.chat_format.encode([{"role": "user", "content": prompt}])
    ids = np.array([*asked, *model.tokenizer.encode(answer)])
    seen = Perplexity()
    seen.add(model.logits(ids.tolist())[len(asked) - 1 : -1], ids[len(asked) :])
    return -seen.loss.value


def stories(model: bise.Model, text: str) -> float:
    ids, seen = np.array(model.tokenizer.encode(text)), Perplexity()
    for at in range(0, len(ids) - CHUNK, CHUNK):
        chunk = np.concatenate([[model.tokenizer.bos], ids[at : at + CHUNK]])
        seen.add(model.logits(chunk.tolist())[:-1], chunk[1:])
    return seen.perplexity.value
