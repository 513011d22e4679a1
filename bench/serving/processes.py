"""A server's processes as the system sees them: who they are, and what they hold (Linux's /proc)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process. rss in bytes; threads and descriptors are counts."""

    id: int
    name: str
    rss: int
    threads: int
    descriptors: int

    @staticmethod
    def look(id: int) -> Process:
        """ProcessLookupError where it is gone."""
        try:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{id}/status").read_text().splitlines())
            return Process(
                id, status["Name"], int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]),
                len(os.listdir(f"/proc/{id}/fd")),
            )  # fmt: skip
        except (FileNotFoundError, KeyError):  # KeyError: a zombie has no memory
            raise ProcessLookupError(f"process {id} has ended") from None


def children(id: int) -> list[int]:
    """Those of a process, of whichever of its threads."""
    try:
        tasks = os.listdir(f"/proc/{id}/task")
        return [int(c) for t in tasks for c in Path(f"/proc/{id}/task/{t}/children").read_text().split()]
    except FileNotFoundError:
        return []


def tree(id: int) -> list[int]:
    return [id, *(below for child in children(id) for below in tree(child))]


def census(id: int) -> list[Process]:
    """A process and all below it that live."""
    found = []
    for one in tree(id):
        try:
            found.append(Process.look(one))
        except ProcessLookupError:
            continue
    return found


def counts(id: int) -> dict[str, int]:
    """What must be as it was when nobody asks for anything: processes, threads, descriptors."""
    all = census(id)
    return {
        "processes": len(all),
        "threads": sum(p.threads for p in all),
        "descriptors": sum(p.descriptors for p in all),
    }
