"""/v1/models: the model that is served, what it is, and the adapters beside it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..faults import Fault, refusals
from .body import Route

if TYPE_CHECKING:
    from ..desk import Desk

STARTED = int(time.time())
router = APIRouter(route_class=Route, tags=["models"])


class Facts(BaseModel):
    """What bise says about a model beside OpenAI's fields."""

    context: int
    window: int | None
    version: str
    parameters: int
    vocabulary: int
    fingerprint: str
    chat: str | None


class Card(BaseModel):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "bise"
    parent: str | None = Field(None, description="Of an adapter: the model that it stands beside.")
    bise: Facts


class Cards(BaseModel):
    object: str = "list"
    data: list[Card]


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timings(BaseModel):
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float


def streamed(kind: type[BaseModel]) -> dict[str, Any]:
    """FastAPI's description of an answer that comes whole, or with `stream` in chunks."""
    return {
        "model": kind,
        "content": {"text/event-stream": {"schema": {
            "type": "string",
            "description": "With stream: server-sent events, each `data: ` and a chunk of the answer as JSON, the last "
            "`data: [DONE]`. A comment line comes when nothing else has for 5 seconds. An error after the beginning is "
            '`data: {"error": {...}}`, and nothing follows it.',
        }}},
    }  # fmt: skip


@router.get("/v1/models", response_model=None, responses={200: {"model": Cards}, **refusals(401)})
async def models(request: Request) -> JSONResponse:
    """What a request's `model` may say: the model, and its adapters."""
    desk = request.app.state.desk
    return JSONResponse({"object": "list", "data": [card(desk), *(card(desk, name) for name in desk.adapters)]})


@router.get("/v1/models/{name:path}", response_model=None, responses={200: {"model": Card}, **refusals(401, 404)})
async def model(request: Request, name: str) -> JSONResponse:
    """One model."""
    desk = request.app.state.desk
    return JSONResponse(card(desk, check(desk, name)))


def check(desk: Desk, name: str | None) -> str:
    """-> the adapter that a request's `model` means, "" for the model alone. Fault 404 for one that is not served here.
    None: the model alone."""
    if name is None or name == desk.name:
        return ""
    if name not in desk.adapters:
        served = ", ".join(map(repr, (desk.name, *list(desk.adapters)[:8])))
        what = f"{served} is" if not desk.adapters else f"{served} are"
        raise Fault(404, f"model {name[:80]!r} is not served here, {what}", "model", "model_not_found")
    return name


def card(desk: Desk, adapter: str = "") -> dict[str, Any]:
    config, parent = desk.config, {"parent": desk.name} if adapter else {}
    return {
        "id": adapter or desk.name, **parent, "object": "model", "created": STARTED, "owned_by": "bise",
        "bise": {
            "context": desk.context, "window": config.sliding_window, "version": config.version,
            "parameters": config.parameters, "vocabulary": desk.vocab_size, "fingerprint": desk.fingerprint,
            "chat": desk.chat_format.name if desk.chat_format else None,
        },
    }  # fmt: skip
