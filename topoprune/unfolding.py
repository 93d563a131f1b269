"""The inputs, outputs and weight of a layer as rows and matrices of a regression."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = 64  # sampled from each image for a regression


def batched(layer: Any, tensor: Tensor) -> Tensor:
    """The inputs or outputs of a layer, with the axis of inputs that a call on a single one lacks."""
    return tensor[None] if tensor.ndim < layer.weight.ndim else tensor


def maps_of(module: Any, tensor: Tensor, order: Tensor) -> Tensor:
    """(images, channels, *positions) of the inputs or outputs of a layer."""
    tensor = batched(module, tensor)
    return tensor.movedim(-1, 1)[:, order] if isinstance(module, nn.Linear) else tensor


def patches(module: Any, maps: Tensor) -> Tensor:
    """(images, channels, *positions, *kernel) a view of what the kernel reads at each position of the output."""
    zeros = module.padding_mode == "zeros"
    numbers = zeros and not isinstance(module.padding, str)
    padding = np.repeat(module.padding[::-1], 2).tolist() if numbers else module._reversed_padding_repeated_twice
    maps = F.pad(maps, padding, "constant" if zeros else module.padding_mode)
    for axis, size in enumerate(module.kernel_size):
        stride, dilation = module.stride[axis], module.dilation[axis]
        maps = maps.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return maps


def sampled(maps: Tensor, seed: int, kernel: int = 0) -> Tensor:
    """(images, positions, channels, *kernel) some positions of each image, the same for equal sizes and seeds."""
    sizes = maps.shape[2 : maps.ndim - kernel]
    generator, cpu = torch.Generator().manual_seed(seed), torch.device("cpu")
    chosen = torch.randperm(math.prod(sizes), generator=generator, device=cpu)[:POSITIONS]
    shifts = torch.randint(math.prod(sizes), (len(maps), 1), generator=generator, device=cpu)
    at = torch.unravel_index(((chosen + shifts) % math.prod(sizes)).to(maps.device), sizes)
    image = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[(image, slice(None), *at)].float()  # type: ignore[index]


def output_axis(module: Any) -> int:
    """The axis of the outputs in a layer's weight."""
    return 1 if getattr(module, "transposed", False) else 0


def blocks_of(module: Any, weight: Tensor, order: Tensor) -> Tensor:
    """(groups, outputs, inputs, positions) a weight, or a part of it, group by group."""
    if isinstance(module, nn.Linear):
        return weight[:, order][None].float()
    blocks = weight.float().reshape(module.groups, -1, weight.shape[1], math.prod(module.kernel_size))
    return blocks.transpose(1, 2) if module.transposed else blocks


def set_blocks(module: Any, blocks: Tensor, offset: Tensor, order: Tensor) -> None:
    """Set a weight to blocks as `blocks_of` gives them, and the bias if there is one."""
    if isinstance(module, nn.Linear):
        module.weight[:, order] = blocks[0].to(module.weight.dtype)
    else:
        module.weight.copy_((blocks.transpose(1, 2) if module.transposed else blocks).reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(offset.flatten())
