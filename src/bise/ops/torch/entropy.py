"""Log-probabilities of targets without the logits of all rows at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS = 256  # rows of logits that exist at a time


def logprobs(linear: Any, states: Tensor, output: Any, targets: Tensor) -> Tensor:
    """states (R, dim), what the output matrix reads; targets (R,) ids -> (R,) log p(target)."""

    def part(x: Tensor, ids: Tensor) -> Tensor:
        logits = linear(x, output)
        return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)

    parts = zip(states.split(ROWS), targets.split(ROWS), strict=True)
    return torch.cat([checkpoint(part, x, ids, use_reentrant=False) for x, ids in parts])
