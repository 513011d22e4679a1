"""What a matrix may be, for the torch backend: a Tensor (out, in), or one of these."""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ... import _kernels
from ...quant import TYPES, QTensor, nbytes
from .decode import decode


class Kept(Protocol):
    """A matrix that is not kept as floats: its rows are decoded when they are wanted."""

    shape: tuple[int, int]  # (out, in)
    device: torch.device

    def decode(self, start: int, end: int, out: Tensor) -> None:
        """Rows start to end -> out (end - start, in) float32, contiguous."""

    def rows(self, ids: Tensor) -> Tensor:
        """(n,) -> those rows (n, in) float32."""


class Frozen:
    """A matrix as its file has it, in any type of quant.TYPES, used as it is; on the CPU where it lies.

    kernel  what the C++ kernels multiply by, of quantised types on the CPU, else None
    """

    def __init__(self, tensor: QTensor, device: torch.device) -> None:
        out, columns = tensor.shape
        self.type, self.shape, self.device = tensor.type, (out, columns), device
        self._data: Any = tensor.data.reshape(out, -1)
        self.kernel: Any = None
        if device.type == "cpu" and TYPES[tensor.type].block > 1:
            self.kernel = verbs().keep(tensor.type, tensor.data.reshape(-1), out, columns)
        elif device.type != "cpu":
            self._data = torch.from_numpy(np.array(self._data)).to(device)

    def decode(self, start: int, end: int, out: Tensor) -> None:
        self._decode(self._data[start:end], out)

    def rows(self, ids: Tensor) -> Tensor:
        out = torch.empty(len(ids), self.shape[1], device=self.device)
        self._decode(self._data[ids.numpy() if self.device.type == "cpu" else ids], out)
        return out

    def _decode(self, data: Any, out: Tensor) -> None:
        if self.device.type == "cpu":
            verbs().dequantise(self.type, data.reshape(-1), out.numpy())
        else:
            out.copy_(decode(self.type, data).view_as(out))


def rounded_to(tensor: QTensor, type: str) -> QTensor:
    """The same numbers in another block format."""
    data = np.empty(nbytes(type, tensor.shape), np.uint8)
    verbs().quantise(type, np.ascontiguousarray(tensor.dequantise()), None, data)
    return QTensor(type, tensor.shape, data)


def _levels() -> Tensor:
    """The 16 NormalFloats (QLoRA, Dettmers et al. 2023, appendix E): quantiles of the normal distribution, 7 below
    zero, 8 above, so that each is as likely as the others, stretched to [-1, 1]."""
    from statistics import NormalDist

    quantile, most = NormalDist().inv_cdf, (2 - 1 / 32 - 1 / 30) / 2
    above = [quantile(0.5 + (most - 0.5) * i / 8) for i in range(1, 9)]
    below = [quantile(0.5 + (most - 0.5) * i / 7) for i in range(1, 8)]
    return torch.tensor([-x for x in reversed(below)] + [0.0] + above, dtype=torch.float64).div(above[-1]).float()


LEVELS = _levels()
BLOCK, GROUP = 64, 256  # weights that share a scale; scales that share a factor


class Nf4:
    """4-bit NormalFloats with double quantisation (QLoRA, sections 2 and 3): 4.13 bits a weight.

    codes    (out, in/2) uint8: two numbers of LEVELS, byte i of a block of 64 holds columns i and 32 + i
    scales   (out, in/64) int8: a block's largest magnitude is offset + factor * scale
    factors  float32, one for 256 scales, row after row; offset: the mean of all largest magnitudes
    """

    def __init__(self, weight: Tensor) -> None:
        """weight (out, in) floats, in a multiple of 64."""
        out, columns = weight.shape
        self.shape, self.device = (out, columns), weight.device
        blocks = weight.float().reshape(-1, BLOCK)
        largest = blocks.abs().amax(1)
        self.offset = float(largest.mean())
        centred = largest - self.offset
        groups = torch.nn.functional.pad(centred, (0, -len(centred) % GROUP)).view(-1, GROUP)
        self.factors = (groups.abs().amax(1) / 127).clamp_min(1e-30)
        self.scales = (groups / self.factors[:, None]).round().to(torch.int8).flatten()[: len(centred)].view(out, -1)
        middles = ((LEVELS[1:] + LEVELS[:-1]) / 2).to(weight.device)
        codes = torch.empty(blocks.shape, dtype=torch.uint8, device=weight.device)
        for start in range(0, len(blocks), 1 << 15):  # `bucketize` makes 64-bit numbers
            part = slice(start, start + (1 << 15))
            codes[part] = torch.bucketize(blocks[part] / largest[part, None].clamp_min(1e-30), middles)
        self.codes = (codes[:, :32] | codes[:, 32:] << 4).view(out, -1)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.factors.nbytes + 4

    def decode(self, start: int, end: int, out: Tensor) -> None:
        per_row = self.scales.shape[1]
        group = torch.arange(start * per_row, end * per_row, device=self.device) // GROUP
        largest = self.offset + self.factors[group] * self.scales[start:end].flatten()
        if self.device.type == "cpu":
            codes = self.codes[start:end].numpy().reshape(-1)
            verbs().look_up(LEVELS.numpy(), codes, largest.numpy(), out.numpy())
        else:
            self._decode_in_torch(self.codes[start:end], largest, out)

    def rows(self, ids: Tensor) -> Tensor:
        out = torch.empty(len(ids), self.shape[1], device=self.device)
        for at, row in enumerate(ids.tolist()):
            self.decode(row, row + 1, out[at : at + 1])
        return out

    def _decode_in_torch(self, codes: Tensor, largest: Tensor, out: Tensor) -> None:
        packed = codes.reshape(-1, 32)
        numbers = torch.cat([packed & 15, packed >> 4], dim=1).int()
        torch.mul(LEVELS.to(codes.device)[numbers], largest[:, None], out=out.view(-1, BLOCK))


@dataclass(eq=False)
class Adapted:
    """A frozen weight W and what is learnt beside it: y = W x + scale * B (A x)   (LoRA, Hu et al. 2021, section 4.1).

    base       what `linear` takes: W (out, in)
    a, b       (rank, in), (out, rank)
    magnitude  (out,): rows of W + scale * B A are given this length (DoRA, Liu et al. 2024, equation 5), else None.
               Their own length counts as a constant on the way back (section 4.3 there).
    """

    base: Tensor | Kept
    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


def as_numpy(x: Tensor) -> np.ndarray:
    """The same memory."""
    return np.asarray(x.detach().numpy())


def verbs() -> _kernels.Verbs:
    """The C++ kernels with as many threads as torch has."""
    return _verbs(torch.get_num_threads())


@cache
def _verbs(threads: int) -> _kernels.Verbs:
    return _kernels.Verbs(threads)


atexit.register(_verbs.cache_clear)  # nanobind counts what is alive when the interpreter ends
