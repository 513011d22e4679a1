"""A second model guesses: never a change of a single token, fewer steps where it is right, no cost where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

import bise
from bise import gguf
from bise.api import BUILT_IN
from bise.cache import CHUNK
from bise.engine import Request
from bise.errors import RequestError
from bise.pace import ROW, Pace
from bise.quant import quantise
from bise.sampler import Sampler, Sampling
from bise.scout import Scout
from tiny import tiny_config, tiny_weights, write_tiny_gguf

STORY = (
    "Once upon a time, there was a little boy named Sam. Sam had a small red boat. One day, he took his boat to the "
)
LONG = STORY * 14  # past puff's window and a chunk


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """puff in 4 bits: says mostly what puff says."""
    puff = gguf.GGUF(BUILT_IN)
    tensors = {n: quantise(t.dequantise(), "Q4_0") if len(t.shape) > 1 else t for n, t in puff.tensors.items()}
    path = tmp_path_factory.mktemp("scout") / "small.gguf"
    gguf.write(path, puff.keys, tensors)
    return path


@pytest.fixture(scope="module")
def plain() -> bise.Model:
    return bise.load(lookup=False, threads=1)


@pytest.fixture(scope="module")
def drafted(small: Path) -> bise.Model:
    return bise.load(lookup=False, draft=small, threads=1)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scout as quick as one is meant to be: puff in 4 bits takes as long as puff."""
    monkeypatch.setattr(Scout, "_price", lambda self, sequences: 0.1 * sequences)
    monkeypatch.setattr(Pace, "row", ROW)


def finish(model: bise.Model, prompts: list[list[int]], max_tokens: int, **options: float) -> tuple[list[Request], int]:
    """All at once, each in a sequence of its own -> the requests, and the number of steps."""
    engine = model.engine(len(prompts))
    requests = [
        Request(p, Sampler(Sampling(seed=5, **options), model.vocab_size), max_tokens, frozenset(), i)  # type: ignore[arg-type]
        for i, p in enumerate(prompts)
    ]
    for request in requests:
        engine.submit(request)
    steps = 0
    while engine.running:
        engine.step()
        steps += 1
    return requests, steps


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.9, "mirostat_tau": 3.0}])
@pytest.mark.parametrize("texts", [[STORY], [LONG], [STORY, LONG, "The fox"]], ids=["short", "wrapped", "three"])
def test_the_text_is_the_text_without_it(
    plain: bise.Model, drafted: bise.Model, cheap: None, texts: list[str], options: dict[str, float]
) -> None:
    prompts = [plain.tokenizer.encode(t, bos=True) for t in texts]
    (want, slow), (got, quick) = (finish(m, prompts, 120, **options) for m in (plain, drafted))
    for a, b in zip(want, got, strict=True):
        assert (a.tokens, a.logprobs, a.finish_reason) == (b.tokens, b.logprobs, b.finish_reason)
    if not options and len(texts) == 1:
        assert quick < 0.5 * slow


def test_two_at_once_are_guessed_for(plain: bise.Model, drafted: bise.Model, cheap: None) -> None:
    prompts = [plain.tokenizer.encode(t, bos=True) for t in (STORY, LONG)]
    (want, slow), (got, quick) = (finish(m, prompts, 200) for m in (plain, drafted))
    assert [r.tokens for r in got] == [r.tokens for r in want] and quick < 0.8 * slow


def test_together_with_lookup(plain: bise.Model, small: Path, cheap: None) -> None:
    both = bise.load(draft=small, threads=1)
    options = {"max_tokens": 300, "temperature": 0.3, "seed": 4, "ignore_eos": True}
    assert both.generate(LONG, **options).tokens == plain.generate(LONG, **options).tokens  # type: ignore[arg-type]


def test_a_conversation_with_detours(plain: bise.Model, drafted: bise.Model, cheap: None, tmp_path: Path) -> None:
    """Taken back, said anew, saved and taken up elsewhere: the scout's cache follows."""
    told = []
    for model in (plain, drafted):
        talk, said = model.session(), []
        for content in ("Tell me a story.", LONG[:900], "Another one, please."):
            said.append(talk.chat(content, max_tokens=120).tokens)
        talk.undo()
        said.append(talk.chat("Tell me a story about a duck.", max_tokens=60).tokens)
        talk.save(tmp_path / "talk")
        again = bise.Session.load(tmp_path / "talk", model)
        said.append(again.chat("And now?", max_tokens=60, temperature=0.8, seed=1).tokens)
        told.append(said)
    assert told[0] == told[1]


