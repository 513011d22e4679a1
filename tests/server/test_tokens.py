"""/tokenize, /detokenize, /apply-template: the same ids that the library makes."""

import httpx
import pytest

import bise

HARD = ["", " ", "Once upon a time", "</s>x", "[INST] hi [/INST]", "🇫🇷 日本 e\u0301", "\x00nul", "a  b\n\n\tc"]


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


def post(server, path, **body):
    return httpx.post(server.url + path, json=body, timeout=60)


@pytest.mark.parametrize("text", HARD)
def test_there_and_back(server, puff, text):
    found = post(server, "/tokenize", prompt=text, with_pieces=True).json()
    assert found["tokens"] == puff.tokenizer.encode(text, bos=True) and found["count"] == len(found["tokens"])
    assert found["pieces"] == [puff.tokenizer.name(i) for i in found["tokens"]] and found["max_model_len"] == 1024
    assert post(server, "/detokenize", tokens=found["tokens"]).json() == {"prompt": text, "content": text}


def test_both_dialects(server, puff):
    ids = puff.tokenizer.encode("A cat")
    for body in ({"prompt": "A cat", "add_special_tokens": False}, {"content": "A cat", "add_special": False}):
        assert post(server, "/tokenize", **body).json()["tokens"] == ids


def test_control_tokens_only_on_request(server, puff):
    special = post(server, "/tokenize", prompt="a</s>", add_special=False, parse_special=True).json()["tokens"]
    assert special == puff.tokenizer.encode("a</s>", special=True) and special[-1] == puff.tokenizer.eos
    assert post(server, "/tokenize", prompt="a</s>").json()["tokens"][-1] != puff.tokenizer.eos


def test_conversations(server, puff):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello </s>"}]
    ids = puff.chat_format.encode(messages)
    assert post(server, "/tokenize", messages=messages).json()["tokens"] == ids
    found = post(server, "/apply-template", messages=messages).json()
    assert found["tokens"] == ids and found["prompt"] == "<s> [INST] Be kind.\n\nHello </s> [/INST]"


def test_lm_evals_remote_tokenizer(server, puff):
    utils = pytest.importorskip("lm_eval.utils")
    base = server.url + "/v1/completions"
    assert utils.check_remote_tokenizer_support(base)
    theirs = utils.RemoteTokenizer(base)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (puff.tokenizer.bos, puff.tokenizer.eos)
    assert theirs.encode("A cat") == puff.tokenizer.encode("A cat") and theirs.decode(theirs.encode("A cat")) == "A cat"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/tokenize", {}, "0 of prompt"), ("/tokenize", {"prompt": "a", "content": "b"}, "2 of prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"), ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [3072]}, "tokens[0]"), ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("/detokenize", {"tokens": "abc"}, "tokens"), ("/detokenize", {"tokens": [[1]]}, "tokens"), ("/detokenize", {}, "tokens"),
        ("/apply-template", {"messages": [{"role": "x"}]}, "message 0"), ("/tokenize", {"prompt": "a", "model": "b"}, "not served"),
    ],
)  # fmt: skip
def test_refused_by_name(server, path, body, says):
    response = post(server, path, **body)
    assert response.status_code in (400, 404) and says in response.json()["error"]["message"]
