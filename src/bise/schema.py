"""A stranger's JSON schema -> one that grammar.py can promise: what the grammar lets through validates under it.

Drafts 7 and 2020-12, as far as they agree or the stricter reading is meant by both.

    kept       type enum const, anyOf allOf oneOf, $ref to "#..." in the schema itself, $defs definitions;
               properties additionalProperties patternProperties required maxProperties;
               minProperties up to 1, or up to the number of required names;
               items (one schema, or the list of draft 7) additionalItems prefixItems minItems maxItems;
               minLength maxLength pattern format; minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
    refused    not, if then else, contains minContains maxContains, uniqueItems, propertyNames, dependencies
               dependentRequired dependentSchemas, unevaluatedItems unevaluatedProperties, $dynamicRef $recursiveRef;
               contentEncoding contentMediaType; $ref to any other document, $id below the top; oneOf whose branches
               may overlap; patternProperties that may overlap; a schema that no finite value matches
    formats    date time date-time duration email hostname ipv4 ipv6 uuid uri, in the stricter sense where there are two
               (no leap seconds, no punycode); other formats of the drafts are refused, unknown ones ignored
    ignored    every other word: title, description, default, examples ... and what no draft knows

The properties of an object come in the order in which the schema names them, other names after them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from .errors import RequestError

BYTES = 128 << 10  # of the schema as JSON
DEPTH = 32  # schemas inside schemas
SCHEMAS = 2_000  # in all
OPTIONAL = 128  # properties of one object that are not required: each may be the next
REFERENCES = 256
MULTIPLE = 2_000  # the least common multiple of all multipleOf, powers of ten below one aside
COUNT = 1_000  # minItems, maxItems, minProperties, maxProperties
LENGTH = 20_000  # minLength, maxLength

_REFUSED = """not if then else contains minContains maxContains propertyNames dependencies dependentRequired
    dependentSchemas unevaluatedItems unevaluatedProperties
    contentEncoding contentMediaType $dynamicRef $recursiveRef"""
_PLAIN = """type enum const required pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf"""
REFUSED, PLAIN = frozenset(_REFUSED.split()), frozenset(_PLAIN.split())
COUNTS = {
    "minItems": COUNT, "maxItems": COUNT, "minProperties": COUNT, "maxProperties": COUNT, "minLength": LENGTH,
    "maxLength": LENGTH,
}  # fmt: skip
_LEAP_YEAR = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DATE = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = "[A-Za-z0-9](-?[A-Za-z0-9]){0,20}"
FORMATS = {  # where llguidance's own let through what is none: RFC 3339 without leap seconds, RFC 1123 without "--"
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL}){{0,5}}$",  # at most 251 characters
}
Schema = dict[str, Any]


def checked(schema: Any) -> Schema:
    """The schema with nothing in it but what is kept, every reference a name in "$defs". Raises RequestError."""
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"the JSON schema is {type(schema).__name__}, expected an object")
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the JSON schema is not JSON: {str(error)[:80]}") from None
    if size > BYTES:
        raise RequestError(f"the JSON schema has {size:,} bytes, expected at most {BYTES:,}")
    reader = _Reader(schema)
    root = reader.schema(schema, "#", 0)
    reader.follow()
    if not _matches_something(root, _finite(reader.found)):
        raise RequestError("the JSON schema matches no finite value: a required part contains itself, or is false")
    return {**root, "$defs": reader.found} if reader.found else root


class _Reader:
    """One schema being read: how much of it there is, and the definitions that its references lead to."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.names: dict[str, str] = {}  # what "$ref" says -> its name in $defs
        self.found: dict[str, Schema] = {}  # name -> schema
        self.count = 0
        self.multiple = 1

    def follow(self) -> None:
        """Reads the definitions that are referred to, and those that they refer to."""
        while len(self.found) < len(self.names):
            ref, name = list(self.names.items())[len(self.found)]
            self.found[name] = self.schema(self._target(ref), ref, 0)

    def schema(self, schema: Any, at: str, depth: int) -> Schema:
        """One schema, and those inside it; `at` is where it stands, for messages."""
        self.count += 1
        if depth > DEPTH or self.count > SCHEMAS:
            raise RequestError(f"the JSON schema is too large: more than {DEPTH} deep, or more than {SCHEMAS:,} parts")
        if isinstance(schema, bool):
            return {} if schema else {"enum": []}
        if not isinstance(schema, Mapping):
            raise RequestError(f"the JSON schema at {at:.80} is {type(schema).__name__}, expected an object")
        _check_words(schema, at, depth)
        out: Schema = {}
        for word, value in schema.items():
            out |= self._word(word, value, schema, f"{at}/{word}", depth + 1)
        if isinstance(name := schema.get("format"), str) and name in FORMATS:
            out["allOf"] = [*out.get("allOf", []), {"pattern": FORMATS[name]}]
        return out

    def _word(self, word: str, value: Any, schema: Mapping[str, Any], at: str, depth: int) -> Schema:
        if word == "multipleOf":
            self._check_multiple(value, at)
        if word == "pattern":
            return {word: _narrowed(_kind(value, str, at))}
        if word in PLAIN:
            return {word: value}
        if word == "format":
            return {} if _kind(value, str, at) in FORMATS else {word: value}
        if word in COUNTS:
            return {word: _count(value, COUNTS[word], at)}
        if word == "$ref":
            return {word: f"#/$defs/{self._name(value, at)}"}
        if word in ("anyOf", "allOf", "oneOf", "prefixItems") or (word == "items" and isinstance(value, list)):
            parts = [self.schema(v, f"{at}/{i}", depth) for i, v in enumerate(_kind(value, list, at))]
            return {"prefixItems" if word == "items" else word: parts}
        if word in ("properties", "patternProperties"):
            named = _kind(value, Mapping, at).items()
            plain = word == "properties"
            return {word: {n if plain else _narrowed(n): self.schema(v, f"{at}/{n}", depth) for n, v in named}}
        if word == "additionalItems":  # says something beside a list of items only
            return {"items": self.schema(value, at, depth)} if isinstance(schema.get("items"), list) else {}
        if word in ("items", "additionalProperties"):
            return {word: self.schema(value, at, depth)}
        return {}

    def _name(self, ref: Any, at: str) -> str:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise RequestError(f"{at:.80} is {ref!r:.80}: only references inside the schema, '#/...', are followed")
        if len(self.names) > REFERENCES:
            raise RequestError(f"the JSON schema refers to more than {REFERENCES} parts of itself")
        return self.names.setdefault(ref, f"d{len(self.names)}")

    def _check_multiple(self, value: Any, at: str) -> None:
        """The automaton that counts modulo n has n states."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise RequestError(f"the JSON schema at {at:.80} is {value!r:.40}, expected a number above 0")
        self.multiple = math.lcm(self.multiple, Fraction(repr(value)).numerator)
        if self.multiple > MULTIPLE:
            raise RequestError(
                f"the JSON schema at {at:.80} is {value!r:.40}: multiples up to {MULTIPLE:,} are counted"
            )

    def _target(self, ref: str) -> Any:
        """A JSON pointer (RFC 6901) into the whole schema."""
        value = self.whole
        for step in unquote(ref).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, Mapping) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and len(step) < 6 and int(step) < len(value):
                value = value[int(step)]
            else:
                raise RequestError(f"the JSON schema refers to {ref!r:.80}, and there is nothing")
        return value


def _check_words(schema: Mapping[str, Any], at: str, depth: int) -> None:
    if bad := [word for word in schema if word in REFUSED] + ["$id"] * ("$id" in schema and depth > 0):
        raise RequestError(f"the JSON schema at {at:.80} says {bad[0]!r}, which bise does not promise: leave it out")
    if schema.get("uniqueItems"):
        raise RequestError(f"the JSON schema at {at:.80} says 'uniqueItems', which bise does not promise: leave it out")
    least, names, own = schema.get("minProperties", 0), schema.get("required", []), schema.get("properties", {})
    if isinstance(own, Mapping) and isinstance(names, list) and len(own) - len(names) > OPTIONAL:
        raise RequestError(
            f"the JSON schema at {at:.80} has {len(own):,} properties, {len(names)} of them required: at most "
            f"{OPTIONAL} may be left to choice"
        )
    if isinstance(least, int) and isinstance(names, list) and least > max(1, len(set(map(str, names)))):
        raise RequestError(
            f"the JSON schema at {at:.80} says minProperties {least} with {len(names)} required names: bise promises "
            "1, or as many as are required"
        )


def _narrowed(pattern: str) -> str:
    """For JavaScript, and so for JSON schemas, U+FEFF is a space; for the library that matches here it is none. Outside
    of brackets \\S is written so that it means the same to both."""
    parts, brackets = [], False
    for part in re.findall(r"\\.|.", pattern, re.DOTALL):
        brackets = part == "[" if not brackets else part != "]"
        parts.append("[^\\s\ufeff]" if part == "\\S" and not brackets else part)
    return "".join(parts)


def _count(value: Any, most: int, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value <= most:
        raise RequestError(f"the JSON schema at {at:.80} is {value!r:.40}, expected 0 to {most:,}")
    return int(value)


def _kind(value: Any, kind: Any, at: str) -> Any:
    if not isinstance(value, kind):
        raise RequestError(f"the JSON schema at {at:.80} is {type(value).__name__}, expected {kind.__name__.lower()}")
    return value


# --- does any value match?


def _finite(found: Mapping[str, Schema]) -> set[str]:
    """The definitions that some finite value matches: those that need no other, then those that need only these ..."""
    known: set[str] = set()
    while more := {n for n, s in found.items() if n not in known and _matches_something(s, known)}:
        known |= more
    return known


def _matches_something(schema: Schema, known: set[str]) -> bool:
    """False only where every value would have to contain one that does not end, or there is none at all."""
    if "const" in schema:
        return True
    if "enum" in schema:
        return bool(schema["enum"])
    if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in known:
        return False
    if not all(_matches_something(part, known) for part in schema.get("allOf", [])):
        return False
    for word in ("anyOf", "oneOf"):
        if word in schema and not any(_matches_something(part, known) for part in schema[word]):
            return False
    kinds = schema.get("type", "any")
    if any(kind not in ("object", "array") for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return True
    return ("object" in kinds and _object_ends(schema, known)) or ("array" in kinds and _array_ends(schema, known))


def _object_ends(schema: Schema, known: set[str]) -> bool:
    own, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
    return all(_matches_something(own.get(name, rest), known) for name in schema.get("required", []))


def _array_ends(schema: Schema, known: set[str]) -> bool:
    least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
    needed = first[:least] + ([schema.get("items", {})] if least > len(first) else [])
    return all(_matches_something(part, known) for part in needed)
