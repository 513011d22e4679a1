"""bise quantize as people and programs meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bise import importance
from bise.cli import app
from bise.errors import BiseError, RequestError
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(dim=256, hidden_dim=256, n_heads=4, head_dim=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("cli") / "f.gguf", CONFIG, tiny_weights(CONFIG), "BF16")


def run(*arguments: object) -> tuple[str, str]:
    """-> (stdout, stderr). What the command refuses is raised."""
    done = CliRunner().invoke(app, ["quantize", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout, done.stderr


def test_the_path_is_on_stdout_and_the_rest_beside_it(model: Path, tmp_path: Path) -> None:
    out, err = run(model, tmp_path / "q.gguf")
    assert out.strip() == str(tmp_path / "q.gguf") and "bits per weight" in err
    assert Weights.open(tmp_path / "q.gguf").metadata["general.file_type"] == 15  # Q4_K_M


def test_json(model: Path, tmp_path: Path) -> None:
    told, err = run(
        model, tmp_path / "q.gguf", "--type", "q3_k_m", "--keep", "output=q8_0", "--threads", 1, "--json", "-q"
    )
    facts = json.loads(told)
    assert facts["written"] and not err and facts["tensors"]["output"] == "Q8_0"
    assert facts["bytes"] == Weights.open(tmp_path / "q.gguf").nbytes < facts["bytes_before"]
    assert facts["types"]["Q8_0"]["tensors"] == 1 and facts["quantised_before"] == []


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    out, err = run(model, tmp_path / "q.gguf", "--type", "Q5_K_S", "--dry-run")
    assert "blk.1.ffn_down" in out and "Q5_K" in out and "not written" in out and "nothing written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_quiet_is_quiet(more: list[str], model: Path, tmp_path: Path) -> None:
    out, err = run(model, tmp_path / "q.gguf", "--quiet", *more)
    assert str(tmp_path / "q.gguf") in out.replace("\n", "") and not err


def test_bits(model: Path, tmp_path: Path) -> None:
    facts = json.loads(run(model, tmp_path / "q.gguf", "--bits", 4.5, "--json")[0])
    assert 4.2 < facts["bits"] <= 4.5 and Weights.open(tmp_path / "q.gguf").nbytes == facts["bytes"]


def test_an_importance_matrix_from_its_file(model: Path, tmp_path: Path) -> None:
    names = [own for own, entry in Weights.open(model).entries.items() if len(entry.shape) == 2 and own != "token_embd"]
    sums = {own: np.random.default_rng(3).exponential(size=256) * 100 for own in names}
    found = importance.Importance(sums, dict.fromkeys(names, 100.0), 7, 512, ("tales.txt",))
    importance.write(tmp_path / "means.gguf", found)
    run(model, tmp_path / "with.gguf", "--type", "Q4_K_S", "--imatrix", tmp_path / "means.gguf")
    run(model, tmp_path / "without.gguf", "--type", "Q4_K_S")
    with_it, without = (Weights.open(tmp_path / f"{name}.gguf") for name in ("with", "without"))
    assert with_it.metadata["quantize.imatrix.dataset"] == "tales.txt"
    assert with_it.metadata["quantize.imatrix.chunks_count"] == 7
    assert not np.array_equal(with_it["blk.0.attn_q"].data, without["blk.0.attn_q"].data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--type", "Q4"], "no type 'Q4': expected one of Q8_0"),
        (["--type", "Q4_0", "--bits", "4"], "give one of them"),
        (["--bits", "1.5"], "ask for more"),
        (["--bits", "0.5"], "--bits is 0.5"),
        (["--keep", "output"], "expected NAME=TYPE"),
        (["--keep", "output=Q99"], "expected a type, one of F32"),
        (["--imatrix", "nowhere.gguf"], "there is no such file"),
    ],
)
def test_refusals(words: list[str], message: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(BiseError, match=message):
        run(model, tmp_path / "q.gguf", *words)
    assert not list(tmp_path.iterdir())


def test_the_model_itself_is_not_overwritten(model: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(RequestError, match="is the model itself"):
        run(model, model)
    assert model.read_bytes() == before
