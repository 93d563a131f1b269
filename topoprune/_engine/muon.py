"""Muon for convolutions."""

import contextlib

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topoprune._engine.precision import precision


class Muon(torch.optim.Muon):
    """PyTorch's Muon for convolutions: a row of its matrix is a filter.

    PyTorch makes the matrices orthogonal in bfloat16. A device without instructions for bfloat16 does so in float32.
    """

    def __init__(self, weights: list[nn.Parameter], **settings):
        self.weights = weights
        matrices = [_matrix(weight.detach(), weight) for weight in weights]
        if any(m.data_ptr() != w.data_ptr() for m, w in zip(matrices, weights, strict=True)):
            raise ValueError("Muon needs contiguous or channels_last weights: call model.to(memory_format=...)")
        super().__init__(matrices, **settings)

    def step(self, closure=None):
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        native = precision(self.weights[0].device.type) is torch.bfloat16
        with contextlib.nullcontext() if native else _InFloat32():
            super().step(closure)


class _InFloat32(TorchFunctionMode):
    """Convert to float32 where PyTorch asks for bfloat16."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.bfloat16:  # PyTorch 2.9
            return args[0].to(torch.float32, copy=True)
        if kwargs.get("dtype") is torch.bfloat16:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """(filters, channels, h, w) -> (filters, channels * h * w), in the memory order of `weight`."""
    return values.flatten(1) if weight.is_contiguous() else values.permute(0, 2, 3, 1).flatten(1)
