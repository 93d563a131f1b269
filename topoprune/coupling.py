"""Group filters that can only be removed together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoprune.channels import Axis, Channels
from topoprune.passes import unwrapped
from topoprune.unfolding import output_axis

Kept = dict[str, list[int]]
"""Layer name -> sorted indices of its kept filters."""

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
"""Layers whose filters (output channels) can be removed."""


@dataclass(frozen=True, eq=False)
class Coupling:
    """Filters that can only be removed together.

    Each of its `choices` is removed or kept as one: one filter of an ordinary convolution, one of each layer that a
    residual addition joins, the same position of every group of a grouped convolution.

    Attributes:
        members: layer -> (choices, m) indices of its filters that go with each choice, the first layer first.
        sizes: layer -> number of all of its filters.
        slices: axis of a parameter or buffer -> (2, k) rows of choices and of the indices that go with them. Names are
            those of the network inside DataParallel or torch.compile.
        readers: axes of the weights that read the channels, a subset of `slices`.
        norms: normalisation without parameters or buffers -> (2, k) rows, as in `slices`.

    Example:
        >>> from topoprune import couplings
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 3))
        >>> first = couplings(model, torch.randn(2, 3, 12, 12))[0]
        >>> first.layers, first.choices
        (('0',), 4)
        >>> first.filters("0", [1])  # the same position of both groups
        [1, 5]
    """

    members: dict[str, np.ndarray]
    sizes: dict[str, int]
    slices: dict[Axis, np.ndarray]
    readers: frozenset[Axis]
    norms: dict[str, np.ndarray]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that write the channels, in the order of the modules."""
        return tuple(self.members)

    @property
    def choices(self) -> int:
        """Number of choices. Each is kept or removed as a whole."""
        return len(next(iter(self.members.values())))

    def filters(self, layer: str, chosen: Sequence[int] | np.ndarray) -> list[int]:
        """Sorted filters of a layer that go with the `chosen` choices."""
        return sorted(self.members[layer][integers(layer, chosen)].ravel().tolist())

    def lost(self, axis: Axis, gone: np.ndarray) -> np.ndarray:
        """Indices of an axis that go with the choices `gone`."""
        choices, indices = self.slices[axis]
        goes = np.zeros(self.choices, bool)
        goes[gone] = True
        return indices[goes[choices]]

    def positions(self, kept: Kept) -> list[int]:
        """The choices whose filters are all kept; a layer that `kept` does not name keeps all."""
        stays = [np.isin(self.members[x], integers(x, kept[x])).all(1) for x in self.layers if x in kept]
        return np.flatnonzero(np.all(stays, axis=0)).tolist() if stays else list(range(self.choices))


def couplings_of(network: nn.Module, channels: Channels, types: tuple[type, ...]) -> list[Coupling]:
    """Group the channels that can be removed: one coupling for each set of layers that write them."""
    modules = dict(network.named_modules())
    order = {name: i for i, name in enumerate(modules)}
    writers = [axis for axis in channels.writers if _writes_filters(modules[axis.layer], axis)]
    unusual = {c for axis in channels.writers if axis not in writers for c in channels.components(axis).tolist()}
    owned: dict[int, dict[str, list[int]]] = {}
    for axis in sorted(writers, key=lambda axis: order[axis.layer]):
        for position, component in enumerate(_written(axis, channels).tolist()):
            if component not in channels.fixed and component not in unusual:
                owned.setdefault(component, {}).setdefault(axis.layer, []).append(position)
    layouts: dict[tuple, list[int]] = {}
    for component, filters in owned.items():
        if any(isinstance(modules[layer], types) for layer in filters):
            layouts.setdefault(tuple((layer, len(own)) for layer, own in filters.items()), []).append(component)
    sizes = {axis.layer: len(_written(axis, channels)) for axis in writers}
    every = {axis: channels.components(axis) for axis in channels.start}
    bare = {name: own for name, own in channels.norms.items() if not modules[name].state_dict()}
    found = []
    for layout, components in layouts.items():
        layers = [layer for layer, _ in layout]
        components.sort(key=lambda component: owned[component][layers[0]])
        members = {layer: np.array([owned[component][layer] for component in components]) for layer in layers}
        slices, norms = (_slices(components, part, len(channels.component)) for part in (every, bare))
        readers = frozenset(axis for axis in slices if axis in channels.readers)
        found.append(Coupling(members, {layer: sizes[layer] for layer in layers}, slices, readers, norms))
    return sorted(found, key=lambda coupling: order[coupling.layers[0]])


def _writes_filters(module: Any, axis: Axis) -> bool:
    """Whether an axis indexes a layer's filters. A tied or reused weight can write along another axis."""
    depthwise = getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels
    own = 0 if depthwise else output_axis(module)
    return isinstance(module, LAYERS) and axis.name.endswith("weight") and axis.dim == own


def _written(axis: Axis, channels: Channels) -> np.ndarray:
    """(n,) the components of a layer's filters."""
    return np.tile(channels.components(axis), channels.writers[axis])


def _slices(components: list[int], every: dict, count: int) -> dict:
    """Axis (or normalisation) -> rows of choices and of the indices that belong to them."""
    choice = np.full(count, -1)
    choice[components] = np.arange(len(components))
    found = {axis: choice[own] for axis, own in every.items()}
    return {
        axis: np.stack([own[own >= 0], np.flatnonzero(own >= 0)]) for axis, own in found.items() if (own >= 0).any()
    }


def scores(model: nn.Module, coupling: Coupling, value: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """(choices,) mean over the weights that hold a slice of a choice: the absolute sum of `value` over that slice.

    Args:
        model: the network that the coupling was found in.
        value: of a parameter, one number for each of its elements; biases have no part.
    """
    parameters = dict(unwrapped(model)[0].named_parameters())
    parts = []
    for axis, (choices, indices) in coupling.slices.items():
        parameter = parameters.get(axis.name)
        if parameter is not None and not axis.name.endswith("bias"):
            sums = value(parameter).movedim(axis.dim, 0).flatten(1).sum(1) if parameter.ndim > 1 else value(parameter)
            total = torch.zeros(coupling.choices, dtype=torch.float32, device=sums.device)
            at, own = (torch.as_tensor(rows, device=sums.device) for rows in (choices, indices))
            parts.append(total.index_add(0, at, sums.detach().abs().float()[own]))
    return torch.stack(parts).mean(0)


def width(model: nn.Module, layer: str) -> int:
    """Number of filters of a layer."""
    module: Any = model.get_submodule(layer)
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def widths(model: nn.Module) -> dict[str, int]:
    """Layer -> number of its filters, for all layers that have any."""
    return {name: width(model, name) for name, module in model.named_modules() if isinstance(module, LAYERS)}


def integers(layer: str, chosen: Any) -> list[int]:
    """Indices as a list. A mask is refused: it would be read as the indices 0 and 1."""
    indices = np.asarray(chosen.tolist() if isinstance(chosen, Tensor) else [*chosen])
    if indices.size and (indices.ndim != 1 or indices.dtype.kind not in "iu"):
        what = f"{indices.dtype} of shape {indices.shape}"
        raise ValueError(f"{layer} needs integer indices, got {what}: numpy.flatnonzero makes them of a mask")
    return indices.tolist()


def composed(first: Kept, second: Kept) -> Kept:
    """Two choices as one: `second` indexes the filters that `first` kept, the answer those of the original network."""
    later = {layer: [first[layer][i] for i in chosen] if layer in first else chosen for layer, chosen in second.items()}
    return {**first, **later}
