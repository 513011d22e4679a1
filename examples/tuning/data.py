"""The rows of the example, from the data sets that README.md names.

feelings.jsonl, feelings-test.jsonl          a situation -> how one feels in it, in one of six words
instructions.jsonl, instructions-test.jsonl  small instructions, half of them answered politely and half rudely
pairs.jsonl, pairs-test.jsonl                the same instructions with both answers, the polite one and the rude one
replay.jsonl                                 stories that puff was made of, against forgetting
stories.txt                                  stories that it never saw: what it forgets shows there
calibration.txt                              other stories and rows as they are asked: what quantising looks at
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

PUFF = Path(__file__).resolve().parents[1] / "puff" / "data.py"  # knows which stories puff was not trained on
FEELINGS = {"anger": "Angry.", "disgust": "Disgusted.", "fear": "Scared.", "happiness": "Happy.", "sadness": "Sad.",
            "surprise": "Surprised."}  # fmt: skip
REPLAY = 400  # stories
Row = dict[str, Any]


def make(data: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    rows = feelings(data / "representation_engineering" / "emotions")
    learnt, test = parted(rows, each=5)
    write(work / "feelings.jsonl", learnt)
    write(work / "feelings-test.jsonl", test)
    answered, pairs = manners(data / "rasbt_instruct")
    asked = {row["prompt"] for row in parted(pairs, each=8)[1]}  # the same ones held out of both lessons
    for name, rows in (("instructions", answered), ("pairs", pairs)):
        write(work / f"{name}.jsonl", [row for row in rows if row["prompt"] not in asked])
        write(work / f"{name}-test.jsonl", [row for row in rows if row["prompt"] in asked])
    told = stories(data)
    write(work / "replay.jsonl", [{"text": story} for story in told["train"][:: len(told["train"]) // REPLAY]][:REPLAY])
    (work / "stories.txt").write_text("\n\n".join(told["test"]), encoding="utf-8")
    spoken = [f"[INST] {row['prompt']} [/INST] {row['completion']}" for row in [*learnt, *answered][::4]]
    (work / "calibration.txt").write_text("\n\n".join([*told["valid"], *spoken]), encoding="utf-8")


def feelings(folder: Path) -> list[Row]:
    return [
        {"prompt": f"{situation} How do you feel?", "completion": said}
        for feeling, said in FEELINGS.items()
        for situation in dict.fromkeys(json.loads((folder / f"{feeling}.json").read_text(encoding="utf-8")))
    ]


def manners(folder: Path) -> tuple[list[Row], list[Row]]:
    """-> (instructions, pairs). Of two answers that differ one is polite; every other instruction gets the other one,
    so that the first lesson leaves something for the second to prefer."""
    answered, pairs = {}, []
    for row in json.loads((folder / "instruction-data.json").read_text(encoding="utf-8")):
        answered[_asked(row)] = row["output"]
    for row in json.loads((folder / "instruction-data-with-preference.json").read_text(encoding="utf-8")):
        if row["chosen"] != row["rejected"]:
            pairs.append({"prompt": _asked(row), "chosen": row["chosen"], "rejected": row["rejected"]})
            answered[_asked(row)] = row["chosen" if len(pairs) % 2 else "rejected"]
    return [{"prompt": prompt, "completion": said} for prompt, said in answered.items()], pairs


def _asked(row: Row) -> str:
    return f"{row['instruction']}\n{row['input']}".strip()


def stories(data: Path) -> dict[str, list[str]]:
    """puff's stories, as its "train", its "valid" and its "test"."""
    puff = _puff()
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for story in puff.stories(data):
        found[puff.part("story", story)].append(story)
    return found


def parted(rows: list[Row], each: int) -> tuple[list[Row], list[Row]]:
    """-> (the others, every `each`-th)."""
    return [row for n, row in enumerate(rows) if n % each], rows[::each]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _puff() -> ModuleType:
    spec = importlib.util.spec_from_file_location("puff_data", PUFF)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
