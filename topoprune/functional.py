"""What the channels of a coupling compute, as the layers that read them see it.

Two channels are close if one is nearly a multiple of the other on unlabelled inputs. Their shape is that of the
functional cloud: the points that `Responses.points` gives, with the metric "sine" of `fitness.distance_matrix`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from topoprune.network import LAYERS, Coupling, batch_size, evaluating, first_inputs, run, unwrapped

BATCH = 128
"""Inputs of one forward pass."""


@dataclass(frozen=True)
class Responses:
    """Second moments of the channels of a coupling, one channel for each of its n choices.

    A channel that several layers read, or that a layer reads at several places, counts as one vector of all of these
    readings.

    Attributes:
        covariance: (n, n) of the channels as they are read, over inputs and positions.
        weights: (n, n) Gram matrix of the weights that read them: its diagonal holds their squared norms.

    Example:
        >>> channels = Responses(np.array([[4.0, 0.0], [0.0, 1.0]]), np.eye(2))
        >>> channels.mass().tolist(), np.abs(channels.points()).tolist()
        ([4.0, 1.0], [[0.0, 2.0], [1.0, 0.0]])
    """

    covariance: Float64[np.ndarray, "n n"]
    weights: Float64[np.ndarray, "n n"]

    def __len__(self) -> int:
        return len(self.covariance)

    def mass(self) -> Float64[np.ndarray, " n"]:
        """(n,) what the readers would lose without a channel: its variance times the squared norm of its weights."""
        return self.covariance.diagonal() * self.weights.diagonal()

    def points(self) -> Float64[np.ndarray, "n n"]:
        """(n, n) one row a channel: its squared norm is the mass, the cosine of two rows is their correlation.

        A channel of no mass, such as a dead one, is the zero row.
        """
        norms = np.sqrt(self.weights.diagonal())
        values, vectors = np.linalg.eigh(self.covariance * norms[:, None] * norms)
        rows = vectors * np.sqrt(values.clip(0))
        mass = self.mass()
        rows[mass <= 1e-12 * mass.max(initial=0)] = 0
        return rows


def responses(model: nn.Module, example_inputs: Any, couplings: list[Coupling]) -> list[Responses]:
    """Covariance of the channels of each coupling on the example inputs, and the weights that read them.

    Args:
        model: the network, in which the couplings were found; it is untouched.
        example_inputs: as for `topoprune.couplings`; 500 to 1,000 inputs describe the channels of an image network.
        couplings: of that network.

    Returns:
        One for each coupling. Where no convolution or linear layer is called on the channels, as in attention, they
        are described by the outputs of their own layers. Channels that the forward pass does not reach, as those of
        an auxiliary classifier, count as independent and equally strong.

    Raises:
        ValueError: the network does not run on the inputs, or answers with NaN or infinity.

    Example:
        >>> from topoprune import couplings
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> images = torch.randn(16, 3, 8, 8)
        >>> [channels] = responses(model, images, couplings(model, images))
        >>> channels.covariance.shape, bool((channels.mass() >= 0).all())
        ((8, 8), True)
    """
    inner, prefix = unwrapped(model)
    called = _called(model, inner, first_inputs(example_inputs, 2))
    readings = [_readings(inner, prefix, coupling, called) for coupling in couplings]
    hooks = [
        inner.get_submodule(reading.layer).register_forward_hook(reading.observe, with_kwargs=True)
        for own in readings
        for reading in own
    ]
    _run_through(model, parts(example_inputs, BATCH), hooks)
    return [
        _checked(Responses(_covariance(own, coupling.choices), _weights(inner, coupling)), coupling)
        for own, coupling in zip(readings, couplings, strict=True)
    ]


def _called(model: nn.Module, inner: nn.Module, inputs: Any) -> set[str]:
    """Names of the modules that a forward pass calls."""
    names: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.add(name)) for name, module in inner.named_modules()
    ]
    _run_through(model, [inputs], hooks)
    return names


def _run_through(model: nn.Module, batches: Iterable[Any], hooks: list[Any]) -> None:
    """Run the network in evaluation mode, then remove the hooks."""
    try:
        with evaluating(model), torch.no_grad():
            for inputs in batches:
                run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()


def parts(inputs: Any, size: int) -> Iterator[Any]:
    """Inputs in batches of at most `size`; all at once if they are no batch."""
    count = batch_size(inputs)
    if count <= size:
        yield inputs
        return
    for start in range(0, count, size):
        yield tree_map_only(Tensor, itemgetter(slice(start, start + size)), inputs)


Places = list[tuple[np.ndarray, np.ndarray]]
"""Choices, and an index that belongs to each; as many pairs as a choice has indices."""


@dataclass
class _Reading:
    """Moments of a coupling's channels in one layer: in its inputs, or in its outputs if no layer reads them."""

    layer: str
    choices: int
    places: Places
    written: bool = False
    rows: int = 0
    sums: dict[int, np.ndarray] = field(default_factory=dict)
    products: dict[int, np.ndarray] = field(default_factory=dict)

    def observe(self, module: nn.Module, inputs: tuple, named: dict, output: Tensor) -> None:
        """Forward hook: add the moments of one batch."""
        tensor = output if self.written else (*inputs, *named.values())[0]
        rows = tensor if isinstance(module, nn.Linear) else tensor.movedim(1, -1)
        rows = rows.detach().flatten(0, -2).float()
        self.rows += len(rows)
        for place, (_, indices) in enumerate(self.places):
            own = rows[:, torch.as_tensor(indices, device=rows.device)]
            self.sums[place] = self.sums.get(place, 0) + own.sum(0, dtype=torch.float64).cpu().numpy()
            self.products[place] = self.products.get(place, 0) + (own.T @ own).double().cpu().numpy()

    def covariance(self) -> Float64[np.ndarray, "n n"]:
        total = np.zeros((self.choices, self.choices))
        for place, (chosen, _) in enumerate(self.places):
            mean = self.sums[place] / self.rows
            total[np.ix_(chosen, chosen)] += self.products[place] / self.rows - np.outer(mean, mean)
        return total


