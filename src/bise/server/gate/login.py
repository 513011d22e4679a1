"""The way in for a browser: a form that asks for a key, and the cookie that stands for it from then on."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LONGEST = 4096  # bytes of the form's answer
STAYS = 30 * 24 * 3600  # seconds that a browser keeps the cookie
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { display: grid; place-content: center; min-height: 90vh; margin: 0 1rem }
form { display: flex; flex-wrap: wrap; gap: .5rem }
input, button { font: inherit; padding: .4rem .7rem }
"""
FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>bise</title><style>{style}</style></head>
<body><main><h1>bise</h1><form method="post" action="/login">
<label for="key">This server wants a key.</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Enter</button></form><p role="alert">{line}</p></main></body></html>
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def key_of(form: bytes) -> bytes:
    """The key in the form's answer, b"" where there is none."""
    try:
        found = parse_qs(form.decode("ascii"), max_num_fields=4)
    except ValueError:
        return b""
    return found.get("key", [""])[0].strip().encode("utf-8", "replace")


async def ask(send: Send, line: str = "") -> None:
    """401 with the form. A form's answer comes with `Origin: null` where the referrer is withheld altogether, so that
    is withheld from other sites only."""
    body = FORM.format(style=STYLE, line=escape(line)).encode()
    headers = {
        "content-type": "text/html; charset=utf-8", "content-length": str(len(body)), "www-authenticate": "Bearer",
        "content-security-policy": _POLICY, "referrer-policy": "same-origin",
    }  # fmt: skip
    await _answer(send, 401, headers, body)


async def welcome(send: Send, name: str, cookie: str) -> None:
    """To the page, with the cookie."""
    flags = f"Path=/; Max-Age={STAYS}; HttpOnly; SameSite=Strict"
    await _answer(send, 303, {"location": "/", "set-cookie": f"{name}={cookie}; {flags}", "content-length": "0"}, b"")


async def _answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
