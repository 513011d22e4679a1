"""A conversation keeps its cache: in memory, on disk, in another process, and never with another model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bise
from bise.chat import TEMPLATE_V1
from bise.errors import BiseError, ContextError, FormatError, RequestError
from bise.session import Session
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(sliding_window=48, context=2000, n_layers=2)
LONG = "the quick brown fox jumps over the lazy dog. " * 14  # past window and chunk


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("session") / "tiny.gguf"
    return write_tiny_gguf(file, CONFIG, tiny_weights(CONFIG), **{"tokenizer.chat_template": TEMPLATE_V1})


def load(path: Path, **options: object) -> bise.Model:
    return bise.load(path, backend="reference", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kv", ["f32", "f16"])
@pytest.mark.parametrize("text", ["hello", LONG])
def test_saved_and_loaded_equals_uninterrupted(path: Path, tmp_path: Path, text: str, kv: str) -> None:
    model = load(path, kv=kv)
    session = model.session()
    session.generate(text, max_tokens=20, ignore_eos=True)
    session.save(tmp_path / "s")
    want = session.generate(" and then", max_tokens=20, temperature=0.8, seed=3, ignore_eos=True)
    again = Session.load(tmp_path / "s", load(path, kv=kv))
    got = again.generate(" and then", max_tokens=20, temperature=0.8, seed=3, ignore_eos=True)
    assert (got.text, got.tokens, got.logprobs) == (want.text, want.tokens, want.logprobs)
    assert got.prompt_tokens - got.reused_tokens == want.prompt_tokens - want.reused_tokens <= 11  # only what is new


def test_another_process_takes_up_where_this_one_stopped(path: Path, tmp_path: Path) -> None:
    session = load(path).session()
    session.generate(LONG, max_tokens=10, ignore_eos=True)
    session.save(tmp_path / "s")
    code = f"""
import bise
from bise.api import load
s = bise.Session.load({str(tmp_path / "s")!r}, load({str(path)!r}, backend="reference"))
c = s.generate(" go", max_tokens=12, ignore_eos=True)
print(c.prompt_tokens - c.reused_tokens, c.tokens)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    here = session.generate(" go", max_tokens=12, ignore_eos=True)
    assert out.strip() == f"{here.prompt_tokens - here.reused_tokens} {here.tokens}"


def test_a_step_broken_off_halfway_does_not_spoil_the_file(path: Path, tmp_path: Path) -> None:
    """Ctrl-C after the cache has grown and before the history has."""
    model = load(path)
    session = model.session()
    session.generate(LONG, max_tokens=5, ignore_eos=True)
    cache = session._engine.cache
    cache.advance(cache.batch([(0, 5)]))
    session.save(tmp_path / "s")
    again = Session.load(tmp_path / "s", model)
    assert again.generate(" x", max_tokens=9).tokens == session.generate(" x", max_tokens=9).tokens


def test_a_file_of_another_model_is_refused_with_the_reason(path: Path, tmp_path: Path) -> None:
    session = load(path).session()
    session.generate("hello", max_tokens=3)
    session.save(tmp_path / "s")
    other = write_tiny_gguf(tmp_path / "other.gguf", CONFIG, tiny_weights(CONFIG, seed=1))
    for model, reason in (
        (load(other), "fingerprint"), (load(path, kv="f32"), "kv is f16.*f32"), (load(path, window=20), "window is 48.*20"),
    ):  # fmt: skip
        with pytest.raises(FormatError, match=reason):
            Session.load(tmp_path / "s", model)
    long = load(path).session()
    long.generate(LONG, max_tokens=2)
    long.save(tmp_path / "long")
    with pytest.raises(FormatError, match="context is 300"):
        Session.load(tmp_path / "long", load(path, context=300))


def test_what_is_no_session_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"GGUF" + bytes(100))
    for file in (path, tmp_path / "noise", tmp_path / "missing"):
        with pytest.raises(BiseError) as error:
            Session.load(file, load(path))
        assert "\n" not in str(error.value)


