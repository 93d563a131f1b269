"""What a removal did to a network, and how it recovered."""

import itertools

import torch
from torch import nn

from topoprune import fitness
from topoprune.data import Data
from topoprune.network import Kept, couplings
from topoprune.topological import points


def topological_damage(dense: nn.Module, example: torch.Tensor, kept: Kept) -> dict:
    """Layer -> {dimension: distance between the layer's diagrams and those of its kept filters}.

    The distance is the topological fitness in one dimension (euclidean, weights, not pointed),
    whatever the method, so that methods are judged by one measure.
    """

    groups = couplings(dense, example)
    distances = {}
    for group, cloud in zip(groups, points(dense, example, groups), strict=True):
        chosen = torch.tensor(kept[group.layers[0]])
        chosen = chosen[chosen < group.choices].numpy()[None]
        apart = fitness.Fitness(fitness.distance_matrix(cloud)).by_dimension(chosen)
        distances[group.layers[0]] = {str(d): float(value[0]) for d, value in apart.items()}
    return distances


def plain_damage(dense: nn.Module, example: torch.Tensor, kept: Kept) -> dict:
    """Layer -> what simpler measures than topology say of a removal, each a share in [0, 1].

    Returns:
        norm: share of the layer's summed squared weights that is removed.
        rank: share of the effective rank that is lost, the exponential of the entropy of the
            normalised singular values (Roy & Vetterli, EUSIPCO 2007).
    """
    groups = couplings(dense, example)
    lost = {}
    for group, cloud in zip(groups, points(dense, example, groups), strict=True):
        rows = torch.from_numpy(cloud)
        few = rows[[i for i in kept[group.layers[0]] if i < group.choices]]
        lost[group.layers[0]] = {
            "norm": 1 - (few.square().sum() / rows.square().sum()).item(),
            "rank": 1 - _effective_rank(few) / _effective_rank(rows),
        }
    return lost


def _effective_rank(rows: torch.Tensor) -> float:
    values = torch.linalg.svdvals(rows.double())
    return torch.special.entr(values / values.sum()).sum().exp().item()


def live_share(model: nn.Module, data: Data, images: int = 1000) -> list[float]:
    """For each ReLU, the share of its channels whose output varies over test images.

    0 is a collapsed layer: its output is the same for every image.
    """
    shares = []

    def hook(module, inputs, output):
        spread = output.float().flatten(2).std(dim=0).amax(dim=-1)
        shares.append((spread > 0).float().mean().item())

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        model.eval()
        with torch.inference_mode():
            model(data.normalized(data.test.images[:images]))
    finally:
        for handle in handles:
            handle.remove()
    return shares


def recovery(history: list[dict], damage: dict, goal: float) -> dict:
    """Epochs and seconds of fine-tuning until validation accuracy reaches `goal`.

    Returns:
        epochs, seconds: of training until the goal, or of all training where it is never reached.
        reached: False for a censored run.
        area: mean over the epochs, damage included, of the validation accuracy (trapezoids).
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
