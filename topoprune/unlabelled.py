"""Divide images anew into batches, without their labels."""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from topoprune.passes import batch_size, each_tensor, some_inputs, tensors_in

BATCH = 256  # images

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def batches_of(images: Any, network: nn.Module, example_inputs: Any = None) -> list:
    """Batches of at most `BATCH` images and nearly equal size, without labels, of the network's type.

    The example inputs tell inputs from labels, and a batch from a single image.
    BatchNorm sees each of them by itself. So the caller's batches are joined where they can be, and each of ours takes
    images from all of them: the size and the order of the caller's batches do not count.
    """
    single = all(parameter.dtype == torch.float32 for parameter in network.parameters())
    given = []
    one = isinstance(images, (Tensor, tuple, dict)) or is_pair(images)
    for number, batch in enumerate([images] if one else images):
        inputs = batch if _axes(batch) == _axes(example_inputs) else _unlabelled(batch)
        if next(tensors_in(inputs), None) is None:
            raise ValueError(f"batch {number} of compensate has no tensor, but {type(inputs).__name__}: pass tensors")
        if not all(tensor.isfinite().all() for tensor in tensors_in(inputs)):
            raise ValueError(f"batch {number} of compensate has values that are not finite: leave such images out")
        if _axes(inputs) == [axes - 1 for axes in _axes(example_inputs)]:
            shape = tuple(next(tensors_in(inputs)).shape)
            raise ValueError(f"batch {number} of compensate is a single image of shape {shape}: torch.stack the images")
        if single:
            inputs = each_tensor(inputs, lambda x: x.float() if x.is_floating_point() else x)
        given.append(inputs)
    groups = [(key, list(alike)) for key, alike in itertools.groupby(given, _signature)]
    found = [part for key, alike in groups for part in (_dealt(alike) if key else itertools.chain(*map(_split, alike)))]
    if not found:
        raise ValueError("compensate has no images: pass a tensor, a list of batches or a DataLoader")
    return found


def _signature(inputs: Any) -> tuple | None:
    """Structure, shapes and types of a batch, without its size. None if a tensor has no axis of images."""
    leaves, structure = tree_flatten(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves)  # which are not compared by ==
    if arrays or len(lengths) != 1 or len(tensors) < len([*tensors_in(inputs)]):
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


def is_pair(images: Any) -> bool:
    """Whether a list is one batch (images, labels), as a DataLoader gives it, and not two batches."""
    return isinstance(images, list) and _unlabelled(images) is not images and images[0].ndim > 1


def _axes(inputs: Any) -> list[int]:
    """The number of axes of every tensor, by which inputs are told from inputs with labels, and from a single image."""
    return [tensor.ndim for tensor in tensors_in(inputs)]


def _unlabelled(batch: Any) -> Any:
    """The inputs of a pair (inputs, labels); any other batch as it is."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        labels = batch[1]
        if labels.dtype in INTEGERS and labels.ndim == 1 and len(labels) == batch_size(batch[0]):
            return batch[0]
    return batch
