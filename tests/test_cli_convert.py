"""bise convert as people and programs meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bise.api import BUILT_IN
from bise.cli import app
from bise.cli.convert import _bytes
from bise.errors import BiseError, RequestError

pytestmark = pytest.mark.skipif(not BUILT_IN.exists(), reason="the built-in model is not here")


def run(*arguments: object) -> tuple[str, str]:
    """-> (stdout, stderr). What the command refuses is raised."""
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout, done.stderr


def test_there_and_back(tmp_path: Path) -> None:
    out, err = run(BUILT_IN, tmp_path / "puff")
    assert out.strip() == str(tmp_path / "puff")
    assert "Q8_0 become F16: 5.59 MiB -> 10.5 MiB" in err and "window 128" in err
    told, err = run(tmp_path / "puff", tmp_path / "p.gguf", "--shard-size", "4M", "--json", "-q")
    facts = json.loads(told)
    assert facts["written"] and not facts["dequantised"] and len(facts["files"]) == 3 and not err
    assert facts["bytes"] == facts["bytes_before"] == 11_021_312
    assert facts["types"] == {"F16": {"tensors": 37, "bytes": 11_010_048}, "F32": {"tensors": 11, "bytes": 11_264}}


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    out, _ = run(BUILT_IN, tmp_path / "puff", "--to", "mistral", "--dtype", "bf16", "--dry-run")
    assert "not written" in out and "BF16" in out
    told, _ = run(BUILT_IN, tmp_path / "puff", "--dry-run", "--json")
    assert json.loads(told)["written"] is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, count", [("500M", 500_000_000), ("2GiB", 1 << 31), ("1.5g", 1_500_000_000), ("123456", 123456)]
)
def test_sizes(text: str, count: int) -> None:
    assert _bytes(text) == count


@pytest.mark.parametrize("words", [["--shard-size", "much"], ["--dtype", "q4_k"], ["--to", "onnx"], ["--to", "gguf"]])
def test_refusals(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        run(BUILT_IN, tmp_path / "out", *words)


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(BiseError, match="there is no such file"):
        run(tmp_path / "no.gguf", tmp_path / "out")
