"""A running average of the optimiser's, one number per trained weight: in 32 bits, or in 8.

Eight bits: block-wise dynamic quantisation (Dettmers et al. 2022, section 2). A block of 256 neighbours is divided by
its largest magnitude, and each number becomes the nearest of 256 values that lie densely on a logarithmic scale: e
leading zeros in a code stand for 10^-e, the bits after them divide the decade evenly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flat import BLOCK


def codebook(signed: bool) -> Tensor:
    """The 256 values of a code, ascending, from -1 or 0 to 1. Without a sign the decades have twice the values."""
    values = [0.0, 1.0]
    for zeros in range(7):
        count = 2 ** (6 - zeros) if signed else 2 ** (7 - zeros)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0**-zeros
        values += [*middles.tolist(), *(-middles).tolist()] if signed else middles.tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


class Moment:
    """(n,) numbers, n a multiple of 256, read and written strip by strip (slices that begin at such multiples).

    signed  the average of gradients. Without: that of their squares, of which the 8 bits keep the root. It is of the
            gradient's own size, so that where one of a block is too small for its code, so is the other. Of the squares
            themselves those below 1e-7 of a block's largest are lost, and their weights then move too far.
    """

    def __init__(self, n: int, bits: int, signed: bool, device: torch.device) -> None:
        self.bits, self.signed = bits, signed
        if bits == 32:
            self.values = torch.zeros(n, device=device)
            return
        self.book = codebook(signed).to(device)
        self.edges = (self.book[:-1] + self.book[1:]) / 2
        self.codes = torch.full((n,), int((self.book == 0).nonzero()), dtype=torch.uint8, device=device)
        self.scales = torch.zeros(n // BLOCK, device=device)

    def read(self, strip: slice) -> Tensor:
        """float32: in 32 bits a view, which may be written to in place."""
        if self.bits == 32:
            return self.values[strip]
        values = self.book[self.codes[strip].int()].view(-1, BLOCK)
        values = (values * self.scales[strip.start // BLOCK : strip.stop // BLOCK, None]).view(-1)
        return values if self.signed else values.square_()

    def write(self, strip: slice, values: Tensor) -> None:
        if self.bits == 32:
            return  # done in place
        blocks = (values if self.signed else values.sqrt()).view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        codes = torch.bucketize(blocks / scales.clamp_min(1e-38)[:, None], self.edges)
        self.scales[strip.start // BLOCK : strip.stop // BLOCK] = scales
        self.codes[strip] = codes.view(-1).to(torch.uint8)

    def state(self, strip: slice) -> dict[str, Tensor]:
        """Of that strip, as it is kept: views."""
        if self.bits == 32:
            return {"values": self.values[strip]}
        blocks = slice(strip.start // BLOCK, strip.stop // BLOCK)
        return {"codes": self.codes[strip], "scales": self.scales[blocks]}
