"""bise quantize --compensate as people meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bise.cli import app
from bise.errors import BiseError
from bise.gguf import GGUF
from bise.weights import Weights
from tiny import tiny_config, tiny_weights, write_tiny_gguf

CONFIG = tiny_config(dim=256, hidden_dim=256, head_dim=64, vocab_size=320, context=64)


def run(*arguments: object) -> str:
    """-> stdout. What the command refuses is raised."""
    done = CliRunner().invoke(app, ["quantize", *map(str, arguments), "--threads", "1"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.fixture
def original(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the north wind is a dry and cold one, said the fox\n" * 20)
    return write_tiny_gguf(tmp_path / "f32.gguf", CONFIG, tiny_weights(CONFIG), "BF16")


def test_same_types_other_levels(original: Path, tmp_path: Path) -> None:
    """The recipe is the same, so is the size; the layers' levels differ, what lies outside of them does not."""
    facts = json.loads(run(original, tmp_path / "c.gguf", "--compensate", tmp_path / "text.txt", "--json"))
    run(original, tmp_path / "plain.gguf")
    assert facts["written"] and facts["types"]["Q4_K"]["tensors"] > 5
    ours, plain = Weights.open(tmp_path / "c.gguf"), Weights.open(tmp_path / "plain.gguf")
    assert GGUF(tmp_path / "c.gguf").keys == GGUF(tmp_path / "plain.gguf").keys
    for own in plain:
        same = np.array_equal(ours[own].data, plain[own].data)
        assert ours[own].type == plain[own].type
        assert same == (not own.startswith("blk.") or own.endswith("norm")), own


def test_refusals(original: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    for text, words in (("short.txt", "take a longer text"), ("none.txt", "there is no such file")):
        with pytest.raises(BiseError, match=words):
            run(original, tmp_path / "c.gguf", "--compensate", tmp_path / text)
    assert not (tmp_path / "c.gguf").exists()
