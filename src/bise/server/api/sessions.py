"""/v1/sessions: what has been read of a conversation, kept on disk, so that it goes on after a restart without being
read again. A session has a name, never a path: DATA/sessions/TENANT/NAME.session, the file that `bise chat` knows too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...api import gib
from ...errors import RequestError
from .. import limits
from ..faults import Fault, refusals
from . import models, replies
from .body import Route, Strict
from .chat import Bare, Message
from .prompts import prompts_of

if TYPE_CHECKING:
    from ..desk import Desk

router = APIRouter(route_class=Route, tags=["sessions"], prefix="/v1/sessions")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ENDING = ".session"
LOCAL = "local"  # the folder of a server without keys: no tenant is called that
Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]


class SaveRequest(Strict):
    name: Name = Field(description="Lower-case letters, digits, '.', '_' and '-'. A session of that name is replaced.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES)] | None = Field(
        None, description="The conversation as it stands, the last answer included ..."
    )
    model: Annotated[str, StringConstraints(max_length=limits.NAME)] | None = Field(
        None, description="The adapter with which it was spoken; without it, none."
    )
    tools: Annotated[list[Bare], Field(max_length=limits.TOOLS)] | None = None
    prompt: Any = Field(None, description="... or a text or token ids, the continuation included.")


class Session(BaseModel):
    name: str
    tokens: int | None = Field(None, description="That need not be read again; null in the list.")
    bytes: int
    created: int


class Sessions(BaseModel):
    object: Literal["list"]
    data: list[Session]


@router.get("", response_model=None, responses={200: {"model": Sessions}, **refusals(401, 403)})
async def sessions(request: Request) -> Response:
    """The saved sessions, by name."""
    return JSONResponse({"object": "list", "data": await anyio.to_thread.run_sync(_list, _folder(request))})


@router.post("", response_model=None,
             responses={200: {"model": Session}, **refusals(400, 401, 403, 404, 413, 429, 503)})  # fmt: skip
async def save(request: Request, body: SaveRequest) -> Response:
    """Write what the engine still holds of a conversation to disk."""
    desk, folder = request.app.state.desk, _folder(request)
    ids = await anyio.to_thread.run_sync(_ids, desk, body)
    await anyio.to_thread.run_sync(_check_room, desk, folder, body.name)
    path, messages = folder / (body.name + ENDING), body.messages or []
    answer = await desk.call("save", path=str(path), ids=ids, salt=request.state.salt, messages=messages,
                             adapter=models.check(desk, body.model))  # fmt: skip
    return JSONResponse(_about(path) | answer)


@router.post("/{name}/restore", response_model=None,
             responses={200: {"model": Session}, **refusals(400, 401, 403, 404, 503)})  # fmt: skip
async def restore(request: Request, name: str) -> Response:
    """Take a session up again: the next request that begins like it does not read that part."""
    path = _existing(request, name)
    try:
        answer = await request.app.state.desk.call("restore", path=str(path), salt=request.state.salt)
    except RequestError as error:
        raise RequestError(str(error).replace(str(path), name)) from None  # where files lie is nobody's business
    return JSONResponse(_about(path) | answer)


@router.delete("/{name}", status_code=204, response_model=None, responses=refusals(401, 403, 404))
async def delete(request: Request, name: str) -> Response:
    """Remove a session's file. What the engine holds stays as long as it stays."""
    _existing(request, name).unlink(missing_ok=True)
    return Response(status_code=204)


def _folder(request: Request) -> Path:
    tenant = request.state.client if request.state.salt else LOCAL
    return Path(request.app.state.data) / "sessions" / str(tenant)


def _existing(request: Request, name: str) -> Path:
    path = _folder(request) / (name + ENDING)
    if not NAME.fullmatch(name) or not path.is_file():
        raise Fault(404, f"no session is called {name!r:.70}: GET /v1/sessions lists them", "name")
    return path


def _list(folder: Path) -> list[dict[str, Any]]:
    return [_about(path) for path in sorted(folder.glob("*" + ENDING)) if NAME.fullmatch(path.stem)]


def _about(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"name": path.stem, "tokens": None, "bytes": found.st_size, "created": int(found.st_mtime)}


def _ids(desk: Desk, body: SaveRequest) -> list[int]:
    if (body.messages is None) == (body.prompt is None):
        raise Fault(400, "give either messages or prompt", "messages")
    if body.messages is not None:
        return replies.chat_format(desk).encode(body.messages, body.tools)
    given = prompts_of(body.prompt, desk.vocab_size, "prompt")
    if len(given) != 1:
        raise Fault(400, f"prompt holds {len(given)} prompts, expected one", "prompt")
    return desk.tokenizer.encode(given[0], bos=True) if isinstance(given[0], str) else given[0]


def _check_room(desk: Desk, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = {about["name"]: about["bytes"] for about in _list(folder) if about["name"] != name}
    if len(kept) >= limits.SESSIONS:
        raise Fault(400, f"{len(kept)} sessions are saved, as many as may be: delete one", "name")
    if (full := sum(kept.values())) >= limits.SESSION_BYTES:
        raise Fault(400, f"the saved sessions take {gib(full)}, {gib(limits.SESSION_BYTES)} may: delete one", "name")
