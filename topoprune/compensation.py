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

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from topoprune.channels import Axis, tensors_in
from topoprune.network import LAYERS, Coupling, batch_size, run, some_inputs, without
from topoprune.regression import Moments, regression

MODES = ("channels", "convolution")
BATCH = 256  # images
POSITIONS = 64  # of an image, that one regression sees
HELD_OUT = 4  # every fourth image is held out
WIDEST = 8192  # inputs of a regression; each of its matrices then takes half a GiB
CACHE = 2**30  # bytes for what the dense network computes

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_LOG = logging.getLogger("topoprune")
_STOCK = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(eq=False)
class _Consumer:
    """A weight to refit.

    Attributes:
        layer: name of the first module that has the weight.
        names: of all modules that have it.
        mode: "channels" or "convolution".
        groups: of a grouped convolution; else 1.
        centred: whether a bias or a BatchNorm can absorb the means.
        inputs, by_channels: number of inputs of one regression, and what it would be in mode "channels".
        outputs: (o,) kept indices of the weight's output axis.
        dense, pruned: (channels, positions) where a linear layer reads its inputs, before and after pruning.
        kept: (k,) input channels that are kept, of each group.
        absorbed: whether a BatchNorm absorbs the means of the outputs.
        calls: in the forward pass of each batch.
        rows: of the regression.
    """

    layer: str
    names: list[str]
    mode: str
    groups: int
    centred: bool
    inputs: int
    by_channels: int
    outputs: Tensor
    dense: Tensor
    pruned: Tensor
    kept: Tensor
    absorbed: bool = False
    calls: list[int] = field(default_factory=list)
    rows: int = 0


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
        raise ValueError(f"compensate must be images or batches of images, got {type(images).__name__}")


def refit(
    dense: nn.Module,
    small: nn.Module,
    removed: dict[Coupling, np.ndarray],
    images: Any,
    mode: str = "convolution",
    follows: dict[str, str] | None = None,
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
            as long as the first; to pass such a vector to the network, name the arguments in a dict.
        mode: "channels" or "convolution", see above.
        follows: layer -> the BatchNorm that reads its output.

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
    check_images(images, mode)
    if any(parameter.is_meta for parameter in dense.parameters()):
        raise ValueError("a network on the meta device has no weights to compensate: load them first")
    batches = _batches(images, dense)
    pruned = without(dense, removed)
    norms = {name: norm for name, norm in pruned.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)}
    with torch.no_grad():
        consumers = _in_order_of_call(_consumers(dense, pruned, removed, mode, follows or {}), dense, batches)
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


def _copy(source: dict, target: dict) -> None:
    for name, value in source.items():
        if value is not None:
            target[name].data.copy_(value)


def _batches(images: Any, network: nn.Module) -> list:
    """Batches of at most `BATCH` images and nearly equal size, without labels, of the network's type.

    BatchNorm sees each of them by itself. So the caller's batches are joined where they can be, and each of ours takes
    images from all of them: the size and the order of the caller's batches do not count.
    """
    single = all(parameter.dtype == torch.float32 for parameter in network.parameters())
    given = []
    for number, batch in enumerate([images] if isinstance(images, (Tensor, tuple, dict)) else images):
        inputs = _unlabelled(batch)
        if next(tensors_in(inputs), None) is None:
            raise ValueError(f"batch {number} of compensate has no tensor, but {type(inputs).__name__}: pass tensors")
        if not all(tensor.isfinite().all() for tensor in tensors_in(inputs)):
            raise ValueError(f"batch {number} of compensate has values that are not finite: leave such images out")
        if single:
            inputs = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, inputs)
        given.append(inputs)
    groups = [(key, list(alike)) for key, alike in itertools.groupby(given, _signature)]
    found = [part for key, alike in groups for part in (_dealt(alike) if key else itertools.chain(*map(_split, alike)))]
    if not found:
        raise ValueError("compensate has no images: pass a tensor, a list of batches or a DataLoader")
    return found


