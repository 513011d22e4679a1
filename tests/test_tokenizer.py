"""The tokenizer against Mistral's own vocabularies (in mistral-common), sentencepiece and llama.cpp's vectors."""

import contextlib
import functools
import json
import os
import time
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bise import gguf
from bise.errors import FormatError, RequestError, UnsupportedError
from bise.tokenizer import MAX_FILE, Tokenizer
from bise.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocab

FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}
HARD = [
    "", " ", "  ", "   leading", "trailing   ", "\n", "\n\n\n", "\t\ttabs", " \n \n", "a\r\nb", "\u00a0nbsp", "\u3000",
    "</s>", "<s>[INST] hi [/INST]", "[TOOL_CALLS] [{}]", "<unk>", "<0x0A>", "\u2581\u2581", "x\u2581y", "\u2047",
    "👩‍👩‍👧‍👦 family", "🇫🇷🇬🇧", "日本語のテキスト", "汉字汉字", "한국어",
    "العربية", "עִבְרִית", "Ünïcödé", "e\u0301", "\ufeffbom", "\u200b",
    "a" * 500, "ab " * 300, "1234567890" * 20, "!@#$%^&*()_+" * 5, "\x00nul\x00", "\x7f", "\U0010ffff", "\ue000",
]  # fmt: skip


def model_path(version: str) -> Path:
    return Path(pytest.importorskip("mistral_common").__file__).parent / "data" / FILES[version]


@functools.cache
def tokenizer_of(version: str) -> Tokenizer:
    return Tokenizer.from_file(model_path(version))


def v1() -> Tokenizer:
    return tokenizer_of("v1")


@pytest.fixture(scope="session", params=list(FILES))
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def ours(version: str) -> Tokenizer:
    return tokenizer_of(version)


@pytest.fixture(scope="session")
def theirs(version: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model_path(version)))


@pytest.fixture(scope="session")
def cases(shared: Path) -> list[dict]:
    return json.loads((shared / "data/mistral_common/spm_reference_ids.json").read_text())["cases"]


def test_reference_ids(ours, version, cases):
    assert len(cases) > 40
    for case in cases:
        assert ours.encode(case["text"]) == case[version], case["text"]


def test_rebuilt_from_gguf_keys(ours, version, cases):
    start = time.perf_counter()
    rebuilt = Tokenizer.from_gguf(ours.gguf_keys())
    assert time.perf_counter() - start < 1.5  # 0.08 s on an idle core
    assert rebuilt.vocab == ours.vocab
    for case in cases:
        assert rebuilt.encode(case["text"]) == case[version]


def test_gguf_keys_say_what_the_model_says(ours, theirs):
    keys = ours.gguf_keys()
    n = theirs.vocab_size()
    assert keys["tokenizer.ggml.tokens"] == [theirs.id_to_piece(i) for i in range(n)]
    assert keys["tokenizer.ggml.scores"] == [theirs.get_score(i) for i in range(n)]
    kinds = [(theirs.is_control, CONTROL), (theirs.is_unknown, UNKNOWN), (theirs.is_byte, BYTE)]
    wanted = [next((kind for is_kind, kind in kinds if is_kind(i)), NORMAL) for i in range(n)]
    found = keys["tokenizer.ggml.token_type"]
    assert [NORMAL if kind == USER_DEFINED else kind for kind in found] == wanted  # their API does not tell these apart
    ids = [keys[f"tokenizer.ggml.{what}_token_id"] for what in ("bos", "eos", "unknown")]
    assert ids == [theirs.bos_id(), theirs.eos_id(), theirs.unk_id()]


@pytest.mark.parametrize("text", HARD)
def test_hard_strings(ours, theirs, text):
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)
    assert not any(ours.is_control(i) for i in ids), "text became a control token"
    if "\u2581" not in text:  # the one character that SentencePiece cannot tell from a space
        assert ours.decode(ids) == text


