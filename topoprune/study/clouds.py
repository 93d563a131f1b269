"""The layers of a network as clouds of points: how far apart the points are, in weight space and in the functional."""

from pathlib import Path

import numpy as np
from scipy.spatial.distance import squareform

from topoprune import files
from topoprune.cover import covering_radius, merge_tree, replacement_costs
from topoprune.fitness import diagrams, distance_matrix
from topoprune.network import couplings
from topoprune.study.choice import FUNCTIONAL_IMAGES
from topoprune.study.images import Data
from topoprune.study.networks import trained_on_record
from topoprune.study.trial import Clouds
from topoprune.topological import SPACE_METRICS, points, topological

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Of the distances of a layer."""

SPACES = ("weights", "functional")


def describe_clouds(clouds: Clouds, data: Data, records: tuple[Path, ...]) -> dict:
    """Describe every layer of a dense network in both spaces.

    Returns:
        network: digest of its weights.
        quantiles: the orders of the quantiles.
        layers: layer -> space -> "distances": quantiles; "radius" of a cover at the ratio; and for one layer the
            barcodes: "h0" deaths, "h1" births and deaths, "merges": heights of the merge tree, as shares of the cost
            of a single cluster.
    """
    dense, _ = trained_on_record(clouds.dense, data, records)
    images = data.example(FUNCTIONAL_IMAGES)
    groups = couplings(dense, images, check=False)
    layers: dict[str, dict] = {group.layers[0]: {} for group in groups}
    for space in SPACES:
        metric = SPACE_METRICS.get(space, "euclidean")
        for group, cloud in zip(groups, points(dense, images, groups, space), strict=True):
            layer = group.layers[0]
            delta = distance_matrix(cloud, metric).astype(float)
            layers[layer][space] = _spread(cloud, delta, metric, clouds.ratio)
            if layer == clouds.layer:
                layers[layer][space] |= _barcodes(cloud, delta, metric)
    return {"network": files.digest(dense.state_dict()), "quantiles": list(QUANTILES), "layers": layers}


def _spread(cloud: np.ndarray, delta: np.ndarray, metric: str, ratio: float) -> dict:
    kept = topological(cloud, len(cloud) - int(len(cloud) * ratio), metric=metric, search="cover").kept
    return {
        "distances": _rounded(np.quantile(squareform(delta, checks=False), QUANTILES)),
        "radius": _rounded([covering_radius(delta, kept)])[0],
    }


def _barcodes(cloud: np.ndarray, delta: np.ndarray, metric: str) -> dict:
    found = diagrams(delta)
    heights = merge_tree(replacement_costs(cloud, delta, metric)).heights
    return {
        "h0": _rounded(found[0][:, 1]),
        "h1": [_rounded(pair) for pair in found[1]],
        "merges": _rounded(heights / (heights.sum() or 1)),
    }


def _rounded(values) -> list[float]:
    return [float(f"{value:.4g}") for value in np.asarray(values)]
