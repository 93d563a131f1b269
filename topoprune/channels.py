"""Which slices of which parameters belong to one channel, read from forward passes.

Every index of every axis of a parameter or buffer has a number. A pass is followed operation by operation.
A tensor then carries, beside its values, the numbers of the channels that its elements belong to. Views and
concatenations move the numbers. Element-wise operations and BatchNorm link them. Convolutions and linear layers
read some and write others. Linked numbers can only be removed together. An operation that is not known here
fixes the channels it reads, and so does the output of the network: fixed channels are never removed.

The idea of one dependency graph for any architecture is that of Fang et al., "DepGraph: Towards Any Structural
Pruning", CVPR 2023. Here the graph joins slices of parameters, not layers.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from topoprune.operations import (
    ALONG_ONE_AXIS,
    BATCH_NORMS,
    ELEMENTWISE,
    MOVES,
    REDUCTIONS,
    SIZES_ONLY,
    WITHIN_CHANNELS,
    Followable,
)
from topoprune.passes import tensors_in

FIXED = -1
"""The number of an element that belongs to no channel."""


class Axis(NamedTuple):
    """An axis of a parameter or buffer, by the name in `named_parameters` or `named_buffers`."""

    name: str
    dim: int

    @property
    def layer(self) -> str:
        """Name of the module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass
class Channels:
    """What `trace` found.

    Attributes:
        start: axis -> its first number; the numbers of an axis are consecutive.
        size: axis -> its length.
        component: number -> the set of linked numbers that it belongs to.
        fixed: component -> why it is never removed.
        writers: axis of a weight that writes channels -> how often its numbers repeat, in the order of the first call.
        readers: axes of weights that read channels.
        norms: normalisation layer -> the components of its input channels.
        follows: layer -> its BatchNorm, which alone reads its output and reads nothing else.
        called: names of the modules that ran, or whose weights were read.
    """

    start: dict[Axis, int]
    size: dict[Axis, int]
    component: np.ndarray
    fixed: dict[int, str]
    writers: dict[Axis, int]
    readers: set[Axis]
    norms: dict[str, np.ndarray]
    follows: dict[str, str]
    called: set[str]

    def components(self, axis: Axis) -> np.ndarray:
        """(n,) the component of every index of an axis."""
        return self.component[self.start[axis] : self.start[axis] + self.size[axis]]


def trace(model: nn.Module, passes: Iterable) -> Channels:
    """Follow forward passes of `model` and link the slices of its parameters.

    Args:
        model: a network that nothing else uses; its modules may store what they compute.
        passes: functions of the network that run one forward pass each and give its output.

    Returns:
        The channels of all passes together.
    """
    follower = _Follower(model)
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            enter = partial(follower.enter, name)
            hooks.enter_context(module.register_forward_pre_hook(enter))
            hooks.enter_context(module.register_forward_hook(lambda *_: follower.leave()))
        for forward in passes:
            follower.inside.clear()
            with torch.no_grad(), follower, Followable():
                output = forward(model)
            for tensor in tensors_in(output):
                follower.fix(follower.labels(tensor), "its channels are an output of the network")
                follower.read(tensor)
    return follower.result()