def test_mistral_common_agrees(ours, version):
    pytest.importorskip("mistral_common")
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    other = getattr(MistralTokenizer, version)().instruct_tokenizer.tokenizer
    for text in HARD:
        assert ours.encode(text, bos=True) == other.encode(text, bos=True, eos=False)
    assert set(ours.control.values()) == other.special_ids
    assert (ours.bos, ours.eos, ours.unk) == (other.bos_id, other.eos_id, other.unk_id)


def test_proto_loads_in_sentencepiece(ours, theirs, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ours.proto())
    again = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert again.vocab_size() == theirs.vocab_size()
    assert [again.encode(t) for t in HARD] == [theirs.encode(t) for t in HARD]
    assert (again.bos_id(), again.eos_id(), again.unk_id(), again.pad_id()) == (1, 2, 0, -1)
    assert Tokenizer.from_file(path).vocab == ours.vocab


def test_special(ours):
    assert ours.encode("<s>hi</s>", special=True) == [1, *ours.encode("hi"), 2]
    assert ours.encode("hi", bos=True) == [1, *ours.encode("hi")]
    if "[INST]" in ours.control:
        assert ours.control["[INST]"] == 3 and ours.control["[/INST]"] == 4
        assert ours.encode("[INST]a[/INST]", special=True) == [3, *ours.encode("a"), 4]


# --- text as it comes


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.lists(st.integers(0, 31999), max_size=20), st.booleans())
def test_stream_is_decode(text, ids, start):
    tokenizer = v1()
    for sequence in (tokenizer.encode(text), ids):
        stream = tokenizer.stream(start)
        pieces = [stream.push(i) for i in sequence]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(sequence, start)
        for piece in pieces:
            piece.encode()  # never half a surrogate


def test_stream_holds_characters_back():
    tokenizer = v1()
    ids = tokenizer.encode("🦙")
    assert [tokenizer.piece(i) for i in ids[1:]] == [b"\xf0", b"\x9f", b"\xa6", b"\x99"]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "", "", "", "🦙"]
    assert stream.flush() == ""
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"


def test_leading_space():
    tokenizer = v1()
    ids = tokenizer.encode("  two spaces")
    assert tokenizer.decode(ids) == "  two spaces"
    assert tokenizer.decode([1, *ids, 2]) == "  two spaces"
    assert tokenizer.decode(ids, start=False) == "   two spaces"
    head, tail = tokenizer.encode("The mistral"), tokenizer.encode("is")
    assert tokenizer.decode(head) + tokenizer.decode(tail, start=False) == "The mistral is"


def test_ids_outside_the_vocabulary():
    for wrong in (-1, 32000, 10**12):
        with pytest.raises(RequestError, match="expected 0 to 31999"):
            v1().decode([wrong])
    with pytest.raises(RequestError, match="UTF-8"):
        v1().encode("\ud800")


# --- llama.cpp's vectors


def test_llama_cpp_vectors(shared):
    theirs = pytest.importorskip("gguf")
    path = shared / "data/llama_cpp_vectors/ggml-vocab-llama-spm.gguf"
    keys = {k: f.contents() for k, f in theirs.GGUFReader(path).fields.items() if k.startswith("tokenizer.")}
    tokenizer = Tokenizer.from_gguf(keys)
    texts = Path(f"{path}.inp").read_text().split("\n__ggml_vocab_test__\n")
    wanted = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) >= 40
    for text, ids in zip(texts, wanted, strict=False):
        if text or ids:
            assert tokenizer.encode(text) == [int(i) for i in ids.split()], text


