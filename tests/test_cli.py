"""The command as people and programs meet it: what is on stdout, what is on stderr, and the exit code."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import bise
from bise.api import BUILT_IN
from bise.chat import TEMPLATE_V1
from bise.cli import main
from bise.cli.terminal import say, size
from tiny import tiny_config, tiny_weights, write_tiny_gguf, write_tiny_hf

BACKEND = "cpu" if importlib.util.find_spec("bise._kernels") else "reference"
SOURCE = str(Path(bise.__file__).parents[1])
needs_puff = pytest.mark.skipif(not BUILT_IN.exists(), reason="the built-in model is not here")


class Done(NamedTuple):
    out: str
    err: str
    code: int


Cli = Callable[..., Done]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a window of 64, a context of 1,024 and Mistral's first chat format."""
    config = tiny_config(vocab_size=320, sliding_window=64, context=1024, dim=128, head_dim=32)
    path = tmp_path_factory.mktemp("cli") / "tiny.gguf"
    return write_tiny_gguf(path, config, tiny_weights(config), **{"tokenizer.chat_template": TEMPLATE_V1})


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `bise ...` in this process; stdin is a pipe that holds `stdin`."""

    def run(*arguments: str | Path, stdin: str | bytes = "") -> Done:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["bise", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            main()
        found = capsys.readouterr()
        return Done(found.out, found.err, int(end.value.code or 0))

    return run


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
    """`bise ...` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-m", "bise", *map(str, arguments)], env=environment, bufsize=0, **options)  # type: ignore[call-overload, no-any-return]


# --- generate


def test_generate_prints_the_text_and_nothing_else(cli: Cli, tiny: Path) -> None:
    done = cli("generate", "eat in", "-m", tiny, "--backend", BACKEND, "-n", "20")
    model = bise.load(tiny, backend=BACKEND)
    assert done == (model.generate("eat in", max_tokens=20).text + "\n", done.err, 0)
    assert "window 64" in done.err and done.err.count("\n") == 1


@needs_puff
def test_the_built_in_model_needs_no_name(cli: Cli) -> None:
    done = cli("generate", "Once upon a time", "--max-tokens", "12", "--temperature", "0", "--backend", BACKEND)
    assert done.code == 0 and len(done.out.split()) > 3
    assert done.out == bise.load(backend=BACKEND).generate("Once upon a time", max_tokens=12).text + "\n"


