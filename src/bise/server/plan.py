"""How much memory a server is going to take, decided and said before anything is loaded, and never exceeded."""

from __future__ import annotations

from dataclasses import dataclass

from .. import machine
from ..api import gib, plan
from ..cache import cache_bytes
from ..config import Config
from ..errors import RequestError
from ..weights import Weights

MOST_SLOTS = 8  # unless told otherwise: with more, 2 to 16 cores make nobody's answer quicker
SPARE = 1 << 29  # bytes for Python, activations and buffers
REUSE = 2  # the memory for reuse holds as much as so many slots, unless told otherwise


@dataclass(frozen=True)
class Plan:
    """Bytes of the weights, and of the keys and values of one slot, draft model included; slots; bytes for reuse."""

    weights: int
    slot: int
    slots: int
    reuse: int
    line: str

    @property
    def nbytes(self) -> int:
        return self.weights + self.slot * self.slots + self.reuse


def plan_memory(
    weights: Weights, config: Config, context: int, kv: str, draft: Weights | None,
    slots: int | None, reuse: int | None, free: int | None = None, adapters: int = 0,
) -> Plan:  # fmt: skip
    """slots None: as many as fit into half of what is free beside the weights, 1 to 8. reuse (bytes) None: two slots'
    worth, as far as a quarter of the rest goes. free: bytes, by default what the system says. adapters: bytes of them.
    RequestError where the memory of this machine is not enough."""
    free = machine.free() if free is None else free
    total, slot = weights.nbytes + adapters, cache_bytes(config, context, kv)
    if draft:
        total += draft.nbytes
        slot += cache_bytes(draft.config, min(context, draft.config.context), kv)
    rest = max(0, free - total - SPARE)
    slots = slots or max(1, min(MOST_SLOTS, rest // 2 // slot))
    reuse = min(REUSE * slot, (rest - slots * slot) // 4) if reuse is None else reuse
    reuse = max(0, reuse)
    needed = total + slots * slot + reuse
    if needed + SPARE > free:
        raise RequestError(
            f"weights {gib(total)}, {slots} slots of {gib(slot)} and {gib(reuse)} for reuse are {gib(needed)}, and "
            f"{gib(free)} are free: pass a smaller --context, --slots or --reuse, or --kv q8_0"
        )
    beside = f", {gib(adapters)} for adapters" if adapters else ""
    line = (
        f"{plan(weights, config, context, kv, draft)}\n{slots} at once: {slots} x {gib(slot)}, and "
        f"{gib(reuse)} for what was read before{beside}; {gib(needed)} in all, {gib(free)} are free"
    )
    return Plan(total, slot, slots, reuse, line)
