"""build(desk) -> the web application: all routes, their errors, and the OpenAPI document that describes them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from . import (
    chat,
    completions,
    conversations,
    embeddings,
    faults,
    health,
    messages,
    models,
    page,
    responses,
    sessions,
    tokens,
)  # fmt: skip
from .kept import Responses
from .store import Store

if TYPE_CHECKING:
    from .desk import Desk

ROUTERS = [models.router, completions.router, chat.router, responses.router, messages.router,
           embeddings.router, tokens.router, sessions.router, conversations.router, health.router]  # fmt: skip


def build(desk: Desk, data: Path) -> FastAPI:
    """The application that serves what `desk` has and keeps files under `data`. Routes find both in `app.state`."""
    app = FastAPI(title="bise", version=version("bise"), docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.desk, app.state.data, app.state.store = desk, data, Store(data / "conversations")
    app.state.responses = Responses()
    for router in [*ROUTERS, page.routes()]:
        app.include_router(router)
    faults.install(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own, without the 422s that this API never gives."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, routes=app.routes,
            description="What bise serves: one model, through OpenAI's API and its own routes. Fields that a route "
            "does not know are refused by name (400), as is every value out of range.",
        )  # fmt: skip
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
