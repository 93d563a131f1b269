"""Distances between filters, their persistence diagrams, and the topological fitness of a subset.

This module knows points and subsets, nothing of networks. Two engines give the same values: "fast" is
`topoprune.persistence`, "reference" is giotto-tda in `topoprune.reference`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist, pdist, squareform

from topoprune import persistence

ENGINES = ("fast", "reference")
SAMPLES = 100  # points at which landscapes and Betti curves are sampled, as in giotto-tda
LANDSCAPES = 5  # landscape functions that are compared


def distance_matrix(points: ArrayLike, metric: str = "euclidean", pointed: bool = False) -> Float32[np.ndarray, "m m"]:
    """Pairwise distances of the rows.

    Args:
        points: (n, d) numbers, one row a filter.
        metric: "euclidean", in the unit of the points; "cosine" (1 - cos) or "correlation" (the same of centred rows),
            in [0, 2]; or "sine", of the angle between the lines that two rows span, in [0, 1]. A zero (constant) row
            has no angle: its distance is 1 to other rows, 0 to another such row.
        pointed: append the zero point.

    Returns:
        (m, m) with m = n, or n + 1 if pointed.

    Raises:
        ValueError: wrong shape, NaN, infinity, distances that float32 does not hold, or an unknown metric.

    >>> distance_matrix([[0, 0], [3, 4]], pointed=True)
    array([[0., 5., 0.],
           [5., 0., 5.],
           [0., 5., 0.]], dtype=float32)
    """
    _check_choice("metric", metric, METRICS)
    points = as_array("points", points, "numbers of shape (n, d), one row a filter", lambda s: len(s) == 2 and min(s))
    points = points.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ValueError(
            f"points must be finite, got NaN or infinity in {len(bad)} rows, row {bad[0]} first: "
            "the weights have diverged, train again at a lower rate"
        )
    if pointed:
        points = np.vstack([points, np.zeros_like(points[:1])])
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused
        return checked_delta(np.minimum(METRICS[metric](points), np.finfo(np.float64).max))


def _euclidean(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    scale = np.abs(points).max() or 1.0  # squares neither overflow nor vanish
    return squareform(pdist(points / scale)) * scale


def _cosine(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    units = _units(points)
    return _without_angle(units, _euclidean(units) ** 2 / 2)  # 1 - cos, with the digits of close pairs


def _units(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Rows of norm 1; zero rows stay zero."""
    zero = ~points.any(axis=1, keepdims=True)
    rows = points / (np.abs(points).max(axis=1, keepdims=True) + zero)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + zero)


