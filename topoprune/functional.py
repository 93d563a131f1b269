"""What the channels of a coupling compute, as the layers that read them see it.

Two channels are close if one is nearly a multiple of the other on unlabelled inputs. `Responses.points` gives them as
points, the functional cloud, with the metric "sine" of `fitness.distance_matrix`.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from topoprune.coupling import LAYERS, Coupling
from topoprune.network import PruningWarning
from topoprune.passes import eager_copy, run, seeded_parts
from topoprune.unfolding import batched

log = logging.getLogger("topoprune")


@dataclass(frozen=True)
class Responses:
    """Second moments of the channels of a coupling, one channel for each of its n choices.

    A channel that several layers read, or that a layer reads at several places, counts as one vector of all of these
    readings.

    Attributes:
        covariance: (n, n) of the channels as they are read, over inputs and positions.
        weights: (n, n) Gram matrix of the weights that read them: its diagonal holds their squared norms.
        weighted: (n, n) covariance of the channels times the norms of the weights that read them, summed over readings;
            None where there is one reading, which the other two describe.

    Example:
        >>> channels = Responses(np.array([[4.0, 0.0], [0.0, 1.0]]), np.eye(2))
        >>> channels.mass().tolist(), np.abs(channels.points()).tolist()
        ([4.0, 1.0], [[0.0, 2.0], [1.0, 0.0]])
    """

    covariance: Float64[np.ndarray, "n n"]
    weights: Float64[np.ndarray, "n n"]
    weighted: Float64[np.ndarray, "n n"] | None = None

    def __len__(self) -> int:
        return len(self.covariance)

    def mass(self) -> Float64[np.ndarray, " n"]:
        """(n,) variance of a channel times the squared norm of the weights that read it, summed over readings."""
        return self._gram().diagonal()

    def points(self) -> Float64[np.ndarray, "n n"]:
        """(n, n) one row a channel: its squared norm is the mass, the cosine of two rows is their correlation.

        A channel of no mass, such as a dead one, is the zero row.
        """
        values, vectors = np.linalg.eigh(self._gram())
        rows = vectors * np.sqrt(values.clip(0))
        mass = self.mass()
        rows[mass <= 1e-12 * mass.max(initial=0)] = 0
        return rows

    def _gram(self) -> Float64[np.ndarray, "n n"]:
        if self.weighted is not None:
            return self.weighted
        return _times_norms(self.covariance, np.sqrt(self.weights.diagonal()))


def _times_norms(covariance: Float64[np.ndarray, "n n"], norms: Float64[np.ndarray, " n"]) -> np.ndarray:
    return covariance * norms[:, None] * norms


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

    Warns:
        PruningWarning: some channels outnumber the values, over inputs and positions, by which they are described.

    Example:
        >>> from topoprune import couplings
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> images = torch.randn(16, 3, 8, 8)
        >>> [channels] = responses(model, images, couplings(model, images))
        >>> channels.covariance.shape, bool((channels.mass() >= 0).all())
        ((8, 8), True)
    """
    with eager_copy(model) as (network, prefix):
        readings = [_reads(network, coupling) for coupling in couplings]
        called = _observe(network, example_inputs, [reading for own in readings for reading in own])
        writings = [
            [] if any(reading.rows for reading in own) else _writes(coupling, prefix, called)
            for own, coupling in zip(readings, couplings, strict=True)
        ]
        if any(writings):
            _observe(network, example_inputs, [writing for own in writings for writing in own])
        _warn_of_few_values(couplings, [reads + writes for reads, writes in zip(readings, writings, strict=True)])
        return [
            _checked(_summed(coupling, _weights(network, coupling), reads, writes), coupling)
            for coupling, reads, writes in zip(couplings, readings, writings, strict=True)
        ]


def _observe(network: nn.Module, example_inputs: Any, readings: Sequence["_Reading"]) -> set[str]:
    """Run the network for the moments of the readings. Return the names of the layers that it calls."""
    called: set[str] = set()
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(lambda *_, name=name: called.add(name)))
        for reading in readings:
            if reading.layer in layers:
                hooks.enter_context(layers[reading.layer].register_forward_hook(reading.observe, with_kwargs=True))
        for inputs in seeded_parts(example_inputs):
            run(network, inputs)
    return called


class _Place(NamedTuple):
    """(m,) choices, a channel of each in a layer, and the norms of the weights that read it there."""

    choices: np.ndarray
    indices: np.ndarray
    norms: np.ndarray


@dataclass
class _Reading:
    """Moments of a coupling's channels in one layer: in its inputs, or in its outputs if no layer reads them.

    Products are summed in float32 within a batch, as differences from the first batch's mean, in float64 over all.
    """

    layer: str
    places: list[_Place]
    written: bool = False
    rows: int = 0
    shifts: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, np.ndarray] = field(default_factory=dict)
    products: dict[int, np.ndarray] = field(default_factory=dict)

    def observe(self, module: nn.Module, inputs: tuple, named: dict, output: Tensor) -> None:
        """Forward hook: add the moments of one batch."""
        tensor = batched(module, output if self.written else (*inputs, *named.values())[0])
        rows = (tensor if isinstance(module, nn.Linear) else tensor.movedim(1, -1)).flatten(0, -2)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.rows += len(rows)
        for number, place in enumerate(self.places):
            own = rows[:, torch.as_tensor(place.indices, device=rows.device)]
            own -= self.shifts.setdefault(number, own.mean(0))
            self.sums[number] = self.sums.get(number, 0) + own.sum(0, dtype=torch.float64).cpu().numpy()
            self.products[number] = self.products.get(number, 0) + (own.T @ own).double().cpu().numpy()

    def covariances(self) -> Iterator[tuple[_Place, Float64[np.ndarray, "m m"]]]:
        """Each place with the covariance of its channels."""
        for number, place in enumerate(self.places):
            mean = self.sums[number] / self.rows
            yield place, self.products[number] / self.rows - np.outer(mean, mean)


