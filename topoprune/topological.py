"""Filters as points, and the subset of each layer whose persistence diagrams stay closest to the layer's."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from topoprune import genetic
from topoprune.coupling import LAYERS, Coupling
from topoprune.cover import COVERS, covered
from topoprune.fitness import Fitness, distance_matrix
from topoprune.functional import responses
from topoprune.network import structure
from topoprune.passes import eager_copy, run, seeded_parts
from topoprune.unfolding import batched

ACTIVATION_SIDE = 4
"""Activations are averaged to at most this many positions along each axis of an image."""


def topological(
    points: Float[np.ndarray, "n d"],
    keep: int,
    seed: int = 0,
    *,
    metric: str = "euclidean",
    pointed: bool = False,
    dimensions: Sequence[int] | int = (0, 1),
    distance: str = "wasserstein",
    search: str = "genetic",
    engine: str = "fast",
    checkpoint: Path | str | None = None,
    **budget,
) -> genetic.Result:
    """Search the subset of points whose persistence diagrams are closest to those of all points, or that covers them.

    Args:
        points: one row for each choice of a coupling, see `points`.
        keep: number of points to keep.
        seed: of the search.
        metric: "euclidean", "cosine", "correlation" or "sine", see `distance_matrix`.
        pointed: add the zero filter, which is always kept; not for covers.
        dimensions: of homology: 0, 1 or both.
        distance: between diagrams: "wasserstein", "bottleneck", "landscape", "betti" or "entropy".
        search: "genetic", or a rival with the same budget: "random", "greedy" or "farthest"; or a cover, which looks
            at distances instead of diagrams: "cover" (k-medoids) or "merge" (merge tree), see `topoprune.cover`.
        engine: "fast" or "reference" (giotto-tda), equal in value.
        checkpoint: file in which the search is saved at the end of each generation.
        **budget: fields of `genetic.Search`, such as population and generations.

    Raises:
        ValueError: an unknown option.

    Example:
        >>> cloud = np.random.default_rng(0).normal(size=(12, 4))
        >>> len(topological(cloud, 6, population=8, generations=2).kept)
        6
    """
    if search not in SEARCHES:
        raise ValueError(f"unknown search {search!r}: choose from {', '.join(SEARCHES)}")
    if not isinstance(pointed, bool):
        raise ValueError(f"pointed must be True or False, got {pointed!r}")
    settings = genetic.Search(**budget)
    delta = distance_matrix(points, metric, pointed)
    if search in COVERS:
        _refuse_for_covers(search, pointed=pointed, dimensions=dimensions, distance=distance, engine=engine, **budget)
        return covered(search, points, delta, metric, keep)
    fitness = Fitness(delta, (dimensions,) if isinstance(dimensions, int) else dimensions, distance, pointed, engine)
    path = None if checkpoint is None else Path(checkpoint)
    return genetic.SEARCHES[search](len(points), keep, fitness, settings, seed, path, delta)


def _refuse_for_covers(search: str, **options) -> None:
    """Refuse options of diagrams and of the genetic search, which a cover would ignore."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(topological).parameters.items()}
    for name, value in options.items():
        if value != defaults.get(name, inspect.Parameter.empty):
            raise ValueError(f"search {search!r} has no {name}: leave it out")


def among_living(points: Float[np.ndarray, "n d"], keep: int, seed: int = 0, **options) -> genetic.Result:
    """As `topological`, but zero points, which stand for dead channels, are the first to go; its fitness omits them.

    Example:
        >>> cloud = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
        >>> [among_living(cloud, keep, metric="sine", search="farthest").kept.tolist() for keep in (2, 3)]
        [[1, 3], [0, 1, 3]]
    """
    living, dead = np.flatnonzero(points.any(axis=1)), np.flatnonzero(~points.any(axis=1))
    if not len(living) or not len(dead):
        return topological(points, keep, seed, **options)
    found = topological(points[living], min(keep, len(living)), seed, **options)
    return replace(found, kept=np.sort([*living[found.kept], *dead[: max(0, keep - len(living))]]))


SEARCHES = (*genetic.SEARCHES, *COVERS)
"""Names of searches."""