def test_the_prompt_may_come_from_a_pipe_or_a_file(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("eat in\n")
    options = ("-m", tiny, "--backend", BACKEND, "-n", "8", "-q")
    expected = cli("generate", "eat in", *options)
    assert expected.err == ""
    assert cli("generate", *options, stdin="eat in\n") == expected
    assert cli("generate", "-", *options, stdin="eat in") == expected
    assert cli("generate", "--file", tmp_path / "prompt", *options) == expected


def test_echo_joins_prompt_and_text_without_a_seam(cli: Cli, tiny: Path) -> None:
    done = cli("generate", "eat", "-m", tiny, "--backend", BACKEND, "-n", "8", "--echo", "-q")
    tokenizer = bise.load(tiny, backend=BACKEND).tokenizer
    ids = bise.load(tiny, backend=BACKEND).generate("eat", max_tokens=8).tokens
    assert done.out == tokenizer.decode([*tokenizer.encode("eat"), *ids]) + "\n"


def test_json_is_one_object_with_everything_in_it(cli: Cli, tiny: Path) -> None:
    done = cli("generate", "eat in", "-m", tiny, "--backend", BACKEND, "-n", "9", "--json", "-T", "1", "--seed", "7")
    found = json.loads(done.out)
    same = bise.load(tiny, backend=BACKEND).generate("eat in", max_tokens=9, temperature=1.0, seed=7)
    assert (found["text"], found["tokens"], found["finish_reason"]) == (same.text, same.tokens, same.finish_reason)
    assert found["logprobs"] == pytest.approx(same.logprobs)
    assert (found["prompt"], found["model"], found["seed"]) == ("eat in", str(tiny), 7)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (same.prompt_tokens, len(same.tokens))
    assert all(found[f"{part}_seconds"] >= 0 for part in ("load", "prefill", "decode"))


def test_a_seed_that_was_drawn_is_told_and_gives_the_text_again(cli: Cli, tiny: Path) -> None:
    options = ("generate", "eat", "-m", tiny, "--backend", BACKEND, "-n", "9", "--json", "-T", "1")
    first, other = (json.loads(cli(*options).out) for _ in range(2))
    again = json.loads(cli(*options, "--seed", str(first["seed"])).out)
    assert again["tokens"] == first["tokens"]
    assert other["seed"] != first["seed"]


def test_every_setting_of_the_sampler_reaches_it(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bise import session

    seen = []
    real = session.Sampler
    monkeypatch.setattr(session, "Sampler", lambda sampling, size: seen.append(sampling) or real(sampling, size))
    settings = dict(
        temperature=0.5, top_k=7, top_p=0.9, min_p=0.01, typical_p=0.95, repetition_penalty=1.2, presence_penalty=0.1,
        frequency_penalty=0.2, penalty_window=9, dry_multiplier=0.8, dry_base=1.5, dry_allowed_length=3,
        xtc_probability=0.3, xtc_threshold=0.2, mirostat_tau=4.0, mirostat_eta=0.2, seed=3,
    )  # fmt: skip
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    bias = ("--logit-bias", "5=-inf", "--logit-bias", "6=2.5")
    assert cli("generate", "eat", "-m", tiny, "--backend", BACKEND, "-n", "3", *options, *bias).code == 0
    [found] = seen
    assert found.logit_bias == {5: float("-inf"), 6: 2.5}
    assert 13 in found.dry_breakers  # <0x0A>, the newline, is token 3 + 10
    assert {name: getattr(found, name) for name in settings} == settings
    left = {"logit_bias", "dry_breakers", "dry_window"}  # the last is always -1: everything
    assert {f.name for f in dataclasses.fields(found)} == settings.keys() | left


def test_stop_and_ignore_eos(cli: Cli, tiny: Path) -> None:
    options = ("generate", "eat in", "-m", tiny, "--backend", BACKEND, "-n", "40", "-q", "--ignore-eos")
    whole = cli(*options).out.removesuffix("\n")
    assert len(whole) > 10
    stop = whole[6:8]
    assert cli(*options, "--stop", "never there", "--stop", stop).out == whole[: whole.index(stop)] + "\n"


def test_chat_flag_uses_the_chat_format(cli: Cli, tiny: Path) -> None:
    done = cli("generate", "eat", "--chat", "--system", "sing", "-m", tiny, "--backend", BACKEND, "-n", "9", "-q")
    messages = [{"role": "system", "content": "sing"}, {"role": "user", "content": "eat"}]
    assert done.out == bise.load(tiny, backend=BACKEND).chat(messages, max_tokens=9).text + "\n"


# --- refusals: one line, exit code 2


def refusals(tiny: Path) -> Iterator[tuple[list[str | Path], str]]:
    model: list[str | Path] = ["-m", tiny, "--backend", BACKEND]
    yield ["generate", "x", "-m", "nowhere.gguf"], r"nowhere\.gguf: there is no such file"
    yield ["generate", "x", "-m", tiny.parent / "none"], "there is no such file"
    yield ["generate", "e" * 2000, *model], r"prompt has 2,00\d tokens, context is 1,024: shorten it or pass --context"
    yield ["generate", "x", *model, "-T", "-1"], "temperature is -1.0, expected a number from 0 to 100"
    yield ["generate", "x", *model, "-T", "nan"], "temperature is nan"
    yield ["generate", "x", *model, "-T", "hot"], r"(?i)invalid value for '?--temperature.*see bise generate --help"
    yield ["generate", "x", *model, "-n", "0"], "max_tokens is 0, expected 1 or more"
    yield ["generate", "x", *model, "--window", "wide"], "--window is 'wide', expected a number of tokens or none"
    yield ["generate", "x", *model, "--window", "0"], "window is 0, expected a number of tokens or 'none'"
    yield ["generate", "x", *model, "--kv", "q3"], "kv is 'q3', expected one of f32, f16, q8_0"
    yield ["generate", "x", "-m", tiny, "--backend", "gpu"], "backend is 'gpu', expected reference, cpu or torch"
    yield ["generate", "x", *model, "--logit-bias", "a=b"], "--logit-bias is 'a=b', expected ID=VALUE"
    yield ["generate", "x", *model, "--logit-bias", "999999=1"], "logit_bias id 999999 is outside the vocabulary"
    yield ["generate", "x", *model, "--system", "y"], "--system is for messages: add --chat"
    yield ["generate", "x", *model, "--file", "y"], "both a prompt and --file were given: choose one"
    yield ["generate", *model, "--file", "nowhere.txt"], r"nowhere\.txt: No such file"
    yield ["generate", "", *model, "--stop", ""], "empty string"
    yield ["generate", "--frobnicate"], r"(?i)no such option: '?--frobnicate.*see bise generate --help"
    yield ["frobnicate"], r"(?i)no such command '?frobnicate.*see bise --help"
    yield ["generate", "x", *model, "--draft", "nowhere.gguf"], r"nowhere\.gguf: there is no such file"
    yield ["generate", "x", "-m", tiny, "--backend", "reference", "--draft", tiny], "a draft model needs backend cpu"
    yield ["info", Path(SOURCE)], "no model in this folder: expected a .gguf file"
    measure = ["bench", tiny, "--backend", BACKEND, "--depths"]
    yield [*measure, "1,x"], "--depths is '1,x', expected whole numbers with commas"
    yield [*measure, "900"], r"need 1,412 tokens, context is 1,024"
    yield ["bench", tiny, tiny], "2 models were given, expected one: --against llama.cpp takes several"
    yield ["bench", tiny, "--against", "vllm"], "--against is 'vllm', expected llama.cpp"
    yield ["bench", tiny, "--against", "llama.cpp", "--kv", "q8_0"], "it takes --threads and --isa"
    yield ["bench", tiny, "--against", "llama.cpp", "--repeats", "2"], "--against takes --rounds"
    yield ["bench", tiny, "--against", "llama.cpp", "--rounds", "0"], "--rounds is 0, expected 1 or more"
    yield ["bench", tiny, "--isa", "mmx"], "instruction set 'mmx' does not run here"


@pytest.mark.parametrize("number", range(30))
def test_refusals_are_one_line_and_code_2(cli: Cli, tiny: Path, number: int) -> None:
    arguments, message = list(refusals(tiny))[number]
    done = cli(*arguments)
    last = done.err.splitlines()[-1]
    assert done.code == 2 and done.out == ""
    assert last.startswith("bise: ") and re.search(message, last), last
    assert "Traceback" not in done.err and sum(line.startswith("bise: ") for line in done.err.splitlines()) == 1


def test_a_prompt_that_is_no_text(cli: Cli, tiny: Path) -> None:
    done = cli("generate", "-m", tiny, "--backend", BACKEND, stdin=b"abc\xff")
    assert done == ("", "bise: standard input: byte 3 is no UTF-8: the prompt must be text\n", 2)


def test_no_file_is_touched_by_a_name_that_is_wrong(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path below a folder that exists is a path, not a hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert cli("info", "models/mistral").err == "bise: models/mistral: there is no such file\n"


# --- chat


def test_a_scripted_conversation(cli: Cli, tiny: Path) -> None:
    options = ("chat", tiny, "--backend", BACKEND, "-n", "12", "-T", "0", "-q")
    done = cli(*options, stdin="eat in\n\nnot one\n")
    session = bise.load(tiny, backend=BACKEND).session()
    replies = [session.chat(said, max_tokens=12).text for said in ("eat in", "not one")]
    assert done.out == "".join(reply + ("" if reply.endswith("\n") else "\n") for reply in replies)
    assert done.code == 0


def test_commands(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk"
    script = ["eat", "/retry", f"/save {file}", "more", "/undo", "/new", f"/load {file}"]
    script += ["/system sing", "/tokens", "/help", "/quit", "x"]
    done = cli("chat", tiny, "--backend", BACKEND, "-n", "5", "-T", "0", stdin="\n".join(script))
    assert done.code == 0, done.err
    assert done.out.count("\n") == 3  # eat, retry and more have replies; what follows /quit has none
    assert done.out.split("\n")[0] == done.out.split("\n")[1]  # at temperature 0
    assert "taken back: more" in done.err and "nothing read again" in done.err and "/retry" in done.err
    assert file.exists()


def test_new_forgets_all_but_the_instructions(cli: Cli, tiny: Path) -> None:
    options = ("chat", tiny, "--backend", BACKEND, "-n", "6", "-T", "0", "-q", "--system", "sing")
    once = cli(*options, stdin="eat in\n/undo\n").out
    assert cli(*options, stdin="not one\n/new\neat in\n/undo\n/undo\n").code == 2  # there is only one to take back
    assert cli(*options, stdin="not one\n/new\neat in\n").out.endswith(once)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/frobnicate", "/frobnicate is no command: there are /help /system"),
        ("/save", "/save takes FILE after it"),
        ("/undo twice", "/undo takes nothing after it"),
        ("/undo", "nothing to undo"),
        ("/load nowhere", "nowhere: there is no such file"),
    ],
)
def test_commands_that_cannot_be_obeyed(cli: Cli, tiny: Path, line: str, message: str) -> None:
    done = cli("chat", tiny, "--backend", BACKEND, stdin=line + "\n")
    assert done.code == 2 and f"bise: {message}" in done.err


def test_resume_goes_on_where_save_stopped(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    options = ("chat", tiny, "--backend", BACKEND, "-n", "6", "-T", "0", "-q")
    whole = cli(*options, stdin="eat in\nnot one\n").out.splitlines()
    first = cli(*options, stdin=f"eat in\n/save {tmp_path / 'talk'}\n").out.splitlines()
    rest = cli(*options, "--resume", tmp_path / "talk", stdin="not one\n").out.splitlines()
    assert first + rest == whole


def test_a_base_model_is_spoken_to_in_v1_and_that_is_said(cli: Cli, tmp_path: Path) -> None:
    config = tiny_config()
    path = write_tiny_gguf(tmp_path / "base.gguf", config, tiny_weights(config))
    options = ("--backend", BACKEND, "-n", "5", "-T", "0")
    done = cli("chat", path, *options, stdin="eat\n")
    assert done.code == 0 and "a base model" in done.err and "v1" in done.err
    model = bise.load(path, backend=BACKEND)
    with pytest.raises(bise.UnsupportedError, match="no chat format"):
        model.chat([{"role": "user", "content": "eat"}])
    model.chat_format = "v1"
    assert done.out == model.chat([{"role": "user", "content": "eat"}], max_tokens=5).text + "\n"
    asked = cli("generate", "eat", "--chat", "--format", "v1", "-m", path, *options)
    assert asked.out == done.out and "a base model" not in asked.err
    assert cli("chat", path, *options, "--format", "v3").err.endswith("use v1\n")


@pytest.mark.parametrize("when", ["reading", "writing"])
def test_an_interrupted_reply_leaves_a_session_that_goes_on(tiny: Path, when: str) -> None:
    model = bise.load(tiny, backend=BACKEND)
    session = model.session()
    session.chat("eat in", max_tokens=5)
    before = (list(session.messages), list(session.tokens))

    def stop(read: int, total: int) -> None:
        if when == "reading" and read > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for number, _ in enumerate(session.stream_chat("e" * 600, max_tokens=20, progress=stop)):
            if number == 3:
                raise KeyboardInterrupt
    if when == "reading":
        assert (session.messages, session.tokens) == before
    else:
        assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    reply = session.chat("not one", max_tokens=8)
    fresh = model.session()
    fresh.messages = session.messages[:-2]
    assert reply.tokens == fresh.generate(session.tokens[: reply.prompt_tokens], max_tokens=8).tokens


# --- info, models, bench


def test_info(cli: Cli, tiny: Path) -> None:
    done = cli("info", tiny)
    assert done.code == 0
    for words in ("Mistral v1", "64 tokens: llama.attention.sliding_window says so", "320 tokens", "F32", "1,024"):
        assert words in done.out


def test_info_as_json(cli: Cli, tiny: Path) -> None:
    facts = json.loads(cli("info", tiny, "--json").out)
    model = bise.load(tiny, backend=BACKEND)
    assert facts["bytes"] == model.weights.nbytes and facts["fingerprint"] == model.weights.fingerprint
    assert facts["parameters"] == model.config.parameters
    assert facts["window"]["tokens"] == 64 and facts["chat"] == "Mistral v1"
    assert facts["types"] == {"F32": {"tensors": 21, "bytes": model.weights.nbytes}}
    last = facts["memory"][-1]
    per_slot = 2 * 2 * 2 * 32  # k and v, layers, key/value heads, head_dim
    assert (last["context"], last["full_f16"], last["window_f16"]) == (1024, 1024 * per_slot * 2, 320 * per_slot * 2)


def test_info_of_a_folder_without_a_tokenizer(cli: Cli, tmp_path: Path) -> None:
    config = tiny_config()
    done = cli("info", write_tiny_hf(tmp_path / "m", config, tiny_weights(config), "BF16"))
    assert done.code == 0 and "none: only token ids can be used" in done.out and "BF16" in done.out


def test_info_reads_headers_only(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing the ends of each tensor is all that touches the weights."""
    from bise.cli.info import about
    from bise.weights import Weights

    monkeypatch.setattr(Weights, "place", None)
    monkeypatch.setattr(Weights, "__getitem__", None)
    assert about(Weights.open(tiny))["version"] == "Mistral's shape, in another size"


def test_models_of_an_empty_cache(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BISE_CACHE", str(tmp_path / "packed"))
    assert cli("models") == ("", "no models here yet: bise models pull ORG/REPO\n", 0)
    assert cli("models", "list", "--json") == ("[]\n", "", 0)
    assert cli("models", "remove", "a/b").code == 2
    assert cli("models", "pull", "ab").err.startswith("bise: 'ab' is no hub id")


@pytest.mark.skipif(BACKEND != "cpu", reason="packed weights are the cpu backend's")
def test_packed_weights_are_kept_listed_and_removed(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BISE_CACHE", str(tmp_path / "packed"))
    first, second = (cli("generate", "eat", "-m", tiny, "-n", "5", "--keep-packed") for _ in range(2))
    assert first.out == second.out == cli("generate", "eat", "-m", tiny, "-n", "5").out
    assert "keeping packed weights" in first.err and "keeping" not in second.err
    [row] = json.loads(cli("models", "list", "--json").out)
    [path] = (tmp_path / "packed").iterdir()
    assert row == {"id": str(tiny), "bytes": path.stat().st_size, "path": str(path), "files": 1, "packed": True}
    assert "packed weights of" in cli("models").out
    assert cli("models", "remove", tiny).err.startswith(f"removed the packed weights of {tiny}, ")
    assert not path.exists() and tiny.exists() and cli("models", "remove", tiny).code == 2
    refused = cli("generate", "eat", "-m", tiny, "--backend", "reference", "--keep-packed")
    assert refused.code == 2 and refused.err.endswith("the cpu backend's: reference takes them as the file has them\n")


def test_bench_prints_one_line_of_json(cli: Cli, tiny: Path) -> None:
    options = ("--backend", BACKEND, "--prefill", "32", "--decode", "4", "--depths", "0,100", "--repeats", "2")
    done = cli("bench", tiny, *options, "--json")
    found = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert [row["depth"] for row in found["rows"]] == [0, 100]
    for spread in (row[what] for row in found["rows"] for what in ("prefill", "decode")):
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert found["machine"]["cpu"] and found["bandwidth_gb"] > 0
    table = cli("bench", tiny, *options).out
    assert "Tokens per second" in table and "prefill 32" in table


def test_bench_against_needs_the_other_engine(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bise.cli import against

    monkeypatch.setattr(against, "find_spec", lambda name: None)
    done = cli("bench", tiny, "--against", "llama.cpp")
    assert done == ("", "bise: --against llama.cpp needs its Python package: pip install llama-cpp-python\n", 2)


def test_bench_against_llama_cpp(cli: Cli, tmp_path: Path) -> None:
    """The whole way, on puff, with two processes; figures are there, and saved as they are shown."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("bise._kernels", reason="the C++ kernels are not built")
    short = ("--prefill", "16", "--decode", "2", "--depths", "300", "--rounds", "1", "--threads", "1")
    done = cli("bench", "--against", "llama.cpp", *short, "--isa", "base", "--save", tmp_path / "all.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "all.json").read_text())
    assert {"prefill at 300", "load, warm cache"} <= {line["name"] for line in found["lines"]["puff.gguf"]}
    for line in found["lines"]["puff.gguf"]:
        assert all(value["median"] > 0 for value in line["values"]) and line["ratio"] > 0
    for words in ("decode, 8 sequences", "better by", "bandwidth", "isa='base'", "llama-cpp-python", "peak memory"):
        assert words in done.out


# --- what a terminal shows


@pytest.mark.parametrize(
    ("nbytes", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (2048, "2.00 KiB"), (20 << 10, "20.0 KiB"), (999 << 10, "999 KiB"),
     (1000 << 10, "0.98 MiB"), (4_368_439_008, "4.07 GiB"), (1 << 50, "1024 TiB")],
)  # fmt: skip
def test_sizes(nbytes: int, words: str) -> None:
    assert size(nbytes) == words


def test_a_models_control_characters_do_nothing_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\tb\n\x1b]0;title\x07\x9b2J\x7f\r"
    say(text)
    assert capsys.readouterr().out == text  # a program gets what was said
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say(text)
    assert capsys.readouterr().out == "a\tb\n\u241b]0;title\u2407\ufffd2J\u2421\u240d"


@needs_puff
def test_reading_ahead_changes_nothing_but_the_plan(cli: Cli) -> None:
    told = ["generate", "Once upon a time", "--max-tokens", 80, "-T", "0.8", "--seed", 3]
    plain = cli(*told, "--no-lookup")
    for options in ([], ["--draft", BUILT_IN], ["--draft", BUILT_IN, "--no-lookup"]):
        done = cli(*told, *options)
        assert done.out == plain.out and ("; draft model: weights 5.6 MiB" in done.err) == bool(options)


# --- serve


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--host", "0.0.0.0"],
            "--host 0.0.0.0 can be reached from other machines: pass --key-file FILE, or set BISE_KEY",
        ),
        (["--host", "::"], "--host :: can be reached from other machines"),
        (["--host", "no.such.name.invalid"], "neither an address nor a name"),
        (["--port", "65536"], "--port is 65536, expected 0 to 65535"),
        (["--port", "-1"], "--port is -1, expected 0 to 65535"),
        (["--key-file", "gone"], "--key-file gone: No such file or directory"),
        (["--key-file", "short"], "short, line 1: the key has 5 characters, expected 16 or more"),
        (["gone.gguf"], "gone.gguf"),
        (["--draft", "gone.gguf"], "gone.gguf"),
        (["--name", "a b"], "--name is 'a b'"),
        (["--slots", "0"], "--slots is 0, expected 1 to 256"),
        (["--queue", "-1"], "--queue is -1"),
        (["--drain", "nan"], "--drain is nan"),
        (["--reuse", "-1"], "--reuse is -1"),
        (["--reuse", "4000"], "pass a smaller --context, --slots or --reuse"),
        (["--context", "0"], "context"),
        (["--kv", "q4"], "kv"),
        (["--data", "/proc/nothing"], "--data /proc/nothing"),
    ],
)
@needs_puff
def test_serve_refuses_before_anything_is_loaded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BISE_KEY", raising=False)
    (tmp_path / "short").write_text("short")
    monkeypatch.setattr("bise.server.front.Front.run", lambda self: pytest.fail("it serves"))
    data = [] if "--data" in arguments else ["--data", "data"]
    done = cli("serve", "--port", "0", *data, *arguments)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert done.err.startswith("bise: ") and message in done.err


# --- the house


def test_every_verb_has_a_page_with_examples(cli: Cli) -> None:
    verbs = re.findall(r"^│ ([a-z]+) ", cli("--help").out, re.M)
    assert {"chat", "generate", "serve", "info", "models", "bench"} <= set(verbs)
    for verb in verbs:
        page = cli(verb, "--help")
        assert page.code == 0 and "Examples" in page.out, verb
    assert cli().out.rstrip() == cli("--help").out.rstrip() and cli().code == 0


def test_version(cli: Cli) -> None:
    assert cli("--version") == (f"bise {bise.__version__}\n", "", 0)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, bise.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "huggingface_hub", "prompt_toolkit", "jinja2", "sentencepiece", "matplotlib",
             "fastapi", "uvicorn", "prometheus_client"}  # fmt: skip
    assert not heavy & set(loaded.stdout.split())


