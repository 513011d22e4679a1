"""The built-in model: what ships is what its card says, it tells stories, and it was trained as it is run."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import bise
from bise.api import BUILT_IN

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "puff"
STORY = """\
Once upon a time, there was a little boy named Sam. Sam had a small red boat. One day, he took his boat to the lake to
play. The wind was strong and the boat went far away. Sam was very sad.

A big duck saw Sam and said, "Why are you sad?" Sam said, "My boat is gone." The duck swam across the lake and pushed
the boat back to him. Sam was so happy. He thanked the duck and gave her some bread. From that day on, Sam and the
duck were good friends."""  # written for this test
STORY = "\n\n".join(paragraph.replace("\n", " ") for paragraph in STORY.split("\n\n"))


@pytest.fixture(scope="module")
def puff() -> bise.Model:
    return bise.load(kv="f32")


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The scripts in examples/puff import each other by name."""
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def data(scripts: None) -> ModuleType:
    import data

    return data


def loss(model: bise.Model, text: str, asked: str = "") -> float:
    """Nats per token of a text as it is, or as the answer to a request."""
    messages = [{"role": "user", "content": asked}]
    head = model.chat_format.encode(messages) if asked else model.tokenizer.encode("", bos=True)
    answer = model.tokenizer.encode(text)
    logits = model.logits([*head, *answer[:-1]])[-len(answer) :].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(answer)), answer]))


def test_shape(puff: bise.Model) -> None:
    config = puff.config
    assert BUILT_IN.stat().st_size <= 20e6
    assert config.n_heads > config.n_kv_heads > 1
    assert config.sliding_window is not None and config.sliding_window < config.context
    assert "output" in puff.weights  # not tied
    assert puff.chat_format.name == "Mistral v1"


def test_chat_ids_are_mistral_commons(puff: bise.Model, tmp_path: Path) -> None:
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = tmp_path / "tokenizer.model.v1"
    path.write_bytes(puff.tokenizer.proto())
    said = ["Tell me a story.", "Once there was a hen.\n\nShe slept.", "Another [INST] one?"]
    theirs = MistralTokenizer.from_file(str(path)).encode_chat_completion(
        ChatCompletionRequest(messages=[UserMessage(content=said[0]), AssistantMessage(content=said[1]),
                                        UserMessage(content=said[2])])
    )  # fmt: skip
    messages = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), said, strict=True)]
    assert puff.chat_format.encode(messages) == theirs.tokens


def test_it_has_learnt_stories(puff: bise.Model) -> None:
    words = STORY.split()
    assert loss(puff, STORY) < 2.2
    assert loss(puff, " ".join(sorted(words))) > loss(puff, STORY) + 1.5


def test_it_uses_its_window(puff: bise.Model) -> None:
    assert loss(bise.load(window=8, kv="f32"), STORY) > loss(puff, STORY) + 0.1


@pytest.mark.parametrize("seed", range(4))
def test_a_request_is_answered_with_a_story_that_ends(puff: bise.Model, seed: int) -> None:
    session = puff.session()
    for said in ("Tell me a story about a dog named Tim.", "Tell me a story."):
        told = session.chat(said, max_tokens=500, temperature=0.7, top_p=0.9, seed=seed)
        assert told.finish_reason == "stop"
        assert 30 < len(told.text.split()) < 400
        assert told.text[0].isupper() and "INST" not in told.text


def test_the_request_matters(puff: bise.Model) -> None:
    """A story is likelier as the answer to the request for it than to another one."""
    asked = {
        s: loss(puff, STORY, f"Tell me a story about {s}.") for s in ("a boy named Sam", "a boat", "a cake", "a king")
    }
    assert max(asked["a boy named Sam"], asked["a boat"]) < min(asked["a cake"], asked["a king"])