SPACE_METRICS = {"functional": "sine"}
"""Space -> its metric, where that is not the euclidean one."""


def points(
    model: nn.Module, example_inputs: Any, couplings: list[Coupling], space: str = "weights"
) -> list[Float[np.ndarray, "n d"]]:
    """The filters of each coupling as points.

    Args:
        model, example_inputs: as for `topoprune.couplings`.
        couplings: of that network.
        space: "weights" (flattened filters), "folded" (each times gamma / sigma of the BatchNorm that reads it) or
            "activations" (outputs on the example inputs, after that BatchNorm, before the nonlinearity); or
            "functional" (what the next layers read, weighted by what they make of it, see `Responses.points`), whose
            metric is "sine".

    Returns:
        For each coupling (n, d) float32, n its `choices`; all filters that go with a choice lie side by side in d.

    Raises:
        ValueError: an unknown space, or values that are not finite.
    """
    if space == "functional":
        return [channels.points().astype(np.float32) for channels in responses(model, example_inputs, couplings)]
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}: choose from {', '.join(SPACES)}, functional")
    rows = SPACES[space](model, example_inputs)
    clouds = []
    for coupling in couplings:
        if idle := [layer for layer in coupling.layers if layer not in rows]:
            raise ValueError(
                f"{idle[0]} has no activations: the network does not call it in evaluation mode; ignore it, or choose "
                "another space"
            )
        parts = [
            rows[layer][torch.as_tensor(own, device=rows[layer].device)].flatten(1)
            for layer, own in coupling.members.items()
        ]
        cloud = torch.cat(parts, dim=1).float().cpu().numpy()
        if not np.isfinite(cloud).all():
            raise ValueError(
                f"{coupling.layers[0]} has values that are NaN or infinite: the model is damaged or diverged in "
                "training; load a sound checkpoint"
            )
        clouds.append(cloud)
    return clouds


def _weights(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Layer -> (filters, weights of each)."""
    return {name: _filters(module) for name, module in model.named_modules() if isinstance(module, LAYERS)}


def _filters(layer: Any) -> Tensor:
    weight = layer.weight.detach()
    if not getattr(layer, "transposed", False):
        return weight.flatten(1)
    blocks = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)  # (groups, filters of a group, inputs, ...)
    return blocks.flatten(0, 1).flatten(1)


def _folded(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    rows, modules = _weights(model, example_inputs), dict(model.named_modules())
    for layer, name in structure(model, example_inputs, LAYERS, check=False).norms.items():
        norm = modules[name]
        if norm.running_var is not None:
            rows[layer] = rows[layer] / (norm.running_var + norm.eps).sqrt()[:, None]
        if norm.weight is not None:
            rows[layer] = rows[layer] * norm.weight.detach()[:, None]
    return rows


def _activations(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Layer -> (filters, images x positions), divided by the square root of the number of images."""
    norms = structure(model, example_inputs, LAYERS, check=False).norms
    outputs: dict[str, list[Tensor]] = {}
    with eager_copy(model) as (network, prefix), torch.no_grad():
        modules = {prefix + name: module for name, module in network.named_modules()}
        for name in [name for name, module in modules.items() if isinstance(module, LAYERS)]:
            modules[norms.get(name, name)].register_forward_hook(_keep_output(outputs.setdefault(name, [])))
        for inputs in seeded_parts(example_inputs):
            run(network, inputs)
    return {
        name: torch.cat([output.transpose(0, 1).flatten(1) for output in calls], dim=1) / sum(map(len, calls)) ** 0.5
        for name, calls in outputs.items()
        if calls
    }


def _keep_output(outputs: list[Tensor]) -> Callable:
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, LAYERS):
            output = batched(module, output)
        if isinstance(module, nn.Linear):  # channels come last
            output = output.flatten(0, -2)
        elif output.ndim > 2:
            pool: Any = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[output.ndim]
            output = pool(output, [min(ACTIVATION_SIDE, length) for length in output.shape[2:]])
        outputs.append(output.clone())

    return hook


SPACES: dict[str, Callable[[nn.Module, Any], dict[str, Tensor]]] = {
    "weights": _weights,
    "folded": _folded,
    "activations": _activations,
}
