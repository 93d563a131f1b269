"""Choose points that stand for all others: a cover and a merge tree, and how well they cover.

A subset whose covering radius is small has persistence diagrams close to those of all points, in every dimension
(`covering_radius`). The converse does not hold: diagrams can be close although the subset covers nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike

from topoprune.fitness import as_array, checked_delta
from topoprune.genetic import Result, check_number


def covering_radius(delta: ArrayLike, kept: ArrayLike | Sequence[int]) -> float:
    """Largest distance of a point to its nearest kept point: the Hausdorff distance of the subset and the whole.

    It is a certificate. In every dimension, the bottleneck distance between the Vietoris-Rips diagrams of all points
    and of the kept ones is at most twice the radius: that distance is at most twice the Gromov-Hausdorff distance
    (Chazal, de Silva and Oudot, "Persistence stability for geometric complexes", Geometriae Dedicata 2014,
    Theorem 5.2), which is at most the Hausdorff distance. Bars begin and end at diameters here, as in the theorem.

    Args:
        delta: (n, n) distances; they must be a metric, as "euclidean" and "sine" are.
        kept: (k,) indices of the kept points.

    Raises:
        ValueError: not a distance matrix, no kept point, or one outside 0 .. n - 1.

    Example:
        >>> delta = np.abs(np.subtract.outer(np.arange(5), np.arange(5))).astype(float)
        >>> covering_radius(delta, [1, 3])
        1.0
    """
    n = len(checked_delta(delta))
    kept = as_array("kept", kept, "integers of shape (k,), at least one point", lambda s: len(s) == 1 and s[0], "iu")
    if kept.min() < 0 or kept.max() >= n:
        raise ValueError(f"kept must lie in 0 .. {n - 1}, got {kept.min()} .. {kept.max()}: they are indices of points")
    return float(np.asarray(delta)[:, kept].min(axis=1).max())


def replacement_costs(points: Float[np.ndarray, "n d"], delta: Float[np.ndarray, "n n"], metric: str) -> np.ndarray:
    """(n, n) what it costs to let point j stand for point i.

    For the metric "sine" it is the squared distance of i from the line that j spans, |i|^2 sin^2: what is left of
    channel i when channel j takes its place, scaled as well as can be. For others it is the squared distance.
    """
    squares = delta.astype(np.float64) ** 2
    if metric == "sine":
        return squares * (points.astype(np.float64) ** 2).sum(1)[:, None]
    return squares


@dataclass(frozen=True)
class MergeTree:
    """A hierarchy of clusters, each represented by its medoid, see `merge_tree`.

    Attributes:
        heights: (n - 1,) growth of the cost at each merge, in the order of the merges: the barcode of the tree.
        kept: the medoids of the clusters that were left.
    """

    heights: Float[np.ndarray, " m"]
    kept: list[int]


def merge_tree(costs: ArrayLike, keep: int = 1) -> MergeTree:
    """Merge clusters until `keep` are left, always the two whose joint cost grows least.

    The cost of a cluster is min over its members j of the sum over its members i of `costs[i, j]`; that j is its
    medoid. Ward's agglomeration with medoids for means.

    Args:
        costs: (n, n) of `replacement_costs`.
        keep: number of clusters at the end.

    Raises:
        ValueError: costs that are not square, finite and at least 0, or keep outside 1 .. n.

    Example:
        >>> line = np.array([0.0, 1.0, 10.0, 12.0])
        >>> tree = merge_tree(np.subtract.outer(line, line) ** 2, keep=2)
        >>> tree.kept, tree.heights.tolist()
        ([0, 2], [1.0, 4.0])
    """
    sums = _checked_costs(costs)  # row A: for each j the cost of cluster A if j stands for it
    n = len(sums)
    check_number("keep", keep, 1, n)
    members = np.eye(n, dtype=bool)
    own = np.zeros(n)
    growth = np.minimum(sums, sums.T)
    np.fill_diagonal(growth, np.inf)
    active, heights = np.ones(n, bool), []
    for _ in range(n - keep):
        a, b = np.unravel_index(growth.argmin(), growth.shape)
        heights.append(growth[a, b])
        sums[a] += sums[b]
        members[a] |= members[b]
        own[a] = sums[a, members[a]].min()
        active[b] = False
        growth[b] = growth[:, b] = np.inf
        others = np.flatnonzero(active & (np.arange(n) != a))
        joint = np.where(members[a] | members[others], sums[a] + sums[others], np.inf).min(axis=1, initial=np.inf)
        growth[a, others] = growth[others, a] = joint - own[a] - own[others]
    kept = [np.flatnonzero(members[c])[sums[c, members[c]].argmin()] for c in np.flatnonzero(active)]
    return MergeTree(np.array(heights), sorted(int(medoid) for medoid in kept))


def _checked_costs(costs: ArrayLike) -> Float64[np.ndarray, "n n"]:
    """A copy of the costs."""
    what = "a square matrix of costs between at least one point"
    costs = as_array("costs", costs, what, lambda s: len(s) == 2 and s[0] == s[1] > 0).astype(np.float64)
    if len(wrong := np.argwhere(~((costs >= 0) & (costs < np.inf)))):  # NaN is wrong, too
        i, j = wrong[0]
        raise ValueError(f"costs must be finite and at least 0, got {costs[i, j]} at [{i}, {j}]: use replacement_costs")
    return costs


def cover(costs: ArrayLike, keep: int) -> list[int]:
    """The points that stand for all at the least total cost: k-medoids, by greedy start and best swaps.

    No swap of a kept and a removed point makes the result better: PAM (Kaufman and Rousseeuw, "Finding
    Groups in Data", 1990), with the sums of FastPAM (Schubert and Rousseeuw, SISAP 2019).

    Args:
        costs: (n, n) of `replacement_costs`.
        keep: number of points.

    Returns:
        Sorted indices.

    Raises:
        ValueError: costs that are not square, finite and at least 0, or keep outside 1 .. n.

    Example:
        >>> line = np.array([0.0, 1.0, 2.0, 10.0, 12.0])
        >>> cover(np.subtract.outer(line, line) ** 2, keep=2)
        [1, 3]
    """
    costs = _checked_costs(costs)
    n = len(costs)
    check_number("keep", keep, 1, n)
    kept = _greedy_medoids(costs, keep)
    while keep < n:
        to_kept = costs[:, kept]
        order = np.argsort(to_kept, axis=1, kind="stable")
        first = np.take_along_axis(to_kept, order[:, :1], 1)
        second = np.take_along_axis(to_kept, order[:, 1:2], 1) if keep > 1 else np.full((n, 1), np.inf)
        gain = np.minimum(costs - first, 0)  # of point i if candidate j joins
        loss = np.minimum(costs, second) - first - gain  # more, if the medoid of i leaves for j
        nearest = np.zeros((n, keep))
        nearest[np.arange(n), order[:, 0]] = 1
        change = gain.sum(0)[:, None] + loss.T @ nearest  # (candidates, medoids)
        change[kept] = np.inf
        candidate, medoid = np.unravel_index(change.argmin(), change.shape)
        if change[candidate, medoid] >= -1e-12 * costs.max():
            break
        kept[medoid] = int(candidate)
    return sorted(kept)


def _greedy_medoids(costs: Float[np.ndarray, "n n"], keep: int) -> list[int]:
    """Add the point that lowers the total cost most, again and again."""
    kept: list[int] = []
    nearest = np.full((len(costs), 1), costs.max(initial=0) + 1)
    for _ in range(keep):
        total = np.minimum(costs, nearest).sum(0)
        total[kept] = np.inf
        kept.append(int(total.argmin()))
        nearest = np.minimum(nearest, costs[:, kept[-1:]])
    return kept


COVERS = {"cover": cover, "merge": lambda costs, keep: merge_tree(costs, keep).kept}
"""Searches that need costs instead of a fitness: (costs, keep) -> sorted indices."""


def covered(search: str, points: np.ndarray, delta: np.ndarray, metric: str, keep: int) -> Result:
    """The outcome of one of `COVERS`, in the form of the other searches; its fitness is the cost of the choice."""
    started = time.perf_counter()
    costs = replacement_costs(points, delta, metric)
    kept = COVERS[search](costs, keep)
    total = float(costs[:, kept].min(axis=1).sum())
    row = {"generation": 0, "best": total, "evaluations": 1, "seconds": time.perf_counter() - started}
    return Result(np.array(kept), total, [row])
