"""Errors as the API says them: one line, in OpenAI's shape or (under /v1/messages) in Anthropic's.

Clients try again after 408, 409, 429 and 5xx (openai-python does, twice), so what will fail again the same way never
gets one of these.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from ..errors import BiseError, BusyError, ContextError, DownError

log = logging.getLogger("bise.server")
SHOWN = 40  # characters of a refused value that are shown
DOWN_FOR = 5.0  # seconds after which a client may ask an engine again that was not running

# status: (OpenAI's type, Anthropic's type)
TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    409: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}


# pydantic's kind of error: what it wanted
_WANTED = {
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length:,} entries",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length:,} characters",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "string_pattern_mismatch": "digits",
}

# status: what it means, for the OpenAPI document
MEANINGS = {
    400: "The request cannot be served as it is; asking again will not help.",
    401: "No key, or a wrong one.",
    403: "This Host or Origin may not come in.",
    404: "No such thing.",
    409: "It is there already.",
    413: "The body is too large.",
    415: "The body is not application/json, or it is compressed.",
    429: "As many requests wait as may: Retry-After says how many seconds to wait.",
    500: "The server failed.",
    503: "The engine is not running: Retry-After says when to ask again.",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class AnthropicDetail(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """What /v1/messages says instead."""

    type: Literal["error"]
    error: AnthropicDetail


def refusals(*statuses: int, shape: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a route that may answer with these; a body that can be too large can be no JSON too."""
    if 413 in statuses:
        statuses = (*statuses, 415)
    return {s: {"model": shape, "description": MEANINGS[s]} for s in statuses}


class Fault(HTTPException):
    """An answer that is an error. param: the field concerned; code: a word for programs; retry_after in seconds."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        retry_after: float | None = None,
    ) -> None:  # fmt: skip
        headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        if status == 500:
            headers["x-should-retry"] = "false"
        super().__init__(status, message, headers)
        self.message, self.param, self.code = message, param, code

    @staticmethod
    def of(error: BaseException) -> Fault:
        """What bise refuses is the asker's fault (400), unless it is too much at once (429) or there is no engine."""
        if isinstance(error, Fault):
            return error
        if isinstance(error, ContextError):
            return Fault(400, str(error), code="context_length_exceeded")
        if isinstance(error, BusyError):
            return Fault(429, str(error), code="rate_limit_exceeded", retry_after=error.retry_after)
        if isinstance(error, DownError):
            return Fault(503, str(error), code="engine_down", retry_after=DOWN_FOR)
        if isinstance(error, BiseError):
            return Fault(400, str(error))
        if isinstance(error, RequestValidationError):
            return _invalid(error.errors())
        if isinstance(error, HTTPException):
            return Fault(error.status_code, str(error.detail))
        log.error("a request failed: %s", _where(error))
        return Fault(500, "the server failed on this request; its log says where", code="internal_error")

    def openai(self) -> dict[str, Any]:
        kind = TYPES.get(self.status_code, TYPES[400])[0]
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        kind = TYPES.get(self.status_code, TYPES[400])[1]
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def said(self, path: str) -> dict[str, Any]:
        """The body, in the shape that clients of this path read."""
        return self.anthropic() if path.startswith("/v1/messages") else self.openai()


def answer(request: Request, error: BaseException) -> Response:
    """The response for anything that was raised."""
    fault = Fault.of(error)
    headers = dict(fault.headers or {})
    if isinstance(error, HTTPException) and error.headers:
        headers |= error.headers
    if fault.status_code == 405:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "")
    return JSONResponse(fault.said(request.url.path), fault.status_code, headers)


def _allowed(request: Request) -> str:
    """Every method of a path. Starlette names those of the path's first route only."""
    for template, operations in request.app.openapi()["paths"].items():
        if compile_path(template)[0].fullmatch(request.url.path):
            return ", ".join(sorted(method.upper() for method in operations))
    return ""


def install(app: FastAPI) -> None:
    """Every error of the app in these shapes. (Unexpected ones are caught in body.Route, which no traceback leaves.)"""
    for kind in (HTTPException, RequestValidationError, BiseError):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    return answer(request, error)


def _where(error: BaseException) -> str:
    """Kind and place: never the message, which may hold somebody's text."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"


def _invalid(errors: Sequence[Any]) -> Fault:
    """Pydantic's errors -> one line about the first. Of a union, the branch that came furthest speaks."""
    error = max(errors, key=lambda e: len(e["loc"])) if _is_union(errors) else errors[0]
    param = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path")) or None
    if error["type"] == "extra_forbidden":
        return Fault(400, f"unknown field {param}: see /openapi.json for those that there are", param, "unknown_field")
    if error["type"] == "missing":
        return Fault(400, f"{param or 'a body of JSON'} is missing", param)
    return Fault(400, f"{param or 'the body'} is {_shown(error.get('input'))}, expected {_wanted(error)}", param)


def _wanted(error: Any) -> str:
    """What pydantic wanted instead."""
    kind, about = error["type"], error.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind].format(**about)
    message = str(error["msg"]).removeprefix("Value error, ")
    return message.removeprefix("Input should be ").removeprefix("a valid ")


def _is_union(errors: Sequence[Any]) -> bool:
    return len(errors) > 1 and len({e["loc"][:2] for e in errors}) == 1


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