class _Follower(TorchDispatchMode):
    """Keeps the channel numbers of every tensor of a pass.

    `labels(tensor)` has as many axes as the tensor; an axis along which the numbers do not change has length 1.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}  # the tensors are held, so that no id is used twice
        self.names: dict[int, str] = {}
        self.transposed: dict[int, tuple[Tensor, str]] = {}
        self.start: dict[Axis, int] = {}
        self.size: dict[Axis, int] = {}
        self.links: list[tuple[Tensor, Tensor]] = []
        self.fixes: list[tuple[Tensor, str]] = []
        self.writers: dict[Axis, int] = {}
        self.readers: set[Axis] = set()
        self.norms: dict[str, Tensor] = {}
        self.batch_norms = {
            name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        self.layers = {name for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
        self.outputs: dict[int, str] = {}
        self.reads: set[tuple[str | None, str | None]] = set()  # (layer whose output is read, BatchNorm that reads it)
        self.inside: list[str] = []
        self.called: set[str] = set()
        count = 0
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.names[id(tensor)] = name
            for axis, size in enumerate(tensor.shape):
                self.start[Axis(name, axis)], self.size[Axis(name, axis)] = count, size
                count += size
            self.tensors[id(tensor)] = tensor, self._own_numbers(name, tensor)
        self.count = count

    def enter(self, name: str, module: nn.Module, inputs: tuple) -> None:
        self.inside.append(name)
        self.called.add(name)
        single = isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels  # one channel a group
        if (single or isinstance(module, nn.modules.batchnorm._NormBase)) and inputs and inputs[0].ndim > 1:
            if (row := self._row(inputs[0], 1)).ge(0).all():
                self.norms[name] = row

    def leave(self) -> None:
        del self.inside[-1:]

    def labels(self, tensor: Tensor) -> Tensor:
        """The channel numbers of a tensor, `FIXED` where it is not known."""
        found = self.tensors.get(id(tensor))
        return found[1] if found else _unnumbered(tensor)

    def read(self, tensor: Tensor, norm: str | None = None) -> None:
        """Note that a BatchNorm or anything else reads a tensor."""
        self.reads.add((self.outputs.get(id(tensor)), norm))

    def fix(self, numbers: Tensor, reason: str) -> None:
        self.fixes.append((numbers[numbers >= 0].unique(), reason))

    def result(self) -> Channels:
        pairs = (
            torch.cat([torch.stack(pair) for pair in self.links], 1).numpy() if self.links else np.empty((2, 0), int)
        )
        graph = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(self.count, self.count))
        component = connected_components(graph, directed=False)[1]
        fixed: dict[int, str] = {}
        for numbers, reason in self.fixes:
            for one in np.unique(component[numbers.numpy()]):
                fixed.setdefault(int(one), reason)
        norms = {name: component[numbers.numpy()] for name, numbers in self.norms.items()}
        found = self.start, self.size, component, fixed, self.writers, self.readers, norms
        return Channels(*found, self._follows(), self.called)

    def _follows(self) -> dict[str, str]:
        """Layer -> BatchNorm, if nothing else reads the layer and the BatchNorm reads nothing else."""
        layers, norms = Counter(layer for layer, _ in self.reads), Counter(norm for _, norm in self.reads)
        alone = [pair for pair in self.reads if layers[pair[0]] == norms[pair[1]] == 1]
        return dict(sorted((layer, norm) for layer, norm in alone if layer and norm))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        if not self._is_parameter_cast_or_transposed(plain, args, output):
            try:
                self._follow(func, plain, args, kwargs, output)
            except Exception:  # arguments that were not foreseen: the network runs, and what they hold stays whole
                self._give_up(plain, args, kwargs)
        return output

    def _follow(self, func, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        inputs = _tensors(args, kwargs)
        self.called |= {read.rpartition(".")[0] for tensor in inputs if (read := self._parameter(tensor))}
        if name in SIZES_ONLY or not any((self.labels(x) >= 0).any() or self._parameter(x) for x in inputs):
            return
        norm = next((place for place in self.inside[-1:] if name in BATCH_NORMS and place in self.batch_norms), None)
        for tensor in inputs:
            self.read(tensor, norm if norm and tensor is args[0] else None)
        if name == "convolution":
            self._convolution(output, *args)
            return
        if name in ("addmm", "mm", "linear") and self._linear(name, args, output):
            return
        for tensor in inputs:
            if sum(size > 1 for size in tensor.shape) > 1:
                self._fix_parameter(tensor, f"{name} in {self._place()} uses its weight as it is")
        if name in BATCH_NORMS:
            self._batch_norm(output, *args[:5])
        elif name == "native_group_norm" and args[4] == args[6]:
            self._batch_norm(output, *args[:3])
        elif name in MOVES:
            self._move(func, name, args, kwargs, output)
        elif name in REDUCTIONS:
            self._reduce(name, args, kwargs, output)
        elif name in WITHIN_CHANNELS:
            self._within(args[0], output, range(2, args[0].ndim) if args[0].ndim > 2 else (), name)
        elif name in ALONG_ONE_AXIS:
            at = 2 if name == "topk" else 1  # topk(x, k, dim)
            given = kwargs.get("dim", args[at] if len(args) > at else -1)  # these and `sort` take the last axis
            self._within(args[0], output, (given % args[0].ndim,), name)
        elif name == "glu":
            halves = self.labels(args[0]).expand(args[0].shape).chunk(2, args[1] if len(args) > 1 else -1)
            self._keep_blocks_equal(torch.stack(halves))
            self._set(output, _collapsed(halves[0]))
        elif name == "native_layer_norm":
            self._within(args[0], output, range(args[0].ndim - len(args[1]), args[0].ndim), name)
        elif name in ELEMENTWISE or torch.Tag.pointwise in func.tags:
            self._elementwise(inputs, output)
        else:
            self._give_up(name, args, kwargs)

    def _give_up(self, name: str, args: tuple, kwargs: dict) -> None:
        """Fix all channels that an unknown operation reads."""
        reason = f"{name} in {self._place()} {'mixes its channels' if 'norm' in name else 'cannot be followed'}"
        for tensor in _tensors(args, kwargs):
            self.fix(self.labels(tensor), reason)
            self._fix_parameter(tensor, reason)

    def _convolution(self, output, images, weight, bias, _stride, _padding, _dilation, transposed, _extra, groups):
        row, name = self._row(images, 1), self._name(weight)
        if name is None:
            return self.fix(row, f"a convolution with a computed weight in {self._place()} reads its channels")
        written, read = (1, 0) if transposed else (0, 1)
        numbers = self._numbers(name, written)
        if groups == 1:
            self._link(row, self._numbers(name, read))
        elif not transposed and weight.shape[1] == 1:  # depthwise: the number of groups shrinks with the channels
            self._link(row.repeat_interleave(len(numbers) // groups), numbers)
        elif transposed and weight.shape[:2] == (groups, 1):  # the same; its only axis of channels is the one it reads
            self._link(row, self._numbers(name, read))
            return self._written(output, bias, Axis(name, read), 1, 1)
        else:  # the same positions stay in every group, so that groups stay equal
            blocks = row.view(groups, -1)
            self._link(blocks[:1].expand_as(blocks), blocks)
            own = self._numbers(name, read)
            self._link(blocks if transposed else blocks[0], own.view_as(blocks) if transposed else own)
            if not transposed:
                blocks = numbers.view(groups, -1)
                self._link(blocks[:1].expand_as(blocks), blocks)
        depthwise = weight.shape[1] == 1 and groups > 1 and not transposed
        axis = Axis(name, written)
        owns = not depthwise or axis.layer in self.layers  # a blur has the filters of the layer before it
        self._written(output, bias, axis, groups if transposed else 1, 1, owns)
        if not depthwise:
            self.readers.add(Axis(name, read))
        return None

    def _linear(self, name: str, args: tuple, output: Tensor) -> bool:
        """Follow a product with a layer's weight; False if it is a product of something else."""
        if name == "linear":
            rows, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
            layer = self._name(weight)
        else:
            bias, rows, weight = args if name == "addmm" else (None, *args)
            layer = self.transposed[id(weight)][1] if id(weight) in self.transposed else None
        if layer is None or (bias is not None and bias.ndim > 1):
            return False
        row = self._row(rows, rows.ndim - 1)
        self._link(row, self._numbers(layer, 1))
        self._written(output, bias, Axis(layer, 0), 1, output.ndim - 1)
        self.readers.add(Axis(layer, 1))
        return True

    def _written(self, output: Tensor, bias, axis: Axis, blocks: int, at: int, own: bool = True) -> None:
        """The output's channels are the numbers of the weight's axis; filters of their `own`, or of a layer before."""
        numbers = self._numbers(*axis).repeat(blocks)
        if bias is not None:
            self._link(numbers, self._row(bias, 0))
        self._set(output, numbers.view([-1 if i == at else 1 for i in range(output.ndim)]))
        if own:
            self.outputs[id(output)] = axis.layer
            self.writers.setdefault(axis, blocks)

    def _batch_norm(self, output: Any, images: Tensor, *vectors: Tensor | None) -> None:
        row = self._row(images, 1)
        for vector in vectors:
            if isinstance(vector, Tensor) and vector.ndim:
                self._link(row, self._row(vector, 0))
        self._set(next(tensors_in(output)), self.labels(images))

    def _move(self, func, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Move the numbers as the operation moves the values; blocks of a split keep the same positions."""
        full = tree_map_only(Tensor, lambda tensor: self.labels(tensor).expand(tensor.shape), (args, kwargs))
        if name in ("view", "_unsafe_view", "_reshape_alias"):
            moved: Any = full[0][0].reshape(output.shape)
        elif name in ("_to_copy", "lift_fresh", "contiguous", "clone"):
            moved = full[0][0]
        elif name == "constant_pad_nd":
            moved = self._padded(func, args[0], args[1]).expand(output.shape)
        elif name in ("index", "index_select"):
            at = tree_map_only(Tensor, Tensor.cpu, args[1:])  # where the numbers are
            moved = func(full[0][0], *at, **kwargs)
        else:
            moved = func(*full[0], **full[1])
        for tensor, numbers in zip(tree_leaves(output), tree_leaves(moved), strict=True):
            self._set(tensor, _collapsed(numbers))
        if name in ("split", "chunk") and len({tuple(part.shape) for part in output}) == 1:
            self._keep_blocks_equal(torch.stack(tree_leaves(moved)))
        if name in ("view", "_unsafe_view", "reshape", "unflatten"):
            self._keep_views_equal(full[0][0], moved)
        if name in ("channel_shuffle", "native_channel_shuffle"):
            self._keep_blocks_equal(full[0][0].unflatten(1, (args[1], -1)).movedim(1, 0))

    def _padded(self, func, tensor: Tensor, padding: Sequence[int]) -> Tensor:
        """The numbers of a padded tensor: a frame around a channel belongs to it, added channels belong to none."""
        labels = self.labels(tensor)
        numbered = [n > 1 or size == labels.numel() == 1 for n, size in zip(labels.shape, tensor.shape, strict=True)]
        return func(labels, [many if numbered[-1 - i // 2] else 0 for i, many in enumerate(padding)], FIXED)

    def _keep_blocks_equal(self, blocks: Tensor) -> None:
        """Link the same positions of every block, unless channels and blocks have nothing to do with each other."""
        if (blocks[:1] != blocks).any():
            self._link(blocks[:1].expand_as(blocks), blocks)

    def _keep_views_equal(self, before: Tensor, after: Tensor) -> None:
        """A view that divides channels into blocks, as a channel shuffle does, keeps its blocks equal."""
        old, new = _collapsed(before), _collapsed(after)
        varies = [axis for axis, size in enumerate(new.shape) if size > 1]
        if sum(size > 1 for size in old.shape) == 1 and len(varies) == 2:
            self._keep_blocks_equal(new.movedim(varies[0], 0))

    def _reduce(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        tensor, at = args[0], 2 if "norm" in name or name == "kthvalue" else 1  # norm(x, p, dim)
        given = kwargs.get("dim", args[at] if len(args) > at else None)
        axes = range(tensor.ndim) if given in (None, []) else [given] if isinstance(given, int) else given
        reduced = [axis % tensor.ndim for axis in axes] if tensor.ndim else []
        labels = self._branches_joined(self.labels(tensor), reduced)
        mixed = any(labels.shape[axis] > 1 for axis in reduced)
        if mixed:
            self.fix(labels, f"a reduction in {self._place()} mixes its channels")
        for part in tensors_in(output):
            if mixed:
                self._set(part, None)
            elif part.ndim == tensor.ndim:
                self._set(part, labels)
            else:
                self._set(part, labels.squeeze(tuple(reduced)) if reduced else labels)

    def _branches_joined(self, labels: Tensor, mixed: Iterable[int]) -> Tensor:
        """The numbers along an axis of branches that an operation mixes are linked; channels lie along another axis."""
        many = [axis for axis, size in enumerate(labels.shape) if size > 1]
        for axis in set(mixed).intersection(many) if len(many) > 1 else ():
            first = labels.narrow(axis, 0, 1)
            self._link(first.expand_as(labels), labels)
            labels = first
        return labels

    def _within(self, tensor: Tensor, output: Any, mixed: Iterable[int], name: str) -> None:
        """An operation that mixes elements along some axes and keeps the others."""
        labels = self._branches_joined(self.labels(tensor), mixed)
        if any(labels.shape[axis] > 1 for axis in mixed):
            self.fix(labels, f"{name.strip('_').removeprefix('native_')} in {self._place()} mixes its channels")
            return
        for part in tensors_in(output):
            if part.ndim == tensor.ndim:
                self._set(part, labels)

    def _elementwise(self, inputs: list[Tensor], output: Any) -> None:
        for result in tensors_in(output):
            labels, sizes = _unnumbered(result), [1] * result.ndim
            for tensor in inputs:
                if tensor.ndim:
                    lead = (1,) * (result.ndim - tensor.ndim)
                    other = self.labels(tensor).view(*lead, *self.labels(tensor).shape)
                    labels, sizes = self._joined(labels, sizes, other, [*lead, *tensor.shape])
            self._set(result, labels)

    def _joined(self, a: Tensor, a_sizes: list, b: Tensor, b_sizes: list) -> tuple[Tensor, list]:
        """The numbers of two tensors that are combined element by element, with broadcasting."""
        sizes = [max(pair) for pair in zip(a_sizes, b_sizes, strict=True)]
        spread_a = [axis for axis, size in enumerate(a.shape) if size > 1]
        spread_b = [axis for axis, size in enumerate(b.shape) if size > 1]
        if all(b_sizes[axis] == 1 for axis in spread_a) and not spread_b and (spread_a or (b < 0).all()):
            self.fix(b, f"one channel is broadcast over others in {self._place()}")
            return a, sizes
        if all(a_sizes[axis] == 1 for axis in spread_b) and not spread_a and (spread_b or (a < 0).all()):
            self.fix(a, f"one channel is broadcast over others in {self._place()}")
            return b, sizes
        pairs = (a, spread_a, b, spread_b, b_sizes), (b, spread_b, a, spread_a, a_sizes)
        for gated, spread, gate, gate_spread, gate_sizes in pairs:
            branches = [axis for axis in spread if gate_sizes[axis] > 1]  # of channels that lie along another axis
            if branches and len(branches) < len(spread) and set(gate_spread) <= set(branches):
                self.fix(gate, f"it is a gate of whole branches in {self._place()}")
                return gated, sizes
        if any(b_sizes[axis] == 1 for axis in spread_a) or any(a_sizes[axis] == 1 for axis in spread_b):
            for numbers in (a, b):
                self.fix(numbers, f"channels meet positions in {self._place()}")
            return torch.full_like(a[(slice(0, 1),) * a.ndim], FIXED), sizes
        a, b = torch.broadcast_tensors(a, b)
        self._link(a, b)
        return a, sizes

    def _fix_parameter(self, tensor: Tensor, reason: str) -> None:
        """Fix all axes of a tensor, if it is a parameter."""
        name = self._parameter(tensor)
        for axis in [axis for axis in self.start if axis.name == name]:
            self.fix(self._numbers(*axis), reason)

    def _link(self, a: Tensor, b: Tensor) -> None:
        a, b = a.reshape(-1), b.reshape(-1)
        self.fix(torch.cat([a[b < 0], b[a < 0]]), f"its channels meet a tensor of fixed size in {self._place()}")
        both = (a >= 0) & (b >= 0) & (a != b)
        self.links.append(tuple(torch.stack([a[both], b[both]]).unique(dim=1)))

    def _set(self, tensor: Tensor, labels: Tensor | None) -> None:
        if self._name(tensor) is None:
            self.tensors[id(tensor)] = tensor, _unnumbered(tensor) if labels is None else labels

    def _row(self, tensor: Tensor, axis: int) -> Tensor:
        """(n,) the numbers along one axis; those of all positions of a channel are linked."""
        labels = self.labels(tensor)
        first = labels[tuple(slice(None) if i == axis else slice(0, 1) for i in range(labels.ndim))]
        if first.numel() < labels.numel():
            self._link(first.expand_as(labels), labels)
        return first.reshape(-1).expand(tensor.shape[axis])

    def _numbers(self, name: str, axis: int) -> Tensor:
        start = self.start[Axis(name, axis)]
        return torch.arange(start, start + self.size[Axis(name, axis)], device="cpu")

    def _own_numbers(self, name: str, tensor: Tensor) -> Tensor:
        """A vector has the numbers of its only axis, whatever its shape; a matrix has none."""
        long = [axis for axis, size in enumerate(tensor.shape) if size > 1] or [*range(tensor.ndim)][-1:]
        if len(long) != 1:
            return _unnumbered(tensor)
        return self._numbers(name, long[0]).view([-1 if axis == long[0] else 1 for axis in range(tensor.ndim)])

    def _name(self, tensor: Tensor | None) -> str | None:
        return self.names.get(id(tensor))

    def _parameter(self, tensor: Tensor) -> str | None:
        """The name of a parameter, as it is or transposed."""
        return self._name(tensor) or self.transposed.get(id(tensor), (tensor, None))[1]

    def _place(self) -> str:
        return next((name for name in reversed(self.inside) if name), "the network's forward")

    def _is_parameter_cast_or_transposed(self, name: str, args: tuple, output: Any) -> bool:
        """Note another form of a parameter; autocast within the network's forward casts weights and biases."""
        if name == "_to_copy" and (parameter := self._name(args[0])):
            self.names[id(output)] = parameter
            self.tensors[id(output)] = output, self.labels(args[0])
            return True
        if name in ("t", "transpose", "permute") and args[0].ndim == 2 and self._name(args[0]) and output.ndim == 2:
            self.transposed[id(output)] = output, self.names[id(args[0])]
            return True
        return False


def _tensors(args: tuple, kwargs: dict) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def _unnumbered(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of which no element belongs to a channel."""
    return torch.full((1,) * tensor.ndim, FIXED, device="cpu")


def _collapsed(numbers: Tensor) -> Tensor:
    """The same numbers with length 1 along every axis along which they do not change."""
    for axis, size in enumerate(numbers.shape):
        first = numbers.narrow(axis, 0, 1) if size else numbers
        if size > 1 and (numbers.stride(axis) == 0 or bool((numbers == first).all())):
            numbers = first
    return numbers
