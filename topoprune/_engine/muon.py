"""Muon for convolutions."""

import contextlib

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topoprune._engine.precision import precision


class Muon(torch.optim.Muon):
    """PyTorch's Muon takes matrices only: here each row of one is a filter of a convolution.

    It makes them orthogonal in bfloat16; here in float32 where the device has no instructions for that.
    """

    def __init__(self, weights: list[nn.Parameter], **settings):
        self.weights = weights
        matrices = [_matrix(weight.detach()) for weight in weights]
        if any(m.data_ptr() != w.data_ptr() for m, w in zip(matrices, weights, strict=True)):
            raise ValueError("Muon needs the network in channels_last: what it moved would be copies")
        super().__init__(matrices, **settings)

    def step(self):
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad)
        native = precision(self.weights[0].device.type) is torch.bfloat16
        with contextlib.nullcontext() if native else _InFloat32():
            super().step()


class _InFloat32(TorchFunctionMode):
    """Conversions to bfloat16 give float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.bfloat16:  # PyTorch 2.9
            return args[0].to(torch.float32, copy=True)
        if kwargs.get("dtype") is torch.bfloat16:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _matrix(weight: Tensor) -> Tensor:
    """(filters, channels, h, w) -> (filters, h * w * channels); of a weight in channels_last a view."""
    return weight.permute(0, 2, 3, 1).flatten(1)
