"""Errors have OpenAI's shape (Anthropic's under /v1/messages), and say nothing that nobody should see."""

import json
import logging

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import Field

from bise.errors import BusyError, ContextError, DownError, FormatError, RequestError, TemplateError
from bise.server import faults
from bise.server.api.body import Route, Strict
from bise.server.faults import Fault

SECRET = "what somebody wrote"


class Thing(Strict):
    n: int = Field(1, ge=1, le=8)
    names: list[str] = Field([], max_length=2)
    text: str | list[str] | None = None


def app() -> FastAPI:
    router, app = APIRouter(route_class=Route), FastAPI()
    raised = {}

    @router.post("/v1/things", response_model=None)
    async def things(thing: Thing) -> dict:
        return {"n": thing.n}

    @router.post("/v1/messages", response_model=None)
    async def messages(thing: Thing) -> dict:
        return {}

    @router.get("/fail", response_model=None)
    async def fail() -> dict:
        raise raised["error"]

    app.include_router(router)
    faults.install(app)
    app.state.raised = raised
    return app


@pytest.fixture(scope="module")
def raising() -> FastAPI:
    return app()


async def ask(app: FastAPI, method: str, path: str, **more) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, **more)


def said(app: FastAPI, method: str, path: str, **more) -> httpx.Response:
    import asyncio

    return asyncio.run(ask(app, method, path, **more))


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (RequestError("no"), 400, "invalid_request_error", None),
        (TemplateError("no"), 400, "invalid_request_error", None),
        (FormatError("no"), 400, "invalid_request_error", None),
        (ContextError("40 and 30"), 400, "invalid_request_error", "context_length_exceeded"),
        (BusyError("full", 2.2), 429, "rate_limit_error", "rate_limit_exceeded"),
        (DownError("down"), 503, "server_error", "engine_down"),
        (Fault(404, "no such model", "model", "model_not_found"), 404, "not_found_error", "model_not_found"),
    ],
)
def test_each_refusal_has_its_status(raising, error, status, kind, code):
    raising.state.raised["error"] = error
    response = said(raising, "GET", "/fail")
    found = response.json()["error"]
    assert (response.status_code, found["type"], found["code"]) == (status, kind, code)
    assert found["message"] == str(getattr(error, "message", error)) and set(found) == {
        "message",
        "type",
        "param",
        "code",
    }
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_busy_says_whole_seconds(raising):
    raising.state.raised["error"] = BusyError("full", 2.2)
    assert said(raising, "GET", "/fail").headers["retry-after"] == "3"


def test_what_nobody_foresaw_is_a_500_without_its_text(raising, caplog):
    raising.state.raised["error"] = ValueError(SECRET)
    with caplog.at_level(logging.DEBUG):
        response = said(raising, "GET", "/fail")
    assert response.status_code == 500 and response.headers["x-should-retry"] == "false"
    assert SECRET not in response.text and SECRET not in caplog.text
    assert "ValueError at" in caplog.text and "test_faults.py" in caplog.text


@pytest.mark.parametrize(
    ("body", "param", "line"),
    [
        ({"n": 9}, "n", "n is 9, expected 8 or less"),
        ({"n": 0}, "n", "n is 0, expected 1 or more"),
        ({"n": 1.5}, "n", "n is 1.5, expected a whole number"),
        ({"n": "10"}, "n", "n is '10', expected a whole number"),
        ({"n": True}, "n", "n is true, expected a whole number"),
        ({"names": ["a", "b", "c"]}, "names", "names is a list of 3, expected at most 2 entries"),
        ({"names": [1]}, "names.0", "names.0 is 1, expected a text"),
        ({"other": 1}, "other", "unknown field other: see /openapi.json for those that there are"),
        ([], None, "the body is a list of 0, expected an object"),
        ("x", None, "the body is 'x', expected an object"),
    ],
)
def test_one_line_names_the_field(raising, body, param, line):
    response = said(raising, "POST", "/v1/things", json=body)
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": line, "type": "invalid_request_error", "param": param, "code": response.json()["error"]["code"],
    }  # fmt: skip


def test_a_missing_body(raising):
    response = said(raising, "POST", "/v1/things")
    assert (response.status_code, response.json()["error"]["message"]) == (400, "a body of JSON is missing")
    response = said(raising, "POST", "/v1/things", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 400


def test_long_values_are_not_repeated(raising):
    assert len(said(raising, "POST", "/v1/things", json={"n": "x" * 100_000}).text) < 300


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/things", 405)])
def test_paths_and_methods(raising, method, path, status):
    response = said(raising, method, path)
    assert response.status_code == status and response.json()["error"]["message"]
    if status == 405:
        assert response.headers["allow"] == "POST"


def test_anthropic_gets_its_own_shape(raising):
    found = said(raising, "POST", "/v1/messages", json={"n": 9}).json()
    assert found == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "n is 9, expected 8 or less"},
    }


def test_anthropic_overload():
    assert Fault.of(BusyError("full")).anthropic()["error"]["type"] == "rate_limit_error"
    assert Fault.of(DownError("down")).anthropic()["error"]["type"] == "overloaded_error"
    assert json.dumps(Fault.of(DownError("down")).said("/v1/messages"))