def _signature(inputs: Any) -> tuple | None:
    """All of a batch but the number of its images; None if not all of its tensors are by images."""
    leaves, structure = tree_flatten(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(lengths) != 1 or len(tensors) < len([*tensors_in(inputs)]):
        return None
    parts = [(leaf.shape[1:], leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return structure, parts


def _dealt(batches: list) -> list:
    """The images of batches with one signature, dealt in turn to as few batches of ours as can be."""
    parts = math.ceil(sum(map(batch_size, batches)) / BATCH)
    leaves, structures = zip(*map(tree_flatten, batches), strict=True)
    several = len(batches) > 1
    whole = [
        torch.cat(some) if several and isinstance(some[0], Tensor) else some[0] for some in zip(*leaves, strict=True)
    ]
    return [
        tree_unflatten([leaf[i::parts] if isinstance(leaf, Tensor) else leaf for leaf in whole], structures[0])
        for i in range(parts)
    ]


def _split(batch: Any) -> list:
    """A batch that cannot be joined with others, in parts of at most `BATCH` images."""
    size = batch_size(batch)
    parts = math.ceil(size / BATCH)
    return [some_inputs(batch, size * i // parts, size * (i + 1) // parts) for i in range(parts)]


def _unlabelled(batch: Any) -> Any:
    """The inputs of a pair (inputs, labels); any other batch as it is."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        labels = batch[1]
        if labels.dtype in INTEGERS and labels.ndim == 1 and len(labels) == batch_size(batch[0]):
            return batch[0]
    return batch


def _consumers(
    dense: nn.Module, pruned: nn.Module, removed: dict[Coupling, np.ndarray], mode: str, follows: dict[str, str]
) -> list[_Consumer]:
    """The layers that read removed channels and can be refitted."""
    found = []
    for axis in sorted({axis for coupling in removed for axis in coupling.readers}):
        layer, _, parameter = axis.tensor.rpartition(".")
        module: Any = dense.get_submodule(layer)
        if not (isinstance(module, LAYERS) and parameter == "weight"):
            _LOG.info("%s is not compensated: it is not the weight of a convolution or a linear layer", axis.tensor)
            continue
        owners = _owners(dense, "weight", module.weight)
        inputs, own_mode = pruned.get_parameter(axis.tensor)[0].numel(), mode
        if mode == "convolution" and (inputs > WIDEST or not all(_is_regression(own) for own in owners.values())):
            _LOG.info("%s is compensated by channels: no regression on %d inputs gives its outputs", layer, inputs)
            own_mode = "channels"
        centred = module.bias is not None or layer in follows
        consumer = _consumer(axis, module, list(owners), own_mode, centred, removed)
        consumer.absorbed = layer in follows
        if any(getattr(own, "bias", None) is not module.bias for own in owners.values()):
            _LOG.info("%s is not compensated: %s share a weight but not a bias", layer, ", ".join(owners))
        elif module.bias is not None and len(with_bias := _owners(dense, "bias", module.bias)) > len(owners):
            _LOG.info("%s is not compensated: %s share a bias but not a weight", layer, ", ".join(with_bias))
        elif consumer.inputs > WIDEST:
            _LOG.info("%s is not compensated: a regression on %d inputs is too large", layer, consumer.inputs)
        else:
            found.append(consumer)
    return found


def _owners(network: nn.Module, name: str, parameter: Tensor) -> dict[str, nn.Module]:
    """The modules that have a parameter under a name."""
    return {layer: module for layer, module in network.named_modules() if getattr(module, name, None) is parameter}


def _is_regression(module: Any) -> bool:
    """Whether the outputs of a layer are products of its weight and patches of its inputs, as PyTorch's are."""
    own = type(module).forward, getattr(type(module), "_conv_forward", None)
    return any(own == (stock.forward, getattr(stock, "_conv_forward", None)) for stock in _STOCK)


def _consumer(
    axis: Axis, module: Any, names: list[str], mode: str, centred: bool, removed: dict[Coupling, np.ndarray]
) -> _Consumer:
    groups, sizes = getattr(module, "groups", 1), module.weight.shape
    outputs, kept = (_kept(removed, Axis(axis.tensor, at), sizes[at]) for at in (1 - axis.axis, axis.axis))
    order = every = np.arange(sizes[axis.axis] // (groups if axis.axis == 0 else 1))[:, None]
    if isinstance(module, nn.Linear):
        every = _flattened(removed, axis, sizes[1])
    by_channels = int(np.isin(every[:, 0], kept).sum())
    if mode == "channels":
        order = every
    stays = np.flatnonzero(np.isin(order[:, 0], kept))
    inputs = by_channels if mode == "channels" else len(stays) * math.prod(sizes[2:])
    indices = outputs, order, np.searchsorted(kept, order[stays]), stays
    tensors: Any = [torch.as_tensor(index, device=module.weight.device) for index in indices]
    return _Consumer(axis.tensor.rpartition(".")[0], names, mode, groups, centred, inputs, by_channels, *tensors)


def _kept(removed: dict[Coupling, np.ndarray], axis: Axis, size: int) -> np.ndarray:
    """The indices of an axis that are not removed."""
    found = [(coupling.slices[axis], gone) for coupling, gone in removed.items() if axis in coupling.slices]
    lost = [indices[np.isin(choices, gone)] for (choices, indices), gone in found]
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


def _in_order_of_call(consumers: list[_Consumer], dense: nn.Module, batches: list) -> list[_Consumer]:
    """The consumers in the order of their first call, with their calls counted; refuse too few images."""
    called: dict[_Consumer, None] = {}
    for seed, batch in enumerate(batches):
        for consumer in consumers:
            consumer.calls.append(0)
        for consumer, rows in _rows(dense, consumers, batch, seed, _size, whole=True):
            consumer.calls[seed] += 1
            consumer.rows += rows
            called[consumer] = None
    for consumer in consumers:
        if consumer not in called:
            _LOG.info("%s is not compensated: the forward pass does not call it", consumer.layer)
    images = sum(map(batch_size, batches))
    for consumer in called:
        needed = max(HELD_OUT, math.ceil(consumer.inputs * images / consumer.rows))
        if images < needed:
            raise ValueError(
                f"{consumer.layer} is refitted on {consumer.inputs} inputs and needs at least {needed} images, got "
                f"{images}: pass more images"
                + (', or compensation="channels"' if consumer.by_channels < consumer.inputs else "")
            )
    return list(called)


Read = Callable[[_Consumer, Any, Tensor, Tensor, int], Any]
"""What to take from a call: of a consumer, its module, the inputs, the outputs and a seed."""


class _Reached(BaseException):
    """The rest of a forward pass is not needed. As a BaseException, it is not taken for an error of the network."""


def _rows(
    network: nn.Module, consumers: list[_Consumer], batch: Any, seed: int, read: Read, whole: bool = False
) -> list:
    """What `read` takes from every call of a consumer, in pairs (consumer, what was read).

    Args:
        seed: number of the batch.
        whole: go through the whole network, and not only until the calls that `_Consumer.calls` counts.
    """
    calls = 0 if whole else sum(consumer.calls[seed] for consumer in consumers)
    if not (calls or whole):
        return []
    found: list[tuple[_Consumer, Any]] = []
    owners = {network.get_submodule(name): consumer for consumer in consumers for name in consumer.names}

    def hook(module: nn.Module, args: tuple, kwargs: dict, outputs: Tensor) -> None:
        inputs = next(iter((*args, *kwargs.values())))
        found.append((owners[module], read(owners[module], module, inputs, outputs, seed)))
        if len(found) == calls:
            raise _Reached

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in owners]
    try:
        _forward(network, batch, seed)
    except _Reached:
        pass
    finally:
        for handle in hooks:
            handle.remove()
    return found


def _forward(network: nn.Module, batch: Any, seed: int) -> None:
    device = next(network.parameters()).device
    torch.manual_seed(seed)  # for networks that draw random numbers in evaluation mode
    run(network, tree_map_only(Tensor, lambda tensor: tensor.to(device), batch))


def _chunks(consumers: list[_Consumer]) -> list[list[_Consumer]]:
    """Consecutive consumers whose rows of the dense network fit into `CACHE`, at least one at a time."""
    chunks: list[list[_Consumer]] = []
    used = 0
    for consumer in consumers:
        columns = consumer.groups * len(consumer.dense) if consumer.mode == "channels" else len(consumer.outputs)
        used += (size := 4 * consumer.rows * columns)
        if not chunks or used > CACHE:
            chunks.append([])
            used = size
        chunks[-1].append(consumer)
    return chunks


def _dense_rows(dense: nn.Module, chunk: list[_Consumer], batches: list) -> dict[_Consumer, list[list[Tensor]]]:
    """What each consumer is fitted to, call after call of each batch."""
    found: dict[_Consumer, list[list[Tensor]]] = {consumer: [[] for _ in batches] for consumer in chunk}
    for seed, batch in enumerate(batches):
        for consumer, rows in _rows(dense, chunk, batch, seed, _targets):
            found[consumer][seed].append(rows)
    return found


def _targets(consumer: _Consumer, module: Any, inputs: Tensor, outputs: Tensor, seed: int) -> Tensor:
    """(images, positions, groups, t) the kept outputs of a dense layer, or its input channels."""
    rows = _sampled(_fitted(consumer, module, inputs, outputs), seed)
    rows = rows if consumer.mode == "channels" else rows[:, :, consumer.outputs]
    return rows.unflatten(2, (consumer.groups, -1))


def _size(consumer: _Consumer, module: Any, inputs: Tensor, outputs: Tensor, _: int) -> int:
    """The number of rows that a call gives."""
    images, _channels, *positions = _fitted(consumer, module, inputs, outputs).shape
    return images * min(POSITIONS, math.prod(positions))


def _fitted(consumer: _Consumer, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """(images, channels, *positions) what a layer is fitted to, at all positions."""
    if consumer.mode == "channels":
        return _maps(module, inputs, consumer.dense)
    return _maps(module, outputs, torch.arange(len(module.weight), device=outputs.device)[:, None])


def _inputs(consumer: _Consumer, module: Any, inputs: Tensor, _: Tensor, seed: int) -> Tensor:
    """(images, positions, groups, k) what the regression of a pruned layer reads: patches or channels."""
    maps, kernel = _maps(module, inputs, consumer.pruned), 0
    if consumer.mode == "convolution" and not isinstance(module, nn.Linear):
        maps, kernel = _patches(module, maps), len(module.kernel_size)
    return _sampled(maps, seed, kernel).flatten(2).unflatten(2, (consumer.groups, -1))


def _maps(module: Any, tensor: Tensor, order: Tensor) -> Tensor:
    """(images, channels, *positions) of the inputs or outputs of a layer."""
    if isinstance(module, nn.Linear):
        return (tensor if tensor.ndim > 1 else tensor[None]).movedim(-1, 1)[:, order]
    return tensor if tensor.ndim == module.weight.ndim else tensor[None]


def _patches(module: Any, maps: Tensor) -> Tensor:
    """(images, channels, *positions, *kernel) a view of what the kernel reads at each position of the output."""
    zeros = module.padding_mode == "zeros"
    numbers = zeros and not isinstance(module.padding, str)
    padding = np.repeat(module.padding[::-1], 2).tolist() if numbers else module._reversed_padding_repeated_twice
    maps = F.pad(maps, padding, "constant" if zeros else module.padding_mode)
    for axis, size in enumerate(module.kernel_size):
        stride, dilation = module.stride[axis], module.dilation[axis]
        maps = maps.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return maps


def _sampled(maps: Tensor, seed: int, kernel: int = 0) -> Tensor:
    """(images, positions, channels, *kernel) some positions of each image, the same for equal sizes and seeds."""
    sizes = maps.shape[2 : maps.ndim - kernel]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(math.prod(sizes), generator=generator)[:POSITIONS]
    shifts = torch.randint(math.prod(sizes), (len(maps), 1), generator=generator)
    at = torch.unravel_index(((chosen + shifts) % math.prod(sizes)).to(maps.device), sizes)
    image = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[(image, slice(None), *at)].float()  # type: ignore[index]


def _moments(consumer: _Consumer, pruned: nn.Module, batches: list, targets: list[list[Tensor]]) -> Moments:
    """Moments of a consumer's inputs and targets, side by side.

    Every fourth image is held out, in all calls that read the images side by side; of other calls every fourth row.
    """
    moments = Moments(consumer.centred)
    images = others = 0  # that were seen: images, and rows of other calls
    for seed, (batch, wanted) in enumerate(zip(batches, targets, strict=True)):
        found = _rows(pruned, [consumer], batch, seed, _inputs)
        if len(found) < len(wanted):
            raise ValueError(f"{consumer.layer} is called less often in the pruned network: it cannot be compensated")
        for (_, inputs), outputs in zip(found, wanted, strict=True):
            rows = torch.cat([inputs, outputs], 3)
            count = rows.shape[0] * rows.shape[1]
            if len(rows) == batch_size(batch):
                number = (images + torch.arange(len(rows))).repeat_interleave(rows.shape[1])
            else:
                number = others + torch.arange(count)
                others += count
            moments.add(rows.flatten(0, 1), (number % HELD_OUT == HELD_OUT - 1).to(rows.device))
        images += batch_size(batch)
    if not moments.products.isfinite().all():
        raise ValueError(f"{consumer.layer} reads or writes values that are not finite: check the weights and images")
    return moments


def _refit(
    consumer: _Consumer, dense: nn.Module, pruned: nn.Module, batches: list, targets: list[list[Tensor]]
) -> None:
    """Set the weight and the bias of a layer of the pruned network."""
    moments = _moments(consumer, pruned, batches, targets)
    module: Any = pruned.get_submodule(consumer.layer)
    weight, metric = _blocks(module, module.weight, consumer.pruned), None
    shape, plain = weight.shape, weight.flatten(2)
    if consumer.mode == "channels":
        outputs = dense.get_parameter(f"{consumer.layer}.weight").index_select(_output_axis(module), consumer.outputs)
        weight = _blocks(module, outputs, consumer.dense)
        metric = torch.einsum("goik,gojk->gij", weight, weight).double()
        plain = torch.eye(weight.shape[2], device=weight.device)[:, consumer.kept].expand(len(weight), -1, -1)
    found, offset, ridges, share = regression(moments, plain.double(), metric)
    _LOG.info("%s: ridge %s, held-out error %.3g of that without a refit", consumer.layer, ridges or "none", share)
    by_channels = consumer.mode == "channels"
    if by_channels:
        offset = torch.einsum("goik,gi->go", weight, offset.float())
        offset += 0 if module.bias is None else module.bias.view_as(offset)
        found = torch.einsum("goik,gij->gojk", weight, found.float())
    for owner in map(pruned.get_submodule, consumer.names):
        _set(owner, found.reshape(shape), offset, consumer.pruned)
    if by_channels and module.bias is not None and not (consumer.absorbed or _reads_each_position_once(module)):
        sets = consumer.groups if _output_axis(module) else 1
        wanted = _mean_outputs(dense, consumer, batches).unflatten(0, (sets, -1))[:, consumer.outputs].flatten()
        module.bias += wanted - _mean_outputs(pruned, consumer, batches)


def _reads_each_position_once(module: Any) -> bool:
    """Whether the means of the outputs are those of the inputs times the weights.

    A larger kernel reads the border less often than the rest, whether the layer pads it or another before.
    """
    sizes = (*module.weight.shape[2:], *getattr(module, "stride", ()))
    return _is_regression(module) and set(sizes) <= {1} and not any(getattr(module, "padding", ()))


def _mean_outputs(network: nn.Module, consumer: _Consumer, batches: list) -> Tensor:
    """(channels,) means of a layer's outputs over all images and positions."""
    parts = [part for seed, batch in enumerate(batches) for _, part in _rows(network, [consumer], batch, seed, _sums)]
    totals, counts = zip(*parts, strict=True)
    return torch.stack(totals).sum(0) / sum(counts)


def _sums(_: _Consumer, module: Any, inputs: Tensor, outputs: Tensor, seed: int) -> tuple[Tensor, int]:
    """(channels,) sums of a layer's outputs over images and positions, and how many these are."""
    maps = _maps(module, outputs, torch.arange(outputs.shape[-1], device=outputs.device)[:, None]).flatten(2)
    return maps.sum((0, 2), dtype=torch.float64), maps.shape[0] * maps.shape[2]


def _output_axis(module: Any) -> int:
    return 1 if getattr(module, "transposed", False) else 0


def _blocks(module: Any, weight: Tensor, order: Tensor) -> Tensor:
    """(groups, outputs, inputs, positions) a weight, or a part of it, group by group."""
    if isinstance(module, nn.Linear):
        return weight[:, order][None].float()
    blocks = weight.float().reshape(module.groups, -1, weight.shape[1], math.prod(module.kernel_size))
    return blocks.transpose(1, 2) if module.transposed else blocks


def _set(module: Any, blocks: Tensor, offset: Tensor, order: Tensor) -> None:
    """Set a weight of which `_blocks` are given, and the bias if there is one."""
    if isinstance(module, nn.Linear):
        module.weight[:, order] = blocks[0].to(module.weight.dtype)
    else:
        module.weight.copy_((blocks.transpose(1, 2) if module.transposed else blocks).reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(offset.flatten())


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
