"""Imports go down only: the floors of ARCHITECTURE.md, read from the code itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "bise"
FLOORS = [
    {"errors", "machine"},
    {"ops", "quant", "packing", "rounding", "_kernels"},
    {
        "config",
        "names",
        "disk",
        "gguf",
        "safetensors",
        "weights",
        "panels",
        "protobuf",
        "vocab",
        "tokenizer",
        "tokenizer_json",
        "release",
        "template",
        "template_child",
        "instruct",
        "chat",
        "download",
        "hub",
        "importance",
        "texts",
    },
    {"model", "cache"},
    {
        "schema",
        "grammar",
        "cuts",
        "sampler",
        "speech",
        "odds",
        "pace",
        "scout",
        "draft",
        "blocks",
        "request",
        "engine",
        "scheduler",
        "lora",
        "moments",
        "score",
    },
    {"bench", "convert", "evaluate", "merge", "quantize", "tune"},
    {"completion", "session", "api", "server", "cli", "__main__"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
CRAFTS = FLOORS[5]


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, ...]]:
    """Absolute dotted names that a file imports, anywhere in it, as tuples: ("bise", "ops", "cpu")."""
    package = ("bise", *path.relative_to(ROOT).parts[:-1])
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(a.name.split(".")) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = (*base, *(node.module or "").split(".")) if node.module else base
            found += [(*stem, a.name) for a in node.names] if stem in ((), ("bise",)) else [stem]
    return found


def noun(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    me = noun(path)
    if me == "__init__":
        return
    assert me in FLOOR, f"{me} stands on no floor: add it to FLOORS and to ARCHITECTURE.md"
    for name in imports(path):
        if name[0] != "bise" or len(name) < 2 or name[1] == me or name[1].startswith("__"):
            continue
        other = name[1]
        assert FLOOR[other] <= FLOOR[me], f"{me} imports {other}, which stands above it"
        assert not (me in CRAFTS and other in CRAFTS), f"the crafts {me} and {other} know each other"


def test_torch_stays_in_its_place() -> None:
    users = {str(p.relative_to(ROOT)) for p in modules() if any(name[0] == "torch" for name in imports(p))}
    strays = {user for user in users if not user.startswith(("ops/torch", "tune/"))}
    assert not strays, f"torch is imported in {strays}"


def test_no_pickle_and_no_bare_jinja() -> None:
    for path in modules():
        names = {name[0] for name in imports(path)}
        assert not names & {"pickle", "shelve", "marshal", "dill", "joblib", "yaml"}, f"{path} can run code from files"


def test_import_is_light() -> None:
    """`import bise` brings neither torch nor a web server, nor the libraries that only some callers need."""
    heavy = "torch", "transformers", "jinja2", "huggingface_hub", "typer", "rich", "matplotlib", "fastapi"
    code = f"import bise, sys; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
