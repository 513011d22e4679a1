"""POST /v1/embeddings against the model's own last hidden states."""

import base64

import httpx
import numpy as np
import openai
import pytest

import bise
from bise.cache import whole
from bise.model import forward


@pytest.fixture(scope="module")
def puff():
    return bise.load(threads=1)


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def post(server, **body):
    return httpx.post(server.url + "/v1/embeddings", json=body, timeout=60)


def expected(model, ids):
    """The mean of what the output matrix reads, at length 1: the matrix is exchanged for one that passes it on."""
    from dataclasses import replace

    seen = []
    inner = model.ops.linear

    class Spy:
        def __getattr__(self, name):
            return getattr(model.ops, name)

        def linear(self, x, *ws):
            seen.append(np.asarray(model.ops.numpy(x)))
            return inner(x, *ws)

    batch = whole(model.ops, model.config, [len(ids)], "f16")
    forward(Spy(), model.config, replace(model.parameters), np.array(ids, np.int32), batch)
    mean = seen[-1].astype(np.float64).mean(0)
    return mean / np.linalg.norm(mean)


def test_the_mean_of_the_last_hidden_states(client, puff):
    ids = puff.tokenizer.encode("A cat sat on the mat.", bos=True)
    answer = client.embeddings.create(model="puff", input="A cat sat on the mat.")
    vector = np.array(answer.data[0].embedding)
    assert vector.shape == (puff.config.dim,) and np.isclose(np.linalg.norm(vector), 1, atol=1e-5)
    assert np.allclose(vector, expected(puff, ids), atol=1e-4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(ids)


def test_numbers_and_base64_are_the_same(server):
    number = post(server, input="A cat", encoding_format="float").json()["data"][0]["embedding"]
    coded = post(server, input="A cat", encoding_format="base64").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == number


def test_every_kind_of_input(server, puff):
    ids = puff.tokenizer.encode("A cat", bos=True)
    found = [post(server, input=i).json()["data"] for i in ("A cat", ["A cat", "A dog"], ids, [ids, ids[:2]])]
    assert [len(f) for f in found] == [1, 2, 1, 2] and [d["index"] for d in found[1]] == [0, 1]
    assert all(f[0]["embedding"] == found[0][0]["embedding"] for f in found)


def test_what_is_alike_is_near(client):
    a, b, c = (
        np.array(d.embedding)
        for d in client.embeddings.create(
            model="puff", input=["The dog ran to the park.", "The dog ran in the park.", "She ate soup for lunch."]
        ).data
    )
    assert a @ b > a @ c


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "input"), ({"input": []}, "input is empty"), ({"input": ["a"] * 65}, "at most 64"), ({"input": [[]]}, "input[0]"),
        ({"input": [True]}, "input[0] is true"), ({"input": "a", "dimensions": 8}, "256 numbers"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"), ({"input": "a " * 2000}, "1,024"),
        ({"input": "a", "x": 1}, "unknown field x"),
    ],
)  # fmt: skip
def test_refused_by_name(server, body, says):
    response = post(server, **body)
    assert response.status_code == 400 and says in response.json()["error"]["message"]
