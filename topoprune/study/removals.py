"""What a choice of filters costs before fine-tuning, plain and refitted, and how well it covers the layers."""

import time
from pathlib import Path

import numpy as np
from torch import nn

from topoprune import files
from topoprune.compensation import MODES
from topoprune.coupling import Kept
from topoprune.cover import covering_radius, replacement_costs
from topoprune.fitness import distance_matrix
from topoprune.functional import responses
from topoprune.network import couplings, remove
from topoprune.study.choice import FUNCTIONAL_IMAGES, choose
from topoprune.study.damage import damage_by_layer
from topoprune.study.images import CALIBRATION, Data
from topoprune.study.networks import trained_on_record
from topoprune.study.trial import Removal
from topoprune.training import accuracy, recalibrate

MENDING_IMAGES = 1536
"""Training images on which the next layers are refitted."""


def run_removal(removal: Removal, data: Data, records: tuple[Path, ...]) -> dict:
    """Choose filters, remove them, refit the next layers in each way, and measure what is left.

    Args:
        records: files of `Store`s that may hold the dense network, see `networks.trained_on_record`.

    Returns:
        network: digest of the weights of the dense network.
        accuracy: "none" or a mode of compensation -> validation and test accuracy in [0, 1], and the seconds of
            removing and refitting.
        layers: layer -> radius, cost and others, see `losses_by_layer`.
        selection_seconds: that choosing took.
    """
    dense, _ = trained_on_record(removal.dense, data, records)
    example, images = data.example(), data.example(MENDING_IMAGES)
    selection = choose(removal, dense, data)
    left = {}
    for mode in ("none", *MODES):
        started = time.perf_counter()
        if mode == "none":
            small = remove(dense, example, selection.kept, check=False)
        else:
            small = remove(dense, example, selection.kept, check=False, compensate=images, compensation=mode)
        recalibrate(small, data.train.batches(CALIBRATION))
        seconds = time.perf_counter() - started
        left[mode] = {
            "validation": accuracy(small, data.validation.batches()),
            "test": accuracy(small, data.test.batches()),
            "seconds": round(seconds, 2),
        }
    return {
        "network": files.digest(dense.state_dict()),
        "accuracy": left,
        "layers": losses_by_layer(dense, data, selection.kept),
        "selection_seconds": selection.seconds,
    }


def losses_by_layer(dense: nn.Module, data: Data, kept: Kept) -> dict[str, dict[str, float]]:
    """How much of each layer a choice loses, in weight space and in what the channels compute.

    Returns:
        layer -> radius: covering radius in the functional space, of the channels that carry mass, in [0, 1];
            cost: share of the mass that is lost if the nearest kept channel stands for each, in [0, 1];
            norm, rank: see `damage.lost_shares`; weights: see `damage.topological_distances`, summed over dimensions.
    """
    example = data.example()
    groups = [group for group in couplings(dense, example, check=False) if group.layers[0] in kept]
    plain = damage_by_layer(dense, example, kept)
    found = {}
    for group, channels in zip(groups, responses(dense, data.example(FUNCTIONAL_IMAGES), groups), strict=True):
        layer, chosen = group.layers[0], np.array(group.positions(kept))
        found[layer] = {
            **functional_losses(channels.points(), chosen),
            **plain["plain"][layer],
            "weights": sum(plain["topological"][layer].values()),
        }
    return {layer: {name: float(f"{value:.5g}") for name, value in losses.items()} for layer, losses in found.items()}


def functional_losses(points: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Covering radius and lost share of the mass, of the kept points of a functional cloud.

    Example:
        >>> functional_losses(np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([0]))["radius"]
        1.0
    """
    delta = distance_matrix(points, "sine").astype(float)
    live = np.flatnonzero(points.any(axis=1))
    kept = np.flatnonzero(np.isin(live, chosen))
    costs = replacement_costs(points, delta, "sine")
    mass = float((points**2).sum())
    radius = covering_radius(delta[np.ix_(live, live)], kept) if len(kept) else float(len(live) > 0)
    return {"radius": radius, "cost": float(costs[:, chosen].min(axis=1).sum()) / mass if mass else 0.0}