def test_ctrl_c_keeps_what_was_written_and_ends_with_130(tiny: Path) -> None:
    options = ("-n", "900", "--ignore-eos")
    process = start("generate", "eat", "-m", tiny, "--backend", BACKEND, *options, stdout=-1, stderr=-1)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert first and process.returncode in (130, 0)  # a fast machine may be done before the signal arrives
    assert (first + rest).endswith(b"\n") and b"Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(tiny: Path) -> None:
    options = ("-n", "900", "--ignore-eos", "-q")
    process = start("generate", "eat", "-m", tiny, "--backend", BACKEND, *options, stdout=-1, stderr=-1)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 1) and err == b""


PROMPT = "\x1b[?2004h"  # prompt_toolkit switches pasting of several lines on: it is ready to be typed at


class Terminal:
    """A process that believes it talks to a person with a terminal of 80 x 24. It is started with Ctrl-C ignored, as a
    background job of a shell script is."""

    def __init__(self, *arguments: str | Path, **environment: str) -> None:
        self.keys, screen = pty.openpty()
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "PYTHONPATH": SOURCE, "TERM": "xterm", "NO_COLOR": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bise", *map(str, arguments)], stdin=screen, stdout=screen, stderr=screen,
            env=environment, preexec_fn=self._prepare,
        )  # fmt: skip
        os.close(screen)
        self.seen = ""

    @staticmethod
    def _prepare() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def type(self, keys: str) -> None:
        os.write(self.keys, keys.encode())

    def expect(self, words: str, seconds: float = 30) -> str:
        """Read until the words appear; returns what came before them."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            ready, _, _ = select.select([self.keys], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{words!r} did not appear in {self.seen!r}"
            self.seen += os.read(self.keys, 4096).decode(errors="replace")
            if "\x1b[6n" in self.seen:  # prompt_toolkit asks where the cursor is
                self.seen = self.seen.replace("\x1b[6n", "")
                self.type("\x1b[1;1R")
        before, _, self.seen = self.seen.partition(words)
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keys)


def test_a_person_at_a_terminal(tiny: Path, tmp_path: Path) -> None:
    """Type, be answered, stop a reply with Ctrl-C, go on, mistype, ask for help, leave with Ctrl-D."""
    options = ("-T", "0", "--ignore-eos", "--context", "16000")
    terminal = Terminal("chat", tiny, "--backend", BACKEND, *options, XDG_STATE_HOME=str(tmp_path))
    try:
        terminal.expect(PROMPT)
        terminal.type("eat in\r")
        terminal.expect("eat in\x1b")
        terminal.expect("\n")
        terminal.expect("w")  # the reply has begun, and would be long
        terminal.type("\x03")
        terminal.expect("stopped; ")
        terminal.expect("16,000 tokens of context used")
        for typed, answer in (("/frobnicate", "no command"), ("/help", "another reply"), ("/undo", "back: eat in")):
            terminal.expect(PROMPT)
            terminal.type(f"{typed}\r")
            terminal.expect(answer)
        terminal.expect(PROMPT)
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
    history = tmp_path / "bise" / "chat_history"
    assert "+eat in" in history.read_text() and history.stat().st_mode & 0o077 == 0
