"""bise eval as people and programs meet it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import bise
from bise.cli import main
from bise.evaluate import common_chunks, perplexity
from bise.importance import read
from bise.lora import write_gguf
from bise.moments import collect
from bise.texts import Cut
from test_lora import random_adapter
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(vocab_size=320, sliding_window=24, dim=128, head_dim=32, context=96)
TEXT = "the north wind and the sun had a quarrel about which of them was the stronger " * 12


class Done(NamedTuple):
    out: str
    err: str
    code: int


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run `bise eval ...` in this process, with a cache folder of its own."""
    monkeypatch.setenv("BISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "150")

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["bise", "eval", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as end:
            main()
        found = capsys.readouterr()
        return Done(found.out, found.err, int(end.value.code or 0))

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """full.gguf, small.gguf (Q4_0 of it), text.txt."""
    path = tmp_path_factory.mktemp("eval")
    write_tiny_gguf(path / "full.gguf", CONFIG, tiny_weights(CONFIG))
    write_tiny_gguf(path / "small.gguf", CONFIG, tiny_weights(CONFIG), "Q4_0")
    (path / "text.txt").write_text(TEXT)
    return path


def test_perplexity_for_people(cli: Cli, folder: Path) -> None:
    done = cli("perplexity", folder / "full.gguf", folder / "text.txt", "--context", "48", "-t", "1")
    assert done.code == 0 and re.search(r"perplexity +[\d,.]+ ± [\d.]+", done.out)
    assert re.search(r"loss +\d\.\d+ ± \d\.\d+ nats a token", done.out)
    assert re.search(r"tokens scored, in \d+ chunks of 48", done.out)
    assert "By position" in done.out
    assert re.search(r"^ *\d+\S\d+ +[\d,.]+ ± [\d.]+", done.out, re.M)
    assert "window 24" in done.err


def test_perplexity_for_programs(cli: Cli, folder: Path) -> None:
    """The figures are the library's; the chunk is as long as the model's context where that is less than 512."""
    done = cli("perplexity", folder / "full.gguf", folder / "text.txt", "--json", "-q", "-t", "1")
    found = json.loads(done.out)
    model = bise.load(folder / "full.gguf", threads=1)
    cut = Cut(96)
    chunks = common_chunks(model.weights, model.weights, TEXT, cut)
    expected = perplexity(model, chunks, cut)
    assert done.err == "" and found["context"] == 96 and found["chunks"] == len(chunks) and found["window"] == 24
    assert found["perplexity"] == expected.perplexity._asdict() and found["tokens"] == expected.tokens
    assert found["text"] == [str(folder / "text.txt")] and len(found["by_position"]) == 8


def test_every_way_to_cut_reaches_it(cli: Cli, folder: Path) -> None:
    def tokens(*options: str) -> int:
        done = cli(
            "perplexity", folder / "full.gguf", folder / "text.txt", "--json", "-q", "-t", "1", "-c", "32", *options
        )
        return int(json.loads(done.out)["tokens"])

    assert tokens("--chunks", "3") == 3 * 15
    assert tokens("--chunks", "3", "--all-positions") == 3 * 31
    assert tokens("--chunks", "3", "--stride", "10") == 30
    files = [folder / "text.txt"] * 2
    twice = cli("perplexity", folder / "full.gguf", *files, "--json", "-q", "-t", "1", "-c", "32")
    assert json.loads(twice.out)["tokens"] > 1.9 * tokens()


def test_the_window_is_respected(cli: Cli, folder: Path) -> None:
    options = ("perplexity", folder / "full.gguf", folder / "text.txt", "--json", "-q", "-t", "1")
    own, none = (json.loads(cli(*options, *more).out) for more in ((), ("--window", "none")))
    assert none["window"] is None and own["perplexity"] != none["perplexity"]


def test_kl(cli: Cli, folder: Path) -> None:
    options = ("--against", folder / "full.gguf", folder / "text.txt", "-c", "48", "-t", "1")
    first = cli("kl", folder / "small.gguf", *options)
    assert first.code == 0 and "the full model first; its logits are kept in" in first.err
    assert re.search(r"KL +0\.\d+ ± 0\.\d+ nats a token", first.out)
    assert re.search(r"same top +\d+\.\d+ ± \d+\.\d+ %", first.out) and "ratio" in first.out
    again = cli("kl", folder / "small.gguf", *options, "--json")
    assert "the full model first" not in again.err  # its logits are there
    found = json.loads(again.out)
    assert found["kl"]["value"] > 1e-3 and found["kl"]["50%"] <= found["kl"]["99%"] <= found["kl"]["largest"]
    assert 0.2 < found["same_top"]["value"] <= 1 and Path(found["logits"]).exists()
    itself = json.loads(cli("kl", folder / "full.gguf", *options, "--json", "-q").out)
    assert itself["kl"]["value"] < 1e-8 and itself["same_top"]["value"] == 1


def test_with_an_adapter(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """Base and adapter are judged like the model whose weights are W + scale * B A; only one adapter at a time."""
    arrays, adapter = tiny_weights(CONFIG), random_adapter(CONFIG, seed=1)
    fused = {
        name: adapter.deltas[name].fused(array) if name in adapter.deltas else array for name, array in arrays.items()
    }
    write_tiny_gguf(tmp_path / "fused.gguf", CONFIG, fused)
    write_gguf(tmp_path / "tuned.gguf", adapter)
    beside = ("--adapter", tmp_path / "tuned.gguf")
    text, options = folder / "text.txt", ("-c", "48", "-t", "1", "--kv", "f32")

    def judged(verb: str, model: Path, *more: str | Path) -> dict[str, Any]:
        return dict(json.loads(cli(verb, model, text, *options, *more, "--json", "-q").out))

    base, tuned, want = (judged("perplexity", *model) for model in
                         ((folder / "full.gguf",), (folder / "full.gguf", *beside), (tmp_path / "fused.gguf",)))  # fmt: skip
    assert tuned["adapter"] == "tuned" and base["adapter"] is None
    assert (
        abs(tuned["loss"]["value"] - want["loss"]["value"])
        < 1e-4
        < 0.1
        < abs(base["loss"]["value"] - want["loss"]["value"])
    )
    assert judged("kl", folder / "full.gguf", "--against", tmp_path / "fused.gguf", *beside)["kl"]["value"] < 1e-6
    assert judged("kl", folder / "full.gguf", "--against", folder / "full.gguf", *beside)["kl"]["value"] > 0.1
    told = cli("perplexity", folder / "full.gguf", text, *options, *beside)
    assert "with tuned" in told.out
    assert cli("perplexity", folder / "full.gguf", text, *beside, *beside).code == 2


def test_another_window_is_other_logits(cli: Cli, folder: Path) -> None:
    options = ("--against", folder / "full.gguf", folder / "text.txt", "-c", "48", "-t", "1", "--json", "-q")
    found = [cli("kl", folder / "full.gguf", *options, *more) for more in
             ((), ("--window", "none"), ("--kv", "f32"), ("--backend", "reference"), ("--window", "24"))]  # fmt: skip
    assert len({json.loads(done.out)["logits"] for done in found}) == 4
    assert not any(done.err for done in found)  # -q


@pytest.mark.parametrize("name", ["i.gguf", "i.dat"])
def test_importance(cli: Cli, folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    done = cli("importance", folder / "full.gguf", folder / "text.txt", "-o", path, "-c", "48", "-t", "1")
    assert (
        done.code == 0 and done.out == "" and re.search(rf"{name}: 15 weights, [\d,]+ tokens in \d+ chunks", done.err)
    )
    model = bise.load(folder / "full.gguf", threads=1)
    chunks = common_chunks(model.weights, model.weights, TEXT, Cut(48))
    expected, found = collect(model, list(chunks)), read(path)
    assert found.datasets == ("text.txt",) and found.chunks == len(chunks)
    for weight in expected:
        np.testing.assert_allclose(found[weight], expected[weight], rtol=1e-6)
    twice = tmp_path / "twice.gguf"
    assert (
        cli("importance", folder / "full.gguf", folder / "text.txt", "--add", path, "-o", twice, "-c", "48").code == 0
    )
    assert read(twice).chunks == 2 * len(chunks)
    np.testing.assert_allclose(read(twice)["output"], expected["output"], rtol=1e-6)
    assert cli("importance", folder / "full.gguf", "--add", path, "--add", twice, "-o", tmp_path / "all.gguf").code == 0
    assert read(tmp_path / "all.gguf").chunks == 3 * len(chunks)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("perplexity", "full.gguf", "text.txt", "-c", "5000"),
            "tokens, a chunk 5,000: take a longer text or a smaller",
        ),
        (("perplexity", "full.gguf", "missing.txt"), "there is no such file"),
        (("perplexity", "full.gguf"), "Missing argument 'TEXT"),
        (("perplexity", "full.gguf", "text.txt", "--stride", "96"), "expected less than the context"),
        (("kl", "small.gguf", "text.txt"), "Missing option '--against'"),
        (("kl", "small.gguf", "text.txt", "--against", "text.txt"), "not a GGUF file"),
        (("importance", "full.gguf", "text.txt", "-o", "x.bin"), "expected a name that ends in .gguf or .dat"),
        (("importance", "full.gguf", "-o", "x.gguf"), "no text: name one or more files"),
        (("importance", "full.gguf", "-o", "x.gguf", "--add", "full.gguf"), "expected an importance matrix"),
    ],
)
def test_refusals_are_one_line(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(folder)
    done = cli(*arguments, "-q")
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1 and says in done.err


def test_an_importance_matrix_of_another_model_is_refused(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("importance", folder / "full.gguf", folder / "text.txt", "-o", tmp_path / "i.gguf", "-c", "48").code == 0
    other = tiny_config(vocab_size=320, dim=64, head_dim=16)
    write_tiny_gguf(tmp_path / "other.gguf", other, tiny_weights(other))
    done = cli("importance", tmp_path / "other.gguf", "--add", tmp_path / "i.gguf", "-o", tmp_path / "x.gguf")
    assert done.code == 2 and "it was measured on another model" in done.err and not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("verb", ["", "perplexity", "kl", "importance"])
def test_every_page_has_help(cli: Cli, verb: str) -> None:
    done = cli(*[verb] if verb else [], "--help")
    assert done.code == 0 and "Usage: bise eval" in done.out
