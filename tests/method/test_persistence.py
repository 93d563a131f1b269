"""Diagrams and their distances against GUDHI, giotto-tda, and fractions: whatever the lengths of the bars."""

import itertools
from fractions import Fraction

import gudhi
import numpy as np
import pytest
from gudhi.hera import bottleneck_distance
from gudhi.wasserstein import wasserstein_distance
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from topoprune import fitness, persistence
from topoprune.fitness import diagram_distance, diagrams, distance_matrix

properties = settings(max_examples=60, deadline=None, derandomize=True)
CLOSE = {"rtol": 1e-5, "atol": 1e-9}
EMPTY = np.empty((0, 2))


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


def bars(largest=12):
    """Diagrams on a coarse grid (ties, shared points, points of the diagonal) or off it; some empty."""
    number = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(-1, 1, width=32))
    rows = st.lists(st.tuples(number, number), max_size=largest)
    return rows.map(lambda x: np.sort(np.array(x, float).reshape(-1, 2), axis=1))


@st.composite
def uneven_bars(draw, largest=4):
    """Two diagrams of bars of very different length, some of them shared or nearly so."""
    length = st.one_of(
        st.sampled_from([1.0, 3.0, 10.0, 1e6, 1e12, 1e16, 1e-300, 1e300]),
        st.integers(0, 34).map(lambda power: 3.0**power),
        st.floats(0, 30),
    )
    birth = st.sampled_from([0.0]) if draw(st.booleans()) else st.floats(-3, 3)
    row = st.tuples(birth, length).map(lambda x: (x[0], x[0] + x[1]))
    a, b = (draw(st.lists(row, max_size=largest - 1)) for _ in range(2))
    if draw(st.booleans()):
        birth, death = draw(row)
        a.append((birth, death))
        b.append((birth, death * (1 + draw(st.sampled_from([0, 1e-15, 1e-9])))))
    return tuple(np.array(rows, float).reshape(-1, 2) for rows in (a, b))


def by_gudhi(delta, dimension):
    complex_ = gudhi.RipsComplex(distance_matrix=delta.astype(float)).create_simplex_tree(2)
    complex_.compute_persistence(persistence_dim_max=True)
    rows = complex_.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
    rows = rows[np.isfinite(rows[:, 1]) & (rows[:, 0] < rows[:, 1])]
    return rows[np.lexsort(rows.T)]


def path_lengths(n, edges):
    """Distances along a graph."""
    lengths = np.full((n, n), np.inf)
    np.fill_diagonal(lengths, 0)
    for i, j in edges:
        lengths[i, j] = lengths[j, i] = 1
    for k in range(n):
        lengths = np.minimum(lengths, lengths[:, k, None] + lengths[k])
    return lengths


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