def _without_angle(units: Float64[np.ndarray, "n d"], delta: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n n"]:
    """The distances, with those of zero rows set, and angles that are rounding alone set to 0."""
    delta[delta < 1e-30] = 0
    zero = ~units.any(axis=1)
    delta[zero] = delta[:, zero] = 1
    delta[np.ix_(zero, zero)] = 0
    return delta


def _correlation(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    constant = points.min(axis=1) == points.max(axis=1)  # the mean of a constant row may be rounded
    rows = points / (np.abs(points).max(axis=1, keepdims=True) + constant[:, None])
    return _cosine(np.where(constant[:, None], 0, rows - rows.mean(axis=1, keepdims=True)))


def _sine(points: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    units = _units(points)
    chord = np.minimum(_euclidean(units), cdist(units, -units))  # of the two lines, with the digits of close pairs
    return _without_angle(units, chord * np.sqrt(1 - chord**2 / 4))


METRICS = {"euclidean": _euclidean, "cosine": _cosine, "correlation": _correlation, "sine": _sine}


def diagrams(
    delta: ArrayLike, dimensions: Iterable[int] = (0, 1), engine: str = "fast"
) -> dict[int, Float64[np.ndarray, "_ 2"]]:
    """Persistence diagrams of the Vietoris-Rips filtration of a distance matrix.

    Args:
        delta: (n, n) distances, symmetric with a zero diagonal; the triangle inequality may fail. Computed in float32.
        dimensions: of homology: 0, 1 or both.
        engine: "fast" or "reference" (giotto-tda), equal in value.

    Returns:
        Dimension -> rows (birth, death) in the unit of `delta`, sorted by death. The infinite bar of dimension 0 and
        bars of length 0 are left out.

    Raises:
        ValueError: not a distance matrix, an unknown dimension or engine.

    >>> diagrams([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]])[1]  # a cycle of four points
    array([[1., 2.]])
    """
    _check_choice("engine", engine, ENGINES)
    delta, dimensions = checked_delta(delta), _checked_dimensions(dimensions)
    edges = persistence.sorted_edges(delta) if 1 in dimensions else None
    found = _bars(delta, edges, np.arange(len(delta)), dimensions, engine)
    return {q: _without_diagonal(rows) for q, rows in found.items()}


def _bars(delta, edges, members, dimensions, engine):
    """Bars of a subset by dimension, some of length 0."""
    if engine == "reference":
        return _reference().diagrams(delta[np.ix_(members, members)], dimensions)
    if edges is None:
        return {0: persistence.tree_bars(delta, members)}
    found = persistence.rips_bars(*edges, members, len(delta))
    return {q: found[q] for q in dimensions}


def _without_diagonal(rows: Float[np.ndarray, "_ 2"]) -> Float64[np.ndarray, "_ 2"]:
    """Bars of a length above 0, sorted by death, then birth."""
    rows = np.asarray(rows, np.float64)[rows[:, 0] < rows[:, 1]]
    return rows[np.lexsort(rows.T)]


def diagram_distance(a: ArrayLike, b: ArrayLike, distance: str = "wasserstein", engine: str = "fast") -> float:
    """Distance between two persistence diagrams of one dimension.

    Args:
        a, b: (n, 2) and (m, 2), rows (birth, death). "wasserstein" and "bottleneck" match infinite bars with each
            other by their finite ends, as GUDHI does; different numbers of them are infinitely far apart.
        distance: "wasserstein", the 1-Wasserstein distance for the ground metric L-infinity, where points may go to
            the diagonal; "bottleneck", the largest displacement instead of the sum; "landscape" and "betti", the L1
            distances of the first 5 landscapes and of the Betti curves, sampled at 100 points from the first birth to
            the last death; "entropy", the difference of the persistence entropies in bits.
        engine: "fast" is exact; "reference" has a relative error of 1e-6 in the Wasserstein distance.

    Raises:
        ValueError: wrong shape, NaN, a death before its birth, an infinite bar where it has no meaning, an unknown
            distance or engine.

    >>> diagram_distance([[0, 4], [1, 2]], [[0, 3]])  # 4 moves to 3, and (1, 2) to the diagonal
    1.5
    """
    _check_choice("distance", distance, DISTANCES)
    _check_choice("engine", engine, ENGINES)
    bars = _checked_bars("a", a), _checked_bars("b", b)
    moves = _moves_of_infinite_bars(*bars)
    if len(moves) and distance not in ("wasserstein", "bottleneck"):
        raise ValueError(f"bars must be finite for the {distance} distance, got an infinite one: leave it out")
    finite_a, finite_b = (rows[np.isfinite(rows).all(axis=1)] for rows in bars)
    if not len(finite_a) and not len(finite_b):
        value = 0.0
    elif engine == "reference":
        value = _reference().distance(finite_a, finite_b, distance)
    else:
        value = DISTANCES[distance](finite_a, finite_b)
    return float(max(value, moves.max(initial=0)) if distance == "bottleneck" else value + moves.sum())


def _moves_of_infinite_bars(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> Float64[np.ndarray, " p"]:
    """Distances of the infinite bars from their partners; in sorted rows those of one kind stand side by side."""
    a, b = (rows[np.isinf(rows).any(axis=1)] for rows in (a, b))
    if len(a) != len(b) or (np.isinf(a) != np.isinf(b)).any():
        return np.array([np.inf])
    return np.abs(np.where(np.isinf(a), 0, a) - np.where(np.isinf(b), 0, b)).sum(axis=1)


def _bottleneck(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    """Smallest t at which all points farther than t from the diagonal find partners within t.

    By the theorem of Mendelsohn and Dulmage one matching serves both diagrams if there is one for each of them.
    """
    half_a, half_b = np.ptp(a, axis=1) / 2, np.ptp(b, axis=1) / 2
    costs = np.abs(a[:, None] - b).max(axis=2)

    def all_matched(within):
        return (maximum_bipartite_matching(csr_matrix(within), perm_type="column") >= 0).all()

    def suffices(t):
        return all_matched((costs <= t)[half_a > t]) and all_matched((costs <= t).T[half_b > t])

    steps = np.unique(np.concatenate([[0.0], half_a, half_b, costs.ravel()]))
    return steps[bisect_left(steps, True, key=suffices)]


def _landscape(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    def functions(rows, grid):
        tents = np.minimum(grid[:, None] - rows[:, 0], rows[:, 1] - grid[:, None]).clip(0)
        tents = np.pad(tents, ((0, 0), (0, LANDSCAPES)))
        return np.sort(tents, axis=1)[:, : -LANDSCAPES - 1 : -1]

    return _area_between(functions, a, b)


def _betti(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    def curve(rows, grid):
        born, dead = (np.searchsorted(np.sort(x), grid, "right") for x in rows.T)
        return born - dead

    return _area_between(curve, a, b)


def _area_between(function: Callable, a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    ends = np.concatenate([a, b])
    grid = np.linspace(ends.min(), ends.max(), SAMPLES)
    with np.errstate(over="ignore"):  # an area beyond 1e308 is infinite
        return np.abs(function(a, grid) - function(b, grid)).sum() * (grid[1] - grid[0])


def _entropy(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "m 2"]) -> float:
    def bits(rows):
        share = np.ptp(rows, axis=1)
        share = share / share.sum()
        return -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum()

    return abs(bits(a) - bits(b))


DISTANCES = {
    "wasserstein": persistence.wasserstein_distance,
    "bottleneck": _bottleneck,
    "landscape": _landscape,
    "betti": _betti,
    "entropy": _entropy,
}


class Fitness:
    """The topological fitness of subsets of a finite metric space; lower is better.

    For a subset S it is the sum over `dimensions` of the distance between the diagrams of `delta` and of delta
    restricted to S, each divided by the total persistence of the full diagram. Distances that are no sums of lengths
    (bottleneck, landscape, entropy) are divided by their value for the empty diagram instead, so that both dimensions
    weigh alike. A term whose divisor is 0 is left out.

    Args:
        delta: (n, n) distances, or (n + 1, n + 1) with `pointed`.
        dimensions: of homology: 0, 1 or both.
        distance: between diagrams, see `diagram_distance`.
        pointed: the last point of `delta` is the base point that every subset keeps.
        engine: "fast" or "reference" (giotto-tda), equal in value.
        floor: least divisor of a term, as a share of the divisor in dimension 0. In a space with next to no loops the
            divisor in dimension 1 nearly vanishes, and its term outweighs all else. A floor such as 0.1 prevents that.

    Raises:
        ValueError: not a distance matrix, or an unknown option.

    >>> fitness = Fitness(distance_matrix([[0.0], [1.0], [3.0]]), dimensions=(0,))
    >>> fitness([[0, 1], [0, 2]])  # deaths 1 and 2 become 1, or 3: costs 1, or 1/2 + 1, as shares of 3
    array([0.33333333, 0.5       ])
    """

    def __init__(
        self,
        delta: ArrayLike,
        dimensions: Iterable[int] = (0, 1),
        distance: str = "wasserstein",
        pointed: bool = False,
        engine: str = "fast",
        floor: float | int = 0,
    ):
        _check_choice("distance", distance, DISTANCES)
        _check_choice("engine", engine, ENGINES)
        if not isinstance(pointed, bool):
            raise ValueError(f"pointed must be True or False, got {pointed!r}")
        if not (isinstance(floor, (int, float, np.integer, np.floating)) and 0 <= floor < np.inf):
            raise ValueError(f"floor must be a finite share of at least 0, got {floor!r}")
        self.delta, self.dimensions = checked_delta(delta), _checked_dimensions(dimensions)
        self.distance, self.pointed, self.engine = distance, pointed, engine
        self.size = len(self.delta) - pointed
        if self.size < 1:
            raise ValueError("delta must have a point beside the base point, got shape (1, 1): leave pointed out")
        full = diagrams(self.delta, {0, *self.dimensions} if floor else self.dimensions, engine)
        least = floor * _divisor(full[0], distance) if floor else 0.0
        self.full = {q: full[q] for q in self.dimensions}
        self.divisors = np.array([max(_divisor(rows, distance), least) for rows in self.full.values()])
        self._edges = persistence.sorted_edges(self.delta) if 1 in self.dimensions else None

    def __call__(self, population: ArrayLike) -> Float64[np.ndarray, " p"]:
        """Fitness of each row of `population`, (p, k) integers: k distinct indices below n.

        Raises:
            ValueError: an empty row, an index outside the points, or one that is there twice.
        """
        return np.sum([*self.by_dimension(population).values()], axis=0)

    def by_dimension(self, population: ArrayLike) -> dict[int, Float64[np.ndarray, " p"]]:
        """The terms of the fitness apart: dimension -> (p,) values."""
        members = self._members(population)
        distances = np.zeros((len(members), len(self.dimensions)))
        compiled = self.engine == "fast" and self.distance == "wasserstein"

        def work(part: slice) -> None:
            distances[part] = self._compiled(members[part]) if compiled else [self._distances(x) for x in members[part]]

        persistence.in_threads(work, len(members))
        terms = np.divide(distances, self.divisors, out=np.zeros_like(distances), where=self.divisors > 0)
        return dict(zip(self.dimensions, terms.T, strict=True))

    def _compiled(self, members: Int[np.ndarray, "p k"]) -> Float64[np.ndarray, "p q"]:
        """All of a part in one call that holds no lock."""
        if self._edges is None:
            return persistence.tree_distances(self.delta, members, self.full[0])[:, None]
        full = [self.full.get(q, np.empty((0, 2))) for q in (0, 1)]
        return persistence.rips_distances(*self._edges, len(self.delta), members, *full)[:, list(self.dimensions)]

    def _distances(self, members: Int[np.ndarray, " k"]) -> list[float]:
        found = _bars(self.delta, self._edges, members, self.dimensions, self.engine)
        return [diagram_distance(self.full[q], found[q], self.distance, self.engine) for q in self.dimensions]

    def _members(self, population: ArrayLike) -> Int[np.ndarray, "p m"]:
        what = "integers of shape (p, k), one row a subset of at least one point"
        members = as_array("population", population, what, lambda shape: len(shape) == 2 and shape[1] > 0, "iu")
        members = np.sort(members.astype(np.int64), axis=1)
        if members.size and (members[:, 0].min() < 0 or members[:, -1].max() >= self.size):
            found = f"{members[:, 0].min()} .. {members[:, -1].max()}"
            raise ValueError(f"indices must lie in 0 .. {self.size - 1}, got {found}")
        if (members[:, 1:] == members[:, :-1]).any():
            raise ValueError("an individual must be a set, got one that keeps a point twice: remove repeated indices")
        if self.pointed:
            members = np.pad(members, ((0, 0), (0, 1)), constant_values=self.size)
        return members


def _divisor(full: Float64[np.ndarray, "_ 2"], distance: str) -> float:
    if distance in ("wasserstein", "betti"):
        return float(np.ptp(full, axis=1).sum()) if len(full) else 0.0
    return diagram_distance(full, np.empty((0, 2)), distance)


def as_array(name: str, values: Any, what: str, fits: Callable, kinds: str = "biuf") -> np.ndarray:
    """An array of a shape that `fits` and numbers of one of the `kinds` of NumPy; the error says `what` it must be."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors that NumPy cannot read
        raise ValueError(f"{name} must be {what}, got {type(values).__name__}: {error}") from error
    if not fits(array.shape) or array.dtype.kind not in kinds:
        raise ValueError(f"{name} must be {what}, got {array.dtype} of shape {array.shape}")
    return array


def checked_delta(delta: ArrayLike) -> Float32[np.ndarray, "n n"]:
    """A distance matrix in float32; the error says what it lacks."""
    what = "a square matrix of distances between at least one point"
    delta = as_array("delta", delta, what, lambda shape: len(shape) == 2 and shape[0] == shape[1] > 0)
    if not np.isfinite(delta).all():
        raise ValueError("delta holds NaN or infinity: make it with distance_matrix, from finite points")
    largest = delta.max()
    if not (largest == 0 or 3e-38 <= largest <= np.finfo(np.float32).max):
        rule = "distances must be of a size that float32 holds, 3e-38 .. 3e38"
        raise ValueError(f"{rule}, got {largest:.3g} as the largest: rescale the points")
    delta = np.ascontiguousarray(delta, np.float32)
    for rule, holds in (
        ("not be negative", delta >= 0),
        ("have a zero diagonal", (delta == 0) | ~np.eye(len(delta), dtype=bool)),
        ("be symmetric", delta == delta.T),
    ):
        if not holds.all():
            i, j = np.argwhere(~holds)[0]
            raise ValueError(f"delta must {rule}, got {delta[i, j]} at [{i}, {j}]: make it with distance_matrix")
    return delta


def _checked_dimensions(dimensions: Iterable[int]) -> tuple[int, ...]:
    given = [*dimensions] if isinstance(dimensions, Iterable) else []
    known = tuple(q for q in (0, 1) if q in given)
    if not known or len(known) < len(given):
        raise ValueError(f"dimensions must be (0,), (1,) or (0, 1), got {dimensions}")
    return known


def _checked_bars(name: str, rows: ArrayLike) -> Float64[np.ndarray, "_ 2"]:
    what = "numbers of shape (n, 2), rows (birth, death)"
    rows = as_array(name, rows, what, lambda shape: shape == (0,) or (len(shape) == 2 and shape[1] == 2))
    rows = rows.astype(np.float64).reshape(-1, 2)
    born, dead = rows.T
    wrong = np.flatnonzero(~((born <= dead) & (born < np.inf) & (dead > -np.inf)))  # NaN is wrong, too
    if len(wrong):
        i = wrong[0]
        raise ValueError(f"{name} must have bars that die after their birth, got ({born[i]}, {dead[i]}) in row {i}")
    if (np.abs(rows[np.isfinite(rows)]) > 1e304).any():
        raise ValueError(f"{name} must have finite ends within 1e304, got larger ones: scale both diagrams down")
    return _without_diagonal(rows)


def _check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in list(known):  # a list takes values without a hash too
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _reference() -> ModuleType:
    """The reference engine, which takes seconds to import."""
    try:
        from topoprune import reference
    except ImportError as error:
        raise ValueError("engine='reference' needs giotto-tda: install topoprune[reference] on Python 3.12") from error
    return reference
