"""The block formats in torch's operations, for machines that the C++ kernels do not run on; quant.py explains them.

Blocks (n, nbytes) uint8 -> (n, block) float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ...quant import TYPES


def decode(type: str, data: Tensor) -> Tensor:
    """(rows, bytes of a row) -> (rows * blocks, block) float32. UnsupportedError for a type that has no way here."""
    if type not in _DECODE:
        known = ", ".join(_DECODE)
        raise UnsupportedError(f"weights of type {type} are not decoded on a {data.device.type} device, only {known}")
    return _DECODE[type](data.reshape(-1, TYPES[type].nbytes))


def _floats(blocks: Tensor, at: int, type: torch.dtype = torch.float16) -> Tensor:
    """The 16-bit float at byte `at` of every block -> (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(type).float()


def _nibbles(packed: Tensor) -> Tensor:
    """(n, m, k) -> (n, 2 m, k): the low halves of k bytes, then their high ones."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _floats(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8)


def _q4_0(blocks: Tensor) -> Tensor:
    return _floats(blocks, 0) * (_nibbles(blocks[:, None, 2:]).flatten(1).float() - 8)


def _by_32(blocks: Tensor, q: Tensor) -> Tensor:
    """Q4_K and Q5_K, q (n, 8, 32)."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([a & 63, c & 15 | a >> 6 << 4], dim=1)
    minima = torch.cat([b & 63, c >> 4 | b >> 6 << 4], dim=1)
    scale, offset = _floats(blocks, 0) * scales, _floats(blocks, 2) * minima
    return (scale[..., None] * q - offset[..., None]).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _by_32(blocks, _nibbles(blocks[:, 16:].view(-1, 4, 32)))


def _q5_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = blocks[:, None, 16:48] >> shifts & 1
    return _by_32(blocks, _nibbles(blocks[:, 48:].view(-1, 4, 32)) | fifth << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3).view(-1, 16, 16)
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).view(-1, 16, 16)
    scale = _floats(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8)
    return (scale[..., None] * ((low | high << 4).float() - 32)).flatten(1)


_DECODE: dict[str, Callable[[Tensor], Tensor]] = {
    "F16": lambda blocks: _floats(blocks, 0),
    "BF16": lambda blocks: _floats(blocks, 0, torch.bfloat16),
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