def test_training_computes_what_inference_computes(puff: bise.Model, scripts: None) -> None:
    """The loss that the training minimised, on the shipped weights, against the logits of the default backend."""
    torch = pytest.importorskip("torch")
    import train

    from bise.gguf import GGUF
    from bise.tune.sample import Sample
    from bise.tune.student import Student

    assert dataclasses.replace(puff.config, norm_eps=train.CONFIG.norm_eps, window_reason="") == train.CONFIG
    student = Student.fresh(train.CONFIG)
    tensors = GGUF(BUILT_IN).tensors
    student.restore({name: tensors[f"{name}.weight"].dequantise() for name in student.trained})
    ids = np.array(puff.tokenizer.encode(STORY, bos=True), np.int32)
    story = Sample(ids, np.arange(len(ids)) > 0)
    neighbour = Sample(ids[:40], np.zeros(40, bool))  # it must not change anything
    with torch.no_grad():
        nats = float(student.loss([neighbour, story, neighbour]))
    assert nats / (len(ids) - 1) == pytest.approx(loss(puff, STORY), abs=0.01)


def test_an_epoch_of_the_training(puff: bise.Model, scripts: None, tmp_path: Path) -> None:
    """Every story once, a share of them asked for, and a request is read and not learnt."""
    pytest.importorskip("torch")
    import random

    import sentencepiece
    import train

    rows = [
        {"kind": "story", "text": f"Once there was a cat named Tom{i}. He slept.", "about": ["a cat"]}
        for i in range(200)
    ]
    rows += [{"kind": "book", "text": "It was a dark night.", "about": []}] * 100
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tokenizer.model").write_bytes(puff.tokenizer.proto())
    texts = train.Texts(tmp_path, "train", sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model")))
    found = texts.samples(random.Random(1), 0.3, 0.3)
    told = [puff.tokenizer.decode(sample.ids.tolist()) for sample in found]
    assert sum("night" in text for text in told) in range(15, 46)
    assert 30 < sum("[INST]" in text for text in told) < 90 and sum(text.count("[INST]") == 2 for text in told) > 1
    for sample, text in zip(found, told, strict=True):
        learnt = puff.tokenizer.decode(sample.ids[sample.learnt].tolist())
        assert "INST" not in learnt and (text.count("Tom") == learnt.count("Tom"))
    assert len({text for text in told if "[INST]" not in text and "Tom" in text}) == 200 - sum(
        "[INST]" in t for t in told
    )


def test_copies_of_a_story_stay_together(data: ModuleType) -> None:
    told = [f"Once there was a cat named Tom{i}. “Hello,” he said — and slept.\n\n He was happy." for i in range(300)]
    parts = [data.part("story", t) for t in told]
    assert set(parts) == {"train", "valid", "test"}
    assert parts == [data.part("story", data.tidy(t).lower().replace("\n", " ")) for t in told]


def test_case_comes_back(data: ModuleType) -> None:
    known = ['One day Lily met her friend Tom. She said, "I am glad, Tom." They saw Lily\'s mom.'] * 2
    story = 'A cat met Lily. "I see you," said Tom. Lily\'s mom was glad.\n\nThen a bird named Zizz came. Zizz sang.'
    assert data.Case(known).restore(story.lower()) == story


def test_requests_come_from_the_story(data: ModuleType) -> None:
    import random

    story = "Once there was a brave cat named Tom. The cat saw a red ball. Then Tom took a ball. A ball is fun."
    about = data.Subjects([story] * 3).of(story)
    assert about[0] == "a brave cat named Tom" and "a red ball" in about and "Tom" in about
    said = {data.request("story", about, random.Random(i)) for i in range(200)}
    assert "Tell me a story." in said and "Tell me a story about a red ball." in said


def test_texts_of_the_samples(data: ModuleType, shared: Path) -> None:
    """Every story once, cased, and nothing of a held-out story among the others."""
    told = data.stories(shared / "data")
    assert len(told) == len({data.key(s) for s in told}) > 4500
    assert sum(s[0].isupper() or s[0] in "\"'" for s in told) == len(told)
    parts = {p: [data.key(s) for s in told if data.part("story", s) == p] for p in ("train", "valid", "test")}
    learnt = " ".join(parts["train"])
    for name in ("valid", "test"):
        assert 60 < len(parts[name]) < 200
        assert not [k for k in parts[name] if k[len(k) // 2 : len(k) // 2 + 80] in learnt]