def scout(model: bise.Model) -> Scout:
    made = model.engine().scout
    assert made is not None
    return made


def guesses(s: Scout, tokens: list[int]) -> list[int]:
    while (len(tokens) - s._agree(0, tokens)) > CHUNK:
        assert s.guess(0, tokens, 4, 1) == ([], [])  # it is still reading
    return s.guess(0, tokens, 4, 1)[0]


def test_it_says_what_its_model_would_say(drafted: bise.Model, cheap: None) -> None:
    """After a text in pieces, after wrong guesses, and after another past that its ring no longer holds."""
    ids = drafted.tokenizer.encode(LONG, bos=True)
    s = scout(drafted)
    said = guesses(s, ids)
    assert said and said == guesses(scout(drafted), ids)
    assert drafted.draft and drafted.draft.generate(ids, max_tokens=4).tokens[: len(said)] == said
    other = [*ids, *said[:1], 7, 8]
    assert guesses(s, other[:-2]) and s.guess(0, other, 4, 1)[0] == guesses(scout(drafted), other)
    s.begin(0)
    past = [*ids[:10], *ids[:400]]
    assert guesses(s, past) == guesses(scout(drafted), past)


def test_past_its_context_it_is_silent(drafted: bise.Model, cheap: None) -> None:
    s = scout(drafted)
    assert s.guess(0, [5] * (s.cache.context - 3), 4, 1) == ([], []) and s.history == [[]]


def test_one_that_is_never_right_is_hardly_ever_asked(
    plain: bise.Model, tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = gguf.GGUF(BUILT_IN).keys
    config = tiny_config(vocab_size=plain.config.vocab_size)
    vocabulary = {k: v for k, v in keys.items() if k.startswith("tokenizer.")}
    path = write_tiny_gguf(tmp_path / "noise.gguf", config, tiny_weights(config), **vocabulary)
    model = bise.load(draft=path, lookup=False, threads=1)
    ids = model.tokenizer.encode(STORY, bos=True)
    asked, say = [], Scout._say
    monkeypatch.setattr(Scout, "_say", lambda *given: asked.append(1) or say(*given))  # type: ignore[func-returns-value]
    said = model.generate(ids, max_tokens=800, ignore_eos=True).tokens
    assert said == plain.generate(ids, max_tokens=800, ignore_eos=True).tokens
    assert 10 < len(asked) < 0.2 * len(said)  # each costs a tenth of a step


def test_its_price_is_what_was_measured(drafted: bise.Model) -> None:
    s = scout(drafted)
    assert drafted.draft
    by_bytes = s._price(1)
    assert by_bytes == pytest.approx(drafted.draft.weights.nbytes / drafted.weights.nbytes, abs=0.05)
    for seconds in (0.1, 0.1, 9.0, 0.1, 0.1):
        s.pace.add(1, seconds)
        s._own.add(1, seconds / 5)
    assert s._price(1) == pytest.approx(0.24) and s._price(2) == pytest.approx(0.48)
    assert s.worth(4, 1) > 0 == s.worth(4, 4)


def test_other_vocabularies_are_refused(small: Path, tmp_path: Path) -> None:
    config = tiny_config()
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", config, tiny_weights(config))
    with pytest.raises(RequestError, match=r"tiny\.gguf has another vocabulary.*token 259 is '▁'"):
        bise.load(draft=tiny)
    pieces = [*gguf.GGUF(tiny).keys["tokenizer.ggml.tokens"]]
    pieces[280] = "other"
    other = write_tiny_gguf(tmp_path / "o.gguf", config, tiny_weights(config), **{"tokenizer.ggml.tokens": pieces})
    with pytest.raises(RequestError, match="token 280 is 'other', the model's"):
        bise.load(tiny, draft=other)


def test_only_the_cpu_backend_can_keep_the_text(small: Path) -> None:
    with pytest.raises(RequestError, match="backend cpu, not reference.*change the text"):
        bise.load(draft=small, backend="reference")


def test_the_plan_counts_it(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="bise"):
        bise.load(draft=small)
    assert "draft model: weights 3." in caplog.text
