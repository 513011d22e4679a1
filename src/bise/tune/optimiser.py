"""What turns gradients into better weights: AdamW for adapters and fine-tuning, Muon beside it from scratch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .distributed import ALONE, Ranks
from .flat import Flat
from .moment import Moment
from .muon import Muon

STRIP = 1 << 18  # weights at a time, a multiple of BLOCK: what is computed in between stays in the cache


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2). bits: of the two averages, 32 or 8."""

    def __init__(
        self, flat: Flat, rate: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        decay: float = 0.0, bits: int = 32,
    ) -> None:  # fmt: skip
        self.flat, self.rate, self.betas, self.eps, self.decay = flat, rate, betas, eps, decay
        n, device = len(flat.values), flat.values.device
        self.first = Moment(n, bits, signed=True, device=device)
        self.second = Moment(n, bits, signed=False, device=device)

    @torch.no_grad()
    def step(self, share: float, number: int) -> None:
        """The step of this number, from 1, at this share of the peak rate."""
        rate = self.rate * share
        bias = [1 - beta**number for beta in self.betas]
        n = len(self.flat.values)
        for at in range(0, n, STRIP):
            strip = slice(at, min(at + STRIP, n))
            w, g = self.flat.values[strip], self.flat.gradient[strip]
            m = self.first.read(strip).lerp_(g, 1 - self.betas[0])
            v = self.second.read(strip).mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            w.mul_(1 - rate * self.decay)
            w.addcdiv_(m, (v / bias[1]).sqrt_().add_(self.eps), value=-rate / bias[0])
            self.first.write(strip, m)
            self.second.write(strip, v)

    def state(self) -> dict[str, Tensor]:
        """name.first.values and so on, of each tensor: views."""
        return {
            f"{name}.{average}.{key}": value
            for name, place in self.flat.places.items()
            for average, of in (("first", self.first), ("second", self.second))
            for key, value in of.state(place).items()
        }


class Optimiser:
    """All trained tensors, each in the part that treats it: its rate, its decay, AdamW or Muon. steps: made so far."""

    def __init__(self, parts: Mapping[str, AdamW | Muon]) -> None:
        self.parts = dict(parts)
        self.steps = torch.zeros((), dtype=torch.int64)

    @classmethod
    def adamw(
        cls, tensors: Mapping[str, Tensor], rate: float, betas: tuple[float, float] = (0.9, 0.999),
        decay: float = 0.0, ratio: float = 1.0, bits: int = 32,
    ) -> Optimiser:  # fmt: skip
        """For adapters, or a whole model. ratio: B's rate over A's (LoRA+, Hayou et al. 2024, section 4); decay: of
        matrices only."""
        groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            groups["vectors" if tensor.ndim < 2 else "b" if name.endswith(".b") else "matrices"][name] = tensor
        return cls({
            group: AdamW(Flat(members), rate * (ratio if group == "b" else 1), betas,
                         decay=0.0 if group == "vectors" else decay, bits=bits)
            for group, members in sorted(groups.items())
        })  # fmt: skip

    @classmethod
    def muon(
        cls, tensors: Mapping[str, Tensor], rate: float, matrix_rate: float, decay: float = 0.0, bits: int = 32
    ) -> Optimiser:
        """From scratch: Muon for the matrices of the blocks, AdamW for embedding, output and norms."""
        inside = {n: t for n, t in tensors.items() if t.ndim == 2 and n.startswith("blk.")}
        rest = {n: t for n, t in tensors.items() if n not in inside}
        parts: dict[str, AdamW | Muon] = {}
        if inside:
            parts["blocks"] = Muon(Flat(inside), matrix_rate, decay=decay)
        if rest:
            parts["rest"] = AdamW(Flat(rest), rate, (0.9, 0.95), bits=bits)
        return cls(parts)

    @property
    def gradients(self) -> list[Tensor]:
        return [part.flat.gradient for part in self.parts.values()]

    def zero(self) -> None:
        for part in self.parts.values():
            part.flat.zero()

    def clip(self, most: float | None, ranks: Ranks = ALONE) -> float:
        """Scale all gradients so that their norm, those of other ranks among them, is at most `most` -> the norm before
        (Pascanu et al. 2013)."""
        tensors = [tensor for part in self.parts.values() for tensor in part.flat.tensors.values()]
        norms = np.array([float(torch.linalg.vector_norm(cast(Tensor, tensor.grad))) for tensor in tensors])
        everywhere = np.frombuffer(b"".join(ranks.listed(norms.tobytes())))
        norm = math.sqrt(math.fsum(everywhere**2))  # rounded once: the same bits whoever keeps which
        if most is not None and norm > most:
            for gradient in self.gradients:
                gradient.mul_(most / norm)
        return norm

    def step(self, share: float) -> None:
        self.steps += 1
        for part in self.parts.values():
            part.step(share, int(self.steps))

    def state(self) -> dict[str, Tensor]:
        """The averages of every tensor under its name, whatever it is treated together with, and "steps": views."""
        parts = {key: value for part in self.parts.values() for key, value in part.state().items()}
        return {"steps": self.steps, **parts}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Put back what `state` gave, or those that are this optimiser's of more."""
        for name, tensor in self.state().items():
            tensor.copy_(torch.from_numpy(np.array(state[name])))
