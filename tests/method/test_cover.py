"""Covers and merge trees against brute force, and the certificate of a covering radius."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from topoprune import build, couplings
from topoprune.cover import cover, covering_radius, merge_tree, replacement_costs
from topoprune.fitness import diagram_distance, diagrams, distance_matrix
from topoprune.topological import points, topological

properties = settings(max_examples=60, deadline=None, derandomize=True)
clouds = arrays(float, st.tuples(st.integers(2, 9), st.just(3)), elements=st.floats(-10, 10, width=16))


def total(costs, kept):
    return costs[:, sorted(kept)].min(axis=1).sum()


def cluster_cost(costs, cluster):
    own = costs[np.ix_(cluster, cluster)]
    return own.sum(axis=0).min()


def slow_merge_tree(costs, keep):
    """As `merge_tree`, with the costs of all pairs of clusters computed anew at each merge."""
    clusters, heights = [[i] for i in range(len(costs))], []
    while len(clusters) > keep:
        growth = {
            (a, b): cluster_cost(costs, clusters[a] + clusters[b])
            - cluster_cost(costs, clusters[a])
            - cluster_cost(costs, clusters[b])
            for a, b in itertools.combinations(range(len(clusters)), 2)
        }
        a, b = min(growth, key=growth.get)
        heights.append(growth[a, b])
        clusters[a] += clusters.pop(b)
    return heights, clusters


@pytest.mark.parametrize("seed", range(12))
def test_the_merge_tree_is_the_one_of_brute_force(seed):
    generator = np.random.default_rng(seed)
    costs = generator.random((9, 9)) * generator.random((9, 1))
    np.fill_diagonal(costs, 0)
    keep = 1 + seed % 8
    heights, clusters = slow_merge_tree(costs, keep)
    tree = merge_tree(costs, keep)
    np.testing.assert_allclose(tree.heights, heights, atol=1e-12)
    medoids = [cluster[costs[np.ix_(cluster, cluster)].sum(axis=0).argmin()] for cluster in clusters]
    assert tree.kept == sorted(medoids)
    assert sum(heights) == pytest.approx(sum(cluster_cost(costs, cluster) for cluster in clusters))


@properties
@given(clouds, st.data())
def test_no_swap_makes_a_cover_better(cloud, data):
    keep = data.draw(st.integers(1, len(cloud)))
    costs = replacement_costs(cloud, distance_matrix(cloud, "sine"), "sine")
    kept = cover(costs, keep)
    assert len(set(kept)) == keep
    swaps = [{*kept, new} - {old} for old in kept for new in set(range(len(cloud))) - set(kept)]
    least = min([total(costs, swap) for swap in swaps], default=np.inf)
    assert total(costs, kept) <= least + 1e-9 * (1 + costs.max())


def test_a_cover_of_clusters_is_the_best_of_all_subsets():
    generator = np.random.default_rng(0)
    cloud = np.repeat(generator.normal(size=(4, 3)) * 10, 3, axis=0) + generator.normal(size=(12, 3)) / 10
    costs = replacement_costs(cloud, distance_matrix(cloud), "euclidean")
    best = min(itertools.combinations(range(12), 4), key=lambda kept: total(costs, kept))
    assert cover(costs, 4) == [*best] == merge_tree(costs, 4).kept


def test_what_carries_no_mass_is_removed_first():
    cloud = np.array([[1.0, 0.0], [0.0, 1e-3], [0.0, 0.0], [1.0, 1.0]])
    costs = replacement_costs(cloud, distance_matrix(cloud, "sine"), "sine")
    assert cover(costs, 2) == [0, 3] == merge_tree(costs, 2).kept
    np.testing.assert_allclose(costs[0], [0, 1, 1, 0.5], atol=1e-6)  # |i|^2 sin^2


def metric_space(generator, n):
    """Shortest paths of random weights: any metric is of this kind."""
    delta = generator.random((n, n))
    delta = np.minimum(delta, delta.T)
    np.fill_diagonal(delta, 0)
    for middle in range(n):
        delta = np.minimum(delta, delta[:, middle, None] + delta[None, middle])
    return delta


def bottlenecks(delta, kept):
    every, few = (diagrams(part, (0, 1)) for part in (delta, delta[np.ix_(kept, kept)]))
    return [diagram_distance(every[q], few[q], "bottleneck") for q in (0, 1)]


@properties
@given(st.integers(0, 10**6), st.integers(2, 14), st.data())
def test_diagrams_differ_by_twice_the_covering_radius_at_most(seed, n, data):
    generator = np.random.default_rng(seed)
    kept = generator.permutation(n)[: data.draw(st.integers(1, n))]
    sines = distance_matrix(generator.normal(size=(n, 3)), "sine")
    for delta in (metric_space(generator, n), sines.astype(float)):
        assert max(bottlenecks(delta, kept)) <= 2 * covering_radius(delta, kept) + 1e-6


def test_the_certificate_holds_on_layers_of_a_network():
    torch.manual_seed(0)
    model, images = build("vgg16", 10, 1 / 8), torch.randn(64, 3, 32, 32)
    found = couplings(model, images, check=False)[:5]
    for space, metric in (("weights", "euclidean"), ("functional", "sine")):
        for cloud in points(model, images, found, space):
            delta = distance_matrix(cloud, metric).astype(float)
            for search in ("cover", "merge", "farthest"):
                kept = topological(cloud, len(cloud) // 2, metric=metric, search=search).kept
                radius = covering_radius(delta, kept)
                assert 0 < radius and max(bottlenecks(delta, kept)) <= 2 * radius + 1e-6


def test_close_diagrams_do_not_make_a_cover():
    ring = np.exp(2j * np.pi * np.arange(8) / 8)
    points_of_plane = np.append(ring, 100)
    delta = np.abs(np.subtract.outer(points_of_plane, points_of_plane))
    only_ring, coarse = np.arange(8), np.arange(0, 9, 2)
    assert bottlenecks(delta, only_ring)[1] == 0 and covering_radius(delta, only_ring) > 90
    assert bottlenecks(delta, coarse)[1] > 0.1 and covering_radius(delta, coarse) < 1


def test_what_cannot_be_covered_is_refused():
    delta = np.zeros((3, 3))
    for keep in (0, 4):
        for choose in (cover, merge_tree):
            with pytest.raises(ValueError, match=rf"keep must lie in \[1, 3\], got {keep}"):
                choose(delta, keep)
    with pytest.raises(ValueError, match="at least one point"):
        covering_radius(delta, [])
    with pytest.raises(ValueError, match="has no pointed: leave it out"):
        topological(np.eye(3), 2, search="cover", pointed=True)


LINE = np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0)))


def spoilt(value):
    costs = LINE.copy()
    costs[0, 2] = value
    return costs


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        *[(spoilt(x), rf"costs must be finite and at least 0, got {x} at \[0, 2\]") for x in (np.nan, np.inf, -1.0)],
        (LINE[:2], r"costs must be a square matrix of costs.*, got float64 of shape \(2, 4\)"),
        (np.empty((0, 0)), r"at least one point, got float64 of shape \(0, 0\)"),
        ([[0, 1], [1]], "costs must be a square matrix of costs.*, got list"),
        ([["a"]], "costs must be a square matrix of costs.*, got <U1"),
    ],
)
@pytest.mark.parametrize("choose", [cover, merge_tree])
def test_what_are_no_costs_is_named(choose, costs, message):
    with pytest.raises(ValueError, match=message) as caught:
        choose(costs, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("delta", "kept", "message"),
    [
        (LINE * np.nan, [0], "delta holds NaN or infinity"),
        (-LINE, [0], "delta must not be negative|float32 holds"),
        (LINE[:2], [0], "delta must be a square matrix"),
        (spoilt(7.0), [0], "delta must be symmetric"),
        (LINE, [0, -1], r"kept must lie in 0 \.\. 3, got -1 \.\. 0"),
        (LINE, [4], r"kept must lie in 0 \.\. 3, got 4 \.\. 4"),
        (LINE, [0.5], "kept must be integers .*, got float64"),
        (LINE, 2, r"kept must be integers of shape \(k,\).*, got int64 of shape \(\)"),
    ],
)
def test_what_has_no_covering_radius_is_named(delta, kept, message):
    with pytest.raises(ValueError, match=message) as caught:
        covering_radius(delta, kept)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.tensor, np.float32, np.ndarray.tolist])
def test_covers_take_whatever_holds_numbers(kind):
    kept = cover(LINE, 2)
    assert cover(kind(LINE), 2) == kept and covering_radius(kind(LINE), kept) == covering_radius(LINE, kept) == 1
    assert covering_radius(kind(LINE), torch.tensor([0, 3])) == covering_radius(LINE, range(0, 4, 3)) == 1
    assert merge_tree(kind(LINE), 2).kept == merge_tree(LINE, 2).kept


@pytest.mark.parametrize("search", ["cover", "merge"])
def test_a_cover_says_what_it_cost(search):
    cloud = np.random.default_rng(0).normal(size=(20, 4))
    result = topological(cloud, 8, search=search)
    costs = replacement_costs(cloud, distance_matrix(cloud), "euclidean")
    assert result.fitness == pytest.approx(total(costs, result.kept)) == result.history[0]["best"]
    assert len(result.kept) == 8 and result.history[0]["seconds"] > 0
    assert topological(cloud, 20, search=search).kept.tolist() == [*range(20)]
