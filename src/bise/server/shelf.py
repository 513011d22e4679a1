"""Shelf: the adapters of a server, by name; as many of them in memory as may be, those that run in any case."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from .. import lora
from ..api import Model, gib
from ..errors import BiseError, BusyError, RequestError

WAIT = 2.0  # seconds after which somebody may ask again for whom there was no room


class Shelf:
    """At most `limit` bytes of adapters beside the model. What was used longest ago goes first, and is read again when
    somebody asks for it; what a request uses stays, also after its name was removed, until that request has ended."""

    def __init__(self, model: Model, limit: int, any_base: bool = False) -> None:
        self.model, self.limit, self.any_base = model, limit, any_base
        self.paths: dict[str, str] = {}
        self.held: OrderedDict[str, lora.Placed] = OrderedDict()

    def add(self, name: str, path: str, used: Collection[lora.Placed] = ()) -> dict[str, Any]:
        """Read, check and place an adapter -> what there is to say of it. BiseError, and nothing changed, where that
        cannot be. used: those of all requests that wait or run."""
        adapter = self._read(name, path)
        placed = self._place(name, adapter, used)
        self.paths[name] = path
        return {"rank": max(adapter.ranks), "bytes": placed.nbytes, "parameters": adapter.parameters,
                "fingerprint": placed.id, "base": adapter.base or None}  # fmt: skip

    def remove(self, name: str) -> None:
        self.paths.pop(name, None)
        self.held.pop(name, None)

    def take(self, name: str, used: Collection[lora.Placed]) -> lora.Placed:
        """An adapter for a request. BusyError where there is no room for it now."""
        if name not in self.paths:
            raise RequestError(f"adapter {name!r} is not loaded")
        if name not in self.held:
            self._place(name, self._read(name, self.paths[name]), used)
        self.held.move_to_end(name)
        return self.held[name]

    def nbytes(self, used: Collection[lora.Placed] = ()) -> int:
        return sum(placed.nbytes for placed in {*self.held.values(), *used})

    def _read(self, name: str, path: str) -> lora.Adapter:
        try:
            return lora.read(path, self.model.weights, self.any_base)
        except BiseError as error:
            raise type(error)(str(error).replace(path, name)) from None  # where files lie is nobody's business

    def _place(self, name: str, adapter: lora.Adapter, used: Collection[lora.Placed]) -> lora.Placed:
        size = self.model.beside.nbytes(adapter)
        if size > self.limit:
            raise RequestError(
                f"adapter {name!r} takes {gib(size)}, all together may take {gib(self.limit)}: start with a larger "
                "--adapter-memory"
            )
        for other in [n for n, placed in self.held.items() if placed not in used]:
            if self.nbytes(used) + size <= self.limit:
                break
            del self.held[other]
        if self.nbytes(used) + size > self.limit:
            raise BusyError(
                f"the adapters that are in use take {gib(self.nbytes(used))} of {gib(self.limit)}, {name!r} takes "
                f"{gib(size)} more: try again when requests have ended", WAIT,
            )  # fmt: skip
        self.held[name] = self.model.beside.place(adapter, name)
        return self.held[name]
