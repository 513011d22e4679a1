"""Who is let in, by name, origin and key, and what is refused before anybody looks at it."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bise.errors import RequestError
from bise.server.gate.keys import Guesses, Keys, neighbourhood, read_keys
from server.running import Server, ask

ONE, TWO = "one-key-of-sixteen-or-more", "two-key-of-sixteen-or-more"
SHORT = {"model": "puff", "prompt": "Once", "max_tokens": 2}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may come in\n{ONE}\n\n{TWO}\n")
    file.chmod(0o600)
    found = Server("--key-file", str(file), "--slots", "2")
    yield found
    found.close()


# --- names and origins


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "192.168.1.7", "[::1]:99", "[fe80::1]"]
)
def test_its_own_names(server: Server, host: str) -> None:
    assert ask(server, "/v1/models", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "localhost.evil.com", "evil.com:8080", "", "localhost.", "127.0.0.1.nip.io", "local host", "[::1",
     "[localhost]", "localhost:80:80", "127.0.0.1@evil.com", "user@localhost", "localhost/x", "0x7f.1"],
)  # fmt: skip
def test_names_that_strangers_choose(server: Server, host: str) -> None:
    """DNS rebinding: a page of evil.com whose name suddenly leads to 127.0.0.1."""
    found = ask(server, "/v1/models", host=host)
    assert (found.status, found.json["error"]["type"]) == (403, "permission_error")
    assert ask(server, "/v1/completions", SHORT, host=host).status == 403
    assert ask(server, "/health", host=host).status == 403


def test_no_name_and_two_names(server: Server) -> None:
    assert b" 403 " in server.raw(b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n")
    two = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: evil.com\r\nconnection: close\r\n\r\n"
    assert b" 403 " in server.raw(two)


def test_a_name_that_was_allowed(start) -> None:  # type: ignore[no-untyped-def]
    found = start("--allow-host", "Bise.example", "--allow-host", "other")
    assert ask(found, "/v1/models", host="bise.example:8080").status == 200
    assert ask(found, "/v1/models", host="other").status == 200
    assert ask(found, "/v1/models", host="evil.com").status == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.com", "null", "http://localhost.evil.com", "http://localhost:1", "", "file://", "HTTP://x"]
)
def test_pages_of_other_sites(server: Server, origin: str) -> None:
    for path, body in (("/v1/models", None), ("/v1/completions", SHORT), ("/health", None), ("/", None)):
        found = ask(server, path, body, origin=origin)
        assert found.status == 403 and not any("access-control" in name for name in found.headers)
    found = ask(server, "/v1/completions", method="OPTIONS", origin=origin, access_control_request_method="POST")
    assert found.status == 403 and not any("access-control" in name for name in found.headers)


def test_its_own_page(server: Server) -> None:
    host = f"localhost:{server.port}"
    found = ask(server, "/v1/completions", SHORT, host=host, origin=f"http://{host}")
    assert found.status == 200 and not any("access-control" in name for name in found.headers)
    assert ask(server, "/v1/models", host=host, origin=f"http://127.0.0.1:{server.port}").status == 403


# --- kinds of bodies, paths


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x" * 99]
)
def test_only_json(server: Server, kind: str) -> None:
    """What a form on a stranger's page can send without asking is no JSON."""
    assert ask(server, "/v1/completions", json.dumps(SHORT).encode(), content_type=kind).status == 415


def test_kinds_of_json(server: Server) -> None:
    for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
        assert ask(server, "/v1/completions", SHORT, content_type=kind).status == 200
    for kind in ("application/json; charset=utf-16", "application/jsonx"):
        assert ask(server, "/v1/completions", SHORT, content_type=kind).status == 415
    packed = ask(
        server, "/v1/completions", b"\x1f\x8b" + bytes(99), content_type="application/json", content_encoding="gzip"
    )
    assert packed.status == 415


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1//models", "/v1/../v1/models", "/./health", "/v1/models/", "/health/..", "/%2e%2e/etc/passwd",
     "/v1%2f..%2fmodels/", "/v1/models%00", "/v1\\models", "/..;/health", "/v1/models/%0d%0ax", "/nothing"],
)  # fmt: skip
def test_paths_that_no_route_has(server: Server, path: str) -> None:
    found = ask(server, path)
    assert found.status == 404 and found.json["error"]["message"]
    assert "location" not in found.headers


