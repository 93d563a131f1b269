"""The visual introduction draws what independent computations give, and its text is true of its filters."""

import re
from itertools import combinations
from pathlib import Path

import gudhi
import numpy as np
import pytest
from gudhi.hera import wasserstein_distance
from planted import portrait
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import cdist, pdist

from topoprune.report.figures import introduction
from topoprune.report.figures.introduction import CLOSEST, COVER, FILTERS, KEPT, LOOK_ALIKE, NORMS, SCALES

EVERYONE = range(len(FILTERS))
DELTA = cdist(FILTERS, FILTERS)
SINGLE_LINKAGE = linkage(pdist(FILTERS), "single")[:, 2]


@pytest.fixture(scope="module")
def choices():
    return introduction.choices()


@pytest.fixture(scope="module")
def findings(choices):
    return introduction.findings(choices)


def gudhi_tree(kept=EVERYONE) -> gudhi.SimplexTree:
    tree = gudhi.RipsComplex(points=FILTERS[list(kept)]).create_simplex_tree(max_dimension=2)
    tree.compute_persistence(persistence_dim_max=True, homology_coeff_field=2)
    return tree


def gudhi_bars(kept=EVERYONE) -> dict[int, np.ndarray]:
    tree = gudhi_tree(kept)
    bars = {q: tree.persistence_intervals_in_dimension(q).reshape(-1, 2) for q in (0, 1)}
    return {q: rows[np.isfinite(rows).all(axis=1) & (np.ptp(rows, axis=1) > 0)] for q, rows in bars.items()}


def radius(kept) -> float:
    return max(min(DELTA[i, j] for j in kept) for i in EVERYONE)


def drawn_bars(figure, filters: str, dimension: int) -> np.ndarray:
    rows = figure.data[(figure.data["filters"] == filters) & (figure.data["dimension"] == dimension)]
    return np.sort(rows[["birth", "death"]].to_numpy(), axis=0)


def test_components_die_at_the_merges_of_single_linkage():
    figure = introduction.merge_tree_and_barcode()
    np.testing.assert_allclose(drawn_bars(figure, "whole", 0)[:, 1], SINGLE_LINKAGE, rtol=1e-6)


def test_the_tree_and_the_barcode_stand_on_one_axis():
    above, below = introduction.merge_tree_and_barcode().axes
    assert above.get_xlim() == below.get_xlim() and above.get_xlim()[0] == 0
    merges = {round(x, 5) for branch in above.collections[0].get_segments() for x, _ in branch} - {0.0}
    ends = {round(bar[1][0], 5) for bars in below.collections[1:2] for bar in bars.get_segments()}
    assert ends == {round(float(height), 5) for height in SINGLE_LINKAGE} == merges


def test_the_diagram_is_that_of_gudhi():
    figure, bars = introduction.persistence_diagram(), gudhi_bars()
    for q in (0, 1):
        np.testing.assert_allclose(drawn_bars(figure, "whole", q), np.sort(bars[q], axis=0), rtol=1e-6)
    assert len(bars[1]) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_the_growing_balls_show_the_betti_numbers(scale):
    row = introduction.growing_balls().data.set_index("distance").loc[scale]
    tree = gudhi_tree()
    assert [row["components"], row["loops"]] == tree.persistent_betti_numbers(scale, scale)[:2]


def test_an_edge_is_drawn_for_each_pair_within_the_scale():
    for axes, scale in zip(introduction.growing_balls().axes, SCALES, strict=True):
        triangles, edges = axes.collections[:2]
        near = [pair for pair in combinations(EVERYONE, 2) if DELTA[pair] <= scale]
        assert len(edges.get_segments()) == len(near)
        within = [c for c in combinations(EVERYONE, 3) if DELTA[np.ix_(c, c)].max() <= scale]
        assert len(triangles.get_paths()) == len(within)
        assert {patch.radius for patch in axes.patches} == {scale / 2}


def test_the_balls_show_a_loop_that_opens_and_is_filled():
    shown = introduction.growing_balls().data
    assert shown["components"].is_monotonic_decreasing and list(shown["components"][-2:]) == [1, 1]
    assert list(shown["loops"]) == [0, 0, 1, 0]


def test_the_choices_are_what_they_are_called(choices):
    assert all(len(set(kept)) == KEPT for kept in choices.values())
    norms = np.linalg.norm(FILTERS, axis=1)
    assert norms[choices[NORMS]].min() > np.delete(norms, choices[NORMS]).max()
    costs = {kept: (DELTA[:, kept].min(axis=1) ** 2).sum() for kept in combinations(EVERYONE, KEPT)}
    assert costs[tuple(choices[COVER])] == pytest.approx(min(costs.values()))
    fitness = {kept: fitness_by_gudhi(kept) for kept in [tuple(choices[name]) for name in (CLOSEST, COVER, NORMS)]}
    assert tuple(choices[CLOSEST]) == min(fitness, key=fitness.get)


def fitness_by_gudhi(kept) -> float:
    """As the pruner's page defines it, by GUDHI's distance."""
    whole, mine = gudhi_bars(), gudhi_bars(kept)
    return sum(wasserstein_distance(whole[q], mine[q], order=1) / np.ptp(whole[q], axis=1).sum() for q in (0, 1))


def test_every_choice_is_judged_once():
    every = introduction.all_choices()
    assert list(every["kept"]) == list(combinations(EVERYONE, KEPT))
    np.testing.assert_allclose(every["radius"], [radius(kept) for kept in every["kept"]], rtol=1e-6)
    for row in every.iloc[::100].itertuples():
        assert row.fitness == pytest.approx(fitness_by_gudhi(row.kept), rel=1e-5)


