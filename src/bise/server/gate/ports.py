"""What a server takes from the system: a port, files enough for its connections, and a folder."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ...errors import RequestError

BACKLOG = 4096  # connections that the system may hold for us
SEND_BUFFER = 128 << 10  # bytes that the system takes for a client that does not read
FEWEST = 64  # open files without which there is no server
RESERVED = 32  # of these, for everything but connections
MOST = 10_000  # connections


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: a free one. RequestError where that is not possible."""
    if not 0 <= port <= 65535:
        raise RequestError(f"--port is {port}, expected 0 to 65535")
    family, address = addresses(host, port)[0]
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit these
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise RequestError(f"cannot listen on {host}, port {port}: {reason}: pass another --port or --host") from None
    found.setblocking(False)
    return found


def addresses(host: str, port: int = 0) -> list[tuple[int, Any]]:
    """What a host's name stands for, IPv4 first: the family, and the address as `bind` takes it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RequestError(f"--host is {host!r}, which is neither an address nor a name that is known here") from None
    return sorted(((entry[0], entry[4]) for entry in found), key=lambda pair: pair[0] != socket.AF_INET)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it there."""
    return all(ip_address(address[0].partition("%")[0]).is_loopback for _, address in addresses(host))


def url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_files() -> int:
    """Allow as many open files as may be; the connections that leaves room for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = most if most != resource.RLIM_INFINITY else 1 << 20
    if most < FEWEST:
        raise RequestError(f"open files are limited to {most}, a server needs {FEWEST}: raise it with ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(MOST, (most - RESERVED) * 3 // 4)  # the rest: refused ones that are still listened to


def claim(folder: Path) -> int:
    """Make the folder, for its owner only, and keep others from serving it while the file that is returned is open: the
    system lets go of it when the process ends, however that is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise RequestError(f"--data {folder}: {reason}: pass a folder that can be written to") from None
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(found)
        raise RequestError(f"{folder} is served by another bise: pass another --data") from None
    return found
