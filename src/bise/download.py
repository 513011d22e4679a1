"""One file of the Hugging Face hub into huggingface_hub's cache: taken up where it broke off, checked when it is whole.

huggingface_hub (2.4) throws away what a broken download brought and checks its length only. Here the part that came
stays beside the other blobs of the cache, and a file whose SHA-256 the hub states is hashed before it takes its place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

from .errors import BiseError

ATTEMPTS = 5  # in a row that may bring nothing
PAUSE = 1.0  # seconds, once more after each attempt that brought nothing
Report = Callable[[int], None]  # bytes of the file that are here


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file. tag: its SHA-256 in hex for large files, else a git hash."""

    location: str
    tag: str
    size: int


def download(repo: str, name: str, revision: str, cache: Path, report: Report) -> Path:
    """The file's path in the cache, downloaded if it is not there. Raises BiseError, with what is to be done."""
    from huggingface_hub import constants, hf_hub_download

    kept = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision / name
    if not kept.exists():
        remote = _ask(repo, name, revision)
        blob = cache / f"models--{repo.replace('/', '--')}" / "blobs" / remote.tag
        if not blob.exists():
            _fetch(f"{repo}/{name}", remote, blob, report)
    report(kept.stat().st_size if kept.exists() else remote.size)
    with polite(repo):  # finds the blob in its place, and only links it under its name
        return Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache, endpoint=constants.ENDPOINT))


def _ask(repo: str, name: str, revision: str) -> Remote:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with polite(repo):
        url = hf_hub_url(repo, name, revision=revision, endpoint=constants.ENDPOINT)
        found = get_hf_file_metadata(url, headers=build_hf_headers())
    if not found.etag or not re.fullmatch(r"[0-9A-Za-z_-]{1,128}", found.etag) or found.size is None:
        raise BiseError(f"{repo}/{name}: {constants.ENDPOINT} names neither its size nor its ETag: is it a hub?")
    return Remote(found.location, found.etag, found.size)


def _fetch(what: str, remote: Remote, blob: Path, report: Report) -> None:
    """Bring the bytes to `blob`, beginning with those that an earlier attempt left."""
    from filelock import FileLock, Timeout

    part = blob.with_name(f"{blob.name}.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{part}.lock", timeout=0):
            _receive(what, remote, part, report)
            _check(what, remote, part)
            part.replace(blob)
    except Timeout:
        raise BiseError(f"{what}: another process is downloading it") from None
    except OSError as error:
        raise BiseError(f"{part}: cannot be written: {error.strerror or error}") from None
    Path(f"{part}.lock").unlink(missing_ok=True)


def _receive(what: str, remote: Remote, part: Path, report: Report) -> None:
    """Append what is missing; a connection that is cut is opened again as long as one in five brings something."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that it uses

    with open(part, "ab") as file:
        here = file.tell() if file.tell() <= remote.size else file.seek(file.truncate(0))
        free = shutil.disk_usage(part.parent).free
        if remote.size - here > free:
            raise BiseError(f"{what}: needs {remote.size - here:,} bytes, {part.parent} has {free:,} left: make room")
        failed = 0
        while here < remote.size:
            before, reason = here, "the connection was closed"
            try:
                for length in _stream(remote, file, here):
                    report(length)
            except HTTPError as error:
                reason = " ".join(str(error).split())[:100]
            here = file.tell()
            failed = 0 if here > before else failed + 1
            if failed == ATTEMPTS:
                came = f"{here:,} of {remote.size:,} bytes ({reason})"
                raise BiseError(f"{what}: broke off after {came}: run the same again, it goes on from there")
            if here < remote.size:
                time.sleep(PAUSE * failed)


def _stream(remote: Remote, file: BinaryIO, here: int) -> Iterator[int]:
    """One connection's worth of bytes, written as they come; yields how many of the file are here."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    ours = urlparse(remote.location).netloc == urlparse(constants.ENDPOINT).netloc
    headers = {k: v for k, v in build_hf_headers().items() if ours or k.lower() != "authorization"}  # not for a mirror
    headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={here}-"} if here else {})
    with get_session().stream(
        "GET", remote.location, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        if here and response.status_code != 206:  # the server cannot begin in the middle
            here = file.seek(file.truncate(0))
        for chunk in response.iter_raw():
            here += file.write(chunk[: remote.size - here])
            yield here


def _check(what: str, remote: Remote, part: Path) -> None:
    """The hub's tag of a large file is its SHA-256."""
    if part.stat().st_size != remote.size:
        raise BiseError(f"{what}: {part.stat().st_size:,} bytes came, expected {remote.size:,}: run the same again")
    if not re.fullmatch(r"[0-9a-f]{64}", remote.tag):
        return
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if (found := digest.hexdigest()) != remote.tag:
        part.unlink()
        sums = f"SHA-256 {found[:12]}..., expected {remote.tag[:12]}..."
        raise BiseError(f"{what}: arrived damaged ({sums}): deleted, pull it again")


@contextmanager
def _silent() -> Iterator[None]:
    """huggingface_hub's own bars and messages would tear the one bar that is shown."""
    from huggingface_hub import utils

    hub: Any = utils
    shown, level = not hub.are_progress_bars_disabled(), hub.logging.get_verbosity()
    hub.disable_progress_bars()
    hub.logging.set_verbosity_error()
    try:
        yield
    finally:
        hub.logging.set_verbosity(level)
        if shown:
            hub.enable_progress_bars()


@contextmanager
def polite(repo: str) -> Iterator[None]:
    """Turn what can go wrong on the way to the hub into one line: what it was, and what can be done."""
    from huggingface_hub import constants, errors

    unreachable: Any = (errors.HTTPError, OSError)  # type: ignore[attr-defined]  # of the HTTP library that it uses
    hub, login = constants.ENDPOINT, "'hf auth login'"
    try:
        with _silent():
            yield
    except errors.OfflineModeIsEnabled:
        remedy = "unset it, or name a local file"
        raise BiseError(f"{repo}: not in the cache, and HF_HUB_OFFLINE forbids the network: {remedy}") from None
    except errors.GatedRepoError:
        remedy = f"visit {hub}/{repo}, then log in with {login}"
        raise BiseError(f"{repo}: its owner wants its terms accepted: {remedy}") from None
    except errors.RepositoryNotFoundError:
        what = f"no such file here and no such model on {hub}, or a private one"
        raise BiseError(f"{repo}: {what}: check the name, or log in with {login}") from None
    except errors.EntryNotFoundError:
        raise BiseError(f"{repo}: the file is not there any more: see {hub}/{repo}") from None
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "?")
        remedy = f"log in again with {login}" if code in (401, 403) else "try again later"
        raise BiseError(f"{repo}: {hub} answers {code}: {remedy}") from None
    except unreachable as error:
        reason = " ".join(str(error).split())[:120]
        raise BiseError(
            f"{repo}: not in the cache, and {hub} cannot be reached ({reason}): name a local file"
        ) from None
