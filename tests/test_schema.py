"""Which JSON schemas are promised, and what is said about the others."""

import json
from typing import Any

import pytest

from bise import schema
from bise.errors import RequestError


def test_nothing_but_what_is_kept_is_left() -> None:
    given = {
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://x.org/a", "title": "T", "x-guidance": {"lenient": True},
        "type": "object", "properties": {"title": {"type": "string", "description": "d"}, "$ref": {"type": "null"}}, "uniqueItems": False,
    }  # fmt: skip
    kept = {"type": "object", "properties": {"title": {"type": "string"}, "$ref": {"type": "null"}}}
    assert schema.checked(given) == kept


def test_lists_of_draft_7() -> None:
    old = {"items": [{"type": "string"}, True], "additionalItems": False}
    assert schema.checked(old) == {"prefixItems": [{"type": "string"}, {}], "items": {"enum": []}}
    assert schema.checked({"items": {"type": "null"}, "additionalItems": False}) == {"items": {"type": "null"}}


def test_references_become_names() -> None:
    given = {"properties": {"a": {"$ref": "#/definitions/x~1y"}, "b": {"$ref": "#"}}, "definitions": {"x/y": {"$ref": "#/items/0"}}, "items": [{"const": 1}]}  # fmt: skip
    found = schema.checked(given)
    assert found["properties"] == {"a": {"$ref": "#/$defs/d0"}, "b": {"$ref": "#/$defs/d1"}}
    assert found["$defs"]["d0"] == {"$ref": "#/$defs/d2"} and found["$defs"]["d2"] == {"const": 1}
    assert set(found["$defs"]["d1"]) == {"properties", "prefixItems"}


@pytest.mark.parametrize("word", sorted(schema.REFUSED))
def test_refused_by_name(word: str) -> None:
    with pytest.raises(RequestError, match=f"#/properties/a says '{word.replace('$', '.')}'"):
        schema.checked({"properties": {"a": {word: {}}}})
    schema.checked({"properties": {word: {}}, "default": {word: 1}, "const": {word: 1}})  # no keyword there


NEVER: list[Any] = [
    False,
    {"enum": []},
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"anyOf": [{"$ref": "#"}, False]},
    {"allOf": [{"type": "string"}, {"$ref": "#"}]},
    {"type": "object", "additionalProperties": False, "required": ["a"]},
]


@pytest.mark.parametrize("given", NEVER, ids=str)
def test_no_finite_value(given: Any) -> None:
    with pytest.raises(RequestError, match="no finite value"):
        schema.checked(given)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
    ids=str,
)
def test_loops_that_end(given: Any) -> None:
    schema.checked(given)


REFUSED: list[tuple[Any, str]] = [
    ([], "list, expected an object"),
    ({"properties": []}, "#/properties is list, expected mapping"),
    ({"properties": {"a": 3}}, "#/properties/a is int, expected an object"),
    ({"anyOf": {}}, "#/anyOf is dict, expected list"),
    ({"minItems": 10**9}, "#/minItems is 1000000000, expected 0 to 1,000"),
    ({"minLength": -1}, "#/minLength is -1"),
    ({"maxItems": float("inf")}, "not JSON"),
    ({"maxItems": "3"}, "expected 0 to 1,000"),
    ({"const": "\ud800"}, "not JSON"),
    ({"uniqueItems": True}, "'uniqueItems'"),
    ({"items": {"$id": "x"}}, "'\\$id'"),
    ({"minProperties": 3, "required": ["a"]}, "minProperties 3 with 1 required"),
    ({"$ref": "http://example.com/a.json"}, "only references inside the schema"),
    ({"$ref": "#anchor"}, "only references inside the schema"),
    ({"$ref": 7}, "only references inside the schema"),
    ({"$ref": "#/nowhere"}, "there is nothing"),
    ({"$ref": "#/anyOf/00000000009", "anyOf": [{}]}, "there is nothing"),
    ({"multipleOf": 0}, "above 0"),
    ({"multipleOf": 4001}, "up to 2,000"),
    ({"format": ["date"]}, "#/format is list, expected str"),
    ({"description": "x" * 200_000}, "200,019 bytes"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda x: str(x)[:40])
def test_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refusal:
        schema.checked(given)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_depth_and_size() -> None:
    deep: Any = {"type": "string"}
    for _ in range(40):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="more than 32 deep"):
        schema.checked(deep)
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(RequestError):
        schema.checked(deep)
    with pytest.raises(RequestError, match="2,000 parts"):
        schema.checked({"prefixItems": [{} for _ in range(3000)]})
    with pytest.raises(RequestError, match="500 properties, 300 of them required"):
        names = [f"p{i}" for i in range(500)]
        schema.checked({"properties": {key: {} for key in names}, "required": names[:300]})
    chain: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(400)}
    with pytest.raises(RequestError, match="256 parts of itself"):
        schema.checked({"$ref": "#/$defs/a0", "$defs": {**chain, "a400": {}}})


def test_a_schema_of_openai_s_python_client() -> None:
    """What openai-python makes of a pydantic class passes as it is."""
    from openai.lib._pydantic import to_strict_json_schema
    from pydantic import BaseModel

    class Step(BaseModel):
        explanation: str
        output: str | None = None

    class Answer(BaseModel):
        steps: list[Step]
        final: float

    found = schema.checked(to_strict_json_schema(Answer))
    assert found["properties"]["steps"]["items"] == {"$ref": "#/$defs/d0"}
    assert json.loads(json.dumps(found)) == found
