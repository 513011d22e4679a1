"""What a scenario must show, with the figure beside the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """`value` (of `unit`) must be `how` ("<=", ">=", "==") `limit`."""

    what: str
    value: Any
    how: str
    limit: Any
    unit: str = ""

    @property
    def held(self) -> bool:
        if self.how == "==":
            return bool(self.value == self.limit)
        return bool(self.value <= self.limit if self.how == "<=" else self.value >= self.limit)

    def record(self) -> dict[str, Any]:
        return {
            "what": self.what, "value": self.value, "how": self.how, "limit": self.limit, "unit": self.unit,
            "held": self.held,
        }  # fmt: skip

    def __str__(self) -> str:
        sign = "held  " if self.held else "BROKEN"
        return f"{sign}  {self.what}: {self.value} {self.unit} ({self.how} {self.limit})"
