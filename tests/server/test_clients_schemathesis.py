"""schemathesis makes requests out of our own OpenAPI document, good ones and bad ones, and looks at what comes back.

Of its checks one is left out: positive_data_acceptance. A schema cannot say that a conversation does not begin with a
tool's answer or that a prompt fits the context, so some requests that a schema allows are refused, with a 400.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.running import SOURCE, Server

pytest.importorskip("schemathesis")
PHASES = "examples,coverage,fuzzing,stateful"


def tried(server: Server, folder: Path, seconds: int, seed: int, *more: str) -> dict[str, Any]:
    """The report of a run that found nothing; a run that did fails with its words."""
    report = folder / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--phases", PHASES,
        "--exclude-checks", "positive_data_acceptance", "--max-time", str(seconds), "--seed", str(seed), "--no-color",
        "--generation-database", "none", "--request-timeout", "30", "--report-json-path", str(report), *more,
    ]  # fmt: skip
    paths = os.pathsep.join((str(Path(__file__).parent), SOURCE))
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds + 120)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return dict(json.loads(report.read_text()))


def is_well(server: Server) -> None:
    """No 5xx in its journal, and a good answer now."""
    assert not [line for line in server.lines() if line.get("status", 0) >= 500]
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]


def test_our_openapi_document(start: Any, tmp_path: Path) -> None:
    server = start("--slots", "4")
    report = tried(server, tmp_path, 30, 1)
    assert report["operations"]["tested"] >= 20 and report["test_cases"]["generated"] > 100
    is_well(server)


def test_keys_are_wanted_everywhere(start: Any, tmp_path: Path) -> None:
    """With a key: schemathesis also looks whether a route answers without it."""
    keys = tmp_path / "keys"
    keys.write_text("north-wind-north-wind\n")
    keys.chmod(0o600)
    server = start("--slots", "2", "--key-file", str(keys))
    tried(server, tmp_path, 10, 2, "--header", "Authorization: Bearer north-wind-north-wind")
    assert not [line for line in server.lines() if line.get("status", 0) >= 500]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 8))
def test_for_longer(start: Any, tmp_path: Path, seed: int) -> None:
    server = start("--slots", "4")
    tried(server, tmp_path, 300, seed)
    is_well(server)
