"""Distances of filters against SciPy, and the fitness of subsets against GUDHI and giotto-tda."""

import gudhi
import jaxtyping
import numpy as np
import pytest
from gudhi.wasserstein import wasserstein_distance
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from topoprune import fitness
from topoprune.fitness import Fitness, diagram_distance, diagrams, distance_matrix

properties = settings(max_examples=60, deadline=None, derandomize=True)
CLOSE = {"rtol": 1e-5, "atol": 1e-9}


@st.composite
def spaces_and_subsets(draw, largest=14, p=3):
    """A symmetric matrix (points with duplicates, or lengths with ties), whether it is pointed, and subsets."""
    pointed = draw(st.booleans())
    n, seed = draw(st.integers(1, largest)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        points = np.round(rng.normal(size=(n + pointed, 3)), draw(st.sampled_from([0, 8])))
        delta = cdist(points, points)
    else:
        lengths = np.triu(rng.integers(0, 5, size=(n + pointed, n + pointed)), 1)
        delta = lengths + lengths.T
    k = draw(st.sampled_from([1, n, draw(st.integers(1, n))]))
    return delta.astype(np.float32), pointed, np.array([rng.permutation(n)[:k] for _ in range(p)])


def by_gudhi(delta, dimension):
    complex_ = gudhi.RipsComplex(distance_matrix=delta.astype(float)).create_simplex_tree(2)
    complex_.compute_persistence(persistence_dim_max=True)
    rows = complex_.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
    return rows[np.isfinite(rows[:, 1]) & (rows[:, 0] < rows[:, 1])]


@settings(properties, max_examples=40)
@given(spaces_and_subsets(), st.sampled_from([*fitness.DISTANCES]))
def test_engines_agree(case, name):
    delta, pointed, population = case
    fast = Fitness(delta, distance=name, pointed=pointed)
    terms = fast.by_dimension(population)
    reference = Fitness(delta, distance=name, pointed=pointed, engine="reference")
    for q, expected in reference.by_dimension(population).items():
        np.testing.assert_allclose(terms[q], expected, **CLOSE)
    np.testing.assert_allclose(fast(population), terms[0] + terms[1])
    for q in (0, 1):
        alone = Fitness(delta, (q,), distance=name, pointed=pointed)
        np.testing.assert_allclose(alone(population), terms[q], **CLOSE)


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_fitness_is_its_definition(scale):
    """The whole way by GUDHI: diagrams, Wasserstein distance, share of the total persistence."""
    points = np.random.default_rng(3).normal(size=(40, 3))
    delta = distance_matrix(points)
    population = np.array([np.random.default_rng(i).permutation(40)[:20] for i in range(5)])
    for kept, value in zip(population, Fitness(distance_matrix(points * scale))(population), strict=True):
        expected = 0.0
        for q in (0, 1):
            full, part = by_gudhi(delta, q), by_gudhi(delta[np.ix_(kept, kept)], q)
            moved = wasserstein_distance(full, part, order=1.0, internal_p=np.inf)
            expected += moved / np.ptp(full, axis=1).sum()
        assert value == pytest.approx(expected, rel=1e-5)


def test_one_point_far_away_leaves_the_others_their_digits():
    """Both diagrams hold the bar of the far point, so the cost is that of the others."""
    points = np.random.default_rng(8).normal(size=(12, 2))
    far = np.vstack([points, [1e9, 0]])
    delta = distance_matrix(far)
    delta[12, :12] = delta[:12, 12] = np.float32(1e9)  # equally far from all
    kept = np.array([[0, 1, 2, 5, 6, 9, 10, 12]])
    alone = Fitness(distance_matrix(points), (0,))
    found = Fitness(delta, (0,))
    expected = alone(kept[:, :-1]) * alone.divisors[0]
    np.testing.assert_allclose(found(kept) * found.divisors[0], expected, rtol=1e-12)


def test_the_base_point_is_kept():
    points = np.random.default_rng(5).normal(size=(15, 4))
    kept = np.array([[2, 3, 5, 7]])
    pointed = Fitness(distance_matrix(points, pointed=True), pointed=True)
    plain = Fitness(distance_matrix(np.vstack([points, np.zeros(4)])))
    np.testing.assert_allclose(pointed(kept), plain(np.array([[2, 3, 5, 7, 15]])))


def test_all_or_one_kept():
    delta = distance_matrix(np.random.default_rng(1).normal(size=(20, 3)))
    assert Fitness(delta)(np.arange(20)[None])[0] == 0
    assert Fitness(delta)([[7]])[0] == pytest.approx(1)  # all to the diagonal, twice 1/2
    assert Fitness(np.zeros((1, 1)))([[0]])[0] == 0
    assert Fitness(np.zeros((4, 4)))([[0, 2]])[0] == 0  # no persistence, no term


def test_threads_cover_a_population(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    delta = distance_matrix(np.random.default_rng(1).normal(size=(30, 3)))
    population = np.array([np.random.default_rng(i).permutation(30)[:12] for i in range(67)])
    together = Fitness(delta)(population)
    np.testing.assert_array_equal(together, [Fitness(delta)(x[None])[0] for x in population])
    assert Fitness(delta)(population[:0]).shape == (0,)


@pytest.mark.parametrize("name", fitness.DISTANCES)
def test_the_floor_is_a_share_of_the_divisor_in_dimension_0(name):
    delta = distance_matrix(np.random.default_rng(2).normal(size=(25, 3)))
    population = np.array([np.random.default_rng(i).permutation(25)[:10] for i in range(4)])
    plain, floored = Fitness(delta, distance=name), Fitness(delta, distance=name, floor=0.5)
    assert 0 < plain.divisors[1] < plain.divisors[0] / 2
    before, after = plain.by_dimension(population), floored.by_dimension(population)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1], before[1] * plain.divisors[1] / (0.5 * plain.divisors[0]))
    np.testing.assert_array_equal(Fitness(delta, (1,), name, floor=0.5)(population), after[1])
    below = Fitness(delta, distance=name, floor=1e-6)(population)
    np.testing.assert_array_equal(below, plain(population))


