"""Rows to ids: what is learnt is what the model would be served, answers and their ends, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bise.chat import ChatFormat
from bise.template import Guest
from bise.tokenizer import Tokenizer
from bise.tune.data.faults import BadRow
from bise.tune.data.ids import Encoded, Encoder
from bise.tune.data.rows import Known, kind_of, recognise
from test_chat import CHATML, ZEPHYR, chatml_tokenizer
from test_tokenizer import FILES, tokenizer_of

VERSIONS = list(FILES)


def encoder(version: str | None = "v3", **options) -> Encoder:
    tokenizer = tokenizer_of(version or "v1")
    return Encoder(tokenizer, ChatFormat.named(version, tokenizer) if version else None, **options)


def known(value, chat: bool = True) -> Known:
    return recognise(value, kind_of(value), chat)


def turns(*said: str, system: str = "") -> list[dict]:
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return [{"role": "system", "content": system}, *roles] if system else roles


def learnt(one: Encoded, tokenizer: Tokenizer) -> list[str]:
    """The text of each learnt stretch, its end taken off."""
    return [tokenizer.decode(one.ids[first:end]) for first, end in one.spans]


@pytest.mark.parametrize("version", VERSIONS)
def test_ids_are_those_that_are_served(version):
    made = encoder(version)
    messages = turns("q", "a", "r", "b", system="S")
    (one,) = made.encode(known({"messages": messages}))
    assert one.ids == made.chat.encode(messages)
    assert learnt(one, made.tokenizer) == ["a", "b"]
    assert all(one.ids[end - 1] == made.tokenizer.eos for _, end in one.spans)
    if version == "v1":  # v2 and v3 move the system prompt to the last question
        for (first, _), upto in zip(one.spans, (2, 4), strict=True):
            assert one.ids[:first] == made.chat.encode(messages[:upto])
    assert one.ids[: one.spans[-1][0]] == made.chat.encode(messages[:-1]), "the prompt as it is served"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_left_out(version):
    made = encoder(version)
    messages = turns("q", "a", "r", "b", "s", "c")
    messages[1]["weight"] = messages[3]["train"] = 0
    (one,) = made.encode(known({"messages": messages}))
    assert learnt(one, made.tokenizer) == ["c"]
    (last,) = encoder(version, last=True).encode(known({"messages": turns("q", "a", "r", "b")}))
    assert learnt(last, made.tokenizer) == ["b"]
    (tail,) = made.encode(known({"messages": turns("q", "a", "nobody answers")}))
    assert learnt(tail, made.tokenizer) == ["a"] and made.tails == 1
    assert tail.ids == made.chat.encode(turns("q", "a"))


def test_nothing_learnt_is_refused():
    with pytest.raises(BadRow, match="every answer has weight 0"):
        encoder().encode(known({"messages": [*turns("q"), {"role": "assistant", "content": "a", "weight": 0}]}))
    with pytest.raises(BadRow, match="every answer has weight 0"):
        encoder(last=True).encode(
            known({"messages": [*turns("q", "a", "r"), {"role": "assistant", "content": "a", "weight": 0}]})
        )


def test_neighbours_are_one_answer():
    answers = [{"role": "assistant", "content": text} for text in "ab"]
    (one,) = encoder().encode(known({"messages": [*turns("q"), *answers]}))
    assert learnt(one, tokenizer_of("v3")) == ["a\n\nb"]
    with pytest.raises(BadRow, match="messages 1 and 2 are one answer") as bad:
        encoder().encode(known({"messages": [*turns("q"), {**answers[0], "weight": 0}, answers[1]]}))
    assert bad.value.reason == "mixed weights"


def test_what_a_format_refuses_is_a_fault():
    row = {"messages": [{"role": "tool", "content": "x"}, *turns("q", "a")]}
    with pytest.raises(BadRow, match="cannot start with role tool") as bad:
        encoder().encode(known(row))
    assert bad.value.reason == "refused by the format"
    with pytest.raises(BadRow, match="UTF-8"):
        encoder().encode(known({"messages": turns("q\ud800", "a")}))


# --- too long


def test_a_long_talk_is_refused_or_cut_between_exchanges():
    said = [f"{kind} {i} " + "word " * 20 for i in range(6) for kind in ("question", "answer")]
    row, whole = (
        {"messages": turns(*said, system="S")},
        encoder().encode(known({"messages": turns(*said, system="S")}))[0],
    )
    with pytest.raises(BadRow, match=rf"{len(whole.ids):,} tokens, expected at most 150"):
        encoder(max_length=150).encode(known(row))
    made = encoder(max_length=150, long="cut")
    (cut,) = made.encode(known(row))
    kept = len(cut.spans)
    assert 1 < kept < 6 and len(cut.ids) <= 150 and made.cut == 1
    assert cut.ids == made.chat.encode(turns(*said[: 2 * kept], system="S")), "the beginning, whole exchanges"
    longer = made.chat.encode(turns(*said[: 2 * kept + 2], system="S"))
    assert len(longer) > 150, "no more than needed was cut"
    (one,) = encoder(max_length=150, long="cut", last=True).encode(known(row))
    assert learnt(one, made.tokenizer) == [said[-1].rstrip()] and len(one.ids) <= 150
    assert one.ids == made.chat.encode(turns(*said[-2 * kept :], system="S")), "the end, and the system prompt"


def test_a_row_that_would_lose_its_answer_is_bad():
    for messages in (turns("q", "word " * 50), turns("word " * 50, "a", "r", "b")):
        with pytest.raises(BadRow, match="lose its answer") as bad:
            encoder(max_length=40, long="cut").encode(known({"messages": messages}))
        assert bad.value.reason == "too long"
    weighed = turns("q", "a", "r", "word " * 50)
    weighed[1]["weight"] = 0
    with pytest.raises(BadRow, match="lose its answer"):
        encoder(max_length=40, long="cut").encode(known({"messages": weighed}))
    with pytest.raises(BadRow, match="expected at most"):
        encoder(None, max_length=10, long="cut").encode(known({"prompt": "p", "completion": "word " * 20}, chat=False))


def test_pairs_are_cut_alike():
    said = turns(*(f"{i} " + "word " * 20 for i in range(7)))
    row = {
        "messages": said,
        "chosen": {"role": "assistant", "content": "good " * 30},
        "rejected": {"role": "assistant", "content": "bad"},
    }
    good, bad = encoder(max_length=110, long="cut").encode(known(row))
    assert good.ids[: good.spans[0][0]] == bad.ids[: bad.spans[0][0]] and len(good.ids) <= 110
    assert learnt(good, tokenizer_of("v3")) == [("good " * 30).rstrip()] and learnt(bad, tokenizer_of("v3")) == ["bad"]


def test_pairs_of_two_prompts():
    row = {"chosen": turns("q", "a"), "rejected": turns("other", "b")}
    with pytest.raises(BadRow, match="their prompts differ"):
        encoder().encode(known(row))
    with pytest.raises(BadRow, match="the same tokens"):
        encoder().encode(known({"prompt": "q", "chosen": "a", "rejected": "a "}))
    (one,) = encoder().encode(known({"messages": turns("q", "a", "r", "b"), "label": True}))
    assert learnt(one, tokenizer_of("v3")) == ["b"], "a verdict is about the last answer"


# --- texts


@pytest.mark.parametrize("prompt", ["", "Once upon", "Once upon ", "Q: 1\nA:", "Q: 1\nA: ", "wor", "\n", "ünï 🦙"])
@pytest.mark.parametrize("text", [" a time", "a time", "d", "\n\nEnd", "🦙", "</s>"])
def test_a_completion_goes_on_from_the_prompt_as_it_is_served(prompt, text):
    made = encoder(None)
    (one,) = made.encode(known({"prompt": prompt, "completion": text}, chat=False))
    served = made.tokenizer.encode(prompt, bos=True)
    assert one.ids[: len(served)] == served and one.spans == [(len(served), len(one.ids))]
    assert one.ids[-1] == made.tokenizer.eos and made.tokenizer.decode(one.ids) == prompt + text
    assert not any(made.tokenizer.is_control(i) for i in one.ids[1:-1])


def test_a_text_in_pieces():
    text = " ".join(f"word{i}" for i in range(100))
    made = encoder(None, max_length=50)
    pieces = made.encode(known({"text": text}))
    ids = made.tokenizer.encode(text)
    assert [i for piece in pieces for i in piece.ids[1:]] == [*ids, made.tokenizer.eos]
    assert all(piece.ids[0] == made.tokenizer.bos and len(piece.ids) <= 50 for piece in pieces)
    assert all(piece.spans == [(1, len(piece.ids))] for piece in pieces)
    (whole,) = encoder(None, append_eos=False).encode(known({"text": text}))
    assert whole.ids == [1, *ids]


# --- guests


@pytest.mark.parametrize("template", [ZEPHYR, CHATML])
def test_guests(template):
    tokenizer = chatml_tokenizer() if template == CHATML else tokenizer_of("v1")
    with Guest() as guest:
        made = Encoder(tokenizer, ChatFormat(tokenizer, 0, template), render=guest)
        (one,) = made.encode(known({"messages": turns("q", "a", "r", "b", system="S")}))
        assert [text.strip() for text in learnt(one, tokenizer)] == ["a", "b"]
        assert all(one.ids[end - 1] in tokenizer.stop_ids for _, end in one.spans) and not made.unclosed


def test_a_guest_that_ends_nothing_gets_eos():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    tokenizer = tokenizer_of("v1")
    with Guest() as guest:
        made = Encoder(tokenizer, ChatFormat(tokenizer, 0, template), render=guest)
        (one,) = made.encode(known({"messages": turns("q", "a")}))
    assert one.ids[-1] == tokenizer.eos and one.spans[-1][1] == len(one.ids) and made.unclosed == 1


# --- hostile

NAUGHTY = st.lists(st.sampled_from(["[INST]", "[/INST]", "</s>", "<s>", "<unk>", "[TOOL_CALLS]", "▁", " ", "\n", "a", "é", "🦙", "\ue000"]), min_size=1, max_size=6).map("".join)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(VERSIONS), st.lists(NAUGHTY, min_size=2, max_size=6))
def test_no_content_becomes_a_control_token(version, said):
    """Hostile conversations: control tokens are those of the format, and what is learnt is the answers, letter by letter."""
    made = encoder(version)
    said = [text if text.strip() else "x" for text in said[: len(said) // 2 * 2]]
    (one,) = made.encode(known({"messages": turns(*said)}))
    harmless = made.encode(known({"messages": turns(*["x"] * len(said))}))[0]
    control = [[i for i in e.ids if made.tokenizer.is_control(i)] for e in (one, harmless)]
    assert control[0] == control[1]
    plain = [text if version == "v1" else text.rstrip(" ") for text in said[1::2]]
    assert [t.replace("▁", " ") for t in learnt(one, made.tokenizer)] == [
        made.tokenizer.decode(made.tokenizer.encode(text)).replace("▁", " ") for text in plain
    ]