def test_the_numbers_of_the_text_are_those_of_brute_force(choices, findings):
    for name in (COVER, NORMS, CLOSEST, LOOK_ALIKE):
        key = name.replace(" ", "_").replace("-", "_")
        assert findings[f"{key}_radius"] == pytest.approx(radius(choices[name]), rel=1e-6)
        assert findings[f"{key}_fitness"] == pytest.approx(fitness_by_gudhi(choices[name]), rel=1e-5)
    moved = [gudhi.bottleneck_distance(gudhi_bars()[q], gudhi_bars(choices[COVER])[q]) for q in (0, 1)]
    assert findings["most_moved"] == pytest.approx(max(moved), rel=1e-5)
    assert (findings["first_merge"], findings["last_merge"]) == pytest.approx(SINGLE_LINKAGE[[0, -1]], rel=1e-6)


def test_the_cover_covers_and_the_largest_norms_do_not(choices, findings):
    everyone = introduction.all_choices()["radius"]
    assert findings["cover_radius"] == everyone.min()
    assert findings["largest_norms_radius"] == everyone.max()
    assert findings["most_moved"] <= findings["certificate"] == 2 * findings["cover_radius"]
    bars = [
        death - birth for some in (gudhi_bars(), gudhi_bars(choices[COVER])) for q in (0, 1) for birth, death in some[q]
    ]
    assert findings["half_longest"] == pytest.approx(max(bars) / 2, rel=1e-6)  # the cover's bars can be the longer ones
    assert findings["most_moved"] <= findings["half_longest"] < findings["certificate"]
    assert len(introduction.bars_of(choices[COVER])[1]) == 1 and not len(introduction.bars_of(choices[NORMS])[1])


def test_diagrams_that_are_nearly_equal_need_not_cover(findings):
    assert findings["apart"] < 0.02 * findings["total"]
    assert findings["look_alike_radius"] >= 2 * findings["cover_radius"]
    assert findings["look_alike_fitness"] < findings["cover_fitness"]


def test_the_closest_diagrams_cover_less_than_the_cover(findings):
    every = introduction.all_choices()
    assert findings["closest_diagrams_fitness"] == every["fitness"].min() < findings["cover_fitness"]
    assert findings["closest_diagrams_radius"] > 2 * findings["cover_radius"]
    assert findings["rank_correlation"] < 0


def test_the_line_of_the_radius_is_drawn_in_full(choices):
    figure = introduction.kept_and_removed({name: choices[name] for name in (COVER, NORMS)})
    for axes, name in zip(figure.axes, (COVER, NORMS), strict=False):
        (line,) = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert np.hypot(*np.diff(line.get_xydata(), axis=0)[0]) == pytest.approx(radius(choices[name]))
        assert axes.get_title() == f"{name}\nradius {radius(choices[name]):.2f}"
        for q in (0, 1):
            bars = np.sort(gudhi_bars(choices[name])[q], axis=0)
            np.testing.assert_allclose(drawn_bars(figure, name, q), bars, rtol=1e-6)


def test_each_named_choice_is_marked_where_it_stands(choices):
    figure = introduction.fitness_against_radius(choices)
    marked = figure.data[figure.data["choice"] != ""].set_index("choice")
    assert dict(marked["kept"]) == {name: tuple(kept) for name, kept in choices.items()}
    assert len(figure.data) == len(figure.axes[0].collections[0].get_offsets()) == len(introduction.all_choices())
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(choices)


def test_the_points_are_the_filters():
    figure = introduction.filters_as_points()
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_offsets(), FILTERS)
    numbers = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert all(tuple(numbers[str(number)]) == tuple(point) for number, point in enumerate(FILTERS, 1))


def test_a_layer_on_record_is_drawn_whole():
    record = portrait()
    figure = introduction.layer_and_barcode(record)
    assert len(figure.axes[0].collections[0].get_offsets()) == 3
    assert drawn_bars(figure, "layer", 0).tolist() == [[0, 1], [0, 3]]
    found = introduction.layer_findings(record)
    assert (found["layer"], found["layer_filters"], found["layer_loops"]) == ("features.3", 3, 1)
    assert (found["layer_loop"], found["layer_loop_share"]) == pytest.approx((1, 100 / 3))
    assert 1 < found["layer_low"] < found["layer_high"] < 3


def test_a_layer_without_loops_has_none():
    record = portrait()
    record.result["diagrams"]["full"]["1"] = []
    assert introduction.layer_findings(record)["layer_loop_share"] == 0
    assert set(introduction.layer_and_barcode(record).data["dimension"]) == {0}


def test_the_background_has_the_shares_of_flops_of_uniform_ratios():
    """CHIP and CORING remove 58 % of the FLOPs, a uniform ratio of 0.352 nearly as many."""
    text = (Path(__file__).parents[2] / "book" / "background.md").read_text()
    found = re.search(
        r"uniform {term}`ratio` of ([\d.]+) leaves .*?uniform ratio of ([\d.]+), .*? removes ([\d.]+) %", text, re.S
    )
    like, ours, removed = (float(number) for number in found.groups())
    assert uniform_removal(like) == pytest.approx(58, abs=0.5)
    assert round(uniform_removal(ours), 1) == removed


def uniform_removal(ratio: float) -> float:
    """Percent of VGG-16's multiply-adds that a uniform ratio removes, counted by hand."""
    widths, sides = [64, 64, 128, 128, 256, 256, 256, *[512] * 6], [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]

    def flops(widths: list[int]) -> int:
        convolutions = zip([3, *widths], widths, sides, strict=False)
        return sum(9 * a * b * side**2 for a, b, side in convolutions) + 10 * widths[-1]

    return 100 * (1 - flops([width - int(ratio * width) for width in widths]) / flops(widths))