def test_llama_cpp_reads_our_keys(ours, tmp_path):
    """The same ids from a GGUF that carries nothing but these keys, control tokens asked for and not."""
    llama_cpp = pytest.importorskip("llama_cpp")
    shape = {"context_length": 64, "embedding_length": 64, "block_count": 1, "feed_forward_length": 64}
    shape |= {"attention.head_count": 1, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 64}
    keys = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in shape.items()}, **ours.gguf_keys()}
    gguf.write(tmp_path / "vocab.gguf", keys, {})
    assert Tokenizer.from_gguf(gguf.GGUF(tmp_path / "vocab.gguf").keys).vocab == ours.vocab
    other = llama_cpp.Llama(str(tmp_path / "vocab.gguf"), vocab_only=True, verbose=False)
    for text in filter(None, HARD):
        if "\x00" not in text:  # llama-cpp-python hands over C strings
            assert other.tokenize(text.encode(), add_bos=False, special=False) == ours.encode(text), text
    printed = "<s>a</s>b [INST]c[/INST]d"
    assert other.tokenize(printed.encode(), add_bos=False, special=True) == ours.encode(printed, special=True)
    assert (other.token_bos(), other.token_eos()) == (ours.bos, ours.eos)


# --- tokenizer.json


def as_json(vocab: Vocab, new_style: bool = False) -> dict:
    """The same vocabulary as Hugging Face writes it, by their own rule for making merges out of scores."""
    ids = {t: i for i, t in enumerate(vocab.tokens)}
    merges = []
    for token, i in ids.items():
        if vocab.types[i] == NORMAL:
            halves = [(token[:k], token[k:]) for k in range(1, len(token))]
            halves = [(a, b) for a, b in halves if a in ids and b in ids]
            merges += [(a, b, vocab.scores[i]) for a, b in sorted(halves, key=lambda h: (ids[h[0]], ids[h[1]]))]
    merges.sort(key=lambda m: -m[2])
    special = [{"id": i, "content": t, "special": True} for t, i in ids.items() if vocab.types[i] in (CONTROL, UNKNOWN)]
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    return {
        "added_tokens": special,
        "normalizer": None if new_style else prepend,
        "pre_tokenizer": metaspace if new_style else None,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": ids,
            "merges": [[a, b] if new_style else f"{a} {b}" for a, b, _ in merges],
        },
    }  # fmt: skip


@pytest.mark.parametrize("new_style", [False, True])
def test_tokenizer_json(tmp_path, cases, new_style):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(as_json(v1().vocab, new_style)))
    tokenizer = Tokenizer.from_json(path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk) == (1, 2, 0)
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["v1"], case["text"]
    opened = Tokenizer.open(tmp_path)
    assert opened is not None and opened.vocab == tokenizer.vocab


def test_tokenizer_json_as_the_tokenizers_library_reads_it(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tree = as_json(v1().vocab)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    tree["normalizer"]["normalizers"].append(replace)
    tree |= {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None}
    tree["added_tokens"] = [
        t | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False} for t in tree["added_tokens"]
    ]
    tree["model"]["fuse_unk"] = True
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    other = tokenizers.Tokenizer.from_file(str(path))
    mine = Tokenizer.from_json(path)
    for text in HARD:
        if text and "<" not in text:  # theirs reads control tokens in any text
            assert mine.encode(text) == other.encode(text, add_special_tokens=False).ids, text


# --- folders


def test_open_adds_what_tuning_added(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(v1().proto())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 32001, "<|im_end|>": 32000, "mein": 32003}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": "<s>"})
    )
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.vocab_size == 32004
    assert (tokenizer.bos, tokenizer.eos) == (1, 32000)
    assert tokenizer.stop_ids == {32000}
    assert tokenizer.control["<|im_start|>"] == 32001
    assert tokenizer.vocab.types[32002:] == [UNUSED, USER_DEFINED]
    text = "<|im_start|>system"
    assert tokenizer.encode(text) == v1().encode(text)
    assert tokenizer.encode(text, special=True) == [32001, *v1().encode("system")]


def test_open_finds_versioned_names_and_nothing(tmp_path):
    assert Tokenizer.open(tmp_path) is None
    (tmp_path / "tokenizer.model.v3").write_bytes(model_path("v3").read_bytes())
    assert Tokenizer.open(tmp_path).control["[INST]"] == 3


