"""Responses that a later one may go on from (/v1/responses): in memory, bounded for each tenant and in all."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

from .. import limits


@dataclass(frozen=True)
class Kept:
    """A response as it was given, and the conversation up to its end: messages as in OpenAI's chat API."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]


class Responses:
    """Kept responses, the oldest first. What is over a limit goes, a tenant's own first; a tenant sees only its own."""

    def __init__(self) -> None:
        self._all: OrderedDict[tuple[str, str], tuple[Kept, int]] = OrderedDict()  # (tenant, id): it, and its bytes
        self._count: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def put(self, tenant: str, kept: Kept) -> None:
        """Keep it, and let go of the oldest that no longer have room. One that is too large by itself is not kept."""
        size = len(json.dumps([kept.response, kept.messages], ensure_ascii=False))
        if size > limits.RESPONSE_BYTES:
            return
        self._all[tenant, kept.response["id"]] = kept, size
        self._count[tenant] += 1
        self._bytes[tenant] += size
        while self._count[tenant] > limits.RESPONSES or self._bytes[tenant] > limits.RESPONSE_BYTES:
            self.drop(*next(key for key in self._all if key[0] == tenant))
        while self._bytes.total() > limits.ALL_RESPONSE_BYTES:
            self.drop(*next(iter(self._all)))

    def get(self, tenant: str, id: str) -> Kept | None:
        found = self._all.get((tenant, id))
        return None if found is None else found[0]

    def drop(self, tenant: str, id: str) -> bool:
        """True if it was there."""
        found = self._all.pop((tenant, id), None)
        if found is None:
            return False
        self._count[tenant] -= 1
        self._bytes[tenant] -= found[1]
        if not self._count[tenant]:
            del self._count[tenant], self._bytes[tenant]
        return True
