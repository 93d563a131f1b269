"""Distances between filters, their persistence, and the topological fitness of a subset.

Knows points and subsets, nothing of networks or pruning. Two engines give the same values:
`reference` is giotto-tda used as its manual says, `fast` is `topoprune.persistence`.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from topoprune import persistence

ENGINES = ("fast", "reference")
BINS = 100  # points at which landscapes and Betti curves are sampled, as in giotto-tda
LAYERS = 5  # landscape functions that are compared


def distance_matrix(
    points: Float[np.ndarray, "n d"], metric: str = "euclidean", pointed: bool = False
) -> Float32[np.ndarray, "m m"]:
    """Pairwise distances of the rows.

    Args:
        points: one row a filter.
        metric: "euclidean", in the unit of the points; "cosine" (1 - cos) or "correlation" (the same
            of centred rows), in [0, 2]. These have no angle to a zero (constant) row: that distance
            is defined as 1, and as 0 between two such rows.
        pointed: append the zero point.

    Returns:
        (m, m), m = n, or n + 1 if pointed.

    Raises:
        ValueError: NaN, infinity, distances beyond float32, or an unknown metric.
    """
    _one_of("metric", metric, METRICS)
    points = np.asarray(points, np.float64)
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
        raise ValueError(
            f"points must be finite, got NaN or infinity in {len(bad)} rows, row {bad[0]} first: "
            "the weights have diverged, train again at a lower rate"
        )
    if pointed:
        points = np.vstack([points, np.zeros((1, points.shape[1]))])
    with np.errstate(over="ignore"):  # an overflow is told below
        delta = METRICS[metric](points).astype(np.float32)
    if not np.isfinite(delta).all():
        raise ValueError("points must have distances below 3e38: scale the weights down")
    np.fill_diagonal(delta, 0)
    return np.maximum(delta, delta.T)


def _euclidean(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    scale = np.abs(points).max(initial=0) or 1.0  # squares neither overflow nor vanish
    points = points / scale
    points = points - points.mean(axis=0)
    squares = np.einsum("nd,nd->n", points, points)
    sums = squares[:, None] + squares
    delta = sums - 2 * points @ points.T
    # the difference above loses the digits of close pairs; those are computed again
    first, second = np.nonzero(np.triu(delta < 1e-6 * sums, 1))
    for part in np.array_split(np.arange(len(first)), len(first) // 4096 + 1):
        i, j = first[part], second[part]
        delta[i, j] = delta[j, i] = ((points[i] - points[j]) ** 2).sum(axis=1)
    return np.sqrt(np.maximum(delta, 0)) * scale


def _cosine(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    size = np.abs(points).max(axis=1, initial=0)
    points = points / np.where(size > 0, size, 1)[:, None]  # squares neither overflow nor vanish
    norm = np.linalg.norm(points, axis=1)
    zero = norm == 0
    unit = points / np.where(zero, 1, norm)[:, None]
    delta = _euclidean(unit) ** 2 / 2  # 1 - cos, with the digits of close pairs
    delta[zero] = 1
    delta[:, zero] = 1
    delta[np.ix_(zero, zero)] = 0
    return delta


def _correlation(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    constant = np.ptp(points, axis=1) == 0  # rounding need not centre these to exact zeros
    points = points / (np.abs(points).max(axis=1, keepdims=True, initial=0) + constant[:, None])
    centred = points - points.mean(axis=1, keepdims=True)
    return _cosine(np.where(constant[:, None], 0, centred))


METRICS = {"euclidean": _euclidean, "cosine": _cosine, "correlation": _correlation}


def diagrams(
    delta: Float[np.ndarray, "n n"], dimensions: Iterable[int] = (0, 1), engine: str = "fast"
) -> dict[int, Float64[np.ndarray, "_ 2"]]:
    """Vietoris-Rips persistence diagrams of a distance matrix.

    Args:
        delta: as `distance_matrix` makes it.
        dimensions: of homology: 0, 1 or both.
        engine: "fast" or "reference" (giotto-tda), equal in value.

    Returns:
        Dimension -> rows (birth, death) in the unit of `delta`, sorted. The one infinite bar of
        dimension 0 and the points that die when they are born are left out.

    Raises:
        ValueError: not a distance matrix, an unknown dimension or engine.
    """
    _one_of("engine", engine, ENGINES)
    delta, dimensions = _checked_delta(delta), _checked_dimensions(dimensions)
    if engine == "reference":
        from topoprune import reference  # giotto-tda takes seconds to import

        found = reference.diagrams(delta, dimensions)
    else:
        edges = persistence.sorted_edges(delta) if 1 in dimensions else None
        found = _bars(delta, edges, np.arange(len(delta)), dimensions)
    return {q: _tidy(rows) for q, rows in found.items()}


def _bars(delta, edges, members, dimensions):
    if 1 in dimensions:
        deaths, loops = persistence.rips_bars(*edges, members, len(delta))
    else:
        deaths, loops = persistence.tree_lengths(delta, members), None
    return {q: loops if q else _born_at_zero(deaths) for q in dimensions}


def _born_at_zero(deaths: Float[np.ndarray, " m"]) -> Float64[np.ndarray, "m 2"]:
    bars = np.zeros((len(deaths), 2))
    bars[:, 1] = deaths
    return bars


def _tidy(rows: Float[np.ndarray, "_ 2"]) -> Float64[np.ndarray, "_ 2"]:
    rows = np.asarray(rows, np.float64)[rows[:, 0] < rows[:, 1]]
    return rows[np.lexsort(rows.T)]


def diagram_distance(
    a: Float[np.ndarray, "_ 2"],
    b: Float[np.ndarray, "_ 2"],
    distance: str = "wasserstein",
    engine: str = "fast",
) -> float:
    """Distance between two persistence diagrams of one dimension.

    Values are exact, but for a relative error of 1e-6 in giotto-tda's Wasserstein distance.

    Args:
        a, b: rows (birth, death).
        distance: "wasserstein", the 1-Wasserstein distance for the ground metric L-infinity, points
            may go to the diagonal; "bottleneck", the largest displacement instead of the sum;
            "landscape" and "betti", the L1 distances of the first 5 landscapes and of the Betti
            curves, sampled at 100 points from the first birth to the last death; "entropy", the
            difference of the persistence entropies in bits.
        engine: as for `diagrams`.

    Raises:
        ValueError: an unknown distance or engine.
    """
    _one_of("distance", distance, DISTANCES)
    _one_of("engine", engine, ENGINES)
    a, b = _tidy(a), _tidy(b)
    if not len(a) and not len(b):
        return 0.0
    if engine == "reference":
        from topoprune import reference

        return reference.distance(a, b, distance)
    return float(DISTANCES[distance](a, b))


def _wasserstein(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    if not a[:, 0].any() and not b[:, 0].any():
        return persistence.line_distance(a[:, 1], b[:, 1])  # rows are sorted
    return persistence.plane_distance(a, b)


def _bottleneck(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    """Smallest t at which all points further than t from the diagonal find partners within t.

    By the theorem of Mendelsohn and Dulmage one matching serves both diagrams if there is one
    for each of them.
    """
    half_a, half_b, costs = np.ptp(a, axis=1) / 2, np.ptp(b, axis=1) / 2, _costs(a, b)
    steps = np.unique(np.concatenate([[0.0], half_a, half_b, costs.ravel()]))

    def covered(within, must):
        found = maximum_bipartite_matching(csr_matrix(within[must]), perm_type="column")
        return (found >= 0).all()

    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        t = steps[middle]
        within = costs <= t
        if covered(within, half_a > t) and covered(within.T, half_b > t):
            high = middle
        else:
            low = middle + 1
    return steps[low]


def _costs(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]):
    return np.abs(a[:, None] - b).max(axis=2)


def _landscape(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    grid = _grid(a, b)

    def layers(rows):
        tents = np.minimum(grid[:, None] - rows[:, 0], rows[:, 1] - grid[:, None]).clip(0)
        tents = np.pad(tents, ((0, 0), (0, LAYERS)))
        return np.sort(tents, axis=1)[:, : -LAYERS - 1 : -1]

    return np.abs(layers(a) - layers(b)).sum() * (grid[1] - grid[0])


def _betti(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    grid = _grid(a, b)

    def curve(rows):
        born, dead = (np.searchsorted(np.sort(x), grid, "right") for x in rows.T)
        return born - dead

    return np.abs(curve(a) - curve(b)).sum() * (grid[1] - grid[0])


def _grid(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]):
    both = np.concatenate([a, b])
    return np.linspace(both.min(), both.max(), BINS)


def _entropy(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    def bits(rows):
        share = np.ptp(rows, axis=1)
        share = share / share.sum()
        return -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum()

    return abs(bits(a) - bits(b))


DISTANCES = {
    "wasserstein": _wasserstein,
    "bottleneck": _bottleneck,
    "landscape": _landscape,
    "betti": _betti,
    "entropy": _entropy,
}


class Fitness:
    """The topological fitness of subsets of a finite metric space; lower is better.

    For a subset S it is the sum over `dimensions` of the distance between the diagrams of
    `delta` and of delta restricted to S, divided by the total persistence of the full diagram
    (the term is 0 if that is 0). A distance that is not a length or a sum of lengths
    (bottleneck, landscape, entropy) is divided by its value for the empty diagram instead, so
    that the terms of both dimensions weigh alike.

    Args:
        delta: (n, n) distances, or (n + 1, n + 1) with `pointed`.
        dimensions: of homology: 0, 1 or both.
        distance: between diagrams, see `diagram_distance`.
        pointed: the last point of `delta` is the base point that every subset keeps.
        engine: "fast" or "reference" (giotto-tda), equal in value.
        device: torch device that computes the trees of a population in one batch, for example
            "cuda"; for the fast engine in dimension 0 alone. None is the CPU, without torch.

    Raises:
        ValueError: not a distance matrix, an unknown option, or options that do not go together.
    """

    def __init__(
        self,
        delta: Float[np.ndarray, "m m"],
        dimensions: Iterable[int] = (0, 1),
        distance: str = "wasserstein",
        pointed: bool = False,
        engine: str = "fast",
        device: str | None = None,
    ):
        _one_of("distance", distance, DISTANCES)
        _one_of("engine", engine, ENGINES)
        if device is not None and (engine != "fast" or tuple(dimensions) != (0,)):
            raise ValueError(
                f"device must be None unless engine is 'fast' and dimensions are (0,), got "
                f"{device!r}: only the trees of dimension 0 are computed on a device"
            )
        self.delta = _checked_delta(delta)
        self.dimensions = _checked_dimensions(dimensions)
        self.distance, self.pointed, self.engine, self.device = distance, pointed, engine, device
        self.size = len(self.delta) - pointed
        if self.size < 1:
            raise ValueError("delta must have a point beside the base point, got shape (1, 1)")
        self.full = diagrams(self.delta, self.dimensions, engine)
        self.scale = {q: _scale(rows, distance) for q, rows in self.full.items()}
        fast_loops = engine == "fast" and 1 in self.dimensions
        self._edges = persistence.sorted_edges(self.delta) if fast_loops else None

    def __call__(self, population: Int[np.ndarray, "p k"]) -> Float64[np.ndarray, " p"]:
        """Fitness of each row of `population`, a set of k distinct indices below n.

        Raises:
            ValueError: an empty row, an index outside the points, or one that is there twice.
        """
        return sum(self.by_dimension(population).values())

    def by_dimension(self, population: Int[np.ndarray, "p k"]) -> dict[int, Float64[np.ndarray, " p"]]:
        """The terms of the fitness apart: dimension -> (p,) values."""
        members = self._members(population)
        terms = {q: np.zeros(len(members)) for q in self.dimensions}
        if self.device is not None:
            return {0: self._from_trees(batched_tree_lengths(self.delta, members, self.device))}
        one_call = self.engine == "fast" and self.distance == "wasserstein"

        def work(part: slice) -> None:
            rows = self._compiled(members[part]) if one_call else map(self._terms, members[part])
            for i, row in enumerate(rows, part.start):
                for q in self.dimensions:
                    terms[q][i] = row[q]

        persistence.in_threads(work, len(members))
        return terms

    def _from_trees(self, lengths: Float[np.ndarray, "p l"]) -> Float64[np.ndarray, " p"]:
        if self.distance == "wasserstein" and self.scale[0] > 0:
            found = persistence.line_distances(self.full[0][:, 1], lengths.astype(np.float64))
            return found / self.scale[0]
        return np.array([self._term(0, _born_at_zero(row)) for row in lengths], np.float64)

    def _compiled(self, members: Int[np.ndarray, "p k"]) -> Float64[np.ndarray, "p dims"]:
        """Columns are dimensions; all of a part in one call that holds no lock."""
        deaths = self.full[0][:, 1] if 0 in self.dimensions else np.empty(0)
        if self.dimensions == (0,):
            found = persistence.tree_distances(self.delta, members, deaths)[:, None]
        else:
            n = len(self.delta)
            found = persistence.rips_distances(*self._edges, n, members, deaths, self.full[1])
        scale = np.array([self.scale.get(q, 0.0) for q in range(found.shape[1])])
        return np.where(scale > 0, found / np.where(scale > 0, scale, 1), 0.0)

    def _terms(self, members: Int[np.ndarray, " k"]) -> dict[int, float]:
        if self.engine == "fast":
            found = _bars(self.delta, self._edges, members, self.dimensions)
        else:
            found = diagrams(self.delta[np.ix_(members, members)], self.dimensions, self.engine)
        return {q: self._term(q, rows) for q, rows in found.items()}

    def _term(self, q: int, rows: Float[np.ndarray, "_ 2"]) -> float:
        if self.scale[q] == 0:
            return 0.0
        return diagram_distance(self.full[q], rows, self.distance, self.engine) / self.scale[q]

    def _members(self, population: Int[np.ndarray, "p k"]) -> Int[np.ndarray, "p m"]:
        members = np.sort(np.asarray(population, np.int64), axis=1)
        if members.shape[1] < 1:
            raise ValueError("individuals must keep at least one point, got none")
        if members.size and (members[:, 0].min() < 0 or members[:, -1].max() >= self.size):
            raise ValueError(
                f"indices must lie in 0 .. {self.size - 1}, got {members[:, 0].min()} .. {members[:, -1].max()}"
            )
        if (members[:, 1:] == members[:, :-1]).any():
            raise ValueError("an individual must be a set, got one that keeps a point twice")
        if self.pointed:
            members = np.pad(members, ((0, 0), (0, 1)), constant_values=self.size)
        return members


def batched_tree_lengths(
    delta: Float32[np.ndarray, "n n"], members: Int[np.ndarray, "p k"], device: str
) -> Float32[np.ndarray, "p l"]:
    """Prim's algorithm for all rows of `members` at once with torch; l = k - 1.

    Memory is O(n^2 + p k): no submatrix is copied.
    """
    import torch

    with torch.inference_mode():
        space = torch.as_tensor(delta, device=device)
        members = torch.as_tensor(members, device=device)
        rows = torch.arange(len(members), device=device)
        current = torch.zeros(len(members), dtype=torch.long, device=device)
        near = torch.full(members.shape, torch.inf, device=device)
        done = torch.zeros(members.shape, dtype=torch.bool, device=device)
        lengths = []
        for _ in range(members.shape[1] - 1):
            done[rows, current] = True
            near = torch.minimum(near, space[members[rows, current][:, None], members])
            shortest, current = near.masked_fill(done, torch.inf).min(dim=1)
            lengths.append(shortest)
        if not lengths:
            return np.empty((len(members), 0), np.float32)
        return torch.stack(lengths, dim=1).cpu().numpy()


def _scale(full: Float64[np.ndarray, "_ 2"], distance: str) -> float:
    if distance in ("wasserstein", "betti"):
        return float(np.ptp(full, axis=1).sum()) if len(full) else 0.0
    return diagram_distance(full, np.empty((0, 2)), distance)


def _checked_delta(delta: Float[np.ndarray, "n n"]) -> Float32[np.ndarray, "n n"]:
    delta = np.ascontiguousarray(delta, np.float32)
    if not np.isfinite(delta).all():
        raise ValueError("delta must be finite, got NaN or infinity: see distance_matrix")
    if len(delta) < 1 or (delta < 0).any() or delta.diagonal().any() or (delta != delta.T).any():
        raise ValueError(
            "delta must be a symmetric distance matrix with a zero diagonal and no negative "
            "entry: make it with distance_matrix"
        )
    return delta


def _checked_dimensions(dimensions: Iterable[int]) -> tuple[int, ...]:
    dimensions = tuple(dimensions)
    if not dimensions or sorted(set(dimensions) & {0, 1}) != sorted(dimensions):
        raise ValueError(f"dimensions must be (0,), (1,) or (0, 1), got {dimensions}")
    return tuple(sorted(dimensions))


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
