"""The README is held to its word: its Python runs; its files, tests, options and pictures are the real ones."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PUFF = ROOT / "src" / "bise" / "models" / "puff.gguf"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def tree() -> dict[str, str]:
    """path or pattern -> phrase, from the README's tree; what is indented below a folder lies in it."""
    found, folder = {}, ""
    (text,) = (block for block in blocks("text") if "src/bise/" in block)
    for line in text.splitlines():
        names, _, phrase = line.strip().partition("  ")
        if not line.startswith(" "):
            folder = names if names.endswith("/") else ""
        for name in names.split():
            found[name if name == folder else folder + name] = phrase.strip()
    return found


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python block, one after the other in one program; what it calls model.gguf and small.gguf is puff."""
    for name in ("model.gguf", "small.gguf"):
        shutil.copy(PUFF, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    program: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), program)
    assert len(capsys.readouterr().out) > 200


def test_first_python_is_five_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 5


def test_tree_is_the_real_one() -> None:
    """Every name in the tree is there, with a phrase, and no file of the package or the kernels is missing."""
    named = set()
    for pattern, phrase in tree().items():
        assert phrase or pattern.endswith("/"), f"{pattern} stands in the tree without a phrase"
        matches = [path for path in ROOT.glob(pattern) if path.exists()]
        assert matches, f"{pattern} is in the tree and nowhere else"
        named |= {path.relative_to(ROOT).as_posix() for path in matches}
    real = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("src/bise/**/*.py", "src/bise/models/*", "csrc/*", "bench/*.py", "examples/*/*.py")
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    missing = {name for name in real if name not in named and not _folders(name) & named}
    assert not missing, f"not in the README's tree: {sorted(missing)}"


def _folders(name: str) -> set[str]:
    """The folders of a file that the tree may name in its stead: not src/bise and csrc, whose files it names one by one."""
    return {path.as_posix() for path in Path(name).parents} - {"src/bise", "src", "csrc", "."}


@pytest.mark.parametrize("document", [README, ARCHITECTURE], ids=["README", "ARCHITECTURE"])
def test_links_and_named_files_exist(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document):
        assert target.startswith("http") or (ROOT / target).exists(), f"a link goes to {target}"
    for name in re.findall(r"`?(tests/test_\w+\.py)", document) + re.findall(r"`(bench/\w+\.py)", document):
        assert (ROOT / name).exists(), f"{name} is named, and is not there"


@pytest.mark.parametrize("document", [README, ARCHITECTURE], ids=["README", "ARCHITECTURE"])
def test_named_tests_exist(document: str) -> None:
    """`test_file.py::test_name` in a document is a test that pytest would find."""
    for file, name in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", document):
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{file} has no {name}"


def test_floors_are_those_of_the_test() -> None:
    floors = _module(ROOT / "tests" / "test_floors.py").FLOORS
    table = ARCHITECTURE.split("<!-- floors", 1)[1].split("\n\n", 1)[0]
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[2])) for line in table.splitlines() if line.startswith("| ")]
    assert [row for row in reversed(rows) if row] == floors


def test_command_line_is_the_real_one() -> None:
    """Each `bise VERB` in a shell block exists and has every option that the block gives it."""
    import typer.main

    from bise.cli import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [line.split("#")[0] for block in blocks("sh") + blocks("console") for line in block.splitlines()]
    shown = [re.search(r"\bbise (\w+)(.*)", line) for line in lines if re.match(r"(\$ )?(bise|.*\| bise)\b", line)]
    assert len(shown) > 5
    for match in filter(None, shown):
        assert match[1] in verbs, f"bise {match[1]} is no verb"
        verb = verbs[match[1]]
        if parts := getattr(verb, "commands", None):  # a verb with verbs below it: bise eval perplexity
            verb = parts[match[2].split()[0]]
        options = {name for parameter in verb.params for name in parameter.opts}
        for option in re.findall(r"\s(--?[a-z][\w-]*)", match[2]):
            assert option in options or option == "--help", f"bise {match[1]} has no {option}"


def test_commands_say_what_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """If not: make figures. Lines about this very machine are left out, and of a story the beginning is compared:
    instruction sets round differently."""
    shown, today = (_comparable(text) for text in (README, _module(ROOT / "docs" / "tour.py").toured(README)))
    assert shown == today


def _comparable(text: str) -> list[str]:
    commands = "\n".join(re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).split("$ ")
    said = [re.sub(r"^arithmetic .*\n", "", command, flags=re.MULTILINE) for command in commands]
    return [text[:240] if text.startswith("bise generate") else text for text in said]


def test_make_goals_exist() -> None:
    goals = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks("sh"):
        assert set(re.findall(r"^make (\w+)", block, re.MULTILINE)) <= goals


@pytest.mark.parametrize("name", ["heads", "window", "buffer", "memory"])
def test_pictures_tell_the_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a picture was drawn from is what bise computes today. If not: make figures."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "figures"))
    content, draw = _module(ROOT / "docs" / "figures" / "content.py"), _module(ROOT / "docs" / "figures" / "draw.py")
    assert f"docs/figures/{name}.svg" in README
    assert draw.content_of(ROOT / "docs" / "figures" / f"{name}.svg") == content.CONTENT[name]()


def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "figures"))
    drawn = _module(ROOT / "docs" / "figures" / "draw.py").draw("memory", tmp_path)
    assert drawn.read_text().count("<path") > 20


def test_memory_in_the_readme_is_what_bise_takes() -> None:
    mistral = _module(ROOT / "docs" / "figures" / "content.py").MISTRAL
    from bise.cache import cache_bytes

    assert f"{cache_bytes(mistral) / 2**30:.2f} GiB" == "0.53 GiB" and "0.53 GiB" in README
    assert cache_bytes(mistral.with_window(None)) == 4 * 2**30


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
