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
        places, size = {}, 0
        for name, tensor in self.tensors.items():
            places[name] = slice(size, size + tensor.numel())
            size += -(-tensor.numel() // BLOCK) * BLOCK
        device = next(iter(self.tensors.values())).device
        self.values = torch.zeros(size, device=device)
        self.gradient = torch.zeros(size, device=device)
        self._gradients: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            part = self.values[places[name]].view(tensor.shape)
            part.copy_(tensor.detach())
            tensor.data = part
            self._gradients[name] = self.gradient[places[name]].view(tensor.shape)
        self.zero()

    def zero(self) -> None:
        """No gradient yet."""
        self.gradient.zero_()
        for name, tensor in self.tensors.items():
            tensor.grad = self._gradients[name]
