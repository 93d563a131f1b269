"""The fitness against GUDHI, giotto-tda and brute force."""

import itertools

import gudhi
import numpy as np
import pytest
from gudhi.hera import bottleneck_distance
from gudhi.wasserstein import wasserstein_distance
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from topoprune import fitness, persistence
from topoprune.fitness import Fitness, diagram_distance, diagrams, distance_matrix

properties = settings(max_examples=60, deadline=None, derandomize=True)
CLOSE = {"rtol": 1e-5, "atol": 1e-9}


@st.composite
def spaces(draw, largest=24):
    """Symmetric matrices: points with duplicates and zeros, or any lengths with many ties."""
    n, seed = draw(st.integers(1, largest)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        points = rng.normal(size=(n, draw(st.integers(1, 6))))
        points = np.round(points, draw(st.sampled_from([0, 1, 8])))
        points[rng.random(n) < draw(st.sampled_from([0, 0.3]))] = 0
        return cdist(points, points).astype(np.float32)
    lengths = rng.integers(0, draw(st.sampled_from([2, 5, 1000])), size=(n, n)).astype(np.float32)
    return np.triu(lengths, 1) + np.triu(lengths, 1).T


@st.composite
def subsets(draw, n, p=3):
    k = draw(st.sampled_from([1, n, draw(st.integers(1, n))]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.array([rng.permutation(n)[:k] for _ in range(p)])


def bars(largest=12):
    """Diagrams on a coarse grid (ties, shared points) or off it; some empty."""
    coarse = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    number = st.one_of(coarse, st.floats(0, 1, width=32))
    rows = st.lists(st.tuples(number, number), max_size=largest)
    return rows.map(lambda x: np.sort(np.array(x, float).reshape(-1, 2), axis=1))


def by_gudhi(delta, dimension):
    complex_ = gudhi.RipsComplex(distance_matrix=delta.astype(float)).create_simplex_tree(2)
    complex_.compute_persistence(persistence_dim_max=True)
    rows = complex_.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
    rows = rows[np.isfinite(rows[:, 1]) & (rows[:, 0] < rows[:, 1])]
    return rows[np.lexsort(rows.T)]


@properties
@given(spaces())
def test_diagrams_are_gudhis(delta):
    for q, rows in diagrams(delta).items():
        np.testing.assert_allclose(rows, by_gudhi(delta, q), rtol=1e-6)
        np.testing.assert_array_equal(diagrams(delta, (q,))[q], rows)


@properties
@given(spaces())
def test_both_engines_give_the_same_diagrams(delta):
    for q, rows in diagrams(delta, engine="reference").items():
        np.testing.assert_array_equal(diagrams(delta)[q], rows)


def test_a_circle_has_one_loop():
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    delta = distance_matrix(np.column_stack([np.cos(angles), np.sin(angles)]))
    step = 2 * np.sin(np.pi / 12)
    found = diagrams(delta)
    np.testing.assert_allclose(found[0], [[0, step]] * 11, rtol=1e-6)
    np.testing.assert_allclose(found[1], [[step, np.sqrt(3)]], rtol=1e-6)


def test_large_random_layers_are_giottos():
    """Many classes alive at a time, and sets of more than one word of bits."""
    rng = np.random.default_rng(0)
    for n, d in ((150, 2), (150, 300), (70, 5)):
        delta = distance_matrix(rng.normal(size=(n, d)))
        for q, rows in diagrams(delta, engine="reference").items():
            np.testing.assert_array_equal(diagrams(delta)[q], rows)


def test_the_table_of_classes_grows():
    first, second, length = persistence.sorted_edges(distance_matrix(np.random.default_rng(0).normal(size=(60, 40))))
    members = np.arange(60)
    done, *_ = persistence._sweep(first, second, length, members, 60, 1)
    assert not done
    done, _, rows = persistence._sweep(first, second, length, members, 60, 200)
    assert done
    whole = persistence.rips_bars(first, second, length, members, 60)[1]
    np.testing.assert_array_equal(rows, whole)


@properties
@given(bars(), bars())
@example(np.empty((0, 2)), np.array([[0.0, 1.0]]))
@example(np.array([[0.0, 1.0]]), np.array([[0.0, 3.0]]))  # max = 3 min: matched or not, one cost
def test_wasserstein_and_bottleneck_are_gudhis(a, b):
    expected = wasserstein_distance(a, b, order=1.0, internal_p=np.inf)
    np.testing.assert_allclose(diagram_distance(a, b), expected, **CLOSE)
    np.testing.assert_allclose(diagram_distance(a, b, "bottleneck"), bottleneck_distance(a, b, 0.0), **CLOSE)


def brute_force(a, b):
    """Least cost over all partial matchings of a few deaths."""
    best = np.inf
    for size in range(min(len(a), len(b)) + 1):
        for x in itertools.combinations(range(len(a)), size):
            for y in itertools.permutations(range(len(b)), size):
                left = np.delete(a, x).sum() / 2 + np.delete(b, y).sum() / 2
                best = min(best, left + np.abs(a[list(x)] - b[list(y)]).sum())
    return best


@properties
@given(arrays(float, st.integers(0, 4), elements=st.integers(0, 9)),
       arrays(float, st.integers(0, 4), elements=st.integers(0, 9)))  # fmt: skip
def test_line_distance_is_the_least_of_all_matchings(a, b):
    assert persistence.line_distance(np.sort(a), np.sort(b)) == brute_force(a, b)


@properties
@given(bars(40), bars(40))
def test_line_distance_is_gudhis(a, b):
    a[:, 0] = b[:, 0] = 0
    expected = wasserstein_distance(a, b, order=1.0, internal_p=np.inf)
    found = persistence.line_distance(np.sort(a[:, 1]), np.sort(b[:, 1]))
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(persistence.plane_distance(a, b), expected, **CLOSE)


@properties
@given(bars(), bars(), st.sampled_from([*fitness.DISTANCES]))
def test_distances_are_giottos_and_symmetric(a, b, name):
    found = diagram_distance(a, b, name)
    np.testing.assert_allclose(found, diagram_distance(a, b, name, "reference"), **CLOSE)
    np.testing.assert_allclose(found, diagram_distance(b, a, name), **CLOSE)
    assert diagram_distance(a, a, name) == pytest.approx(0, abs=1e-12)


@properties
@given(spaces(largest=14), st.data(), st.booleans(), st.sampled_from([*fitness.DISTANCES]))
def test_fitness_engines_agree(delta, data, pointed, name):
    if pointed and len(delta) == 1:
        delta = np.zeros((2, 2), np.float32)
    population = data.draw(subsets(len(delta) - pointed))
    fast = Fitness(delta, distance=name, pointed=pointed)
    terms = fast.by_dimension(population)
    reference = Fitness(delta, distance=name, pointed=pointed, engine="reference")
    for q, expected in reference.by_dimension(population).items():
        np.testing.assert_allclose(terms[q], expected, **CLOSE)
    np.testing.assert_allclose(fast(population), terms[0] + terms[1])
    if name == "wasserstein":
        trees = Fitness(delta, (0,), pointed=pointed, device="cpu")
        np.testing.assert_allclose(trees(population), terms[0], **CLOSE)
        for q in (0, 1):
            alone = Fitness(delta, (q,), pointed=pointed)
            np.testing.assert_allclose(alone(population), terms[q], **CLOSE)


def test_fitness_is_its_definition():
    """The whole way by GUDHI: diagrams, Wasserstein distance, share of the total persistence."""
    points = np.random.default_rng(3).normal(size=(40, 3))
    delta = distance_matrix(points)
    population = np.array([np.random.default_rng(i).permutation(40)[:20] for i in range(5)])
    for kept, value in zip(population, Fitness(delta)(population), strict=True):
        expected = 0.0
        for q in (0, 1):
            full, part = by_gudhi(delta, q), by_gudhi(delta[np.ix_(kept, kept)], q)
            moved = wasserstein_distance(full, part, order=1.0, internal_p=np.inf)
            expected += moved / np.ptp(full, axis=1).sum()
        assert value == pytest.approx(expected, rel=1e-5)


def test_fitness_keeps_the_base_point():
    points = np.random.default_rng(5).normal(size=(15, 4))
    kept = np.array([[2, 3, 5, 7]])
    pointed = Fitness(distance_matrix(points, pointed=True), pointed=True)
    plain = Fitness(distance_matrix(np.vstack([points, np.zeros(4)])))
    np.testing.assert_allclose(pointed(kept), plain(np.array([[2, 3, 5, 7, 15]])))


def test_all_or_one_kept():
    delta = distance_matrix(np.random.default_rng(1).normal(size=(20, 3)))
    assert Fitness(delta)(np.arange(20)[None])[0] == pytest.approx(0, abs=1e-12)
    assert Fitness(delta)(np.array([[7]]))[0] == pytest.approx(1)  # all to the diagonal, twice 1/2
    assert Fitness(np.zeros((1, 1)))(np.array([[0]]))[0] == 0
    assert Fitness(np.zeros((4, 4)))(np.array([[0, 2]]))[0] == 0  # no persistence, no term


def test_threads_cover_a_population():
    delta = distance_matrix(np.random.default_rng(1).normal(size=(30, 3)))
    population = np.array([np.random.default_rng(i).permutation(30)[:12] for i in range(67)])
    together = Fitness(delta)(population)
    np.testing.assert_array_equal(together, [Fitness(delta)(x[None])[0] for x in population])
    assert Fitness(delta)(population[:0]).shape == (0,)


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


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_distances_keep_their_digits_at_any_scale(scale):
    points = np.random.default_rng(0).normal(size=(10, 4))
    points[1] = points[0] + 1e-7
    found = distance_matrix(points * scale) / np.float32(scale)
    np.testing.assert_allclose(found, cdist(points, points), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    points = np.ones((3, 2))
    points[1, 0] = bad
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity in 1 rows, row 1"):
        distance_matrix(points)


SQUARE = distance_matrix(np.eye(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distance_matrix(np.eye(2), "manhattan"), "metric must be one of euclidean"),
        (lambda: distance_matrix(np.eye(2) * 1e300), "must have distances below"),
        (lambda: diagrams(SQUARE, (2,)), r"dimensions must be \(0,\), \(1,\) or \(0, 1\), got"),
        (lambda: diagrams(SQUARE, engine="gpu"), "engine must be one of fast, reference"),
        (lambda: diagrams(SQUARE * np.nan), "delta must be finite"),
        (lambda: diagrams(np.triu(SQUARE)), "symmetric"),
        (lambda: diagrams(SQUARE + 1), "zero diagonal"),
        (lambda: Fitness(SQUARE, distance="l2"), "distance must be one of wasserstein"),
        (lambda: Fitness(np.zeros((1, 1)), pointed=True), "beside the base point"),
        (lambda: Fitness(SQUARE, device="cpu"), "device must be None unless"),
        (lambda: Fitness(SQUARE)(np.array([[0, 4]])), r"indices must lie in 0 .. 3, got 0 .. 4"),
        (lambda: Fitness(SQUARE)(np.array([[1, 1]])), "keeps a point twice"),
        (lambda: Fitness(SQUARE)(np.empty((2, 0), int)), "at least one point"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
