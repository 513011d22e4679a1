"""How fast, on what: prefill and decode at several depths of context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RequestError
from .memory import bytes_per_token, share
from .ours import Bise, Loaded
from .spread import Spread
from .turn import WARM_UP, Report


@dataclass(frozen=True)
class Row:
    """One depth, in tokens per second. bytes_per_token: weights and keys and values that one decoded token has to
    read."""

    depth: int
    prefill: Spread | None
    decode: Spread | None
    bytes_per_token: int

    def share(self, bytes_per_second: float) -> float | None:
        """Of the memory's bandwidth, as decoding uses it; see `memory.share`."""
        return share(self.decode.median, self.bytes_per_token, bytes_per_second) if self.decode else None


def measure(
    model: Loaded, depths: Sequence[int] = (0,), prefill: int = 512, decode: int = 32, repeats: int = 3,
    report: Report = lambda _: None,
) -> list[Row]:  # fmt: skip
    """Prefill of `prefill` tokens and decode of `decode` tokens after each depth; 0 leaves one out.

    report is called with what is being done. RequestError if a depth does not leave room in the context.
    """
    most = max(depths) + max(prefill, decode, WARM_UP)
    if most > model.context:
        raise RequestError(f"depth and run need {most:,} tokens, context is {model.context:,}: take smaller --depths")
    if repeats < 1 or min(prefill, decode, *depths) < 0:
        raise RequestError("repeats must be 1 or more, depths and lengths 0 or more")
    player = Bise(model)
    player.room(1, most)
    player.prefill(WARM_UP)
    rows = []
    for depth in sorted(depths):
        spreads: dict[str, Spread] = {}
        for what, count, go in (("decode", decode, player.decode), ("prefill", prefill, player.prefill)):
            speeds = []
            for i in range(repeats if count else 0):
                report(f"{what} of {count} tokens after {depth:,}, {i + 1} of {repeats}")
                player.fill(depth)
                start = time.perf_counter()
                go(count)
                speeds.append(count / (time.perf_counter() - start))
            if speeds:
                spreads[what] = Spread.of(speeds)
        read = bytes_per_token(model.weights, model.config, model.kv, depth)
        rows.append(Row(depth, spreads.get("prefill"), spreads.get("decode"), read))
    return rows


def as_json(rows: Sequence[Row], bytes_per_second: float) -> list[dict[str, Any]]:
    """The rows with the share of the memory bandwidth that decoding reached."""
    return [asdict(row) | {"bandwidth_share": row.share(bytes_per_second)} for row in rows]
