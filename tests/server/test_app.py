"""The application as a whole: what its document says is so, and whatever else one asks gets an error of its shape."""

import httpx
import pytest

from bise.sampler import RANGES
from bise.server import limits

GENERATING = ["/v1/completions", "/v1/chat/completions"]


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(server.url + "/openapi.json", timeout=30).json()


def walk(value):
    yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(child)


def test_the_document_holds_together(document):
    assert document["openapi"] == "3.1.0" and document["info"]["title"] == "bise"
    refs = {v["$ref"] for v in walk(document) if isinstance(v, dict) and isinstance(v.get("$ref"), str)}
    assert refs and all(r.removeprefix("#/components/schemas/") in document["components"]["schemas"] for r in refs)
    assert not [v for v in walk(document) if isinstance(v, str) and v.startswith(("http://", "https://"))]


def test_every_answer_is_named(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "422" not in operation["responses"], path
            if method == "post" and path.startswith("/v1/"):
                assert {"400", "401", "403"} <= set(operation["responses"]), path
    for path in [*GENERATING, "/v1/embeddings"]:
        answers = document["paths"][path]["post"]["responses"]
        assert set(answers) == {"200", "400", "401", "403", "404", "413", "415", "429", "500", "503"}
        assert ("text/event-stream" in answers["200"]["content"]) is (path in GENERATING)


def test_who_may_name_a_model_may_name_a_wrong_one(document):
    schemas, seen = document["components"]["schemas"], []
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "model" in schemas.get(name, {}).get("properties", {}):
            assert "404" in operations["post"]["responses"], path
            seen.append(path)
    assert {"/v1/sessions", "/tokenize", "/v1/completions"} <= set(seen)


def test_limits_are_in_the_document(document):
    for name in ("CompletionRequest", "ChatRequest"):
        schema = document["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
        fields = schema["properties"]
        for field, (_, least, most) in RANGES.items():
            given = fields[field]["anyOf"][0]
            assert (given["minimum"], given["maximum"]) == (float(least), float(most)), field
        assert fields["n"]["anyOf"][0]["maximum"] == limits.CHOICES
    messages = document["components"]["schemas"]["ChatRequest"]["properties"]["messages"]
    assert messages["maxItems"] == limits.MESSAGES and messages["minItems"] == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405), ("DELETE", "/v1/chat/completions", 405), ("OPTIONS", "/v1/models", 405),
        ("GET", "/v1", 404), ("GET", "/v1/models/", 404), ("GET", "/docs", 404), ("GET", "/redoc", 404),
        ("GET", "//v1/models", 404), ("GET", "/v1/../admin", 404), ("POST", "/v1/completions/", 404),
        ("PATCH", "/v1/models/puff", 405),
    ],
)  # fmt: skip
def test_other_ways_to_ask(server, method, path, status):
    """Catalogue C26."""
    headers = {} if method in ("GET", "OPTIONS", "DELETE") else {"content-type": "application/json"}
    response = httpx.Client(base_url=server.url).build_request(method, path, headers=headers)
    with httpx.Client() as client:
        answer = client.send(response)
    assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


BAD_BODIES = [
    b"", b"{", b"null", b"[]", b'"text"', b"5", b"\xef\xbb\xbf{}", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}',
    b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", b"[" * 100_000,
    b'{"prompt": "a", "prompt": "b"}', '{"prompt": "a"}'.encode("utf-16"), b'{"logit_bias": ' * 100,
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda b: repr(b[:30]))
@pytest.mark.parametrize("path", [*GENERATING, "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"])
def test_bad_bodies_on_every_route(server, path, body):
    """Catalogue C1 to C5."""
    response = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and len(response.json()["error"]["message"]) < 300


def test_alive_afterwards(server):
    answer = httpx.post(server.url + "/v1/completions", json={"prompt": "Once", "max_tokens": 1}, timeout=30)
    assert answer.status_code == 200
