"""/api/conversations over HTTP: versions, limits, files in and out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.running import Server

ROOT = "/api/conversations"
SAID = {"messages": [{"id": "a", "parent": None, "role": "user", "content": "Who blows here?"}]}


@pytest.fixture
def http(server: Server) -> Any:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def test_a_life(http: httpx.Client) -> None:
    made = http.post(ROOT, json={**SAID, "title": "Winds", "settings": {"temperature": 0.5}})
    assert made.status_code == 201 and made.headers["etag"] == '"1"'
    path = f"{ROOT}/{made.json()['id']}"
    got = http.get(path)
    assert got.headers["etag"] == '"1"' and got.headers["content-type"] == "application/json"
    assert got.json()["messages"][0] == SAID["messages"][0] and got.json()["settings"] == {"temperature": 0.5}
    said = {
        "messages": [*SAID["messages"], {"id": "b", "parent": "a", "role": "assistant", "content": "The bise."}],
        "current": "b",
    }
    assert http.put(path, json=said, headers={"If-Match": '"1"'}).json()["version"] == 2
    assert http.patch(path, json={"title": "The bise"}).json()["title"] == "The bise"
    assert http.get(ROOT).json()["conversations"][0] | {"created": 0, "updated": 0} == {
        "id": made.json()["id"], "title": "The bise", "kind": "chat", "version": 3, "created": 0, "updated": 0, "messages": 2,
    }  # fmt: skip
    assert http.get(ROOT, params={"search": "THE BISE."}).json()["conversations"][0]["snippet"] == "The bise."
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == http.delete(path).status_code == 404


def test_what_another_tab_has_written_is_not_overwritten(http: httpx.Client) -> None:
    path = f"{ROOT}/{http.post(ROOT, json=SAID).json()['id']}"
    missing = http.put(path, json=SAID)
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "If-Match"
    assert http.put(path, json=SAID, headers={"If-Match": "1"}).status_code == 200
    for refused in (
        http.put(path, json=SAID, headers={"If-Match": '"1"'}), http.patch(path, json={"title": "x"}, headers={"If-Match": '"1"'}),
        http.delete(path, headers={"If-Match": '"1"'}),
    ):  # fmt: skip
        assert refused.status_code == 409 and refused.json()["error"]["code"] == "changed"
    for wrong in ("*", "x", "-1", "1e3", '"1", "2"', "9" * 40):
        assert http.put(path, json=SAID, headers={"If-Match": wrong}).status_code == 400
    assert http.get(path).json()["version"] == 2


def test_nothing_is_not_taken_in(http: httpx.Client) -> None:
    answer = http.post(f"{ROOT}/import", json={"format": "bise-conversations", "conversations": []})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "conversations"


def test_out_and_in_again(http: httpx.Client) -> None:
    ids = [http.post(ROOT, json={**SAID, "title": f"Out {i}"}).json()["id"] for i in range(3)]
    one = http.get(f"{ROOT}/{ids[0]}/export")
    assert one.headers["content-disposition"] == f'attachment; filename="{ids[0]}.json"'
    assert [c["title"] for c in one.json()["conversations"]] == ["Out 0"]
    every = http.get(f"{ROOT}/export").json()
    assert every["format"] == "bise-conversations" and set(ids) <= {c["id"] for c in every["conversations"]}
    mine = {"format": every["format"], "conversations": [c for c in every["conversations"] if c["id"] in ids]}
    taken = http.post(f"{ROOT}/import", json=mine)
    assert (
        taken.status_code == 201 and len(taken.json()["imported"]) == 3 and not set(taken.json()["imported"]) & set(ids)
    )
    again = http.get(f"{ROOT}/{taken.json()['imported'][0]}").json()
    was = mine["conversations"][0]
    assert {k: v for k, v in again.items() if k not in ("id", "version")} == {
        k: v for k, v in was.items() if k not in ("id", "version")
    }


@pytest.mark.parametrize("body", [
    {}, [], {"format": "other", "conversations": [{}]},
    {"format": "bise-conversations", "conversations": [{}, {"messages": [{"id": "../x"}]}]},
    {"format": "bise-conversations", "conversations": [{"path": "/etc/passwd"}]},
])  # fmt: skip
def test_what_is_no_export_leaves_nothing_behind(http: httpx.Client, body: Any) -> None:
    before = len(http.get(ROOT).json()["conversations"])
    answer = http.post(f"{ROOT}/import", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert len(http.get(ROOT).json()["conversations"]) == before


@pytest.mark.parametrize("id", ["0" * 24, "x", "..%2f..%2fetc%2fpasswd", "%00", "A" * 24, "0" * 25, "export%2f"])
def test_there_is_no_such_conversation(http: httpx.Client, id: str) -> None:
    for answer in (
        http.get(f"{ROOT}/{id}"),
        http.delete(f"{ROOT}/{id}"),
        http.get(f"{ROOT}/{id}/export"),
        http.patch(f"{ROOT}/{id}", json={"title": "x"}),
    ):
        assert answer.status_code in (404, 405), answer.text
        assert "passwd" not in answer.text or "%2f" not in id


@pytest.mark.parametrize("body", [
    {"title": "x" * 201}, {"title": 3}, {"kind": "other"}, {"messages": [{"id": "a"}]}, {"current": "a"}, {"version": 3}, {"id": "0" * 24},
    {"settings": {"temperature": "0.5"}}, {"settings": {"seed": -1}}, {"settings": {"other": 1}}, {"messages": {}},
])  # fmt: skip
def test_what_is_no_conversation_is_refused(http: httpx.Client, body: Any) -> None:
    assert http.post(ROOT, json=body).status_code == 400


def test_one_that_is_too_large(http: httpx.Client) -> None:
    messages = [{"id": f"m{i}", "parent": None, "role": "user", "content": "x" * 1_000_000} for i in range(5)]
    answer = http.post(ROOT, json={"messages": messages})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "conversation_too_large"


def test_each_key_has_its_own_shelf(start: Callable[..., Server], tmp_path: Path) -> None:
    keys = {name: f"{name}-key-{name}-key-{name}" for name in ("anna", "ben")}
    file = tmp_path / "keys"
    file.write_text("\n".join(keys.values()))
    file.chmod(0o600)
    server = start("--key-file", str(file))
    anna, ben = (
        httpx.Client(base_url=server.url, timeout=20, headers={"Authorization": f"Bearer {key}"})
        for key in keys.values()
    )
    with anna, ben, httpx.Client(base_url=server.url) as stranger:
        path = f"{ROOT}/{anna.post(ROOT, json=SAID).json()['id']}"
        assert stranger.get(ROOT).status_code == stranger.get(path).status_code == 401
        assert ben.get(ROOT).json() == {"conversations": []}
        assert ben.get(path).status_code == ben.delete(path).status_code == 404
        assert ben.put(path, json=SAID, headers={"If-Match": "1"}).status_code == 404
        assert anna.get(path).status_code == 200
