"""Trained tensors laid end to end: one array of values and one of gradients for all that are treated alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = 256  # each tensor begins at a multiple of it: a block of an 8-bit average belongs to one tensor


class Flat:
    """values, gradient: (n,) float32. The tensors become views of `values`, and their gradients views of `gradient`,
    into which autograd adds: to clip, to scale and to sum over machines is one operation each."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.places: dict[str, slice] = {}  # of whole blocks: the last one of a tensor is filled up with zeros
        size = 0
        for name, tensor in self.tensors.items():
            self.places[name] = slice(size, size - (-tensor.numel() // BLOCK) * BLOCK)
            size = self.places[name].stop
        device = next(iter(self.tensors.values())).device
        self.values = torch.zeros(size, device=device)
        self.gradient = torch.zeros(size, device=device)
        self._gradients: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            begin, end = self.places[name].start, self.places[name].start + tensor.numel()
            part = self.values[begin:end].view(tensor.shape)
            part.copy_(tensor.detach())
            tensor.data = part
            self._gradients[name] = self.gradient[begin:end].view(tensor.shape)
        self.zero()

    def zero(self) -> None:
        """No gradient yet."""
        self.gradient.zero_()
        for name, tensor in self.tensors.items():
            tensor.grad = self._gradients[name]