def test_a_loop_that_the_whole_space_lacks_counts_with_a_floor():
    """A cycle of four points that a fifth fills: without it there is a loop from 1 to 2."""
    delta = np.ones((5, 5)) - np.eye(5)
    delta[[0, 2, 1, 3], [2, 0, 3, 1]] = 2
    assert [len(rows) for rows in diagrams(delta).values()] == [4, 0]
    cycle = [[0, 1, 2, 3]]
    assert Fitness(delta, (1,))(cycle) == 0
    assert Fitness(delta, (1,), floor=0.5)(cycle) == 0.5 / (0.5 * 4)
    assert Fitness(np.zeros((3, 3)), floor=0.5)([[0, 1]]) == 0


@properties
@given(arrays(float, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(-1e3, 1e3)))
def test_metrics_are_scipys(points):
    np.testing.assert_allclose(distance_matrix(points), cdist(points, points), rtol=1e-6, atol=1e-6 * np.ptp(points))
    centred = points - points.mean(axis=1, keepdims=True)
    for metric, rows in (("cosine", points), ("correlation", centred)):
        spread = np.linalg.norm(rows, axis=1)
        sound = spread > 1e-6 * (1 + np.abs(points).max(axis=1))
        found = distance_matrix(points, metric)[np.ix_(sound, sound)]
        expected = cdist(points[sound], points[sound], metric)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_zero_rows_and_duplicates_have_defined_distances():
    points = np.array([[0, 0, 0], [0, 0, 0], [1, 2, 3], [1, 2, 3], [5, 5, 5.0]])
    cosine, correlation = (distance_matrix(points, m) for m in ("cosine", "correlation"))
    assert cosine[0, 1] == 0 and cosine[2, 3] == 0 and (cosine[:2, 2:] == 1).all()
    assert correlation[0, 4] == 0 and (correlation[[0, 1, 4]][:, [2, 3]] == 1).all()
    assert distance_matrix(points)[2, 3] == 0
    pointed = distance_matrix(points, pointed=True)
    assert pointed.shape == (6, 6) and pointed[5, 0] == 0
    assert pointed[5, 2] == pytest.approx(14**0.5)