def _summed(
    coupling: Coupling, weights: Float64[np.ndarray, "n n"], reads: list[_Reading], writes: list[_Reading]
) -> Responses:
    """Sums over all places where the channels were seen; `writes` is empty where they were read."""
    seen = [reading for reading in (*reads, *writes) if reading.rows]
    if not seen:
        log.info("%s: the forward pass calls no layer that writes or reads its channels", coupling.layers[0])
        return Responses(np.eye(coupling.choices), weights)
    covariance, weighted, count = np.zeros((3, coupling.choices, coupling.choices))
    for reading in seen:
        for place, moments in reading.covariances():
            at = np.ix_(place.choices, place.choices)
            covariance[at] += moments
            weighted[at] += _times_norms(moments, place.norms)
            count[at] += 1
    if writes:
        return Responses(covariance, weights)
    for place in [place for reading in reads if not reading.rows for place in reading.places]:
        at = np.ix_(place.choices, place.choices)
        weighted[at] += _times_norms(covariance[at] / count[at].clip(1), place.norms)
    return Responses(covariance, weights, weighted)


def _reads(network: nn.Module, coupling: Coupling) -> list[_Reading]:
    """All weights that read the channels; a grouped convolution has a place for each group."""
    found = []
    for axis in sorted(coupling.readers):
        module, parameter = network.get_submodule(axis.layer), attrgetter(axis.name)(network).detach()
        groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) and axis.dim == 1 else 1
        rows = parameter.movedim(axis.dim, 0).flatten(1).unflatten(1, (groups, -1))
        norms = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float64).cpu().numpy()
        places = [
            _Place(choices, indices + group * len(rows), norms[indices, group])
            for choices, indices in _places(*coupling.slices[axis])
            for group in range(groups)
        ]
        found.append(_Reading(axis.layer, places))
    return found


def _writes(coupling: Coupling, prefix: str, called: set[str]) -> list[_Reading]:
    """The layers that write the channels, of those that are called."""
    every = np.arange(coupling.choices)
    members = {layer.removeprefix(prefix): rows for layer, rows in coupling.members.items()}
    return [
        _Reading(layer, [_Place(every, own, np.ones(len(own))) for own in rows.T], written=True)
        for layer, rows in members.items()
        if layer in called
    ]


def _weights(network: nn.Module, coupling: Coupling) -> Float64[np.ndarray, "n n"]:
    """Gram matrix of all weights that read the choices; the unit matrix if none does."""
    total = np.zeros((coupling.choices, coupling.choices))
    for axis in coupling.readers:
        rows = attrgetter(axis.name)(network).detach().movedim(axis.dim, 0).flatten(1).double().cpu().numpy()
        for chosen, indices in _places(*coupling.slices[axis]):
            total[np.ix_(chosen, chosen)] += rows[indices] @ rows[indices].T
    return total if coupling.readers else np.eye(coupling.choices)


def _places(choices: np.ndarray, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Group the indices of a slice: the first index of every choice, then the second of every choice, and so on.

    Example:
        >>> _places(np.array([0, 0, 1, 1]), np.array([4, 5, 6, 7]))
        [(array([0, 1]), array([4, 6])), (array([0, 1]), array([5, 7]))]
    """
    order = np.argsort(choices, kind="stable")
    choices, indices = choices[order], indices[order]
    which = np.arange(len(choices)) - np.searchsorted(choices, choices)
    return [(choices[which == turn], indices[which == turn]) for turn in range(which.max(initial=-1) + 1)]


def _warn_of_few_values(couplings: list[Coupling], observed: list[list[_Reading]]) -> None:
    counts = [
        (coupling, sum(reading.rows for reading in own)) for coupling, own in zip(couplings, observed, strict=True)
    ]
    few = [(coupling, rows) for coupling, rows in counts if 0 < rows < coupling.choices]
    if few:
        coupling, rows = min(few, key=lambda pair: pair[1] / pair[0].choices)
        more = f", and so are those of {len(few) - 1} more" if len(few) > 1 else ""
        warnings.warn(
            f"the {coupling.choices} channels of {coupling.layers[0]} are compared on {rows} values each{more}: a "
            "choice among them says little; pass more example inputs, 500 to 1,000 describe an image network",
            PruningWarning,
            stacklevel=3,
        )


def _checked(channels: Responses, coupling: Coupling) -> Responses:
    if not (np.isfinite(channels.covariance).all() and np.isfinite(channels.weights).all()):
        raise ValueError(
            f"{coupling.layers[0]} has values that are NaN or infinite: the model is damaged or diverged in training, "
            "or the inputs hold such values; load a sound checkpoint, check the inputs"
        )
    return channels
