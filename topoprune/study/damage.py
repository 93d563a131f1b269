"""What a removal did to a network, and how the network recovered."""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from topoprune import fitness
from topoprune.data import Data
from topoprune.network import Kept, couplings
from topoprune.topological import points


def topological_damage(dense: nn.Module, example: Tensor, kept: Kept) -> dict[str, dict[str, float]]:
    """Distance between the diagrams of each layer and those of its kept filters, by dimension.

    The distance is the topological fitness of one dimension (euclidean, weights, not pointed). It is the
    same for every method, so that one measure judges them all.

    Returns:
        layer -> {dimension: distance}
    """
    distances = {}
    for layer, filters, chosen in _layers(dense, example, kept):
        by_dimension = fitness.Fitness(fitness.distance_matrix(filters.numpy())).by_dimension(chosen.numpy()[None])
        distances[layer] = {str(dimension): float(value[0]) for dimension, value in by_dimension.items()}
    return distances


def plain_damage(dense: nn.Module, example: Tensor, kept: Kept) -> dict[str, dict[str, float]]:
    """What each layer loses by measures simpler than topology, as shares in [0, 1].

    Returns:
        layer -> {"norm": share of the summed squared weights, "rank": share of the effective rank}
    """
    lost = {}
    for layer, filters, chosen in _layers(dense, example, kept):
        lost[layer] = {
            "norm": _lost_share(filters.square().sum().item(), filters[chosen].square().sum().item()),
            "rank": _lost_share(effective_rank(filters), effective_rank(filters[chosen])),
        }
    return lost


def effective_rank(matrix: Float[Tensor, "n d"]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli, EUSIPCO 2007); 0 for zeros.

    >>> round(effective_rank(torch.eye(3)), 6)
    3.0
    >>> effective_rank(torch.zeros(3, 3))
    0.0
    """
    values = torch.linalg.svdvals(matrix.double())
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total > 0 else 0.0


def live_share(model: nn.Module, data: Data, images: int = 1000) -> list[float]:
    """Share of the channels of each ReLU whose output varies over test images; 0 for a collapsed layer."""
    shares = []

    def note_share(module, inputs, output):
        spread = output.float().flatten(2).std(dim=0).amax(dim=-1)
        shares.append((spread > 0).float().mean().item())

    hooks = [module.register_forward_hook(note_share) for module in model.modules() if isinstance(module, nn.ReLU)]
    try:
        model.eval()
        with torch.inference_mode():
            model(data.normalized(data.test.images[:images]))
    finally:
        for hook in hooks:
            hook.remove()
    return shares


def recovery(history: list[dict], damage: dict, goal: float) -> dict:
    """Epochs and seconds of fine-tuning until the validation accuracy reaches `goal`.

    Args:
        history: one dict an epoch, with "validation" in [0, 1] and "seconds".
        damage: "validation" before the first epoch.
        goal: validation accuracy in [0, 1].

    Returns:
        reached: False for a censored run, whose epochs and seconds are those of all its training.
        epochs, seconds: until the goal.
        area: mean validation accuracy over the epochs, the damage included (trapezoids).

    >>> recovery([{"validation": 0.9, "seconds": 2.0}], {"validation": 0.5}, goal=0.8)
    {'goal': 0.8, 'reached': True, 'epochs': 1, 'seconds': 2.0, 'area': 0.7}
    """
    curve = [damage["validation"], *(epoch["validation"] for epoch in history)]
    epochs = next((i for i, value in enumerate(curve) if value >= goal), None)
    spent = len(history) if epochs is None else epochs
    steps = [(a + b) / 2 for a, b in itertools.pairwise(curve)]
    return {
        "goal": goal,
        "reached": epochs is not None,
        "epochs": spent,
        "seconds": sum(epoch["seconds"] for epoch in history[:spent]),
        "area": sum(steps) / len(steps) if steps else curve[0],
    }


def _layers(dense: nn.Module, example: Tensor, kept: Kept) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, filters (n, d) and indices of the kept filters of each coupling."""
    groups = couplings(dense, example)
    for group, cloud in zip(groups, points(dense, example, groups), strict=True):
        layer = group.layers[0]
        yield layer, torch.from_numpy(cloud), torch.tensor(group.positions(kept))


def _lost_share(whole: float, left: float) -> float:
    """The share of `whole` that is gone; nothing is gone of nothing."""
    return 1 - left / whole if whole else 0.0