def test_a_damaged_session_is_refused(path: Path, tmp_path: Path) -> None:
    session = load(path).session()
    session.generate(LONG, max_tokens=2)
    session.save(tmp_path / "s")
    raw = (tmp_path / "s").read_bytes()
    for cut in (10, 100, len(raw) // 2, len(raw) - 100):
        (tmp_path / "cut").write_bytes(raw[:cut])
        with pytest.raises(BiseError):
            Session.load(tmp_path / "cut", load(path))


def test_a_chat_reads_only_what_is_new(path: Path) -> None:
    session = load(path).session()
    session.chat("hello there", max_tokens=12, ignore_eos=True)
    second = session.chat("and again", max_tokens=12, ignore_eos=True)
    assert second.prompt_tokens - second.reused_tokens < 40 < second.prompt_tokens
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert session.messages[-1]["content"] == second.text.strip()


def test_a_chat_equals_the_same_messages_at_once(path: Path) -> None:
    """Greedy replies do not depend on whether the past was kept or read again."""
    model = load(path)
    session = model.session()
    session.chat("hello there", max_tokens=12)
    ids = session._ids([*session.messages, {"role": "user", "content": "go on"}])
    kept = session.chat("go on", max_tokens=12)
    fresh = model.generate(ids, max_tokens=12)
    assert kept.tokens == fresh.tokens


def test_undo_takes_the_last_exchange_back(path: Path) -> None:
    session = load(path).session()
    first = session.chat("hello there", max_tokens=6)
    before = list(session.tokens)
    session.chat("more", max_tokens=6)
    assert session.undo() == "more" and len(session.messages) == 2
    assert session.tokens == before
    assert session.undo() == "hello there" and session.messages == [] and session.tokens == []
    with pytest.raises(RequestError, match="nothing to undo"):
        session.undo()
    assert session.chat("hello there", max_tokens=6).tokens == first.tokens


def test_breaking_off_keeps_what_was_said(path: Path) -> None:
    session = load(path).session()
    stream = session.stream(LONG, max_tokens=50, ignore_eos=True)
    shown = [next(stream) for _ in range(3)]
    stream.close()
    assert session.last and session.last.text.startswith("".join(shown)) and not session.busy
    whole = load(path).generate(session.tokens, max_tokens=5, ignore_eos=True)
    assert session.generate([], max_tokens=5, ignore_eos=True).tokens == whole.tokens


def test_progress_counts_the_prompt(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load(path)
    model.generate(LONG, max_tokens=1, progress=lambda read, total: seen.append((read, total)))
    n = len(model.tokenizer.encode(LONG, bos=True))
    assert [read for read, _ in seen] == [0, *range(256, n, 256), n]
    assert all(total == n for _, total in seen)


def test_a_prompt_that_does_not_fit_names_both_numbers(path: Path) -> None:
    with pytest.raises(ContextError, match=r"\d+ tokens, context is 100"):
        load(path, context=100).generate(LONG)


def test_unknown_options_are_refused(path: Path) -> None:
    with pytest.raises(RequestError, match="temprature"):
        load(path).generate("x", temprature=1)  # type: ignore[call-arg]


def test_torch_sessions_survive_too(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = bise.load(path, backend="torch")
    session = model.session()
    session.generate(LONG, max_tokens=5, ignore_eos=True)
    session.save(tmp_path / "s")
    again = Session.load(tmp_path / "s", model)
    assert again.generate(" x", max_tokens=9).tokens == session.generate(" x", max_tokens=9).tokens


@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_the_window_can_be_switched_off(path: Path, kv: str) -> None:
    ids = load(path).tokenizer.encode(LONG, bos=True)[:200]
    windowed, full = load(path, kv=kv).logits(ids), load(path, kv=kv, window="none").logits(ids)
    np.testing.assert_allclose(windowed[:48], full[:48], atol=1e-5)
    assert np.abs(windowed[-1] - full[-1]).max() > 1e-2
    assert load(path, window=1000).config.sliding_window == 1000
