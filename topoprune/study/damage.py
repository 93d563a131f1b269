"""What a removal did to a network, and how the network recovered."""

import itertools

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from topoprune import fitness
from topoprune.coupling import Kept
from topoprune.network import couplings
from topoprune.study.images import Data
from topoprune.topological import points

ROUNDING = 1e-9
"""By which an accuracy may miss a goal: a difference of two shares is not exact."""


def damage_by_layer(dense: nn.Module, example: Tensor, kept: Kept) -> dict[str, dict[str, dict[str, float]]]:
    """What each layer of a network loses by a removal.

    Args:
        dense: the network before the removal.
        example: a batch that it accepts.
        kept: see `selection.select`.

    Returns:
        topological: layer -> {dimension: distance between the diagrams of the layer and of its kept filters}. That is
            the topological fitness of one dimension (euclidean, weights, not pointed), the same for every method.
        plain: layer -> {"norm": lost share of the summed squared weights, "rank": lost share of the effective rank}.
    """
    topological, plain = {}, {}
    groups = [group for group in couplings(dense, example, check=False) if group.layers[0] in kept]
    for group, cloud in zip(groups, points(dense, example, groups), strict=True):
        chosen = np.array(group.positions(kept))
        topological[group.layers[0]] = topological_distances(cloud, chosen)
        plain[group.layers[0]] = lost_shares(cloud, chosen)
    return {"topological": topological, "plain": plain}


def topological_distances(filters: Float[np.ndarray, "n d"], kept: Int[np.ndarray, " k"]) -> dict[str, float]:
    """Distance between the diagrams of all filters and of the kept ones, by dimension."""
    by_dimension = fitness.Fitness(fitness.distance_matrix(filters)).by_dimension(kept[None])
    return {str(dimension): float(value[0]) for dimension, value in by_dimension.items()}


def lost_shares(filters: Float[np.ndarray, "n d"], kept: Int[np.ndarray, " k"]) -> dict[str, float]:
    """Shares in [0, 1] of the summed squared weights and of the effective rank that go with the other filters.

    Example:
        >>> shares = lost_shares(np.eye(4, dtype=np.float32), np.array([0, 1, 2]))
        >>> {name: round(share, 6) for name, share in shares.items()}
        {'norm': 0.25, 'rank': 0.25}
    """
    rows = torch.from_numpy(filters)
    few = rows[kept]
    return {
        "norm": _lost_share(rows.square().sum().item(), few.square().sum().item()),
        "rank": _lost_share(effective_rank(rows), effective_rank(few)),
    }


def effective_rank(matrix: Float[Tensor, "n d"]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli, EUSIPCO 2007); 0 for zeros.

    Example:
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
            model(data.test.normalized(data.test.images[:images]))
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

    Example:
        >>> recovery([{"validation": 0.9, "seconds": 2.0}], {"validation": 0.5}, goal=0.8)
        {'goal': 0.8, 'reached': True, 'epochs': 1, 'seconds': 2.0, 'area': 0.7}
    """
    curve = [damage["validation"], *(epoch["validation"] for epoch in history)]
    epochs = next((i for i, value in enumerate(curve) if value >= goal - ROUNDING), None)
    spent = len(history) if epochs is None else epochs
    steps = [(a + b) / 2 for a, b in itertools.pairwise(curve)]
    return {
        "goal": goal,
        "reached": epochs is not None,
        "epochs": spent,
        "seconds": sum(epoch["seconds"] for epoch in history[:spent]),
        "area": sum(steps) / len(steps) if steps else curve[0],
    }


def _lost_share(whole: float, left: float) -> float:
    """The share of `whole` that is gone; nothing is gone of nothing."""
    return 1 - left / whole if whole else 0.0