def test_methods_that_no_route_has(server: Server) -> None:
    assert ask(server, "/v1/models", method="DELETE").status == 405
    assert ask(server, "/v1/completions").status == 405
    assert ask(server, "/v1/models", method="OPTIONS").status == 405
    assert ask(server, "/health", method="HEAD").status == 200
    for method in ("PUT", "TRACE", "PROPFIND"):
        assert ask(server, "/v1/completions", method=method).status in (404, 405)


def test_what_every_answer_has(server: Server) -> None:
    found = ask(server, "/v1/models")
    assert found.headers["x-request-id"].startswith("req_") and "server" not in found.headers
    assert found.headers["x-content-type-options"] == "nosniff" and found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cross-origin-resource-policy"] == "same-origin" and "date" in found.headers
    page = ask(server, "/", accept="text/html").headers
    assert "default-src 'none'" in page["content-security-policy"] and "unsafe" not in page["content-security-policy"]
    assert "frame-ancestors 'none'" in page["content-security-policy"]
    assert page["cross-origin-opener-policy"] == "same-origin"
    assert len({ask(server, "/health").headers["x-request-id"] for _ in range(5)}) == 5


# --- keys


def test_every_route_wants_a_key(locked: Server) -> None:
    """All paths and methods of the document, and some that it does not have: without a key nothing is told apart."""
    document = ask(locked, "/openapi.json", authorization=f"Bearer {ONE}").json
    assert "/v1/completions" in document["paths"] and "/metrics" in document["paths"]
    paths = [path.replace("{", "").replace("}", "") for path in document["paths"]] + ["/", "/nothing", "/openapi.json"]
    for path in paths:
        if path == "/health":
            continue
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
            found = ask(locked, path, SHORT if method == "POST" else None, method=method)
            assert found.status == 401, (method, path)
            assert found.headers["www-authenticate"] == "Bearer"
            if method == "GET":
                assert found.json["error"]["type"] == "authentication_error"
    assert ask(locked, "/health").status == 200


def test_keys_as_clients_send_them(locked: Server) -> None:
    for headers in ({"authorization": f"Bearer {ONE}"}, {"authorization": f"bearer  {TWO}"}, {"x_api_key": TWO}):
        assert ask(locked, "/v1/models", **headers).status == 200
        assert ask(locked, "/v1/completions", SHORT, **headers).status == 200
    for value in (ONE, f"Basic {ONE}", "Bearer", f"Bearer {ONE[:-1]}", f"Bearer {ONE}x", f"Bearer {ONE} {TWO}"):
        assert ask(locked, "/v1/models", authorization=value).status == 401
    assert ask(locked, "/v1/models?key=" + ONE).status == 401


def test_who_guesses_waits_and_who_knows_does_not(locked: Server) -> None:
    with ThreadPoolExecutor(24) as pool:
        began = time.monotonic()
        wrong = [pool.submit(ask, locked, "/v1/models", authorization=f"Bearer wrong-{i}") for i in range(24)]
        right = ask(locked, "/v1/models", authorization=f"Bearer {ONE}")
        assert right.status == 200 and time.monotonic() - began < 0.9
        assert {reply.result().status for reply in wrong} == {401}
        assert time.monotonic() - began >= 1


def test_the_form(locked: Server) -> None:
    """A person with a browser: the form, a wrong key, the right one, the page; and no cookie is good without one."""
    form = ask(locked, "/", accept="text/html,*/*")
    assert (
        form.status == 401 and b'action="/login"' in form.body and form.headers["content-type"].startswith("text/html")
    )
    policy = form.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "unsafe" not in policy and form.headers["referrer-policy"] == "same-origin"
    )
    sent = {"content_type": "application/x-www-form-urlencoded", "origin": f"http://127.0.0.1:{locked.port}"}
    wrong = ask(locked, "/login", b"key=%3Cscript%3E", **sent)
    assert wrong.status == 401 and b"<script" not in wrong.body and b"not a key" in wrong.body
    assert "set-cookie" not in wrong.headers
    right = ask(locked, "/login", f"key={ONE}".encode(), **sent)
    assert (right.status, right.headers["location"]) == (303, "/")
    cookie, *flags = right.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags) and ONE not in cookie
    assert ask(locked, "/", accept="text/html", cookie=f"a=b; {cookie}").status == 200
    assert ask(locked, "/v1/models", cookie=cookie).status == 200
    assert ask(locked, "/v1/models", cookie=cookie[:-1] + "z").status == 401
    assert ask(locked, "/v1/models", cookie=cookie, authorization="Bearer wrong").status == 401
    assert ask(locked, "/v1/models", cookie=cookie, origin="https://evil.com").status == 403
    for body in (b"", b"\xff=\xff", b"&" * 9999 + b"key=" + b"a" * 100_000):
        assert ask(locked, "/login", body, **sent).status in (401, 415)
    assert ask(locked, "/login", {"key": ONE}).status == 415
    foreign = {**sent, "origin": "https://evil.com"}
    assert ask(locked, "/login", f"key={ONE}".encode(), **foreign).status == 403