@pytest.mark.parametrize("metric", fitness.METRICS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_distances_keep_their_digits_at_any_scale(metric, scale):
    points = np.random.default_rng(0).normal(size=(10, 4))
    points[1] = points[0] + np.array([1e-7, 0, 2e-7, 0])
    unit = scale if metric == "euclidean" else 1
    found = distance_matrix(points * scale, metric) / np.float32(unit)
    expected = sines(points) if metric == "sine" else cdist(points, points, metric)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-15)


def sines(points):
    """Length of what is left of each unit row without its part along another one."""
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    along = np.einsum("id,jd->ij", units, units)
    return np.linalg.norm(units[:, None] - along[..., None] * units[None], axis=2)


@properties
@given(arrays(float, st.tuples(st.integers(2, 8), st.just(3)), elements=st.floats(-1e3, 1e3)))
def test_the_sine_is_a_metric_of_lines(points):
    points = points[np.linalg.norm(points, axis=1) > 1e-3]
    assume(len(points) > 1)
    delta = distance_matrix(points, "sine")
    np.testing.assert_allclose(delta, sines(points), atol=1e-6)
    np.testing.assert_allclose(distance_matrix(points * np.float64(-3), "sine"), delta, atol=1e-6)
    assert (delta[:, None] <= delta[:, :, None] + delta[None] + 1e-6).all()  # d(i, k) <= d(i, j) + d(j, k)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_angles_do_not_depend_on_the_scale(scale):
    points = np.random.default_rng(0).normal(size=(5, 4))
    for metric in ("cosine", "correlation"):
        np.testing.assert_allclose(distance_matrix(points * scale, metric), distance_matrix(points, metric), rtol=1e-6)


@pytest.mark.parametrize("kind", [list, np.int64, np.uint8, np.float16, np.float32])
def test_any_numbers_are_points_and_distances(kind):
    points = [[0, 0], [3, 4], [6, 8]]
    delta = [[0, 5, 10], [5, 0, 5], [10, 5, 0]]
    points, delta = (rows if kind is list else np.array(rows, kind) for rows in (points, delta))
    np.testing.assert_array_equal(distance_matrix(points), delta)
    np.testing.assert_array_equal(diagrams(delta)[0], [[0, 5], [0, 5]])
    assert Fitness(delta, (0,))([[0, 2]]) == 0.75  # 5 moves to 10, or both to the diagonal


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    points = np.ones((3, 2))
    points[1, 0] = bad
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity in 1 rows, row 1"):
        distance_matrix(points)


SQUARE = distance_matrix(np.eye(4))
SQUARE_OF = np.ones((3, 3)) - np.eye(3)


