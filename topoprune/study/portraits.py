"""One layer of a dense network in numbers: diagrams, filters in the plane, and the choice of each method."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import nn

from topoprune import files, fitness
from topoprune.network import couplings
from topoprune.selection import is_functional, run_selection
from topoprune.study.choice import FUNCTIONAL_IMAGES, baseline_options
from topoprune.study.images import Data
from topoprune.study.networks import trained_on_record
from topoprune.study.profiles import method_and_options
from topoprune.study.trial import Portrait
from topoprune.topological import points


def portray(portrait: Portrait, data: Data, records: tuple[Path, ...]) -> dict:
    """Draw the portrait of a layer.

    Args:
        records: files of `Store`s that may hold the dense network, see `networks.trained_on_record`.

    Returns:
        network: digest of the weights of the dense network.
        norms: (n,) euclidean norms of the filters.
        plane: (n, 2) coordinates of the filters, by multidimensional scaling of their distances.
        kept: method -> indices of the kept filters.
        diagrams: "full" or method -> {dimension: (p, 2) births and deaths}.

    Raises:
        ValueError: the network has no such layer.
    """
    model, _ = trained_on_record(portrait.dense, data, records)
    example, layer = data.example(), portrait.layer
    prunable = couplings(model, example)
    groups = [group for group in prunable if layer in group.layers]
    if not groups:
        known = ", ".join(group.layers[0] for group in prunable)
        raise ValueError(f"unknown layer {layer!r}: the prunable layers are {known}")
    cloud = points(model, example, groups)[0]
    distances = fitness.distance_matrix(cloud)
    kept = {name: _kept(portrait, name, model, data) for name in portrait.methods}
    subsets = {"full": list(range(len(distances))), **kept}
    return {
        "network": files.digest(model.state_dict()),
        "norms": np.linalg.norm(cloud.astype("float64"), axis=1).round(4).tolist(),
        "plane": _in_the_plane(distances),
        "kept": kept,
        "diagrams": {name: _diagrams(distances[chosen][:, chosen]) for name, chosen in subsets.items()},
    }


def _kept(portrait: Portrait, name: str, model: nn.Module, data: Data) -> list[int]:
    """The filters of the layer that a variant keeps."""
    method, options = method_and_options(name, portrait.options)
    example = data.example(FUNCTIONAL_IMAGES) if is_functional(method, options) else data.example()
    return run_selection(
        model,
        example,
        method,
        portrait.ratio,
        portrait.dense.seed,
        layers=(portrait.layer,),
        **baseline_options(method),
        **options,
    ).kept[portrait.layer]


def _in_the_plane(distances: Float[np.ndarray, "n n"]) -> list[list[float]]:
    from sklearn.manifold import MDS

    scaling = MDS(dissimilarity="precomputed", random_state=0, normalized_stress=False)
    return scaling.fit_transform(distances.astype("float64")).round(4).tolist()


def _diagrams(distances: Float[np.ndarray, "n n"]) -> dict[str, list[list[float]]]:
    return {str(dimension): pairs.round(6).tolist() for dimension, pairs in fitness.diagrams(distances).items()}
