"""What may be chosen about how a model is taught: plain numbers and words, which go into the run's card."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RequestError
from .pack import Batch
from .schedule import KINDS


@dataclass(frozen=True)
class Settings:
    """How the loop goes.

    rate         the peak learning rate; of B `ratio` times that (LoRA+)
    matrix_rate  from scratch: Muon's peak rate for the matrices of the blocks; None: AdamW for everything
    schedule     "cosine" | "linear" | "constant", falling over the share `fall` of the steps, to the share `floor`
    warmup       steps in which the rate rises; below 1: a share of all steps
    epochs, steps, budget   how long: so often through the data, so many steps, or so many seconds in all
    batch        what a step learns from: "16" rows or "4096t" tokens
    micro        tokens that are computed at once; the result is the same, the memory is not
    bits         of the optimiser's averages: 32 or 8
    noise        NEFTune's alpha; 0: none
    eval_every   steps between two looks at the held-out rows; None: ten in a run
    patience     evaluations without a better loss after which it ends; 0: never
    save_every   steps between two checkpoints; None: one at every evaluation, and every five minutes
    samples      held-out prompts that are answered before and after
    """

    rate: float = 2e-4
    ratio: float = 1.0
    matrix_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0
    clip: float | None = 1.0
    bits: int = 32
    schedule: str = "cosine"
    warmup: float = 0.05
    fall: float = 1.0
    floor: float = 0.0
    epochs: float | None = None
    steps: int | None = None
    budget: float | None = None
    batch: str = "16"
    micro: int = 4096
    noise: float = 0.0
    checkpointing: bool = False
    eval_every: int | None = None
    patience: int = 0
    save_every: int | None = None
    samples: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in LIMITS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise RequestError(f"{name} is {value}, expected {low:g} to {high:g}")
        if self.schedule not in KINDS:
            raise RequestError(f"schedule is {self.schedule!r}, expected {', '.join(KINDS)}")
        if self.bits not in (8, 32):
            raise RequestError(f"bits is {self.bits}, expected 8 or 32")
        lengths = [name for name in ("epochs", "steps", "budget") if getattr(self, name) is not None]
        if len(lengths) != 1:
            given = " and ".join(lengths) or "none"
            raise RequestError(f"epochs, steps and budget: {given} given, expected one of them")
        Batch.read(self.batch)

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Settings:
        """What `facts` wrote."""
        return cls(**{**facts, "betas": tuple(facts["betas"])})

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "betas": list(self.betas)}

    def warmup_steps(self, steps: int) -> int:
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)


LIMITS: list[tuple[str, float, float]] = [
    ("rate", 0, 100), ("ratio", 1e-3, 1e3), ("matrix_rate", 0, 100), ("decay", 0, 10), ("clip", 1e-9, 1e9),
    ("warmup", 0, 1e9), ("fall", 0, 1), ("floor", 0, 1), ("epochs", 1e-6, 1e6), ("steps", 1, 1e9), ("budget", 1, 1e9),
    ("micro", 1, 1e9), ("noise", 0, 1e3), ("eval_every", 1, 1e9), ("patience", 0, 1e6), ("save_every", 1, 1e9),
    ("samples", 0, 1000), ("seed", 0, 2**63),
]  # fmt: skip
