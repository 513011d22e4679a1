"""build(desk) -> the web application: all routes, their errors, and the OpenAPI document that describes them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from . import faults
from .api import adapters, chat, completions, embeddings, messages, models, responses, sessions, tokens
from .api.kept import Responses
from .gate import health
from .page import conversations, files
from .page.store import Store

if TYPE_CHECKING:
    from .desk import Desk

ROUTERS = [models.router, adapters.router, completions.router, chat.router, responses.router, messages.router,
           embeddings.router, tokens.router, sessions.router, conversations.router, health.router]  # fmt: skip


def build(desk: Desk, data: Path) -> FastAPI:
    """The application that serves what `desk` has and keeps files under `data`. Routes find both in `app.state`."""
    app = FastAPI(title="bise", version=version("bise"), docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.desk, app.state.data, app.state.store = desk, data, Store(data / "conversations")
    app.state.responses = Responses()
    for router in [*ROUTERS, files.routes()]:
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
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]  # needed where the server was started with keys
        app.openapi_schema = document
    return app.openapi_schema
