"""Filters as points, and the topological search layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from topoprune.network import Coupling, folded_norm

ACTIVATION_SIDE = 4
"""Activations are averaged to at most this many rows and columns for each image."""


def topological(
    model,
    example_inputs,
    groups: list[Coupling],
    remaining: list[int],
    seed: int,
    *,
    space: str = "weights",
    metric: str = "euclidean",
    pointed: bool = False,
    dimensions: Sequence[int] = (0, 1),
    distance: str = "wasserstein",
    search: str = "genetic",
    engine: str = "fast",
    device: str | None = None,
    checkpoints: Path | None = None,
    **budget,
):
    """Search, layer by layer, the subset whose persistence diagrams are closest to the layer's.

    Args:
        space: what a filter's point is, see `points`.
        metric: "euclidean", "cosine" or "correlation".
        pointed: add the zero filter, which is always kept.
        dimensions: of homology.
        distance: between diagrams: "wasserstein", "bottleneck", "landscape", "betti", "entropy".
        search: "genetic", or a rival with the same budget: "random", "greedy", "farthest".
        engine: "fast" or "reference" (giotto-tda), equal in value.
        device: "cuda" computes the trees of dimension 0 there, see `Fitness`.
        checkpoints: folder in which each layer's search is saved at a generation's end.
        **budget: fields of `genetic.Search` (population, generations, ...).
    """
    from topoprune import genetic
    from topoprune.fitness import Fitness, distance_matrix

    if search not in genetic.SEARCHES:
        raise ValueError(f"unknown search {search!r}: choose from {', '.join(genetic.SEARCHES)}")
    settings = genetic.Search(**budget)
    chosen, histories = [], {}
    clouds = points(model, example_inputs, groups, space)
    for index, (group, cloud, kept) in enumerate(zip(groups, clouds, remaining, strict=True)):
        delta = distance_matrix(cloud, metric, pointed)
        fitness = Fitness(delta, tuple(dimensions), distance, pointed, engine, device)
        result = genetic.SEARCHES[search](
            group.choices,
            kept,
            fitness,
            settings,
            seed=seed * 1000 + index,
            checkpoint=checkpoints / f"search-{index}.json" if checkpoints else None,
            delta=delta,
        )
        chosen.append(result.kept.tolist())
        histories[group.layers[0]] = result.history
    return chosen, histories


def points(
    model: nn.Module, example_inputs: torch.Tensor, groups: list[Coupling], space: str = "weights"
) -> list[Float[np.ndarray, "n d"]]:
    """The filters of each coupling as points.

    Args:
        space: "weights" (flattened filters), "folded" (each times gamma/sigma of the BatchNorm that
            follows it) or "activations" (the channel's outputs on
            `example_inputs`, before the nonlinearity).

    Returns:
        For each coupling (n, d) float32, n its `choices`; coupled layers (and the blocks of a
        grouped convolution) side by side in d.

    Raises:
        ValueError: unknown space, or values that are not finite.
    """
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}: choose from {', '.join(SPACES)}")
    rows = SPACES[space](model, example_inputs)
    clouds = []
    for group in groups:
        parts = [
            rows[layer].reshape(group.blocks, group.choices, -1).transpose(0, 1).flatten(1) for layer in group.layers
        ]
        cloud = torch.cat(parts, dim=1).float().cpu().numpy()
        if not np.isfinite(cloud).all():
            raise ValueError(
                f"{group.layers[0]} has values that are NaN or infinite: the model is "
                "damaged or diverged in training; load a sound checkpoint"
            )
        clouds.append(cloud)
    return clouds


def _weights(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        name: module.weight.detach().flatten(1)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def _folded(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = _weights(model, example_inputs)
    for layer, norm in folded_norm(model, example_inputs).items():
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        rows[layer] = rows[layer] * scale[:, None]
    return rows


def _activations(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Layer -> (filters, images x positions) outputs, after the BatchNorm where one follows."""
    watched = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    watched |= folded_norm(model, example_inputs)
    rows = {}

    def keep(name):
        def hook(module, inputs, output):
            if isinstance(module, nn.Linear):  # channels come last
                output = output.flatten(0, -2)
            else:
                side = [min(ACTIVATION_SIDE, length) for length in output.shape[2:]]
                output = F.adaptive_avg_pool2d(output, side)
            rows[name] = output.detach().transpose(0, 1).flatten(1) / len(output) ** 0.5

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(example_inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return rows


SPACES = {"weights": _weights, "folded": _folded, "activations": _activations}
