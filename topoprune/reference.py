"""The same diagrams and distances by giotto-tda, used as its manual says.

This engine is slow and independent of the compiled kernels; `engine="reference"` selects it.
"""

import numpy as np
from gtda.diagrams import PairwiseDistance, PersistenceEntropy
from gtda.homology import VietorisRipsPersistence
from jaxtyping import Float

HERA_ERROR = 1e-6  # relative error allowed to giotto-tda's Wasserstein distance; 0 is not possible
PARAMETERS = {
    "wasserstein": {"p": 1, "delta": HERA_ERROR},
    "bottleneck": {"delta": 0.0},
    "landscape": {"p": 1, "n_layers": 5},
    "betti": {"p": 1},
}


def diagrams(delta: Float[np.ndarray, "n n"], dimensions: tuple[int, ...]) -> dict[int, Float[np.ndarray, "_ 2"]]:
    """As `fitness.diagrams`, by `VietorisRipsPersistence`."""
    if len(delta) == 1:  # giotto-tda wants two points; one has no finite bar
        return {q: np.empty((0, 2)) for q in dimensions}
    rips = VietorisRipsPersistence(metric="precomputed", homology_dimensions=dimensions)
    (triples,) = rips.fit_transform(delta[None])
    alive = triples[triples[:, 0] < triples[:, 1]]  # the others are padding
    return {q: alive[alive[:, 2] == q, :2] for q in dimensions}


def distance(a: Float[np.ndarray, "_ 2"], b: Float[np.ndarray, "_ 2"], name: str) -> float:
    """As `fitness.diagram_distance` of finite bars, by `PairwiseDistance` or `PersistenceEntropy`."""
    pair = np.zeros((2, max(len(a), len(b)), 3))
    pair[:, :, :2] = np.concatenate([a, b])[:, :1].min()  # both to one length, by points on the diagonal
    pair[0, : len(a), :2], pair[1, : len(b), :2] = a, b
    if name == "entropy":
        bits = PersistenceEntropy(nan_fill_value=0.0).fit_transform(pair)
        return float(abs(bits[0, 0] - bits[1, 0]))
    pairwise = PairwiseDistance(name, metric_params=PARAMETERS[name], order=None)
    # sampled distances take their range from what they are fitted on: both diagrams
    pairwise.fit(pair if name in ("landscape", "betti") else pair[:1])
    return float(pairwise.transform(pair[1:])[0, 0, 0])