@pytest.mark.parametrize("name", ["tekken.json", "vocab.json", "qwen.tiktoken"])
def test_open_refuses_byte_level(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedError, match=name):
        Tokenizer.open(tmp_path)


# --- bad files


def refused(path: Path, match: str, kind: type[Exception] = FormatError) -> None:
    read = Tokenizer.from_json if path.suffix == ".json" else Tokenizer.from_file
    start = time.perf_counter()
    with pytest.raises(kind, match=match) as caught:
        read(path)
    assert time.perf_counter() - start < 1.0
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_truncated_models_are_refused(tmp_path):
    data = model_path("v1").read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in (0, 1, 2, 17, 100, 1000, 99_999, len(data) // 2, len(data) - 300):
        path.write_bytes(data[:size])
        refused(path, ".", (FormatError, UnsupportedError))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x80\x04not a protobuf" * 100, "not a SentencePiece|truncated|wire type|unfinished"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
        (b"\x0a\x00" * 400_000, "400,000 tokens"),
        (b"\xff" * 1000, "unfinished"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (b"\x00" * 100, "0 tokens"),
    ],
)
def test_what_is_no_model(tmp_path, data, match):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    refused(path, match)


def test_huge_files_are_not_read(tmp_path):
    for name in ("tokenizer.model", "tokenizer.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(MAX_FILE + 1)
        refused(tmp_path / name, f"{MAX_FILE + 1:,} bytes")


def test_folders_and_pipes(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo", "missing"):
        refused(tmp_path / name, name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: "[" * 100_000, "not JSON"),
        (lambda t: "[1]", "expected dict"),
        (lambda t: json.dumps({**t, "model": 7}), "model is int"),
        (lambda t: json.dumps({**t, "model": {**t["model"], "vocab": {"a": 10**9}}}), "model.vocab"),
        (lambda t: json.dumps({**t, "model": {**t["model"], "vocab": {"a": 1.5}}}), "expected int"),
        (lambda t: json.dumps({**t, "model": {**t["model"], "merges": ["a b c"]}}), "merges"),
        (lambda t: json.dumps({**t, "model": {**t["model"], "merges": [7]}}), "merges"),
        (lambda t: json.dumps({**t, "model": {**t["model"], "merges": ["a b"] * 2_200_000}}), "2,200,000 merges"),
        (lambda t: json.dumps({**t, "added_tokens": [{"id": 10**9, "content": "x"}]}), "added token"),
        (lambda t: json.dumps({**t, "added_tokens": [{"id": 1}]}), "content"),
        (lambda t: json.dumps(t)[:1000], "not JSON"),
    ],
)
def test_bad_json(tmp_path, change, match):
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}, "a": 259}
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": ids, "merges": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(change({"model": model, "added_tokens": []}))
    refused(path, match)


@pytest.mark.parametrize(
    "model", [{"type": "BPE"}, {"type": "Unigram"}, {"type": "BPE", "byte_fallback": True, "ignore_merges": True}]
)
def test_other_json_models_are_named(tmp_path, model):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model}))
    refused(path, "SentencePiece", UnsupportedError)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_models_never_crash(data):
    """A flipped byte either still makes a tokenizer that encodes, or is a BiseError."""
    source = small().to_proto()
    at = data.draw(st.integers(0, len(source) - 1))
    mutated = source[:at] + bytes([data.draw(st.integers(0, 255))]) + source[at + 1 :]
    with contextlib.suppress(FormatError, UnsupportedError):
        tokenizer = Tokenizer(Vocab.from_proto(mutated))
        tokenizer.decode(tokenizer.encode("abc é"))


def small_tokens() -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "ab", "\u2581ab"]


