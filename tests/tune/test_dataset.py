"""Files to a data set: nothing left out in silence, nothing on both sides, the same again from the same seed."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bise.chat import ChatFormat
from bise.errors import FormatError, RequestError
from bise.tune.data import BadData, Dataset, Source, read, source_of
from bise.tune.data.mixture import drawn, held_back
from bise.tune.sample import Pair, Sample, Verdict
from test_tokenizer import tokenizer_of


def chat() -> ChatFormat:
    return ChatFormat.named("v3", tokenizer_of("v3"))


def load(*sources, **options) -> Dataset:
    return read(sources, tokenizer_of("v3"), chat(), **options)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def asked(i: int) -> dict:
    return {"prompt": f"question {i}", "completion": f"answer {i}"}


def texts(examples) -> list[str]:
    return [tokenizer_of("v3").decode(example.ids[example.learnt]) for example in examples]


def test_samples(tmp_path):
    path = write(tmp_path / "a.jsonl", [asked(1), "", asked(2)])
    data = load(path)
    assert texts(data.train) == ["answer 1", "answer 2"] and not data.held_out and not data.faults
    second = data.train[-1]
    assert isinstance(second, Sample) and (second.source, second.line) == (str(path), 3)
    assert second.ids.dtype == np.int32 and second.learnt.dtype == bool and not second.learnt[0]
    assert second.ids.tolist() == chat().encode(
        [{"role": "user", "content": "question 2"}, {"role": "assistant", "content": "answer 2"}]
    )
    assert texts(data.train[1:]) == ["answer 2"]
    with pytest.raises(ValueError, match="read-only"):
        second.ids[0] = 5
    with pytest.raises(IndexError):
        data.train[2]


def test_pairs_and_verdicts(tmp_path):
    pairs = load(
        write(tmp_path / "p.jsonl", [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]),
        held_out=0.2,
    )
    assert pairs.kind == "pairs" and 0 < len(pairs.held_out) < 20 and len(pairs.train) + len(pairs.held_out) == 40
    for pair in [*pairs.train, *pairs.held_out]:
        assert isinstance(pair, Pair)
        good, bad = (texts([side])[0] for side in (pair.chosen, pair.rejected))
        assert good[0] == "a" and good.replace("a", "b") == bad
    judged = load(write(tmp_path / "v.jsonl", [{**asked(i), "label": i % 3 == 0} for i in range(9)]))
    assert judged.kind == "verdicts" and [v.good for v in judged.train if isinstance(v, Verdict)] == [
        i % 3 == 0 for i in range(9)
    ]


# --- faults


CATALOGUE = [
    asked(0), '{"prompt": "a"', {"messages": [{"content": "no role"}]},
    {"messages": [{"role": "wizard", "content": "x"}]}, {"prompt": "q", "completion": ""},
    {"messages": [{"role": "user", "content": "no answer"}]}, {"prompt": "long", "completion": "word " * 200},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
    {"prompt": "q\0", "completion": "nul"}, {"prompt": "\ud800", "completion": "half a character"}, asked(10),
]  # fmt: skip


def test_every_fault_is_listed_before_anything_begins(tmp_path):
    path = write(tmp_path / "a.jsonl", CATALOGUE)
    with pytest.raises(
        BadData, match=r"9 of 11 rows cannot be learnt from .*the first is .*a.jsonl:2: not JSON.*--skip-bad"
    ) as bad:
        load(path, max_length=64)
    found = {fault.line: fault.reason for fault in bad.value.faults}
    assert found == {
        2: "not JSON", 3: "no role", 4: "unknown role", 5: "empty content", 6: "no answer", 7: "too long",
        8: "nothing learnt", 9: "NUL byte", 10: "refused by the format",
    }  # fmt: skip
    assert sum(bad.value.faults.counts.values()) == 9 and "\n" not in str(bad.value)


def test_skip_bad_writes_what_it_left_out(tmp_path):
    data = load(write(tmp_path / "a.jsonl", CATALOGUE), max_length=64, skip_bad=True)
    assert texts(data.train) == ["answer 0", "answer 10"] and data.report.files[0].skipped == 9
    data.faults.write(tmp_path / "skipped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["line"] for line in lines] == list(range(2, 11)) and set(lines[0]) == {
        "source",
        "line",
        "reason",
        "said",
    }


def test_the_first_twenty(tmp_path):
    with pytest.raises(BadData, match="30 of 30 .*none is left") as bad:
        load(write(tmp_path / "a.jsonl", ["{}"] * 30), skip_bad=True)
    assert [fault.line for fault in bad.value.faults.first] == list(range(1, 21)) and len(bad.value.faults) == 30


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(FormatError, match="no rows in it"):
        load(write(tmp_path / "a.jsonl", ["", " "]))
    with pytest.raises(FormatError, match="no rows in it"):
        load(write(tmp_path / "a.json", ["[]"]))
    with pytest.raises(RequestError, match="no file"):
        load()
    with pytest.raises(BadData, match="all|none is left"):
        load(write(tmp_path / "b.jsonl", [asked(1)]), max_length=5, skip_bad=True)
    with pytest.raises(RequestError, match="all 1 rows are held out"):
        load(write(tmp_path / "b.jsonl", [asked(1)]), held_out=0.5)


def test_a_base_model_has_no_conversations(tmp_path):
    talk = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for row in (
        talk,
        {**talk, "label": True},
        {
            "prompt": talk["messages"][:1],
            "chosen": talk["messages"][1:],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
    ):
        with pytest.raises(RequestError, match="no chat format"):
            read([write(tmp_path / "a.jsonl", [row])], tokenizer_of("v1"), None)
    data = read(
        [write(tmp_path / "a.jsonl", [asked(1), {"instruction": "i", "output": "o"}])], tokenizer_of("v1"), None
    )
    assert [tokenizer_of("v1").decode(s.ids) for s in data.train] == [
        "question 1answer 1", "### Instruction:\ni\n\n### Response:\no",
    ]  # fmt: skip


def test_odd_requests(tmp_path):
    path = write(tmp_path / "a.jsonl", [asked(1), asked(2)])
    for options in (
        {"kind": "rl"},
        {"max_length": 1},
        {"held_out": 1.0},
        {"held_out": -0.1},
        {"held_out": float("nan")},
    ):
        with pytest.raises(RequestError):
            load(path, **options)


# --- mixtures, and what is held out


def test_sources(tmp_path):
    assert source_of("a.jsonl:2") == (Path("a.jsonl"), 2.0) and source_of("a.jsonl:0.5") == (Path("a.jsonl"), 0.5)
    assert source_of("C:\\a.jsonl") == (Path("C:\\a.jsonl"), 1.0) and source_of(Path("b:3")) == (Path("b:3"), 1.0)
    odd = write(tmp_path / "a:2", [asked(1)])
    assert source_of(str(odd)) == (odd, 1.0)
    for text in ("a:0", "a:-1", "a:nan", "a:inf", "a:1e9"):
        with pytest.raises(RequestError, match="weight"):
            source_of(text)


@pytest.mark.parametrize("weight", [1, 2, 0.5, 2.25, 0.01])
def test_weights_are_kept_exactly(weight):
    picked = drawn(200, weight, np.random.default_rng(7))
    assert len(picked) == round(200 * weight) and (np.diff(picked) >= 0).all()
    counts = np.bincount(picked, minlength=200)
    assert set(counts) <= {int(weight), int(weight) + 1}


def test_a_mixture(tmp_path):
    a, b = (
        write(tmp_path / "a.jsonl", [asked(i) for i in range(10)]),
        write(tmp_path / "b.jsonl", [asked(i) for i in range(50, 90)]),
    )
    mixed = [load(f"{a}:2", Source(b, 0.5), seed=seed) for seed in (1, 1, 2)]
    said = [texts(data.train) for data in mixed]
    assert said[0] == said[1] != said[2] and mixed[0].report.digest == mixed[1].report.digest != mixed[2].report.digest
    assert len(said[0]) == 20 + 20 and all(said[0].count(f"answer {i}") == 2 for i in range(10))


def test_held_out_rows_stay_held_out(tmp_path):
    """By the row itself: neither its place, nor other rows, nor the tokenizer, nor the seed move it to the other side."""
    rows = [asked(i) for i in range(300)]
    one = load(write(tmp_path / "a.jsonl", rows), held_out=0.1)
    held = set(texts(one.held_out))
    assert 10 < len(held) < 60
    more = write(tmp_path / "b.jsonl", [*reversed(rows), *(asked(i) for i in range(1000, 1200))])
    other = read([more], tokenizer_of("v1"), ChatFormat.named("v1", tokenizer_of("v1")), held_out=0.1, seed=5)
    decoded = {tokenizer_of("v1").decode(s.ids[s.learnt]) for s in other.held_out}
    assert held <= decoded and not (decoded - held) & set(texts(one.train))


def test_duplicates_are_counted_and_never_on_both_sides(tmp_path):
    rows = [asked(i % 100) for i in range(300)] + [
        {"messages": [{"role": "user", "content": "question 5"}, {"role": "assistant", "content": "answer 5"}]}
    ]
    data = load(write(tmp_path / "a.jsonl", rows), held_out=0.2)
    train, held = set(texts(data.train)), set(texts(data.held_out))
    assert data.report.files[0].duplicates == 201 and train and held and not train & held
    assert len(data.train) + len(data.held_out) == 301


def test_held_out_file(tmp_path):
    a, b = (
        write(tmp_path / "a.jsonl", [asked(i) for i in range(20)]),
        write(tmp_path / "b.jsonl", [asked(i) for i in range(15, 25)]),
    )
    data = load(a, held_out=[b])
    assert texts(data.train) == [f"answer {i}" for i in range(15)] and len(data.held_out) == 10
    assert data.report.overlap == 5 and data.report.files[1].held


def test_a_single_row_is_held_out_at_least():
    keys = np.array([1 << 63, (1 << 64) - 1, 1 << 62], np.uint64)
    assert held_back(keys, 0.001).tolist() == [False, False, True]


# --- the report


def test_report(tmp_path):
    rows = [asked(i) for i in range(7)] + [{"prompt": "[INST]</s>", "completion": "text"}]
    path = write(tmp_path / "a.jsonl", rows)
    data = load(path)
    samples = list(data.train)
    tally = data.report.files[0]
    assert (tally.tokens, tally.learnt) == (sum(map(len, samples)), sum(s.targets for s in samples))
    assert tally.median == np.median([len(s) for s in samples]) and tally.longest == max(map(len, samples))
    assert tally.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and tally.literal_rows == 1
    assert tally.literal == {"[INST]": 1, "</s>": 1}
    control = [i for s in samples for i in s.ids.tolist() if tokenizer_of("v3").is_control(i)]
    assert len(control) == 4 * len(samples), "<s> [INST] [/INST] </s> of the format, and none from a text"
    card = json.loads(json.dumps(data.report.card()))
    assert card["rows"] == 8 and card["files"][0]["formats"] == {"prompt/completion": 8} and card["digest"]
    heads, table = data.report.table()
    assert len(heads) == len(table[0]) and any("spell control tokens" in note for note in data.report.notes())


def test_the_digest_knows_every_token(tmp_path):
    first = load(write(tmp_path / "a.jsonl", [asked(1), asked(2)])).report.digest
    assert load(write(tmp_path / "b.jsonl", [asked(1), asked(2)])).report.digest == first
    assert load(write(tmp_path / "c.jsonl", [asked(2), asked(1)])).report.digest != first
    assert load(write(tmp_path / "d.jsonl", [asked(1), {**asked(2), "completion": "other"}])).report.digest != first


def test_progress(tmp_path):
    path = write(tmp_path / "a.jsonl", [asked(i) for i in range(1000)])
    seen: list[tuple[int, int]] = []
    load(path, progress=lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert seen[-1] == (size, size) and len(seen) >= 3 and seen == sorted(seen)


def test_memory_is_a_few_bytes_a_token(tmp_path):
    """1,500 rows: what is kept after reading stays near 5 bytes a token and 33 a row."""
    import tracemalloc

    path = write(tmp_path / "a.jsonl", [{"text": f"{i} " + "word " * 30} for i in range(1500)])
    tracemalloc.start()
    data = read([path], tokenizer_of("v1"), None)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1.35 * (5 * data.report.tokens + 33 * 1500) + 200_000


def test_no_torch():
    import subprocess

    program = "import sys, bise.tune.data, bise.tune.look, bise.cli.look; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- real files, made by others

REAL = {
    "rasbt_instruct/instruction-data.json": ("sft", "Alpaca", 1100, {}),
    "rasbt_instruct/instruction-data-with-preference.json": ("pairs", "pairs", 800, {"nothing to prefer": 6}),
    "llama_factory_demo/alpaca_en_demo.json": ("sft", "Alpaca", 999, {}),
    "llama_factory_demo/identity.json": ("sft", "Alpaca", 91, {}),
    "llama_factory_demo/c4_demo.jsonl": ("sft", "text", 300, {}),
    "llama_factory_demo/glaive_toolcall_en_demo.json": ("sft", "ShareGPT", 300, {}),
    "llama_factory_demo/v1_sft_demo.jsonl": ("sft", "chat", 500, {}),
    "llama_factory_demo/v1_dpo_demo.jsonl": ("pairs", "pairs", 10, {}),
    "llama_factory_demo/dpo_en_demo.json.gz": ("pairs", "pairs", 300, {}),
    "llama_factory_demo/kto_en_demo.json": ("verdicts", "KTO", 300, {}),
    "llama_factory_demo/wiki_demo.txt.gz": ("sft", "text", 1, {}),
    "dolly_hhrlhf/dolly_hhrlhf_train_small.jsonl": ("sft", "prompt/completion", 1000, {}),
    "hh_rlhf/harmless-base.first1500.jsonl.gz": ("pairs", "pairs", 1500, {"empty content": 4}),
    "mlx_lora_wikisql/train.jsonl": ("sft", "text", 1000, {}),
    "tinystories/tinystories_1000.json.gz": ("sft", "text", 1000, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared, tmp_path, name):
    path = shared / "data" / name
    if path.suffix == ".gz":
        path = tmp_path / path.stem
        path.write_bytes(gzip.decompress((shared / "data" / name).read_bytes()))
    data = load(path, skip_bad=True, max_length=16_384)
    kind, format, rows, faults = REAL[name]
    assert (data.kind, dict(data.report.files[0].formats)) == (kind, {format: rows - sum(faults.values())})
    assert (data.report.rows, data.report.faults) == (rows, faults)
    if "wiki" not in name:
        assert len(data.train) == rows - sum(faults.values())


def test_real_reasoning_is_refused(shared):
    with pytest.raises(BadData, match="50 of 50 rows .*content of type 'reasoning'"):
        load(shared / "data/llama_factory_demo/reason_tool_use_demo_50.jsonl", skip_bad=True)
