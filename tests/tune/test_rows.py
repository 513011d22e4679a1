"""What a row is, told by its keys: every spelling becomes the same conversation, everything else a named fault."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bise.tune.data.faults import BadRow
from bise.tune.data.rows import Choice, Judged, Talk, Writing, alpaca_text, kind_of, recognise, without_tail

USER, BOT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TALK = [USER, BOT]


def talk(value, kind=None) -> Talk:
    row = recognise(value, kind or kind_of(value), chat=True).row
    return row


@pytest.mark.parametrize(("value", "format"), [
    ({"messages": TALK}, "chat"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, BOT]}, "chat"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "value": "Q"}], "loss_weight": 0.0}, {**BOT, "loss_weight": 1.0}]}, "chat"),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": ""}, "ShareGPT"),
    ({"messages": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]}, "chat"),
    ({"instruction": "Q", "input": "", "output": "A"}, "Alpaca"),
    ({"instruction": "Q", "context": None, "response": "A", "category": "qa"}, "Alpaca"),
    ({"prompt": "Q", "completion": "A"}, "prompt/completion"),
    ({"prompt": "Q", "response": "A"}, "prompt/completion"),
    ({"question": "Q", "answer": "A"}, "prompt/completion"),
    ({"prompt": [USER], "completion": [BOT]}, "prompt/completion"),
])  # fmt: skip
def test_one_conversation_in_many_spellings(value, format):
    known = recognise(value, kind_of(value), chat=True)
    assert known.format == format and known.kind == "sft"
    assert (known.row.messages, known.row.learnt, known.row.tools) == (TALK, [False, True], None)


def test_alpaca_with_everything():
    value = {"instruction": "Q", "input": "I", "output": "A", "system": "S", "history": [["q", "a"]]}
    assert [m["content"] for m in talk(value).messages] == ["S", "q", "a", "Q\n\nI", "A"]
    written = recognise(value, "sft", chat=False).row
    assert written == Writing(alpaca_text("Q", "I", "S", [("q", "a")]), "A")
    assert written.prompt == (
        "S\n\n### Instruction:\nq\n\n### Response:\na\n\n### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\n"
    )


def test_texts_and_completions_of_a_base_model():
    assert recognise({"text": "T"}, "sft", chat=True).row == recognise("T", "sft", chat=False).row == Writing("", "T")
    assert recognise({"prompt": "P ", "completion": "C"}, "sft", chat=False).row == Writing("P ", "C")
    assert recognise({"text": "T", "label": 3}, kind_of({"text": "T", "label": 3}), chat=False).format == "text"


def test_calls_and_results_of_sharegpt():
    call = {"name": "find", "arguments": {"x": 1}}
    found = talk({
        "conversations": [
            {"from": "human", "value": "Q"}, {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "42"}, {"from": "gpt", "value": "A"},
        ], "tools": json.dumps([{"name": "find", "description": "", "parameters": {}}]),
    })  # fmt: skip
    (made,) = found.messages[1]["tool_calls"]
    assert made["function"] == {"name": "find", "arguments": '{"x": 1}'} and len(made["id"]) == 9
    assert found.messages[2] == {"role": "tool", "content": "42", "tool_call_id": made["id"]}
    assert found.learnt == [False, True, False, True]
    assert found.tools == [{"type": "function", "function": {"name": "find", "description": "", "parameters": {}}}]


@pytest.mark.parametrize("key", ["weight", "train", "loss_weight"])
def test_weights(key):
    messages = [USER, {**BOT, key: 0}, USER, BOT, USER, {**BOT, key: True}]
    assert talk({"messages": messages}).learnt == [False, False, False, True, False, True]


# --- pairs and verdicts


@pytest.mark.parametrize("value", [
    {"prompt": "Q", "chosen": "A", "rejected": "B"},
    {"question": "Q", "chosen": "A", "rejected": "B"},
    {"instruction": "Q", "input": "", "output": "A", "chosen": "A", "rejected": "B"},
    {"prompt": [USER], "chosen": [BOT], "rejected": [{**BOT, "content": "B"}]},
    {"prompt": "Q", "chosen": TALK, "rejected": [USER, {**BOT, "content": "B"}]},
    {"chosen": TALK, "rejected": [USER, {**BOT, "content": "B"}]},
    {"chosen_messages": TALK, "rejected_messages": [USER, {**BOT, "content": "B"}]},
    {"messages": [USER], "chosen": BOT, "rejected": {**BOT, "content": "B"}},
    {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}},
    {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
])  # fmt: skip
def test_one_pair_in_many_spellings(value):
    known = recognise(value, kind_of(value), chat=True)
    assert known.kind == "pairs" and isinstance(known.row, Choice)
    sides = [[(m["role"], m["content"]) for m in side.messages] for side in (known.row.chosen, known.row.rejected)]
    assert sides == [[("user", "Q"), ("assistant", a)] for a in "AB"]


@pytest.mark.parametrize("value", [
    {"prompt": "Q", "completion": "A", "label": False},
    {"messages": TALK, "label": False},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "kto_tag": False},
    {"instruction": "Q", "input": "", "output": "A", "kto_tag": False},
])  # fmt: skip
def test_one_verdict_in_many_spellings(value):
    known = recognise(value, kind_of(value), chat=True)
    assert known.kind == "verdicts" and isinstance(known.row, Judged)
    assert known.row.told.messages == TALK and not known.row.good


# --- faults


@pytest.mark.parametrize(("value", "reason"), [
    (5, "not a row"),
    ([], "not a row"),
    ({}, "unknown keys"),
    ({"foo": 1, "bar": 2}, "unknown keys"),
    ({"messages": []}, "no messages"),
    ({"messages": "hello"}, "no messages"),
    ({"messages": None}, "no messages"),
    ({"messages": ["hello"]}, "no messages"),
    ({"messages": [{"content": "Q"}, BOT]}, "no role"),
    ({"messages": [{"role": "wizard", "content": "Q"}, BOT]}, "unknown role"),
    ({"messages": [{"role": ["user"], "content": "Q"}, BOT]}, "unknown role"),
    ({"messages": [{"role": "user", "content": ""}, BOT]}, "empty content"),
    ({"messages": [{"role": "user"}, BOT]}, "empty content"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty content"),
    ({"messages": [USER, {"role": "assistant", "content": 5}]}, "not a text"),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "image_url"}]}]}, "not a text"),
    ({"messages": [USER, {**BOT, "prefix": True}]}, "unfinished answer"),
    ({"messages": [USER, {**BOT, "weight": 0.5}]}, "unknown weight"),
    ({"messages": [USER, {**BOT, "weight": "no"}]}, "unknown weight"),
    ({"messages": [{**USER, "weight": 1}, BOT]}, "unknown weight"),
    ({"messages": TALK, "tools": "nonsense"}, "unreadable tools"),
    ({"conversations": [{"from": "alien", "value": "Q"}]}, "unknown role"),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "function_call", "value": "nonsense"}]}, "not a call"),
    ({"instruction": "Q"}, "no answer"),
    ({"instruction": "Q", "output": ""}, "empty content"),
    ({"instruction": "", "output": "A"}, "empty content"),
    ({"instruction": 5, "output": "A"}, "not a text"),
    ({"instruction": "Q", "output": "A", "history": "x"}, "not a text"),
    ({"prompt": "Q"}, "no answer"),
    ({"prompt": "Q", "completion": " "}, "empty content"),
    ({"prompt": "Q", "completion": 7}, "not a text"),
    ({"text": ""}, "empty content"),
    ({"text": 5}, "not a text"),
    ({"chosen": "A", "rejected": "A", "prompt": "Q"}, "nothing to prefer"),
    ({"chosen": "A", "rejected": "B"}, "no prompt"),
    ({"chosen": "A", "rejected": None, "prompt": "Q"}, "no pair"),
    ({"chosen": "A", "rejected": "", "prompt": "Q"}, "empty content"),
])  # fmt: skip
def test_faults_are_named(value, reason):
    with pytest.raises(BadRow) as bad:
        recognise(value, kind_of(value), chat=True)
    assert bad.value.reason == reason and "\n" not in str(bad.value)


def test_rows_of_another_kind():
    with pytest.raises(BadRow, match="no chosen and rejected"):
        recognise({"messages": TALK}, "pairs", chat=True)
    with pytest.raises(BadRow, match="no label"):
        recognise({"messages": TALK}, "verdicts", chat=True)
    with pytest.raises(BadRow, match="prompt without"):
        recognise({"prompt": "Q", "chosen": "A", "rejected": "B"}, "sft", chat=True)


def test_tails():
    assert without_tail(Talk([USER, BOT, USER], [False, True, False])).messages == TALK
    with pytest.raises(BadRow, match="no message of the assistant"):
        without_tail(Talk([USER], [False]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["user", "assistant", "gpt", "human"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            "messages", "conversations", "role", "content", "from", "value", "prompt", "completion", "chosen", "rejected",
            "label", "kto_tag", "text", "instruction", "output", "input", "history", "system", "tools", "weight",
            "tool_calls", "type",
        ]), inner, max_size=4,
    ), max_leaves=20,
)  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(VALUES, st.booleans())
def test_any_value_is_a_row_or_a_named_fault(value, chat):
    for kind in {kind_of(value), "sft", "pairs", "verdicts"}:
        try:
            assert recognise(value, kind, chat).kind == kind
        except BadRow as bad:
            assert bad.reason and "\n" not in str(bad)
