"""/v1/adapters: adapters beside the model, loaded and unloaded while it serves. A request's `model` names one."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...lora import named
from ..faults import Fault, refusals
from .body import Route, Strict

if TYPE_CHECKING:
    from ..desk import Desk

router = APIRouter(route_class=Route, prefix="/v1/adapters", tags=["adapters"])
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
ENDING = ".gguf"
STARTED = int(time.time())
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]


class LoadRequest(Strict):
    name: Name = Field(description="Of a folder, or of a file without .gguf, in the folder that the server was given.")


class AdapterCard(BaseModel):
    id: str = Field(description="What a request's `model` says.")
    object: Literal["adapter"]
    created: int
    parent: str
    rank: int | None
    bytes: int | None
    parameters: int | None
    fingerprint: str | None = Field(description="Of its numbers.")
    base: str | None = Field(description="The fingerprint of the model that it was trained on, if its file says so.")


class AdapterList(BaseModel):
    object: Literal["list"]
    data: list[AdapterCard]
    available: list[str] = Field(description="What lies in the server's folder and is not loaded.")


class Unloaded(BaseModel):
    id: str
    object: Literal["adapter"]
    deleted: Literal[True]


@router.get("", response_model=None, responses={200: {"model": AdapterList}, **refusals(401, 403)})
async def adapters(request: Request) -> Response:
    """The adapters that are loaded, and the names of those that could be."""
    desk = request.app.state.desk
    there = await anyio.to_thread.run_sync(_there, desk.folder)
    data = [card(desk, name) for name in desk.adapters]
    return JSONResponse({"object": "list", "data": data, "available": sorted(there.keys() - desk.adapters.keys())})


@router.post("", status_code=201, response_model=None,
             responses={201: {"model": AdapterCard}, **refusals(400, 401, 403, 404, 409, 413, 429, 503)})  # fmt: skip
async def load(request: Request, body: LoadRequest) -> Response:
    """Load an adapter from the server's folder, by name: whoever sends requests names no path."""
    desk = request.app.state.desk
    if desk.folder is None:
        raise Fault(400, "this server was started without --adapters FOLDER: nothing can be loaded into it", "name")
    found = (await anyio.to_thread.run_sync(_there, desk.folder)).get(body.name)
    if found is None:
        raise Fault(404, f"there is no adapter {body.name!r} in the server's folder", "name", "adapter_not_found")
    if body.name in desk.adapters or body.name == desk.name:
        raise Fault(409, f"{body.name!r} is loaded already: unload it first", "name", "adapter_exists")
    await desk.load_adapter(body.name, str(found))
    return JSONResponse(card(desk, body.name), 201)


@router.delete("/{name}", response_model=None,
               responses={200: {"model": Unloaded}, **refusals(400, 401, 403, 404, 503)})  # fmt: skip
async def unload(request: Request, name: str) -> Response:
    """Unload an adapter. New requests for it are refused from now on; those that run end as they would have, and then
    its memory is free."""
    desk = request.app.state.desk
    if name not in desk.adapters:
        raise Fault(404, f"adapter {name[:80]!r} is not loaded", "name", "adapter_not_found")
    await desk.unload_adapter(name)
    return JSONResponse({"id": name, "object": "adapter", "deleted": True})


def card(desk: Desk, name: str) -> dict[str, Any]:
    usual: dict[str, Any] = dict.fromkeys(("rank", "bytes", "parameters", "fingerprint", "base"))
    found = {"id": name, "object": "adapter", "created": STARTED, "parent": desk.name}
    return found | usual | desk.adapters[name]


def _there(folder: Path | None) -> dict[str, Path]:
    """The adapters of a folder by name: folders, and GGUF files."""
    if folder is None or not folder.is_dir():
        return {}
    entries = [path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix == ENDING]
    return {named(path): path for path in entries if re.fullmatch(NAME, named(path))}
