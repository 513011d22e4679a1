"""/api/conversations: the page's conversations over HTTP (store.py keeps them). The disk is asked from threads.

A conversation's version is its ETag: what is put names the version it was made from (If-Match), and is refused with
409 where another tab was quicker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import limits
from ..api.body import Route, Strict
from ..faults import ErrorBody, Fault, refusals
from .store import Conversation, Imported, Kept, Store, Title

router = APIRouter(prefix="/api/conversations", route_class=Route, tags=["conversations"])
FORMAT = "bise-conversations"
CHANGED: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "Another version is there by now: get it again."},
}
IfMatch = Annotated[str | None, Header(pattern=r'^"?\d{1,15}"?$', description="The version that was seen last.")]


class Summary(BaseModel):
    id: str
    title: str | None = None
    kind: str | None = None
    version: int | None = None
    created: float | None = None
    updated: float | None = None
    messages: int | None = None
    snippet: str | None = Field(None, description="With search: the first place that was found.")
    damaged: bool | None = Field(None, description="Its file cannot be read; it is left as it is.")
    error: str | None = None


class Summaries(BaseModel):
    conversations: list[Summary]


class Written(BaseModel):
    id: str
    version: int
    title: str
    updated: float


class Renamed(Strict):
    title: Title


class File(Strict):
    """An export: of one conversation, of some, or of all."""

    format: Literal["bise-conversations"]
    conversations: Annotated[list[Imported], Field(min_length=1, max_length=limits.CONVERSATIONS)]


class Exported(BaseModel):
    """The same, where there may be none."""

    format: Literal["bise-conversations"]
    conversations: list[Kept]


class Taken(BaseModel):
    imported: list[str]


@router.get("", response_model=None, responses={200: {"model": Summaries}, **refusals(400, 401, 403)})
async def listed(
    request: Request, search: Annotated[str, Query(max_length=limits.NAME, description="Words to find.")] = ""
) -> Response:
    """All conversations, newest first; with `search`, those that hold these words."""
    store, tenant = _store(request), _tenant(request)
    words = search.strip()
    found = await run_sync(store.search, tenant, words) if words else await run_sync(store.all, tenant)
    return JSONResponse({"conversations": found})


@router.post(
    "", status_code=201, response_model=None, responses={201: {"model": Written}, **refusals(400, 401, 403, 413)}
)
async def created(request: Request, body: Conversation) -> Response:
    """Keep a new conversation; its id is made here."""
    return _written(await run_sync(_store(request).create, _tenant(request), body), 201)


@router.get("/export", response_model=None, responses={200: {"model": Exported}, **refusals(401, 403)})
async def exported(request: Request) -> Response:
    """All conversations, as a file that can be imported."""
    return StreamingResponse(_export(_store(request).each(_tenant(request))), headers=_attached("bise-conversations"))


@router.post(
    "/import", status_code=201, response_model=None, responses={201: {"model": Taken}, **refusals(400, 401, 403, 413)}
)
async def imported(request: Request, body: File) -> Response:
    """Take in an export: each conversation becomes a new one."""
    taken = await run_sync(_store(request).take, _tenant(request), body.conversations)
    return JSONResponse({"imported": [kept.id for kept in taken]}, 201)


@router.get("/{id}", response_model=None, responses={200: {"model": Kept}, **refusals(401, 403, 404), **CHANGED})
async def got(request: Request, id: str) -> Response:
    """One conversation, whole."""
    kept = await run_sync(_store(request).get, _tenant(request), id)
    return Response(_json(kept), headers=_tag(kept), media_type="application/json")


@router.put(
    "/{id}", response_model=None, responses={200: {"model": Written}, **refusals(400, 401, 403, 404, 413), **CHANGED}
)
async def put(request: Request, id: str, body: Conversation, if_match: IfMatch = None) -> Response:
    """A conversation in the place of the version that If-Match names."""
    version = _version(if_match)
    if version is None:
        raise Fault(400, "If-Match is missing: send the version that was seen last", "If-Match")
    return _written(await run_sync(_store(request).put, _tenant(request), id, body, version))


@router.patch(
    "/{id}", response_model=None, responses={200: {"model": Written}, **refusals(400, 401, 403, 404), **CHANGED}
)
async def renamed(request: Request, id: str, body: Renamed, if_match: IfMatch = None) -> Response:
    """Another title."""
    return _written(await run_sync(_store(request).rename, _tenant(request), id, body.title, _version(if_match)))


@router.delete("/{id}", status_code=204, response_model=None, responses={**refusals(400, 401, 403, 404), **CHANGED})
async def removed(request: Request, id: str, if_match: IfMatch = None) -> Response:
    """Delete one. A damaged one is never deleted."""
    await run_sync(_store(request).remove, _tenant(request), id, _version(if_match))
    return Response(status_code=204)


@router.get("/{id}/export", response_model=None, responses={200: {"model": Exported}, **refusals(401, 403, 404)})
async def exported_one(request: Request, id: str) -> Response:
    """One conversation, as a file that can be imported."""
    kept = await run_sync(_store(request).get, _tenant(request), id)
    return Response(b"".join(_export(iter([kept]))), headers=_attached(id))


def _store(request: Request) -> Store:
    found: Store = request.app.state.store
    return found


def _tenant(request: Request) -> str:
    """The name behind the key; "" on a server without keys, which has one shelf for all."""
    return str(request.state.client) if getattr(request.state, "salt", "") else ""


def _version(if_match: str | None) -> int | None:
    return None if if_match is None else int(if_match.strip('"'))


def _json(kept: Kept) -> bytes:
    return kept.model_dump_json(exclude_defaults=True).encode()


def _written(kept: Kept, status: int = 200) -> Response:
    said: dict[str, Any] = {"id": kept.id, "version": kept.version, "title": kept.title, "updated": kept.updated}
    return JSONResponse(said, status, headers=_tag(kept))


def _tag(kept: Kept) -> dict[str, str]:
    return {"ETag": f'"{kept.version}"'}


def _export(each: Iterator[Kept]) -> Iterator[bytes]:
    """One conversation in memory at a time."""
    yield json.dumps({"format": FORMAT, "conversations": []})[:-2].encode()
    for i, kept in enumerate(each):
        yield (b",\n" if i else b"\n") + _json(kept)
    yield b"\n]}\n"


def _attached(name: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Content-Disposition": f'attachment; filename="{name}.json"'}
