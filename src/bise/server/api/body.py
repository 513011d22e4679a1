"""Bodies of requests, read strictly: what other readers of JSON let pass or guess at is refused here, once for all
routes. `Route` is the class of every route that has a body."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ...errors import RequestError
from .. import faults, limits

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Strict(BaseModel):
    """A body, or part of one: no field that is not known, no value of another kind ("10" is not a number)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Route(APIRoute):
    """A route whose body is read by `parse`, and whose errors are the API's own, whatever happens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(_Request(request.scope, request.receive))
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception as error:
                return faults.answer(request, error)

        return handle


class _Request(Request):
    async def json(self) -> Any:
        try:
            return parse(await self.body())
        except RequestError as error:
            raise faults.Fault.of(error) from None


def parse(data: bytes) -> Any:
    """Bytes -> JSON. RequestError for what is not UTF-8, NaN and infinities, numbers out of range, names given twice,
    halves of surrogate pairs, and nesting beyond the limit."""
    try:
        value = json.loads(
            data.decode(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_each_once
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise RequestError("the body is not UTF-8, or holds half of a surrogate pair") from None
    except RecursionError:
        raise RequestError(f"the body is nested more than {limits.DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error.msg} at byte {error.pos:,}") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise RequestError(f"the body is not JSON that is accepted here: {str(error)[:120]}") from None
    if data.count(b"[") + data.count(b"{") > limits.DEPTH and _depth(value) > limits.DEPTH:
        raise RequestError(f"the body is nested more than {limits.DEPTH} deep")
    return value


def _no_constant(name: str) -> float:
    raise RequestError(f"the body holds {name}, which is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RequestError(f"the number {text:.40} is too large")
    return number


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise RequestError(f"the name {twice!r:.40} is given twice in one object")
    return found


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted no further than one past the limit."""
    level, depth = [value], 0
    while depth <= limits.DEPTH:
        level = [v for v in level if isinstance(v, (dict, list))]
        if not level:
            break
        depth += 1
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v)]
    return depth
