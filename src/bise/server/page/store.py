"""Conversations as plain files: DATA/conversations/TENANT/ID.json, one whole tree of messages each.

An id is made here and looks like nothing else (24 hex digits), so that no request names a path. A file is written
whole: beside its place, synced, renamed (disk.replacing); whoever is killed leaves the old one or the new one. Its
version goes up by one with each write, and a write says which version it has seen. A file that cannot be read is
listed as damaged and left alone.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic import Strict as Strictly

from ...disk import read_small, replacing
from ...errors import BiseError, FormatError
from .. import limits
from ..api.body import Strict
from ..faults import Fault

ID = re.compile(r"[0-9a-f]{24}")
TENANT = re.compile(r"[0-9a-f]{1,64}")
NOBODY = "local"  # the folder of a server without keys: no tenant is called that
STALE = 3600.0  # seconds after which nobody is still writing a file
AROUND = 60  # characters before and after what was found

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
Title = Annotated[str, StringConstraints(max_length=limits.TITLE)]
Short = Annotated[str, StringConstraints(max_length=limits.NAME)]
Text = Annotated[str, StringConstraints(max_length=limits.SAID)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]
Piece = Annotated[str, StringConstraints(max_length=1000)]
Odds = Annotated[tuple[Piece, Number | None], Strictly(False)]  # JSON has no tuples
Token = Annotated[
    tuple[Piece, Number | None, Annotated[list[Odds], Field(max_length=limits.LOGPROBS + 1)]], Strictly(False)
]


class Spent(Strict):
    """What an answer took: tokens, seconds to the first one, tokens per second."""

    prompt: Count
    completion: Count
    reused: Count = 0
    first: Number | None = None
    rate: Number | None = None


class Message(Strict):
    """One thing said. tokens: (text, logprob, alternatives) of an answer."""

    id: Word
    parent: Word | None
    role: Literal["user", "assistant"]
    content: Text
    created: Number = 0
    model: Short = ""
    finish: Literal["", "stop", "length", "stopped", "error"] = ""
    error: Annotated[str, StringConstraints(max_length=2000)] = ""
    usage: Spent | None = None
    tokens: Annotated[list[Token], Field(max_length=limits.MAX_TOKENS)] | None = None


class Choices(Strict):
    """How the model chooses its words there."""

    system: Text = ""
    temperature: Number | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    top_k: Count | None = None
    repetition_penalty: Number | None = None
    max_tokens: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None


class Conversation(Strict):
    """What a page hands in: a tree of messages, parents before their children, and the one where reading ended."""

    title: Title = ""
    kind: Literal["chat", "text"] = "chat"
    settings: Choices = Choices()
    current: Word | None = None
    messages: list[Message] = Field(default_factory=list, max_length=limits.KEPT_MESSAGES)

    @model_validator(mode="after")
    def _tree(self) -> Conversation:
        known: set[str] = set()
        for message in self.messages:
            if message.id in known:
                raise ValueError(f"message {message.id} stands there twice")
            if message.parent is not None and message.parent not in known:
                raise ValueError(f"message {message.id} has a parent that does not come before it")
            known.add(message.id)
        if self.current is not None and self.current not in known:
            raise ValueError("current is no message of the conversation")
        return self


class Imported(Conversation):
    """What an export holds. Its id and version are not taken over: nothing is ever overwritten."""

    id: Word | None = None
    version: Count | None = None
    created: Number | None = None
    updated: Number | None = None


class Kept(Conversation):
    """What lies in a file."""

    id: Annotated[str, StringConstraints(pattern=rf"^{ID.pattern}$")]
    version: Annotated[int, Field(ge=1, le=1 << 53)]
    created: Number
    updated: Number


Summary = dict[str, Any]


class Store:
    """The conversations of all tenants. Blocks on the disk: ask from a thread."""

    def __init__(self, folder: Path) -> None:
        """folder: DATA/conversations; it is made when something is kept."""
        self._folder = folder
        self._lock = threading.Lock()  # one writer at a time: version and number are checked and changed together
        for stale in folder.glob("*/.*.part"):  # of writers that were killed
            if time.time() - stale.stat().st_mtime > STALE:
                stale.unlink(missing_ok=True)
        self._known: dict[Path, tuple[tuple[int, int], Summary]] = {}  # path: (changed, size), what the list says

    def all(self, tenant: str) -> list[Summary]:
        """Newest first; damaged ones last, with what is wrong."""
        return sorted((self._summary(path) for path in self._paths(tenant)), key=_newest)

    def search(self, tenant: str, words: str) -> list[Summary]:
        """Those whose title or messages hold `words`, in whatever case, with the first place where they do."""
        found: list[Summary] = []
        needle = words.casefold()
        written = json.dumps(needle, ensure_ascii=False)[1:-1].casefold()  # as it stands in a file
        for summary in self.all(tenant):
            if len(found) == limits.FOUND or summary.get("damaged"):
                break
            path = self._path(tenant, summary["id"])
            try:
                if written in read_small(path, limits.CONVERSATION).decode().casefold():
                    snippet = _snippet(_read(path), needle)
                    if snippet is not None:
                        found.append({**summary, "snippet": snippet})
            except (FormatError, UnicodeDecodeError):  # removed or damaged since it was listed
                continue
        return found

    def get(self, tenant: str, id: str) -> Kept:
        """Fault 404 where there is none, 400 where its file is damaged."""
        path = self._path(tenant, id)
        if not path.is_file():
            raise Fault(404, f"there is no conversation {id}", code="not_found")
        try:
            return _read(path)
        except FormatError as error:
            raise Fault(400, f"conversation {id} is damaged: {_plain(error, path)}", code="damaged") from None

    def create(self, tenant: str, given: Conversation) -> Kept:
        """A new one. Fault 400 where as many are kept as may be."""
        with self._lock:
            self._check_number(tenant, 1)
            return self._create(tenant, given)

    def take(self, tenant: str, given: Sequence[Imported]) -> list[Kept]:
        """Imported ones, each as a new one; for want of room, none of them."""
        with self._lock:
            self._check_number(tenant, len(given))
            return [self._create(tenant, each, each.created, each.updated) for each in given]

    def put(self, tenant: str, id: str, given: Conversation, version: int) -> Kept:
        """In the place of `version`. Fault 409 where another one is there by now."""
        with self._lock:
            old = self._unchanged(tenant, id, version)
            return self._write(tenant, _kept(given, id, version + 1, old.created, time.time()))

    def rename(self, tenant: str, id: str, title: str, version: int | None = None) -> Kept:
        with self._lock:
            old = self._unchanged(tenant, id, version)
            return self._write(tenant, old.model_copy(update={
                "title": title, "version": old.version + 1, "updated": time.time(),
            }))  # fmt: skip

    def remove(self, tenant: str, id: str, version: int | None = None) -> None:
        """Fault 400 for a damaged one: it may be all that is left of something."""
        with self._lock:
            self._unchanged(tenant, id, version)
            path = self._path(tenant, id)
            path.unlink()
            self._known.pop(path, None)

    def each(self, tenant: str) -> Iterator[Kept]:
        """All that can be read, newest first."""
        for summary in self.all(tenant):
            if not summary.get("damaged"):
                try:
                    yield _read(self._path(tenant, summary["id"]))
                except FormatError:  # removed or damaged since it was listed
                    continue

    # --- files

    def _tenant(self, tenant: str) -> Path:
        if tenant and not TENANT.fullmatch(tenant):
            raise BiseError("a tenant has a name that cannot be a folder's")  # names are made by the server: a bug
        return self._folder / (tenant or NOBODY)

    def _path(self, tenant: str, id: str) -> Path:
        if not ID.fullmatch(id):
            raise Fault(404, f"there is no conversation {id[:40]!r}", code="not_found")
        return self._tenant(tenant) / f"{id}.json"

    def _paths(self, tenant: str) -> list[Path]:
        try:
            return [p for p in self._tenant(tenant).iterdir() if p.suffix == ".json" and ID.fullmatch(p.stem)]
        except FileNotFoundError:
            return []

    def _summary(self, path: Path) -> Summary:
        """What the list says of a file; read again only when it has changed."""
        try:
            status = path.stat()
            mark = (status.st_mtime_ns, status.st_size)
            known = self._known.get(path)
            if known is None or known[0] != mark:
                known = self._known[path] = (mark, _summarised(_read(path)))
            return known[1]
        except (FormatError, OSError) as error:
            return {"id": path.stem, "damaged": True, "error": _plain(error, path)}

    def _unchanged(self, tenant: str, id: str, version: int | None) -> Kept:
        kept = self.get(tenant, id)
        if version is not None and kept.version != version:
            raise Fault(
                409, f"conversation {id} is at version {kept.version}, not {version}: get it again", code="changed"
            )
        return kept

    def _check_number(self, tenant: str, more: int) -> None:
        if (number := len(self._paths(tenant))) + more > limits.CONVERSATIONS:
            line = f"{number:,} conversations are kept, at most {limits.CONVERSATIONS:,} may be: delete or export some"
            raise Fault(400, line, code="too_many_conversations")

    def _create(
        self, tenant: str, given: Conversation, created: float | None = None, updated: float | None = None
    ) -> Kept:
        folder = self._tenant(tenant)
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = time.time()
        times = (now if t is None else min(t, now) for t in (created, updated))
        return self._write(tenant, _kept(given, secrets.token_hex(12), 1, *times))

    def _write(self, tenant: str, kept: Kept) -> Kept:
        body = kept.model_dump_json(exclude_defaults=True).encode()
        if len(body) > limits.CONVERSATION:
            line = (
                f"the conversation has {len(body):,} bytes, at most {limits.CONVERSATION:,} are kept: begin a new one"
            )
            raise Fault(413, line, code="conversation_too_large")
        with replacing(self._path(tenant, kept.id)) as file:
            file.write(body)
        return kept


def _kept(given: Conversation, id: str, version: int, created: float, updated: float) -> Kept:
    fields = {name: getattr(given, name) for name in Conversation.model_fields}
    return Kept.model_construct(**fields, id=id, version=version, created=created, updated=updated)


def _read(path: Path) -> Kept:
    """FormatError for what is not a conversation that belongs there."""
    data = read_small(path, limits.CONVERSATION)
    try:
        kept = Kept.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    if kept.id != path.stem:
        raise FormatError(f"{path}: it says it is {kept.id}")
    return kept


def _plain(error: Exception, path: Path) -> str:
    """What is wrong, without saying where on the disk."""
    return str(error).removeprefix(f"{path}: ") if isinstance(error, FormatError) else "it cannot be read"


def _summarised(kept: Kept) -> Summary:
    return {
        "id": kept.id, "title": kept.title, "kind": kept.kind, "version": kept.version, "created": kept.created,
        "updated": kept.updated, "messages": len(kept.messages),
    }  # fmt: skip


def _newest(summary: Summary) -> tuple[bool, float, str]:
    return bool(summary.get("damaged")), -summary.get("updated", 0.0), summary["id"]


def _snippet(kept: Kept, needle: str) -> str | None:
    """The first place that holds `needle` (casefolded), on one line; None: only a token or a setting does."""
    for text in (*(m.content for m in kept.messages), kept.title):
        at = text.casefold().find(needle)  # casefolding may lengthen a text: the place is right to a few characters
        if at >= 0:
            begin, end = max(0, at - AROUND), at + len(needle) + AROUND
            cut = " ".join(text[begin:end].split())
            return f"{'…' if begin else ''}{cut}{'…' if end < len(text) else ''}"
    return None
