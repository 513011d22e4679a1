"""Who may come in: keys, the tenants behind them, and patience with those who guess."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import Path

from ...errors import RequestError

SHORTEST = 16  # characters of a key
FILE = 1 << 20  # bytes of a key file
REMEDY = "make one with: openssl rand -hex 24"
WRONG = 10  # wrong keys that one address may send in a minute before it is slowed
KNOWN = 1024  # addresses whose wrong keys are remembered


@dataclass(frozen=True)
class Tenant:
    """Who sent a request. name: whose share of the machine it takes, and what lies in its folders; salt: what has been
    read is shared under the same salt only. Both come from the key, and the key cannot be had from them."""

    name: str
    salt: str = ""


class Keys:
    """The keys of a server. Without any, whoever reaches the server may use it."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        tenants = [Tenant(_derive(key, "tenant")[:16], _derive(key, "salt")) for key in keys]
        self._keys = [(_digest(key.encode()), tenant) for key, tenant in zip(keys, tenants, strict=True)]
        self._cookies = [(_digest(_derive(key, "cookie").encode()), t) for key, t in zip(keys, tenants, strict=True)]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def tenant(self, key: bytes) -> Tenant | None:
        """Whose key this is."""
        return _among(self._keys, key)

    def visitor(self, cookie: bytes) -> Tenant | None:
        """Whose cookie this is."""
        return _among(self._cookies, cookie)

    @staticmethod
    def cookie(key: bytes) -> str:
        """What a browser keeps in the place of the key."""
        return _derive(key.decode("latin-1"), "cookie")


def read_keys(file: Path | None) -> tuple[list[str], str]:
    """The keys of a file (one a line; blank lines and # comments do not count), or the one in BISE_KEY; and a warning
    where others may read the file. RequestError names the line, never the key."""
    if file is None:
        if "BISE_KEY" not in os.environ:
            return [], ""
        return [_checked(os.environ["BISE_KEY"].strip(), "BISE_KEY")], ""
    text, mode = _text(file)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = [_checked(line, f"{file}, line {number}") for number, line in lines if line and not line.startswith("#")]
    if not keys:
        raise RequestError(f"{file} holds no key: write one a line; {REMEDY}")
    warning = f"{file} can be read by others on this machine: chmod 600 {file}" if mode & 0o077 else ""
    return list(dict.fromkeys(keys)), warning


def _text(file: Path) -> tuple[str, int]:
    try:
        about = file.stat()  # before it is opened: opening a pipe would wait for a writer
        if not stat.S_ISREG(about.st_mode):
            raise RequestError(f"{file} is no file: --key-file takes a text file with one key a line")
        if about.st_size > FILE:
            raise RequestError(f"{file} has {about.st_size:,} bytes: --key-file takes at most {FILE:,}")
        return file.read_text(encoding="utf-8-sig"), about.st_mode
    except OSError as error:
        raise RequestError(f"--key-file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"--key-file {file} is no text: one key a line is expected") from None


def _checked(key: str, where: str) -> str:
    if len(key) < SHORTEST:
        raise RequestError(f"{where}: the key has {len(key)} characters, expected {SHORTEST} or more: {REMEDY}")
    if not all("!" <= letter <= "~" for letter in key):
        raise RequestError(f"{where}: a key is made of printable ASCII without spaces: {REMEDY}")
    return key


def _among(secrets: list[tuple[bytes, Tenant]], shown: bytes) -> Tenant | None:
    """Takes as long for one that is nearly right as for one that is all wrong: all digests are compared."""
    found, digest = None, _digest(shown)
    for known, tenant in secrets:
        if hmac.compare_digest(known, digest):
            found = tenant
    return found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _derive(key: str, purpose: str) -> str:
    return hmac.new(key.encode(), f"bise {purpose}".encode(), hashlib.sha256).hexdigest()


class Guesses:
    """Wrong keys of the last minute, by address: a right one always passes, the eleventh wrong one has to wait."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wrong(self, address: str) -> bool:
        """One more wrong key from there. True: it is one of too many."""
        now = time.monotonic()
        times = self._times.setdefault(address, deque(maxlen=WRONG))
        self._times.move_to_end(address)
        if len(self._times) > KNOWN:
            self._times.popitem(last=False)
        many = len(times) == WRONG and now - times[0] < 60
        times.append(now)
        return many


@lru_cache(1024)
def neighbourhood(address: str) -> str:
    """The address, or the /64 network of an IPv6 one: a single customer has as many of these as he likes."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ip_network((int(found) >> 64 << 64, 64)))
