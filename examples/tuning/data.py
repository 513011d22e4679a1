"""The rows of the example, from the data sets that README.md names.

sql.jsonl, sql-test.jsonl            questions about a table's columns and the SQL that answers them (WikiSQL)
instructions.jsonl                   small instructions: rewrite this, name that
pairs.jsonl, pairs-test.jsonl        the same kind of instructions, answered politely and not
stories.txt                          what the model must not forget: stories that it was never trained on
calibration.txt                      other stories, and questions with their queries: what quantising looks at
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PUFF = Path(__file__).resolve().parents[1] / "puff" / "data.py"  # knows which stories puff was not trained on
REPLAY = 400  # stories
Rows = list[dict[str, Any]]


def make(data: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for name, found in (("sql", "train"), ("sql-test", "valid")):
        write(work / f"{name}.jsonl", sql(data / "mlx_lora_wikisql" / f"{found}.jsonl"))
    folder = data / "rasbt_instruct"
    write(work / "instructions.jsonl", json.loads((folder / "instruction-data.json").read_text()))
    rows = pairs(json.loads((folder / "instruction-data-with-preference.json").read_text()))
    write(work / "pairs.jsonl", kept(rows, lambda n: n % 8 != 0))
    write(work / "pairs-test.jsonl", kept(rows, lambda n: n % 8 == 0))
    told = stories(data)
    write(work / "replay.jsonl", [{"text": story} for story in told["train"][:REPLAY]])
    (work / "stories.txt").write_text("\n\n".join(told["test"]), encoding="utf-8")
    asked = [" ".join(m["content"] for m in row["messages"]) for row in read(work / "sql.jsonl")]
    (work / "calibration.txt").write_text("\n\n".join([*told["valid"], *asked[::4]]), encoding="utf-8")


def sql(path: Path) -> Rows:
    """A table, its columns and a question -> a query."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    halves = [text.split("\nA: ") for text in texts]
    return [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in halves]  # fmt: skip


def pairs(rows: Rows) -> Rows:
    """Those whose two answers differ."""
    return [{"prompt": f"{row['instruction']}\n{row['input']}".strip(), "chosen": row["chosen"],
             "rejected": row["rejected"]} for row in rows if row["chosen"] != row["rejected"]]  # fmt: skip


def stories(data: Path) -> dict[str, list[str]]:
    """puff's stories, as its "train", its "valid" and its "test"."""
    puff = _puff()
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for story in puff.stories(data):
        found[puff.part("story", story)].append(story)
    return found


def kept(rows: Rows, wanted: Callable[[int], bool]) -> Rows:
    return [row for n, row in enumerate(rows) if wanted(n)]


def write(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _puff() -> ModuleType:
    spec = importlib.util.spec_from_file_location("puff_data", PUFF)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
