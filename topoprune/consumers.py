"""The layers that read removed channels, and how each of them can be refitted."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoprune.channels import Axis
from topoprune.coupling import LAYERS, Coupling
from topoprune.unfolding import output_axis

MAX_INPUTS = 8192  # inputs of a regression; each of its matrices then takes half a GiB

log = logging.getLogger("topoprune")
_STOCK = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(eq=False)
class Consumer:
    """A weight to refit.

    Attributes:
        layer: name of the first module that has the weight.
        names: of all modules that have it.
        mode: "channels" or "convolution".
        groups: of a grouped convolution; else 1.
        centred: whether the regression has an intercept, which a bias or a BatchNorm absorbs.
        inputs: number of inputs of one regression.
        by_channels: what it would be in mode "channels".
        before_batch_norm: whether a BatchNorm absorbs the means of the outputs.
        outputs: (o,) kept indices of the weight's output axis.
        dense, pruned: (channels, positions) where a linear layer reads its inputs, before and after pruning.
        kept: (k,) input channels that are kept, of each group.
        calls: in the forward pass of each batch.
        rows: number of rows of the regression.
    """

    layer: str
    names: list[str]
    mode: str
    groups: int
    centred: bool
    inputs: int
    by_channels: int
    before_batch_norm: bool
    outputs: Tensor
    dense: Tensor
    pruned: Tensor
    kept: Tensor
    calls: list[int] = field(default_factory=list)
    rows: int = 0


def consumers_of(
    dense: nn.Module, pruned: nn.Module, removed: dict[Coupling, np.ndarray], mode: str, follows: dict[str, str]
) -> list[Consumer]:
    """The layers that read removed channels and can be refitted."""
    found = []
    for axis in sorted({axis for coupling in removed for axis in coupling.readers}):
        layer = axis.layer
        module: Any = dense.get_submodule(layer)
        if not (isinstance(module, LAYERS) and axis.name.rpartition(".")[2] == "weight"):
            log.info("%s is not compensated: it is not the weight of a convolution or a linear layer", axis.name)
            continue
        if axis.dim == output_axis(module):
            log.info("%s is not compensated: its weight is used again, turned round", layer)
            continue
        owners = _owners(dense, "weight", module.weight)
        inputs, own_mode = pruned.get_parameter(axis.name)[0].numel(), mode
        if mode == "convolution" and (inputs > MAX_INPUTS or not all(is_stock_layer(own) for own in owners.values())):
            log.info("%s is compensated by channels: no regression on %d inputs gives its outputs", layer, inputs)
            own_mode = "channels"
        consumer = _consumer(axis, module, list(owners), own_mode, layer in follows, removed)
        if any(getattr(own, "bias", None) is not module.bias for own in owners.values()):
            log.info("%s is not compensated: %s share a weight but not a bias", layer, ", ".join(owners))
        elif module.bias is not None and len(with_bias := _owners(dense, "bias", module.bias)) > len(owners):
            log.info("%s is not compensated: %s share a bias but not a weight", layer, ", ".join(with_bias))
        elif consumer.inputs > MAX_INPUTS:
            log.info("%s is not compensated: a regression on %d inputs is too large", layer, consumer.inputs)
        else:
            found.append(consumer)
    return found


def _owners(network: nn.Module, name: str, parameter: Tensor) -> dict[str, nn.Module]:
    """The modules that have a parameter under a name."""
    return {layer: module for layer, module in network.named_modules() if getattr(module, name, None) is parameter}


def is_stock_layer(module: Any) -> bool:
    """Whether the outputs of a layer are products of its weight and patches of its inputs, and no hook changes them."""
    own = type(module).forward, getattr(type(module), "_conv_forward", None)
    stock = any(own == (stock.forward, getattr(stock, "_conv_forward", None)) for stock in _STOCK)
    return stock and not module._forward_hooks


def _consumer(
    axis: Axis, module: Any, names: list[str], mode: str, before_batch_norm: bool, removed: dict[Coupling, np.ndarray]
) -> Consumer:
    groups, sizes = getattr(module, "groups", 1), module.weight.shape
    outputs, kept = (_kept(removed, Axis(axis.name, at), sizes[at]) for at in (1 - axis.dim, axis.dim))
    order = every = np.arange(sizes[axis.dim] // (groups if axis.dim == 0 else 1))[:, None]
    if isinstance(module, nn.Linear):
        every = _flattened(removed, axis, sizes[1])
    by_channels = int(np.isin(every[:, 0], kept).sum())
    if mode == "channels":
        order = every
    stays = np.flatnonzero(np.isin(order[:, 0], kept))
    inputs = by_channels if mode == "channels" else len(stays) * math.prod(sizes[2:])
    indices = outputs, order, np.searchsorted(kept, order[stays]), stays
    tensors: Any = [torch.as_tensor(index, device=module.weight.device) for index in indices]
    # strides of a transposed convolution divide the positions into phases, for which one intercept does not serve
    phases = getattr(module, "transposed", False) and max(module.stride) > 1
    centred = (module.bias is not None or before_batch_norm) and not phases
    return Consumer(axis.layer, names, mode, groups, centred, inputs, by_channels, before_batch_norm, *tensors)


def _kept(removed: dict[Coupling, np.ndarray], axis: Axis, size: int) -> np.ndarray:
    """The indices of an axis that are not removed."""
    lost = [coupling.lost(axis, gone) for coupling, gone in removed.items() if axis in coupling.slices]
    return np.setdiff1d(np.arange(size), np.concatenate([np.empty(0, int), *lost]))


def _flattened(removed: dict[Coupling, np.ndarray], axis: Axis, size: int) -> np.ndarray:
    """(channels, positions) of inputs: one position, unless all channels are flattened over the same number of them."""
    blocks = []
    for choices, indices in [coupling.slices[axis] for coupling in removed if axis in coupling.slices]:
        counts = np.unique(choices, return_counts=True)[1]
        if (counts == counts[0]).all():
            blocks.append(indices[np.argsort(choices, kind="stable")].reshape(-1, counts[0]))
    if len({block.shape[1] for block in blocks}) == 1 and sum(block.size for block in blocks) == size:
        return np.concatenate(blocks)
    return np.arange(size)[:, None]
