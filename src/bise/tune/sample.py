"""What a model is taught from, once it is tokens: the only thing that passes between the data and the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence, exactly as the model will read it: BOS, template, turns, EOS.

    ids     (n,) int32
    learnt  (n,) bool: the token is a target, predicted from what stands before it; learnt[0] is always False
    source  the file it came from, and the line there (from 1)
    """

    ids: np.ndarray
    learnt: np.ndarray
    source: str = ""
    line: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return int(self.learnt.sum())


@dataclass(frozen=True, eq=False)
class Pair:
    """Two answers to one prompt, the first one better: what DPO and ORPO learn from."""

    chosen: Sample
    rejected: Sample

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, eq=False)
class Verdict:
    """One answer, and whether it is wanted: what KTO learns from."""

    answer: Sample
    good: bool

    def __len__(self) -> int:
        return len(self.answer)


Example = Sample | Pair | Verdict
