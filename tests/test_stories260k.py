"""A small real model, trained by others, says what its authors published; so does its GGUF, here and in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

import bise
import stories260k
from steps import one_torch_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LENGTH = 200  # tokens of the published greedy text, from <s> alone
BACKENDS = "reference", "torch", "cpu"


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    return shared / "data" / "tinyllamas_stories260K"


@pytest.fixture(scope="module")
def published(source: Path) -> str:
    return (source / "greedy_text.txt").read_text().removesuffix("\n")


@pytest.fixture(scope="module")
def files(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stories260K")
    made = {type: stories260k.as_gguf(source, folder / f"{type}.gguf", type) for type in ("F32", "F16")}
    return made | {"folder": stories260k.as_folder(source, folder / "mistral")}


def greedy(model: bise.Model) -> str:
    return model.generate([1], max_tokens=LENGTH, temperature=0, ignore_eos=True).text.lstrip(" ")


@pytest.mark.parametrize("kv", ["f32", "f16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_published_text_from_float_weights(files: dict[str, Path], published: str, backend: str, kv: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    assert greedy(bise.load(files["F32"], backend=backend, kv=kv, threads=2)) == published


@pytest.mark.parametrize("backend", BACKENDS)
def test_mistral_layout_is_the_same_model(files: dict[str, Path], backend: str) -> None:
    """The weights in consolidated.safetensors and in a GGUF give the same logits to the last bit."""
    if backend == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    one, other = (bise.load(files[name], backend=backend, threads=2) for name in ("F32", "folder"))
    ids = one.tokenizer.encode("Once upon a time, there was a cat", bos=True)
    assert (one.logits(ids) == other.logits(ids)).all()


@pytest.mark.parametrize("type", ["F32", "F16"])
def test_gguf_says_the_same_here_and_in_llama_cpp(files: dict[str, Path], published: str, type: str) -> None:
    """F16 weights change nothing in this text, so both are held to the published one."""
    from llama import llama_cpp

    theirs = llama_cpp.Llama(str(files[type]), n_ctx=512, n_threads=2, verbose=False)
    told = theirs.generate([1], temp=0.0)
    ids = [next(told) for _ in range(LENGTH)]
    ours = bise.load(files[type], threads=2)
    completion = ours.generate([1], max_tokens=LENGTH, temperature=0, ignore_eos=True)
    assert completion.tokens == ids
    assert completion.text.lstrip(" ") == published
    assert theirs.detokenize([1, *ids]).decode().lstrip(" ") == published


def test_prompt_is_cut_into_the_same_ids(files: dict[str, Path], published: str) -> None:
    """The vocabulary that came through the GGUF: bise and llama.cpp read text alike."""
    from llama import llama_cpp

    theirs = llama_cpp.Llama(str(files["F32"]), vocab_only=True, verbose=False)
    ours = bise.load(files["F32"], backend="reference").tokenizer
    for text in (published, "a  b", "naïve café, 猫!\n\ttabs </s> <s>"):
        assert ours.encode(text, bos=True) == theirs.tokenize(text.encode(), add_bos=True, special=False)