def _covariance(readings: list[_Reading], choices: int) -> Float64[np.ndarray, "n n"]:
    """Sum over the readings; the unit matrix if there is none."""
    return np.sum([reading.covariance() for reading in readings], axis=0) if readings else np.eye(choices)


def _readings(network: nn.Module, prefix: str, coupling: Coupling, called: set[str]) -> list[_Reading]:
    """Where the channels are read; where they are written if no layer that is called reads them."""
    found = []
    for axis in sorted(coupling.readers):
        layer = axis.tensor.rpartition(".")[0]
        module = network.get_submodule(layer)
        if isinstance(module, LAYERS) and layer in called:
            starts = np.zeros(1, int)
            if isinstance(module, nn.modules.conv._ConvNd) and axis.axis == 1:  # an index of each group's inputs
                starts = np.arange(module.groups) * (module.in_channels // module.groups)
            places = _places(*coupling.slices[axis])
            found.append(_Reading(layer, coupling.choices, [(c, i + start) for c, i in places for start in starts]))
    written = {layer.removeprefix(prefix): rows for layer, rows in coupling.members.items()}
    return found or [
        _Reading(layer, coupling.choices, [(np.arange(len(rows)), own) for own in rows.T], written=True)
        for layer, rows in written.items()
        if layer in called
    ]


def _weights(network: nn.Module, coupling: Coupling) -> Float64[np.ndarray, "n n"]:
    """Gram matrix of all weights that read the choices; the unit matrix if none does."""
    parameters = dict(network.named_parameters())
    total = np.zeros((coupling.choices, coupling.choices))
    for axis in coupling.readers:
        rows = parameters[axis.tensor].detach().movedim(axis.axis, 0).flatten(1).double().cpu().numpy()
        for chosen, indices in _places(*coupling.slices[axis]):
            total[np.ix_(chosen, chosen)] += rows[indices] @ rows[indices].T
    return total if coupling.readers else np.eye(coupling.choices)


def _places(choices: np.ndarray, indices: np.ndarray) -> Places:
    """Group the indices of a slice: the first index of every choice, then the second of every choice, and so on.

    Example:
        >>> _places(np.array([0, 0, 1, 1]), np.array([4, 5, 6, 7]))
        [(array([0, 1]), array([4, 6])), (array([0, 1]), array([5, 7]))]
    """
    order = np.argsort(choices, kind="stable")
    choices, indices = choices[order], indices[order]
    which = np.arange(len(choices)) - np.searchsorted(choices, choices)
    return [(choices[which == turn], indices[which == turn]) for turn in range(which.max(initial=-1) + 1)]


def _checked(channels: Responses, coupling: Coupling) -> Responses:
    if not (np.isfinite(channels.covariance).all() and np.isfinite(channels.weights).all()):
        raise ValueError(
            f"{coupling.layers[0]} has values that are NaN or infinite: the model is damaged or diverged in training, "
            "or the inputs hold such values; load a sound checkpoint, check the inputs"
        )
    return channels
