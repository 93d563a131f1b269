"""One layer of a dense network in numbers: diagrams, filters in the plane, and the choice of each method."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from topoprune import files, fitness
from topoprune.network import couplings
from topoprune.selection import run_selection
from topoprune.study.choice import baseline_options
from topoprune.study.images import Data
from topoprune.study.networks import trained_on_record
from topoprune.study.trial import Portrait
from topoprune.topological import points


def portray(portrait: Portrait, data: Data, records: tuple[Path, ...]) -> dict:
    """Draw the portrait of a layer.

    Args:
        records: files of `Store`s that may hold the dense network, see `networks.trained_on_record`.

    Returns:
        network: digest of the weights of the dense network.
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
    distances = fitness.distance_matrix(points(model, example, groups)[0])
    kept = {}
    for method in portrait.methods:
        options = portrait.options if method == "topological" else baseline_options(method)
        selection = run_selection(
            model, example, method, portrait.ratio, portrait.dense.seed, layers=(layer,), **options
        )
        kept[method] = selection.kept[layer]
    subsets = {"full": list(range(len(distances))), **kept}
    return {
        "network": files.digest(model.state_dict()),
        "plane": _in_the_plane(distances),
        "kept": kept,
        "diagrams": {name: _diagrams(distances[chosen][:, chosen]) for name, chosen in subsets.items()},
    }


def _in_the_plane(distances: Float[np.ndarray, "n n"]) -> list[list[float]]:
    from sklearn.manifold import MDS

    scaling = MDS(dissimilarity="precomputed", random_state=0, normalized_stress=False)
    return scaling.fit_transform(distances.astype("float64")).round(4).tolist()


def _diagrams(distances: Float[np.ndarray, "n n"]) -> dict[str, list[list[float]]]:
    return {str(dimension): pairs.round(6).tolist() for dimension, pairs in fitness.diagrams(distances).items()}