def test_the_form_is_only_where_there_are_keys(server: Server) -> None:
    assert ask(server, "/login", b"key=x", content_type="application/x-www-form-urlencoded").status in (404, 415)
    assert ask(server, "/", accept="text/html").status == 200


def test_a_key_in_the_environment(start) -> None:  # type: ignore[no-untyped-def]
    found = start(environment={"BISE_KEY": ONE})
    assert ask(found, "/v1/models").status == 401
    assert ask(found, "/v1/models", authorization=f"Bearer {ONE}").status == 200


# --- keys, in this process


def test_tenants_are_told_apart_and_say_nothing_of_their_keys() -> None:
    keys = Keys([ONE, TWO])
    one, two = keys.tenant(ONE.encode()), keys.tenant(TWO.encode())
    assert one and two and one.name != two.name and one.salt != two.salt
    assert (
        keys.tenant(b"") is None and keys.tenant(one.name.encode()) is None and keys.tenant(one.salt.encode()) is None
    )
    cookie = Keys.cookie(ONE.encode())
    assert keys.visitor(cookie.encode()) == one and keys.tenant(cookie.encode()) is None
    assert Keys([ONE]).tenant(ONE.encode()) == one, "what lies in a tenant's folders is found again"
    assert ONE not in repr(one) and not Keys() and keys


@pytest.mark.parametrize(
    "text, line",
    [
        ("", "holds no key"),
        ("# nothing\n\n", "holds no key"),
        ("fifteen letters\n".replace(" ", "-"), "line 1: the key has 15 characters, expected 16 or more"),
        (f"{ONE}\nshort\n", "line 2: the key has 5 characters"),
        ("a key with spaces in it\n", "printable ASCII without spaces"),
        ("schlüssel-schlüssel\n", "printable ASCII"),
        ("x" * (1 << 20) + "y", "1,048,577 bytes"),
    ],
)
def test_key_files_that_are_refused(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(RequestError) as error:
        read_keys(file)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not any(key and key in str(error.value) for key in text.split("\n") if len(key) > 6)


def test_key_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    for name, line in (("gone", "No such file"), ("pipe", "is no file"), (".", "is no file"), ("bytes", "is no text")):
        with pytest.raises(RequestError, match=line):
            read_keys(tmp_path / name)


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\ufeff{ONE}\r\n  {TWO}  \n{ONE}\n")
    file.chmod(stat.S_IRUSR | stat.S_IROTH)
    keys, warning = read_keys(file)
    assert keys == [ONE, TWO] and "chmod 600" in warning
    file.chmod(0o600)
    assert read_keys(file) == ([ONE, TWO], "")


def test_no_key_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BISE_KEY", raising=False)
    assert read_keys(None) == ([], "")
    monkeypatch.setenv("BISE_KEY", "")
    with pytest.raises(RequestError, match="BISE_KEY: the key has 0 characters"):
        read_keys(None)


def test_wrong_keys_are_counted_by_neighbourhood() -> None:
    guesses = Guesses()
    assert [guesses.wrong("1.2.3.4") for _ in range(12)] == [False] * 10 + [True] * 2
    assert not guesses.wrong("1.2.3.5")
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff") == "2001:db8::/64"
    assert neighbourhood("1.2.3.4") == "1.2.3.4" and neighbourhood("") == ""
    for i in range(3000):
        guesses.wrong(f"10.0.{i // 256}.{i % 256}")
    assert len(guesses._times) == 1024
