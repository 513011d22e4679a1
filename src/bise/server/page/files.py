"""The page at /: the files of web/, read once, each with headers that let nothing else in.

Only names that were found in the folder when the server started are served; a request's path is looked up in that
table and never reaches the file system.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..faults import Fault

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing but this server's own files; no string ever becomes markup (W3C Trusted Types)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again every time, answered with 304
}


@dataclass(frozen=True)
class File:
    body: bytes
    type: str
    tag: str  # changes with the body


def files() -> dict[str, File]:
    """Name -> file, everything in web/ that a browser is given."""
    found = {}
    for entry in resources.files(__package__).joinpath("web").iterdir():
        kind = TYPES.get(entry.name.rpartition(".")[2])
        if kind and entry.is_file():
            body = entry.read_bytes()
            found[entry.name] = File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:20]}"')
    return found


def routes() -> APIRouter:
    """GET / and /page/{name}."""
    router, known = APIRouter(include_in_schema=False), files()

    @router.get("/")
    async def page(request: Request) -> Response:
        return _send(known["index.html"], request)

    @router.get("/page/{name}")
    async def file(request: Request, name: str) -> Response:
        if name not in known:
            raise Fault(404, "the page has no such file", code="not_found")
        return _send(known[name], request)

    return router


def _send(file: File, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.type)
