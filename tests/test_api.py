"""load() -> Model: the face that programs see."""

import logging
from pathlib import Path

import numpy as np
import pytest

import bise
from bise.api import find
from bise.errors import BiseError, RequestError, UnsupportedError
from tiny import tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf

CONFIG = tiny_config(sliding_window=64)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("api") / "tiny.gguf", CONFIG, tiny_weights(CONFIG))


@pytest.fixture(scope="module")
def model(path: Path) -> bise.Model:
    return bise.load(path, backend="reference")


def test_the_public_names_are_all_there() -> None:
    assert all(hasattr(bise, name) for name in bise.__all__)


def test_logits_have_one_row_a_token(model: bise.Model) -> None:
    logits = model.logits([1, 7, 33])
    assert logits.shape == (3, 288) and logits.dtype == np.float32
    np.testing.assert_allclose(model.logits([1, 7])[1], logits[1], atol=1e-5)


def test_generate_takes_text_or_ids(model: bise.Model) -> None:
    ids = model.tokenizer.encode("the mistral", bos=True)
    by_text, by_ids = model.generate("the mistral", max_tokens=9), model.generate(ids, max_tokens=9)
    assert by_text.tokens == by_ids.tokens and by_text.prompt_tokens == len(ids)
    assert by_ids.reused_tokens == len(ids) - 1
    assert by_text.finish_reason in ("stop", "length")


def test_stream_says_what_generate_says(model: bise.Model) -> None:
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 11}
    pieces = list(model.stream("so", **options))  # type: ignore[arg-type]
    assert "".join(pieces) == model.generate("so", **options).text  # type: ignore[arg-type]


def test_same_seed_same_text(model: bise.Model) -> None:
    texts = {model.generate("a", max_tokens=20, temperature=1.0, seed=s, ignore_eos=True).text for s in (1, 1, 2)}
    assert len(texts) == 2


def test_logprobs_are_the_models_own(model: bise.Model) -> None:
    c = model.generate([1, 50], max_tokens=5, temperature=1.5, top_k=3, seed=0, ignore_eos=True)
    rows = model.logits([1, 50, *c.tokens])[1:-1].astype(np.float64)
    logprobs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    np.testing.assert_allclose(c.logprobs, logprobs[range(5), c.tokens], atol=1e-3)  # f16 cache in both


def test_two_streams_at_once_do_not_mix(model: bise.Model) -> None:
    want = (
        model.generate("one", max_tokens=12, ignore_eos=True).text,
        model.generate("two", max_tokens=12, ignore_eos=True).text,
    )
    one, two = model.stream("one", max_tokens=12, ignore_eos=True), model.stream("two", max_tokens=12, ignore_eos=True)
    got = ["", ""]
    for a, b in zip(one, two, strict=False):
        got[0] += a
        got[1] += b
    got[0] += "".join(one)
    got[1] += "".join(two)
    assert all(text.startswith(g) or g == text for g, text in zip(got, want, strict=True))


def test_stop_strings_and_reason(model: bise.Model) -> None:
    free = model.generate("the", max_tokens=40, ignore_eos=True).text
    stop = free[10:13]
    c = model.generate("the", max_tokens=40, stop=[stop], ignore_eos=True)
    assert c.text == free[: free.index(stop)] and c.finish_reason == "stop"


def test_a_base_model_has_no_chat(model: bise.Model) -> None:
    with pytest.raises(UnsupportedError, match="chat"):
        model.chat([{"role": "user", "content": "hi"}])


def test_a_folder_without_a_tokenizer_works_for_ids(tmp_path: Path, model: bise.Model) -> None:
    folder = write_tiny_hf(tmp_path / "hf", CONFIG, tiny_weights(CONFIG))
    bare = bise.load(folder, backend="reference")
    np.testing.assert_allclose(bare.logits([1, 2, 3]), model.logits([1, 2, 3]), atol=1e-4)
    assert len(bare.generate([1, 2, 3], max_tokens=4).tokens) == 4
    with pytest.raises(UnsupportedError, match="tokenizer"):
        bare.generate("text")


def test_the_plan_is_told_before_loading(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bise"):
        bise.load(path, backend="reference", context=300)
    assert "window 64" in caplog.text and "cache" in caplog.text and "300 tokens" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"kv": "q4"}, {"window": 0}, {"window": "all"}, {"context": 0}, {"backend": "cuda"}, {"window": True}],
)
def test_impossible_options_are_refused(path: Path, options: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        bise.load(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[], [[1]], [0.5], [288], [-1]])
def test_impossible_ids_are_refused(model: bise.Model, ids: list[object]) -> None:
    with pytest.raises(RequestError):
        model.logits(ids)  # type: ignore[arg-type]


def test_find_prefers_what_is_on_disk(path: Path) -> None:
    assert find(path) == path
    assert find(None).name == "puff.gguf"
    with pytest.raises(BiseError):
        bise.load("no/such/file.gguf")