def small(**changes) -> Vocab:
    tokens = small_tokens()
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 5]
    given = {
        "tokens": tokens, "scores": [-float(i) for i in range(len(tokens))], "types": types,
        "unk": 0, "bos": 1, "eos": 2, "space_prefix": True,
    }  # fmt: skip
    given |= changes
    return Vocab.checked(**given)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("model", "gpt2", "tokenizer.ggml.model is 'gpt2'"),
        ("model", None, "tokenizer.ggml.model is None"),
        ("tokens", None, "tokens is missing"),
        ("scores", None, "scores"),
        ("scores", [0.0], "1 scores"),
        ("scores", [float("nan")] * 264, "score of token 0 is nan"),
        ("token_type", [9] * 264, "type of token 0 is 9"),
        ("bos_token_id", 264, "bos token id is 264"),
        ("eos_token_id", -2, "eos token id is -2"),
        ("tokens", ["x"] * 264, "0 byte tokens"),
        ("tokens", [*small_tokens()[:3], *["<0x00>"] * 261], "1 byte tokens"),
        ("tokens", [b"\xff"] * 264, "not UTF-8"),
        ("tokens", ["y" * 2000] * 264, "token 0"),
        ("tokens", [7] * 264, "token 0"),
        ("tokens", 7, "tokens is int"),
        ("scores", ["x"] * 264, "no number"),
        ("scores", 7, "no number|not iterable|scores"),
        ("scores", [1e300] * 264, "1e\\+300"),
        ("token_type", [None] * 264, "no number"),
        ("bos_token_id", "1", "bos token id is '1'"),
        ("bos_token_id", True, "bos token id is True"),
    ],
)
def test_bad_gguf_keys(key, value, match):
    keys = {**small().to_gguf(), f"tokenizer.ggml.{key}": value}
    with pytest.raises((FormatError, UnsupportedError), match=match):
        Tokenizer.from_gguf(keys)


def test_repairs():
    base = small()
    tokens = [*base.tokens, "", "a", "<|im_end|>", "</x>"]
    types = [*base.types, NORMAL, NORMAL, USER_DEFINED, USER_DEFINED]
    types[2] = NORMAL  # eos typed as text
    types[3] = NORMAL  # a byte typed as text
    vocab = small(tokens=tokens, types=types, scores=[0.0] * len(tokens))
    assert vocab.types == [*base.types, UNUSED, UNUSED, CONTROL, CONTROL]
    tokenizer = Tokenizer(vocab)
    assert tokenizer.encode("</s>") == Tokenizer(base).encode("</s>")
    assert len(set(vocab.tokens)) == len(tokens)


def test_without_a_space_prefix():
    tokenizer = Tokenizer(small(space_prefix=False))
    names = [tokenizer.name(i) for i in tokenizer.encode("ab ab")]
    assert names == ["ab", "\u2581ab"]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


def test_unigram_and_normalising_models_are_refused(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cold wind blows over the hills and the sea\n" * 50)
    for name, options, match in (
        ("unigram", {"model_type": "unigram", "normalization_rule_name": "identity"}, "model type 1"),
        ("nfkc", {"model_type": "bpe"}, "nmt_nfkc"),
    ):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(tmp_path / name), vocab_size=40, minloglevel=2,
            hard_vocab_limit=False, **options,
        )  # fmt: skip
        with pytest.raises(UnsupportedError, match=match):
            Tokenizer.from_file(tmp_path / f"{name}.model")


def test_a_vocabulary_trained_here(tmp_path):
    """What examples/puff does: train, then write GGUF keys; without byte fallback too."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cold wind blows over the hills and the sea\n" * 50)
    for fallback in (True, False):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=300 if fallback else 40, model_type="bpe",
            byte_fallback=fallback, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
        tokenizer = Tokenizer.from_gguf(Tokenizer.from_file(tmp_path / "m.model").gguf_keys())
        for text in ("the cold  wind", "été", "sea\nhills"):
            assert tokenizer.encode(text) == theirs.encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(theirs.encode(text))
