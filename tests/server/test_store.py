"""Conversations as files: whole or not at all, never lost, never overwritten unseen."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bise.errors import BiseError
from bise.server import limits
from bise.server.faults import Fault
from bise.server.page.store import Conversation, Imported, Store

NOBODY, ANNA, BEN = "", "a1" * 8, "b2" * 8


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "conversations")


def conversation(*said: str, title: str = "A title", **more: object) -> Conversation:
    """Question, answer, question, ..., each the child of the one before."""
    messages = [
        {"id": f"m{i}", "parent": f"m{i - 1}" if i else None, "role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate(said)
    ]
    return Conversation.model_validate({"title": title, "messages": messages, **more})


def status(act, *given, **more) -> tuple[int, str | None]:
    with pytest.raises(Fault) as caught:
        act(*given, **more)
    return caught.value.status_code, caught.value.code


def test_what_is_kept_is_what_comes_back(store: Store, tmp_path: Path) -> None:
    tokens = [["Hé", -0.25, [["Hé", -0.25], ["\n", -3]]], ["llo", None, []]]
    usage = {"prompt": 12, "completion": 2, "reused": 3, "first": 0.5, "rate": 41.5}
    given = Conversation.model_validate({
        "title": "Grüße 🌬", "kind": "chat", "settings": {"temperature": 0.7, "system": "Be brief.", "seed": 2**60},
        "current": "b", "messages": [
            {"id": "a", "parent": None, "role": "user", "content": "Say <b>\"hello\"</b>\n\u2028"},
            {"id": "b", "parent": "a", "role": "assistant", "content": "Héllo", "finish": "stop", "tokens": tokens, "usage": usage},
        ],
    })  # fmt: skip
    kept = store.create(NOBODY, given)
    assert kept.version == 1 and len(kept.id) == 24
    again = Store(tmp_path / "conversations").get(NOBODY, kept.id)
    assert again == kept
    assert again.model_dump(include=set(Conversation.model_fields)) == given.model_dump()
    assert [p.name for p in (tmp_path / "conversations" / "local").iterdir()] == [f"{kept.id}.json"]


def test_newest_first(store: Store) -> None:
    ids = [store.create(NOBODY, conversation(f"number {i}")).id for i in range(3)]
    store.rename(NOBODY, ids[0], "First of all")
    found = store.all(NOBODY)
    assert [s["id"] for s in found] == [ids[0], ids[2], ids[1]]
    assert found[0]["title"] == "First of all" and found[0]["version"] == 2 and found[0]["messages"] == 1


def test_a_version_that_was_not_seen_is_not_overwritten(store: Store) -> None:
    kept = store.create(NOBODY, conversation("one"))
    assert store.put(NOBODY, kept.id, conversation("one", "two"), 1).version == 2
    assert status(store.put, NOBODY, kept.id, conversation("another"), 1) == (409, "changed")
    assert status(store.rename, NOBODY, kept.id, "x", 1) == (409, "changed")
    assert status(store.remove, NOBODY, kept.id, 1) == (409, "changed")
    now = store.get(NOBODY, kept.id)
    assert [m.content for m in now.messages] == ["one", "two"] and now.created == kept.created


def test_of_many_writers_each_version_has_one(store: Store) -> None:
    kept = store.create(NOBODY, conversation("0"))
    won: list[int] = []

    def write(i: int) -> None:
        for version in range(1, 6):
            try:
                won.append(store.put(NOBODY, kept.id, conversation(f"{i}"), version).version)
            except Fault as fault:
                assert fault.code == "changed"

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == len(set(won)), "two writers were told that the same version is theirs"
    assert store.get(NOBODY, kept.id).version == max(won)


def test_tenants_do_not_see_each_other(store: Store) -> None:
    mine, theirs = store.create(ANNA, conversation("anna's secret")), store.create(BEN, conversation("ben's"))
    assert [s["id"] for s in store.all(ANNA)] == [mine.id] and store.all(NOBODY) == []
    assert store.search(BEN, "secret") == []
    for act in (lambda: store.get(ANNA, theirs.id), lambda: store.remove(ANNA, theirs.id),
                lambda: store.put(ANNA, theirs.id, conversation("x"), 1), lambda: store.rename(ANNA, theirs.id, "x")):  # fmt: skip
        assert status(act) == (404, "not_found")
    assert store.get(BEN, theirs.id).title == "A title"


@pytest.mark.parametrize("tenant", ["../x", "local", "/etc", "a/b", "..", "A1", "a" * 65])
def test_a_tenant_is_no_path(store: Store, tenant: str) -> None:
    with pytest.raises(BiseError):
        store.all(tenant)


@pytest.mark.parametrize(
    "id", ["../../etc/passwd", "..", "", "x" * 24, "A" * 24, "0" * 23, "0" * 25, "0" * 24 + "\n", "%2e" * 8, "\0" * 24]
)
def test_an_id_is_no_path(store: Store, id: str) -> None:
    assert status(store.get, NOBODY, id) == (404, "not_found")
    assert status(store.remove, NOBODY, id) == (404, "not_found")


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b"cut", b"other", b"tree", b"deep"])
def test_a_damaged_file_is_listed_and_left_alone(store: Store, tmp_path: Path, damage: bytes) -> None:
    good, bad = store.create(NOBODY, conversation("one")), store.create(NOBODY, conversation("two"))
    path = tmp_path / "conversations" / "local" / f"{bad.id}.json"
    data = {
        b"cut": path.read_bytes()[:-20],
        b"other": (path.parent / f"{good.id}.json").read_bytes(),
        b"tree": path.read_bytes().replace(b'"parent":null', b'"parent":"m9"'),
        b"deep": b'{"messages":' + b"[" * 100_000,
    }.get(damage, damage)
    path.write_bytes(data)
    found = store.all(NOBODY)
    assert [s["id"] for s in found] == [good.id, bad.id]
    assert found[1]["damaged"] and found[1]["error"] and str(tmp_path) not in found[1]["error"]
    for act in (lambda: store.get(NOBODY, bad.id), lambda: store.remove(NOBODY, bad.id),
                lambda: store.put(NOBODY, bad.id, conversation("x"), 1), lambda: store.rename(NOBODY, bad.id, "x")):  # fmt: skip
        assert status(act) == (400, "damaged")
    assert [s["id"] for s in store.search(NOBODY, "o")] == [good.id]
    assert [k.id for k in store.each(NOBODY)] == [good.id]
    assert path.read_bytes() == data


def test_what_is_no_conversation_is_not_listed(store: Store, tmp_path: Path) -> None:
    kept = store.create(NOBODY, conversation("one"))
    folder = tmp_path / "conversations" / "local"
    (folder / ".x.json.part").write_text("half")
    (folder / "notes.json").write_text("{}")
    (folder / ("0" * 24)).write_text("{}")
    assert [s["id"] for s in store.all(NOBODY)] == [kept.id]


def test_a_link_out_of_the_folder_shows_nothing_else(store: Store, tmp_path: Path) -> None:
    kept = store.create(NOBODY, conversation("one"))
    (tmp_path / "secret").write_text("root:x:0:0")
    path = tmp_path / "conversations" / "local" / f"{'0' * 24}.json"
    path.symlink_to(tmp_path / "secret")
    found = store.all(NOBODY)
    assert [s["id"] for s in found] == [kept.id, "0" * 24] and "root" not in json.dumps(found)


def test_search(store: Store) -> None:
    straße = store.create(NOBODY, conversation("In der Straße", 'Ein "Zitat"\nüber zwei Zeilen', title="Deutsch"))
    wind = store.create(NOBODY, conversation("x" * 500 + " The Bise blows " + "y" * 500, title="Weather"))
    title = store.create(NOBODY, conversation("nothing", title="About the bise"))
    found = store.search(NOBODY, "BISE")
    assert [s["id"] for s in found] == [title.id, wind.id]
    assert found[0]["snippet"] == "About the bise"
    assert "The Bise blows" in found[1]["snippet"] and len(found[1]["snippet"]) < 140
    assert found[1]["snippet"].startswith("…") and found[1]["snippet"].endswith("…")
    assert [s["id"] for s in store.search(NOBODY, "STRASSE")] == [straße.id]
    assert [s["id"] for s in store.search(NOBODY, '"zitat"\nüber')] == [straße.id]
    assert store.search(NOBODY, "content") == [], "a field's name is not what was said"
    assert store.search(NOBODY, "zzz") == []


def test_a_list_reads_again_only_what_has_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from bise.server.page import store as module

    ids = [store.create(NOBODY, conversation(f"{i}")).id for i in range(5)]
    read, real = [], module._read
    monkeypatch.setattr(module, "_read", lambda path: read.append(path.stem) or real(path))
    store.all(NOBODY)
    store.all(NOBODY)
    assert sorted(read) == sorted(ids)
    store.rename(NOBODY, ids[2], "x")
    read.clear()
    store.all(NOBODY)
    assert read == [ids[2]]


def test_there_are_only_so_many_and_only_so_large(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONVERSATIONS", 2)
    monkeypatch.setattr(limits, "CONVERSATION", 10_000)
    first = store.create(NOBODY, conversation("one"))
    assert status(store.take, NOBODY, [Imported(), Imported()])[0] == 400
    assert len(store.all(NOBODY)) == 1, "an import that does not fit leaves nothing behind"
    store.create(NOBODY, conversation("two"))
    assert status(store.create, NOBODY, conversation("three")) == (400, "too_many_conversations")
    store.create(ANNA, conversation("of somebody else"))
    assert status(store.put, NOBODY, first.id, conversation("x" * 10_001), 1) == (413, "conversation_too_large")
    assert store.get(NOBODY, first.id).messages[0].content == "one"


def test_an_import_takes_over_no_id(store: Store) -> None:
    kept = store.create(NOBODY, conversation("one", title="Mine"))
    file = kept.model_dump(mode="json") | {"title": "Another's", "updated": 5.0, "created": 4.0}
    (taken,) = store.take(NOBODY, [Imported.model_validate(file)])
    assert taken.id != kept.id and (taken.created, taken.updated, taken.version) == (4.0, 5.0, 1)
    assert {s["title"] for s in store.all(NOBODY)} == {"Mine", "Another's"}


@pytest.mark.parametrize(("change", "what"), [
    ({"messages": [{"id": "a", "parent": "a", "role": "user", "content": ""}]}, "parent"),
    ({"messages": [{"id": "a", "parent": "b", "role": "user", "content": ""}, {"id": "b", "parent": None, "role": "user", "content": ""}]}, "parent"),
    ({"messages": [{"id": "a", "parent": None, "role": "user", "content": ""}] * 2}, "twice"),
    ({"messages": [{"id": "../a", "parent": None, "role": "user", "content": ""}]}, "pattern"),
    ({"messages": [{"id": "a", "parent": None, "role": "system", "content": ""}]}, "assistant"),
    ({"messages": [{"id": "a", "parent": None, "role": "user", "content": "", "html": "x"}]}, "extra"),
    ({"messages": [{"id": "a", "parent": None, "role": "assistant", "content": "", "tokens": [["a", float("nan"), []]]}]}, "finite"),
    ({"current": "m7"}, "current"),
    ({"title": "x" * 201}, "200"),
    ({"settings": {"temperature": "hot"}}, "number"),
    ({"path": "/etc/passwd"}, "extra"),
])  # fmt: skip
def test_what_is_no_tree_is_refused(change: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Conversation.model_validate(change)


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    folder = tmp_path / "conversations" / "local"
    folder.mkdir(parents=True)
    old, new = folder / ".a.json.x.part", folder / ".b.json.y.part"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (1, 1))
    Store(tmp_path / "conversations")
    assert not old.exists() and new.exists(), "a young one may be somebody's who is writing"


WRITER = """
import sys
from pathlib import Path
from bise.server.page.store import Conversation, Store
store, n = Store(Path(sys.argv[1])), 1
id = store.create("", Conversation()).id
print(id, flush=True)
while True:
    said = [{"id": "m", "parent": None, "role": "user", "content": f"{n} " * 20000}]
    n = store.put("", id, Conversation(messages=said), n).version
"""


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    for delay in (0.05, 0.11, 0.17):
        folder = tmp_path / str(delay)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        id = writer.stdout.readline().decode().strip()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        kept = Store(folder).get(NOBODY, id)
        assert kept.version == 1 or set(kept.messages[0].content.split()) == {str(kept.version - 1)}