def changed(value):
    """Three points at distance 1, but for one entry."""
    delta = SQUARE_OF.copy()
    delta[0, 1] = value
    return delta


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (SQUARE_OF[:2], r"delta must be a square matrix of distances.*, got float64 of shape \(2, 3\)"),
        (SQUARE_OF[0], r"square matrix.*, got float64 of shape \(3,\)"),
        (np.ones((2, 2, 2)), r"square matrix.*, got float64 of shape \(2, 2, 2\)"),
        (np.empty((0, 0)), r"at least one point, got float64 of shape \(0, 0\)"),
        ([], r"at least one point, got float64 of shape \(0,\)"),
        ([[0, 1], [1]], "square matrix.*got list"),
        ([["0"]], "square matrix.*got <U1"),
        (SQUARE_OF * 1j, "square matrix.*got complex128"),
        (SQUARE_OF * np.nan, "delta holds NaN or infinity: make it with distance_matrix, from finite points"),
        *[(changed(value), "delta holds NaN or infinity") for value in (np.nan, np.inf, -np.inf)],
        (changed(-1), r"delta must not be negative, got -1.0 at \[0, 1\]"),
        (changed(2), r"delta must be symmetric, got 2.0 at \[0, 1\]: make it with distance_matrix"),
        (np.ones((3, 3)), r"delta must have a zero diagonal, got 1.0 at \[0, 0\]"),
        (SQUARE_OF * 1e300, r"a size that float32 holds, 3e-38 .. 3e38, got 1e\+300 as the largest: rescale"),
        (SQUARE_OF * 1e-300, "a size that float32 holds, .*got 1e-300 as the largest: rescale"),
    ],
)
@pytest.mark.parametrize("taker", [diagrams, Fitness])
def test_what_is_no_distance_matrix_is_named(taker, delta, message):
    with pytest.raises(ValueError, match=message) as caught:
        taker(delta)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distance_matrix(np.eye(2), "manhattan"), "metric must be one of euclidean"),
        (lambda: distance_matrix(np.eye(2) * 1e300), "distances must be of a size that float32 holds"),
        (lambda: distance_matrix(np.eye(2) * 1.5e308), "distances must be of a size that float32 holds.*: rescale"),
        (lambda: distance_matrix(np.eye(2) * 1e-300), "distances must be of a size that float32 holds"),
        (
            lambda: distance_matrix([1.0, 2.0]),
            r"points must be numbers of shape \(n, d\).* got float64 of shape \(2,\)",
        ),
        (lambda: distance_matrix(np.ones((2, 3, 1, 1))), r"got float64 of shape \(2, 3, 1, 1\)"),
        (lambda: distance_matrix(np.empty((0, 3))), r"got float64 of shape \(0, 3\)"),
        (lambda: distance_matrix(np.empty((3, 0))), r"got float64 of shape \(3, 0\)"),
        (lambda: distance_matrix([[1, 2], [3]]), r"points must be numbers .* got list"),
        (lambda: diagrams(SQUARE, (2,)), r"dimensions must be \(0,\), \(1,\) or \(0, 1\), got \(2,\)"),
        (lambda: diagrams(SQUARE, ()), r"dimensions must be \(0,\), \(1,\) or \(0, 1\), got \(\)"),
        (lambda: diagrams(SQUARE, (0, 1, 2)), r"dimensions must be .* got \(0, 1, 2\)"),
        (lambda: diagrams(SQUARE, (0, 0)), r"dimensions must be \(0,\), \(1,\) or \(0, 1\), got \(0, 0\)"),
        (lambda: diagrams(SQUARE, engine="gpu"), "engine must be one of fast, reference, got 'gpu'"),
        (lambda: diagram_distance([], [], "l2"), "distance must be one of wasserstein"),
        (lambda: Fitness(SQUARE, distance="l2"), "distance must be one of wasserstein"),
        (lambda: Fitness(np.zeros((1, 1)), pointed=True), "beside the base point"),
        (lambda: Fitness(SQUARE, floor=-0.1), "floor must be a finite share of at least 0, got -0.1"),
        *[
            (lambda floor=floor: Fitness(SQUARE, floor=floor), "floor must be a finite share of at least 0, got ")
            for floor in ("a", None, [1], np.inf)
        ],
        *[
            (lambda pointed=pointed: Fitness(SQUARE, pointed=pointed), "pointed must be True or False, got ")
            for pointed in (3, None, "yes")
        ],
        (lambda: Fitness(SQUARE, floor=np.nan), "floor must be a finite share of at least 0, got nan"),
        (lambda: Fitness(SQUARE)([[0, 4]]), r"indices must lie in 0 .. 3, got 0 .. 4"),
        (lambda: Fitness(SQUARE)([[-1, 2]]), r"indices must lie in 0 .. 3, got -1 .. 2"),
        (lambda: Fitness(SQUARE)([[1, 1]]), "keeps a point twice"),
        (lambda: Fitness(SQUARE)(np.empty((2, 0), int)), "at least one point, got int64 of shape .2, 0."),
        (lambda: Fitness(SQUARE)([1, 2]), r"population must be integers of shape \(p, k\).* got int64 of shape \(2,\)"),
        (lambda: Fitness(SQUARE)([[0.5, 2.0]]), "population must be integers .* got float64"),
        (lambda: Fitness(SQUARE)([[True, False]]), "population must be integers .* got bool"),
    ],
)
def test_wrong_input_is_named(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