@pytest.mark.parametrize("n", [4, 5, 6, 9, 12, 30])
def test_a_cycle_of_n_edges_closes_at_1_and_is_filled_at_a_third_of_n(n):
    found = diagrams(path_lengths(n, [(i, (i + 1) % n) for i in range(n)]))
    np.testing.assert_array_equal(found[0], [[0, 1]] * (n - 1))
    np.testing.assert_array_equal(found[1], [[1, -(-n // 3)]])


def test_a_circle_has_one_loop_and_a_torus_two():
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    step = 2 * np.sin(np.pi / 12)
    found = diagrams(distance_matrix(circle))
    np.testing.assert_allclose(found[0], [[0, step]] * 11, rtol=1e-6)
    np.testing.assert_allclose(found[1], [[step, np.sqrt(3)]], rtol=1e-6)
    torus = np.hstack([np.repeat(circle, 12, axis=0), np.tile(circle, (12, 1))])
    loops = diagrams(distance_matrix(torus))[1]
    np.testing.assert_allclose(loops[np.ptp(loops, axis=1) > 1], [[step, np.sqrt(3)]] * 2, rtol=1e-6)


def test_distances_that_are_no_metric_have_diagrams():
    root = np.sqrt(2)
    square = [[0, 9, 1, root], [9, 0, root, 1], [1, root, 0, 9], [root, 1, 9, 0]]
    found = diagrams(square)
    np.testing.assert_allclose(found[0], [[0, 1], [0, 1], [0, root]], rtol=1e-7)
    np.testing.assert_allclose(found[1], [[root, 9]], rtol=1e-7)
    one_sided = np.array(square) + np.triu(np.full((4, 4), 1e-9), 1)  # the same in float32
    np.testing.assert_array_equal(diagrams(one_sided)[1], found[1])


def test_large_layers_are_giottos():
    """Many classes alive at a time, sets of more than one word of bits, and a loop with noise in 400 dimensions."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 179, endpoint=False)
    loop = rng.normal(size=(179, 400))
    loop[:, :2] += 10 * np.column_stack([np.cos(angles), np.sin(angles)])
    for points in (*(rng.normal(size=size) for size in ((150, 2), (150, 300), (70, 5))), loop):
        delta = distance_matrix(points)
        for q, rows in diagrams(delta, engine="reference").items():
            np.testing.assert_array_equal(diagrams(delta)[q], rows)


def test_more_classes_live_than_the_table_has_room_for_at_first():
    """All edges between two sets of 16 points start classes; none dies before the others come."""
    delta = np.where(np.arange(32)[:, None] % 2 == np.arange(32) % 2, 2.0, 1.0)
    np.fill_diagonal(delta, 0)
    np.testing.assert_array_equal(diagrams(delta)[1], [[1, 2]] * 15**2)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_diagrams_scale_with_the_distances(scale):
    points = np.random.default_rng(0).normal(size=(30, 3))
    plain, scaled = diagrams(distance_matrix(points)), diagrams(distance_matrix(points * scale))
    for q in (0, 1):
        np.testing.assert_allclose(scaled[q] / scale, plain[q], rtol=1e-5)


@properties
@given(bars(), bars())
@example(EMPTY, np.array([[0.0, 1.0]]))
@example(np.array([[0.0, 1.0]]), np.array([[0.0, 3.0]]))  # max = 3 min: matched or not, one cost
def test_wasserstein_and_bottleneck_are_gudhis(a, b):
    expected = wasserstein_distance(a, b, order=1.0, internal_p=np.inf)
    np.testing.assert_allclose(diagram_distance(a, b), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(diagram_distance(a, b, "bottleneck"), bottleneck_distance(a, b, 0.0), rtol=1e-12)


@properties
@given(bars(40), bars(40))
def test_wasserstein_of_bars_born_at_zero_is_gudhis(a, b):
    a, b = (np.column_stack([np.zeros(len(x)), np.abs(x[:, 1])]) for x in (a, b))
    expected = wasserstein_distance(a, b, order=1.0, internal_p=np.inf)
    np.testing.assert_allclose(diagram_distance(a, b), expected, rtol=1e-9, atol=1e-12)


def least_cost(a, b):
    """Least cost over all partial matchings of a few bars, in fractions."""
    a, b = ([tuple(map(Fraction, row)) for row in rows.tolist()] for rows in (a, b))
    pairs = [[max(abs(x[0] - y[0]), abs(x[1] - y[1])) - (x[1] - x[0] + y[1] - y[0]) / 2 for y in b] for x in a]
    gains = [
        sum(pairs[i][j] for i, j in zip(rows, columns, strict=True))
        for size in range(min(len(a), len(b)) + 1)
        for rows in itertools.combinations(range(len(a)), size)
        for columns in itertools.permutations(range(len(b)), size)
    ]
    return min(gains) + sum(death - birth for birth, death in a + b) / 2


@settings(properties, max_examples=200)
@given(uneven_bars())
@example((np.array([[0, 10.0], [0, 1e16]]), np.array([[0, 25.0], [0, 1e16], [0, 7.0]])))
@example((np.array([[0.5, 1e16], [2.5, 1e16], [0, 1]]), np.array([[2.4, 1e16], [0.6, 1e16]])))
def test_wasserstein_is_exact_whatever_the_lengths(pair):
    expected = least_cost(*pair)
    assert abs(Fraction(diagram_distance(*pair)) - expected) <= Fraction(1e-12) * expected


@pytest.mark.parametrize("born", [0.0, 2.0])
def test_a_long_bar_leaves_short_ones_their_digits(born):
    """Two large diagrams that share one bar of 1e16 are as far apart as without it."""
    rng = np.random.default_rng(1)
    a, b = (np.sort(rng.uniform(born, 30, size=(80, 2)), axis=1) for _ in range(2))
    for rows in (a, b):
        rows[:, 0] *= born > 0
    long_a, long_b = (np.vstack([rows, [born, 1e16 + up]]) for rows, up in ((a, 0), (b, 2)))
    expected = wasserstein_distance(a, b, order=1.0, internal_p=np.inf) + 2
    assert diagram_distance(long_a, long_b) == pytest.approx(expected, rel=1e-12)


@properties
@given(bars(), bars(), st.sampled_from([*fitness.DISTANCES]))
def test_distances_are_giottos_and_symmetric(a, b, name):
    found = diagram_distance(a, b, name)
    np.testing.assert_allclose(found, diagram_distance(a, b, name, "reference"), **CLOSE)
    np.testing.assert_allclose(found, diagram_distance(b, a, name), **CLOSE)
    assert diagram_distance(a, a, name) == pytest.approx(0, abs=1e-12)


@properties
@given(st.lists(st.tuples(*[st.sampled_from([-np.inf, 0.0, 0.5, 2.0, np.inf])] * 2), max_size=5), bars(5), bars(5))
def test_infinite_bars_are_matched_by_their_finite_ends(ends, a, b):
    infinite = np.array([x for x in ends if -np.inf in x[:1] or np.inf in x[1:]]).reshape(-1, 2)
    infinite = infinite[(infinite[:, 0] < np.inf) & (infinite[:, 1] > -np.inf)]
    moved = infinite + np.linspace(0, 0.3, len(infinite))[:, None]
    a, b = np.vstack([a, [0, 1]]), np.vstack([b, [0, 1]])  # POT wants a finite bar
    expected = wasserstein_distance(
        np.vstack([a, infinite]), np.vstack([b, moved]), order=1.0, internal_p=np.inf, keep_essential_parts=True
    )
    found = diagram_distance(np.vstack([a, infinite]), np.vstack([moved, b]))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    found = diagram_distance(np.vstack([a, infinite]), np.vstack([moved, b]), "bottleneck")
    expected = bottleneck_distance(np.vstack([a, infinite]), np.vstack([b, moved]), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distance", ["wasserstein", "bottleneck"])
@pytest.mark.parametrize("a", [[[0, np.inf]], [[-np.inf, 1]], [[-np.inf, np.inf]]])
@pytest.mark.parametrize("b", [EMPTY, [[0.0, 1.0]], [[0, np.inf], [0, np.inf]]])
def test_different_numbers_of_infinite_bars_are_infinitely_far_apart(a, b, distance):
    assert diagram_distance(a, b, distance) == diagram_distance(b, a, distance) == np.inf


@pytest.mark.parametrize("kind", [list, np.int64, np.float32, np.float16, np.uint8])
def test_any_numbers_are_diagrams(kind):
    a, b = (rows if kind is list else np.array(rows, kind) for rows in ([[0, 4], [1, 2], [3, 3]], [[0, 3]]))
    assert diagram_distance(a, b) == 1.5
    assert diagram_distance(a, b, "bottleneck") == 1
    assert diagram_distance(a, b, "entropy") == pytest.approx(0.8 * np.log2(5 / 4) + 0.2 * np.log2(5))


@pytest.mark.parametrize("name", fitness.DISTANCES)
def test_empty_diagrams_and_the_diagonal_are_no_distance_apart(name):
    for a in (EMPTY, [], np.empty(0), [[2.0, 2.0]], np.zeros((3, 2))):
        for b in (EMPTY, [[0, 0], [1, 1]]):
            assert diagram_distance(a, b, name) == 0


def test_the_births_may_be_negative_and_the_scale_anything():
    assert diagram_distance(EMPTY, [[-10, 1]]) == diagram_distance([[-10, 1]], EMPTY, "bottleneck") == 5.5
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        a, b = np.array([[-3, 4], [1, 2]]) * scale, np.array([[0, 3], [0, 1]]) * scale
        assert diagram_distance(a, b) == pytest.approx(4 * scale)
        assert diagram_distance(a, b, "bottleneck") == pytest.approx(3 * scale)
        plain = diagram_distance(a / scale, b / scale, "entropy")
        assert diagram_distance(a, b, "entropy") == pytest.approx(plain)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1], [0.5, 0.1]], r"^b must have bars that die after their birth, got \(0.5, 0.1\) in row 1$"),
        ([[np.nan, 1]], r"die after their birth, got \(nan, 1.0\) in row 0"),
        ([[0, np.nan]], r"got \(0.0, nan\) in row 0"),
        ([[np.inf, np.inf]], r"got \(inf, inf\) in row 0"),
        ([[-np.inf, -np.inf]], "got .-inf, -inf. in row 0"),
        ([0.0, 1.0], r"b must be numbers of shape \(n, 2\).* got float64 of shape \(2,\)"),
        ([[0, 1, 2]], r"got int64 of shape \(1, 3\)"),
        (np.zeros((2, 2, 2)), r"got float64 of shape \(2, 2, 2\)"),
        (np.empty((0, 3)), r"got float64 of shape \(0, 3\)"),
        ([[0, 1], [2]], "b must be numbers of shape .*got list"),
        ([["0", "1"]], "b must be numbers of shape"),
        ([[0, 1j]], "b must be numbers of shape"),
        ([[0, 1e305]], "within 1e304"),
    ],
)
@pytest.mark.parametrize("name", fitness.DISTANCES)
def test_what_is_no_diagram_is_named(name, rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        diagram_distance([[0, 1]], rows, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["landscape", "betti", "entropy"])
def test_other_distances_want_finite_bars(name):
    for a, b in (([[0, np.inf]], [[0, 1]]), (EMPTY, [[-np.inf, 0]]), ([[0, np.inf]], [[0, np.inf]])):
        with pytest.raises(ValueError, match=f"bars must be finite for the {name} distance"):
            diagram_distance(a, b, name)


@pytest.mark.parametrize(
    ("value", "cores"),
    [("4,2", 2), ("1,8", 1), ("0", 2), ("", 2), ("many", 2), ("-1", 2), ("1.5", 2), (" 1 ", 1), ("0,1", 1)],
)
def test_the_limit_of_threads_may_be_anything(monkeypatch, value, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert persistence.cores() == cores
    parts = []
    persistence.in_threads(parts.append, 37)
    covered = [i for part in sorted(parts, key=lambda part: part.start) for i in range(37)[part]]
    assert covered == [*range(37)]
