"""Refit the layers that read pruned channels, so that they give back the dense network's outputs, without labels.

A consumer is a convolution or a linear layer that reads pruned channels. Consumers are refitted by ridge regression in
the order of the forward pass, each on the inputs that the network pruned and refitted so far gives it. So later layers
mend what earlier ones left.

- "convolution": y are the outputs of the dense consumer, p the patches (im2col) that the pruned consumer reads. Its
  weight becomes Cov(y, p) (Cov(p) + lambda I)^-1.
- "channels": h and g are the input channels of the dense and the pruned consumer. The weight W becomes W B, where
  B = Cov(h, g) (Cov(g) + lambda I)^-1 is the same at every position of the kernel.

Least squares on the feature maps are those of He et al., "Channel Pruning for Accelerating Very Deep Neural Networks",
ICCV 2017. There they follow a Lasso layer by layer; here they follow any choice of filters.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoprune.consumers import Consumer, consumers_of, is_stock_layer
from topoprune.coupling import Coupling
from topoprune.cutting import without
from topoprune.passes import batch_size, each_tensor, run, seed_generators
from topoprune.regression import Moments, ridge_regression
from topoprune.unfolding import POSITIONS, blocks_of, maps_of, output_axis, patches, sampled, set_blocks
from topoprune.unlabelled import batches_of

MODES = ("channels", "convolution")
HELD_OUT = 4  # every fourth image is held out
CACHE_BYTES = 2**30  # bytes for what the dense network computes

Read = Callable[[Consumer, Any, Tensor, Tensor, int], Any]
"""(consumer, module, inputs, outputs, seed) -> what to record of a call."""

log = logging.getLogger("topoprune")


def check_images(images: Any, mode: str) -> None:
    """Refuse an unknown mode, and images that cannot be read.

    Raises:
        ValueError: naming what can be passed.
    """
    if mode not in MODES:
        raise ValueError(f"compensation must be {' or '.join(map(repr, MODES))}, got {mode!r}")
    if isinstance(images, (str, bytes, np.ndarray)):
        raise ValueError(
            f"compensate must be tensors, got {type(images).__name__}: torch.as_tensor makes one of numbers"
        )
    if isinstance(images, Iterator):
        raise ValueError("compensate is an iterator, empty after one pass: pass a list of batches or a DataLoader")
    if images is not None and not isinstance(images, Iterable):
        raise ValueError(
            f"compensate must be images or batches of images, got {type(images).__name__}: pass a tensor, a list of "
            "batches or a DataLoader"
        )


def refit(
    dense: nn.Module,
    small: nn.Module,
    removed: dict[Coupling, np.ndarray],
    images: Any,
    mode: str,
    follows: dict[str, str],
    example_inputs: Any,
) -> None:
    """Refit the consumers of removed channels in place, then recalibrate every BatchNorm on the same images.

    The ridge of a layer is the one with the smallest error on a held-out quarter of the images. A layer that no ridge
    improves there keeps its weights; only its bias is shifted. Transposed convolutions are refitted by channels.
    Attention projections and depthwise convolutions stay as they are. The log "topoprune" says what was done.

    Args:
        dense: the network before pruning, in evaluation mode.
        small: the same network without the removed choices; its weights can have another type.
        removed: coupling -> the choices that were removed.
        images: inputs as `forward` takes them (a tensor, a tuple or a dict), or an iterable of batches of them. They
            are read once, into memory. In a pair (inputs, labels), the second is dropped if it is a vector of integers
            as long as the first, unless the example inputs hold such a vector too.
        mode: "channels" or "convolution", see above.
        follows: layer -> the BatchNorm that reads its output.
        example_inputs: what `forward` takes, to tell inputs from labels.

    Raises:
        ValueError: too few images, values that are not finite, or images that the network does not take.

    Example:
        >>> from topoprune import remove
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> images, kept = torch.rand(64, 3, 8, 8), {"0": [0, 1, 2, 3, 4, 5]}
        >>> networks = remove(model, images, kept), remove(model, images, kept, compensate=images)
        >>> before, after = [(network(images) - model(images)).square().mean() for network in networks]
        >>> bool(after < before)
        True
    """
    batches, pruned, consumers = to_refit(dense, removed, images, mode, follows, example_inputs)
    norms = {name: norm for name, norm in pruned.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
    with torch.no_grad():
        for norm in norms.values():
            norm.train().momentum = 0.0  # batch statistics, because what it reads has changed
        for chunk in _chunks(consumers):
            targets = _dense_rows(dense, chunk, batches)
            for consumer in chunk:
                _refit(consumer, dense, pruned, batches, targets.pop(consumer))
        _recalibrate(pruned, norms, batches)
        for layer in [name for consumer in consumers for name in consumer.names]:
            _copy(pruned.get_submodule(layer)._parameters, small.get_submodule(layer)._parameters)
        for name, norm in norms.items():
            if norm.num_batches_tracked:  # not where the forward pass has no use for it
                _copy(norm._buffers, small.get_submodule(name)._buffers)


def to_refit(
    dense: nn.Module,
    removed: dict[Coupling, np.ndarray],
    images: Any,
    mode: str,
    follows: dict[str, str],
    example_inputs: Any,
) -> tuple[list, nn.Module, list[Consumer]]:
    """The batches, the network without the removed choices, and its consumers in forward order, see `refit`.

    Raises:
        ValueError: images that `refit` cannot use.
    """
    if any(parameter.is_meta for parameter in dense.parameters()):
        raise ValueError("a network on the meta device has no weights to compensate: load them first")
    batches, pruned = batches_of(images, dense, example_inputs), without(dense, removed)
    with torch.no_grad():
        found = consumers_of(dense, pruned, removed, mode, follows)
        return batches, pruned, _in_order_of_call(found, dense, batches)


def _copy(source: dict, target: dict) -> None:
    for name, value in source.items():
        if value is not None:
            target[name].data.copy_(value)


def _in_order_of_call(consumers: list[Consumer], dense: nn.Module, batches: list) -> list[Consumer]:
    """The consumers in the order of their first call, with their calls counted; refuse too few images."""
    called: dict[Consumer, None] = {}
    for seed, batch in enumerate(batches):
        for consumer in consumers:
            consumer.calls.append(0)
        for consumer, rows in _rows(dense, consumers, batch, seed, _size, whole=True):
            consumer.calls[seed] += 1
            consumer.rows += rows
            called[consumer] = None
    for consumer in consumers:
        if consumer not in called:
            log.info("%s is not compensated: the forward pass does not call it", consumer.layer)
    images = sum(map(batch_size, batches))
    for consumer in called:
        needed, by_channels = (
            max(HELD_OUT, math.ceil(inputs * images / consumer.rows))
            for inputs in (consumer.inputs, consumer.by_channels)
        )
        if images < needed:
            raise ValueError(
                f"{consumer.layer} is refitted on {consumer.inputs} inputs and needs at least {needed} images, got "
                f"{images}: pass more images"
                + (f', or {by_channels} and compensation="channels"' if by_channels < needed else "")
            )
    return list(called)


class _Reached(BaseException):
    """The rest of a forward pass is not needed. As a BaseException, it is not taken for an error of the network."""


def _rows(
    network: nn.Module, consumers: list[Consumer], batch: Any, seed: int, read: Read, whole: bool = False
) -> list:
    """What `read` takes from every call of a consumer, in pairs (consumer, what was read).

    Args:
        seed: number of the batch.
        whole: go through the whole network, and not only until the calls that `Consumer.calls` counts.
    """
    calls = 0 if whole else sum(consumer.calls[seed] for consumer in consumers)
    if not (calls or whole):
        return []
    found: list[tuple[Consumer, Any]] = []
    owners = {network.get_submodule(name): consumer for consumer in consumers for name in consumer.names}

    def hook(module: nn.Module, args: tuple, kwargs: dict, outputs: Tensor) -> None:
        inputs = next(iter((*args, *kwargs.values())))
        found.append((owners[module], read(owners[module], module, inputs, outputs, seed)))
        if len(found) == calls:
            raise _Reached

    with contextlib.ExitStack() as hooks, contextlib.suppress(_Reached):
        for module in owners:
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        _forward(network, batch, seed)
    return found


def _forward(network: nn.Module, batch: Any, seed: int) -> None:
    device = next(network.parameters()).device
    seed_generators(seed)  # for networks that draw random numbers in evaluation mode
    run(network, each_tensor(batch, lambda tensor: tensor.to(device)))


def _chunks(consumers: list[Consumer]) -> list[list[Consumer]]:
    """Consecutive consumers whose rows of the dense network fit into `CACHE_BYTES`, at least one at a time."""
    chunks: list[list[Consumer]] = []
    used = 0
    for consumer in consumers:
        columns = consumer.groups * len(consumer.dense) if consumer.mode == "channels" else len(consumer.outputs)
        used += (size := 4 * consumer.rows * columns)
        if not chunks or used > CACHE_BYTES:
            chunks.append([])
            used = size
        chunks[-1].append(consumer)
    return chunks


def _dense_rows(dense: nn.Module, chunk: list[Consumer], batches: list) -> dict[Consumer, list[list[Tensor]]]:
    """What each consumer is fitted to, call after call of each batch."""
    found: dict[Consumer, list[list[Tensor]]] = {consumer: [[] for _ in batches] for consumer in chunk}
    for seed, batch in enumerate(batches):
        for consumer, rows in _rows(dense, chunk, batch, seed, _targets):
            found[consumer][seed].append(rows)
    return found


def _targets(consumer: Consumer, module: Any, inputs: Tensor, outputs: Tensor, seed: int) -> Tensor:
    """(images, positions, groups, t) the kept outputs of a dense layer, or its input channels."""
    rows = sampled(_fitted(consumer, module, inputs, outputs), seed)
    rows = rows if consumer.mode == "channels" else rows[:, :, consumer.outputs]
    return rows.unflatten(2, (consumer.groups, -1))


def _size(consumer: Consumer, module: Any, inputs: Tensor, outputs: Tensor, _: int) -> int:
    """The number of rows that a call gives."""
    images, _channels, *positions = _fitted(consumer, module, inputs, outputs).shape
    return images * min(POSITIONS, math.prod(positions))


def _fitted(consumer: Consumer, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """(images, channels, *positions) what a layer is fitted to, at all positions."""
    if consumer.mode == "channels":
        return maps_of(module, inputs, consumer.dense)
    return maps_of(module, outputs, torch.arange(len(module.weight), device=outputs.device)[:, None])


def _inputs(consumer: Consumer, module: Any, inputs: Tensor, _: Tensor, seed: int) -> Tensor:
    """(images, positions, groups, k) what the regression of a pruned layer reads: patches or channels."""
    maps, kernel = maps_of(module, inputs, consumer.pruned), 0
    if consumer.mode == "convolution" and not isinstance(module, nn.Linear):
        maps, kernel = patches(module, maps), len(module.kernel_size)
    return sampled(maps, seed, kernel).flatten(2).unflatten(2, (consumer.groups, -1))


def _moments(consumer: Consumer, pruned: nn.Module, batches: list, targets: list[list[Tensor]]) -> Moments:
    """Moments of a consumer's inputs and targets, side by side.

    Every fourth image is held out, in all calls that read the images side by side; of other calls every fourth row.
    """
    moments = Moments(consumer.centred)
    images = others = 0  # that were seen: images, and rows of other calls
    for seed, (batch, wanted) in enumerate(zip(batches, targets, strict=True)):
        found = _rows(pruned, [consumer], batch, seed, _inputs)
        if len(found) < len(wanted):
            raise ValueError(
                f"{consumer.layer} is called less often in the pruned network, so it cannot be refitted: prune without "
                "compensate, or leave out by ignore= the layers that it reads"
            )
        for (_, inputs), outputs in zip(found, wanted, strict=True):
            rows = torch.cat([inputs, outputs], 3)
            count = rows.shape[0] * rows.shape[1]
            if len(rows) == batch_size(batch):
                number = (images + torch.arange(len(rows), device="cpu")).repeat_interleave(rows.shape[1])
            else:
                number = others + torch.arange(count, device="cpu")
                others += count
            moments.add(rows.flatten(0, 1), (number % HELD_OUT == HELD_OUT - 1).to(rows.device))
        images += batch_size(batch)
    if not moments.products.isfinite().all():
        raise ValueError(f"{consumer.layer} reads or writes values that are not finite: check the weights and images")
    return moments


def _refit(consumer: Consumer, dense: nn.Module, pruned: nn.Module, batches: list, targets: list[list[Tensor]]) -> None:
    """Set the weight and the bias of a layer of the pruned network."""
    moments = _moments(consumer, pruned, batches, targets)
    module: Any = pruned.get_submodule(consumer.layer)
    weight, metric = blocks_of(module, module.weight, consumer.pruned), None
    shape, plain = weight.shape, weight.flatten(2)
    if consumer.mode == "channels":
        outputs = dense.get_parameter(f"{consumer.layer}.weight").index_select(output_axis(module), consumer.outputs)
        weight = blocks_of(module, outputs, consumer.dense)
        metric = torch.einsum("goik,gojk->gij", weight, weight).double()
        plain = torch.eye(weight.shape[2], device=weight.device)[:, consumer.kept].expand(len(weight), -1, -1)
    coefficients, offset, ridges, share = ridge_regression(moments, plain.double(), metric)
    log.info("%s: ridge %s, held-out error %.3g of that without a refit", consumer.layer, ridges or "none", share)
    by_channels = consumer.mode == "channels"
    if by_channels:
        offset = torch.einsum("goik,gi->go", weight, offset.float())
        offset += 0 if module.bias is None else module.bias.view_as(offset)
        coefficients = torch.einsum("goik,gij->gojk", weight, coefficients.float())
    for owner in map(pruned.get_submodule, consumer.names):
        set_blocks(owner, coefficients.reshape(shape), offset, consumer.pruned)
    means_kept = consumer.before_batch_norm or _reads_each_position_once(module)
    if by_channels and module.bias is not None and not means_kept:
        sets = consumer.groups if output_axis(module) else 1
        wanted = _mean_outputs(dense, consumer, batches).unflatten(0, (sets, -1))[:, consumer.outputs].flatten()
        module.bias += wanted - _mean_outputs(pruned, consumer, batches)


def _reads_each_position_once(module: Any) -> bool:
    """Whether the means of the outputs are those of the inputs times the weights.

    A larger kernel reads the border less often than the rest, whether the layer pads it or another before.
    """
    sizes = (*module.weight.shape[2:], *getattr(module, "stride", ()))
    return is_stock_layer(module) and set(sizes) <= {1} and not any(getattr(module, "padding", ()))


def _mean_outputs(network: nn.Module, consumer: Consumer, batches: list) -> Tensor:
    """(channels,) means of a layer's outputs over all images and positions."""
    parts = [part for seed, batch in enumerate(batches) for _, part in _rows(network, [consumer], batch, seed, _sums)]
    totals, counts = zip(*parts, strict=True)
    return torch.stack(totals).sum(0) / sum(counts)


def _sums(_: Consumer, module: Any, inputs: Tensor, outputs: Tensor, seed: int) -> tuple[Tensor, int]:
    """(channels,) sums of a layer's outputs over images and positions, and how many these are."""
    maps = maps_of(module, outputs, torch.arange(outputs.shape[-1], device=outputs.device)[:, None]).flatten(2)
    return maps.sum((0, 2), dtype=torch.float64), maps.shape[0] * maps.shape[2]


def _recalibrate(network: nn.Module, norms: dict[str, Any], batches: list) -> None:
    """Set the running statistics of every BatchNorm to their means over all batches."""
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
    for seed, batch in enumerate(batches):
        _forward(network, batch, seed)
    for name, norm in norms.items():
        if norm.num_batches_tracked and not norm.running_var.any():
            raise ValueError(f"{name} sees the same value everywhere on these images: pass images that differ")
