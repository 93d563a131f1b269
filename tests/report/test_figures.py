"""Figures draw what the records hold, and say so where they hold nothing."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from planted import LAYERS, METHODS, RATIOS, networks, only_trials, planted, portrait, record

from topoprune.report import figures, tables
from topoprune.report.frames import NAMES, recovery_frame, trials

NAMES_HERE = {NAMES[name] for name in METHODS}

FROM_RECORDS = [
    figures.ablation_plot,
    figures.accuracy_by_cost,
    figures.accuracy_by_ratio,
    figures.convergence,
    figures.damage_against_recovery,
    figures.difference_plot,
    figures.partial_effect,
    figures.recovery_curves,
    figures.search_courses,
    figures.searches,
    figures.selection_cost,
    figures.survival_curves,
    figures.training_curves,
]


@pytest.fixture(scope="module")
def records():
    return planted(seeds=2)


@pytest.mark.parametrize("draw", FROM_RECORDS, ids=lambda draw: draw.__name__)
def test_a_figure_without_records_says_so(draw):
    figure = draw([])
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing on record"]
    assert figure.data.empty and len(figure.data.columns)


@pytest.mark.parametrize("draw", [*FROM_RECORDS[1:-1], lambda few: figures.layer_map(few, "kept filters")])
def test_dense_networks_alone_are_no_trials(draw):
    assert draw(networks(2)).data.empty


@pytest.mark.parametrize("draw", [figures.accuracy_by_ratio, figures.difference_plot, figures.recovery_curves])
def test_one_network_is_drawn_without_intervals(draw):
    figure = draw(planted(seeds=1))
    assert len(figure.data) and not np.isnan(drawn_lines(figure.axes[0])[0]).any()


def drawn_lines(axes) -> list[np.ndarray]:
    """The y values of the lines that have points."""
    return [y for line in axes.lines if len(y := np.asarray(line.get_ydata(), dtype=float))]


def legend(figure) -> set[str]:
    holder = figure.legends[0] if figure.legends else figure.axes[-1].get_legend()
    return {text.get_text() for text in holder.get_texts()}


def test_accuracy_by_ratio_draws_the_means_of_each_method_and_the_dense_network(records):
    figure = figures.accuracy_by_ratio(records)
    before, after = figure.axes
    assert legend(figure) == NAMES_HERE
    means = trials(records).groupby(["method", "ratio"])["test"].mean()
    for name in ("L1", "topological"):
        assert any(np.allclose(line, means[name]) for line in drawn_lines(after) if len(line) == len(RATIOS))
    assert any(np.allclose(line, 90) for line in drawn_lines(before) if len(line) == 2)
    assert len([part for part in after.collections if isinstance(part, LineCollection)]) == len(METHODS)  # intervals


def test_accuracy_by_cost_has_ticks_at_what_layerwise_methods_leave_and_published_crosses():
    records = planted(seeds=2)
    for one in only_trials(records):
        one.result["cost"] = {**one.result["cost"], "parameters": 1 - one.spec.ratio, "flops": 1 - one.spec.ratio}
    figure = figures.accuracy_by_cost(records)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["10", "20", "50"]
    crosses = next(part for part in figure.axes[1].collections if part.get_label().startswith("published"))
    assert len(crosses.get_offsets()) == len(tables.published_table().dropna(subset=["FLOPs removed (%)"]))


def test_the_main_figure_draws_differences_from_random_removal_network_by_network(records):
    before, after = figures.main_figure(records).axes
    assert {text.get_text() for text in before.get_legend().get_texts()} == NAMES_HERE - {
        NAMES["magnitude"],
        NAMES["taylor"],
    }
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="test")
    differences = wide["topological"] - wide["random"]
    drawn = np.concatenate(drawn_lines(after))
    assert set(differences.round(9)) | set(differences.groupby("ratio").mean().round(9)) <= set(drawn.round(9))
    assert figures.main_figure(networks(2)).data.empty


def test_training_curves_draw_validation_and_test(records):
    figure = figures.training_curves(records)
    assert legend(figure) == {"validation", "test"}
    assert len(figure.data) == 2 * 2 * 2  # networks, epochs, splits
    assert any(np.allclose(line, [80, 90]) for line in drawn_lines(figure.axes[0]))


@pytest.mark.parametrize("draw, each", [(figures.recovery_curves, "epoch"), (figures.survival_curves, "epoch")])
def test_curves_have_a_panel_for_each_ratio(records, draw, each):
    figure = draw(records)
    assert [axes.get_title() for axes in figure.axes] == [f"ratio {ratio:g}" for ratio in RATIOS]
    assert NAMES_HERE <= legend(figure)
    assert figure.data[each].max() == {figures.recovery_curves: 5, figures.survival_curves: 2}[draw]
    assert len(drawn_lines(figure.axes[0])) >= len(METHODS)


def test_recovery_curves_draw_their_data(records):
    figure = figures.recovery_curves(records)
    assert figure.data.equals(recovery_frame(records))
    mean = figure.data.query("method == 'L1' and ratio == 0.5").groupby("epoch")["test accuracy (%)"].mean()
    assert any(np.allclose(line, mean) for line in drawn_lines(figure.axes[0]) if len(line) == 6)


def test_the_difference_plot_has_a_point_for_each_layerwise_rival_and_ratio(records):
    figure = figures.difference_plot(records)
    (axes,) = figure.axes
    rivals = ["random", "L1", "L2", "FPGM"]
    assert legend(figure) == {f"minus {rival}" for rival in rivals}
    assert len(figure.data) == len(rivals) * len(RATIOS)
    points = np.concatenate([line for line in drawn_lines(axes) if len(line) == len(RATIOS)])
    assert set(figure.data["difference"].round(9)) <= set(points.round(9))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"{ratio:g}" for ratio in RATIOS]


def test_the_ablation_plot_has_a_point_for_each_variant():
    records = networks(2) + [
        record(name, 0.5, seed, test + seed, 5, 0.5)
        for name, test in (("topological", 80), ("h0", 81), ("greedy", 79))
        for seed in range(2)
    ]
    figure = figures.ablation_plot(records)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["H0 alone", "greedy"]
    assert list(figure.data["accuracy"]) == [-1, 1]


def test_selection_cost_has_a_row_for_each_method_and_a_line_for_each_ratio(records):
    (axes,) = figures.selection_cost(records).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [NAMES[name] for name in METHODS]
    assert [text.get_text() for text in axes.texts] == [f"{ratio:g}" for ratio in RATIOS]
    assert sum(len(part.get_offsets()) for part in axes.collections) == len(only_trials(records))


@pytest.mark.parametrize("column", ["topological distance", "kept filters", "live channels (%)", "removed norm"])
def test_layers_are_mapped_with_their_means(records, column):
    figure = figures.layer_map(records, column)
    drawn = figure.axes[0].collections[0].get_array().reshape(len(METHODS), len(LAYERS))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [NAMES[name] for name in METHODS]
    assert [axes.get_title() for axes in figure.axes[: len(RATIOS)]] == [f"ratio {ratio:g}" for ratio in RATIOS]
    scale = figure.axes[len(RATIOS)].child_axes[0]
    assert scale.get_xlabel() == column and len(figure.axes) == len(RATIOS) + 1
    means = figure.data[figure.data["ratio"] == RATIOS[0]].groupby(["method", "layer"])[column].mean()
    np.testing.assert_allclose(drawn[1], means["L1"])


def test_the_panels_of_a_map_have_the_same_rows():
    """One method is not on record at the second ratio: its row is blank there, and no other takes its name."""
    some = [
        *networks(1),
        *(
            record(name, ratio, 0, 80, 1, 0.5)
            for name, ratio in (("l1", 0.5), ("topological", 0.5), ("topological", 0.7))
        ),
    ]
    figure = figures.layer_map(some, "topological distance")
    drawn = [axes.collections[0].get_array().reshape(-1, len(LAYERS)) for axes in figure.axes[:2]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["L1", "topological"]
    assert drawn[0].shape == drawn[1].shape == (2, len(LAYERS))
    assert drawn[1].mask[0].all() and not drawn[1].mask[1].any()


@pytest.mark.parametrize("draw", [figures.damage_against_recovery, figures.partial_effect])
def test_every_trial_is_a_dot(records, draw):
    figure = draw(records)
    assert NAMES_HERE <= legend(figure)
    for axes in figure.axes:
        assert len(axes.collections[0].get_offsets()) == len(figure.data) == len(only_trials(records))
    x = figure.axes[0].collections[0].get_offsets()[:, 0]
    np.testing.assert_allclose(sorted(x), sorted(figure.data["topological distance"]))


def searched() -> list:
    """Random search ends a half above the genetic algorithm."""
    return [*networks(1), record("topological", 0.5, 0, 80, 1, 0.2), record("random search", 0.5, 0, 80, 1, 0.3)]


def test_searches_are_relative_to_the_genetic_algorithm_s():
    figure = figures.searches(searched())
    found = figure.data.groupby("search")["relative fitness"].mean()
    assert found.to_dict() == pytest.approx({"genetic": 1, "random search": 1.5})
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["genetic", "random search"]


def test_search_courses_end_at_what_each_search_found():
    figure = figures.search_courses(searched())
    assert legend(figure) == {"genetic", "random search"}
    lines = [line for line in drawn_lines(figure.axes[0]) if len(line) == 20]
    np.testing.assert_allclose(sorted((line[0], line[-1]) for line in lines), [(2, 1), (3, 1.5)])


def test_convergence_has_a_line_for_each_layer(records):
    figure = figures.convergence(records)
    assert legend(figure) == set(LAYERS)
    assert len(figure.axes) == len(RATIOS)
    for line in drawn_lines(figure.axes[0]):
        np.testing.assert_allclose(line, [1, 0.5])


def test_a_portrait_s_diagrams_and_bars():
    diagrams = figures.persistence_diagrams(portrait())
    assert [axes.get_title() for axes in diagrams.axes] == ["L1, H1", "topological, H1", "H0"]
    whole, kept = diagrams.axes[0].collections
    assert whole.get_offsets().tolist() == [[1, 2]] and len(kept.get_offsets()) == 0
    deaths = diagrams.axes[2]
    assert [label.get_text() for label in deaths.get_yticklabels()] == ["whole layer", "L1", "topological"]
    dots = [part.get_offsets()[:, 0].tolist() for part in deaths.collections]
    assert dots == [[1, 3], [3], [1]]
    assert len(diagrams.data) == 5
    bars = figures.barcodes(portrait())
    titles = [axes.get_title() for axes in bars.axes]
    assert titles == [f"{name}, H{d}" for name in ("whole layer", "L1", "topological") for d in (0, 1)]
    longest = bars.axes[0].collections[0].get_segments()[0]
    assert longest.tolist() == [[0, 0], [3, 0]]


@pytest.mark.parametrize("ratios", [1, 2, 3, 4, 5])
def test_panels_stand_two_side_by_side_and_the_legend_covers_none(ratios):
    """An odd number of panels leaves the last place to the legend; otherwise it is below them."""
    trials = [
        record(name, 0.5 + ratio / 20, 0, 80, 1, 0.5) for ratio in range(ratios) for name in ("l1", "fpgm", "pointed")
    ]
    figure = figures.recovery_curves([*networks(1), *trials])
    figure.draw_without_rendering()
    (shared,) = figure.legends
    box = shared.get_window_extent()
    assert len(figure.axes) == ratios and figure.get_figwidth() < 7
    assert not any(axes.get_legend() for axes in figure.axes)
    parts = [
        part for axes in figure.axes for part in (axes.bbox, axes.xaxis.get_tightbbox(), axes.title.get_window_extent())
    ]
    assert not any(box.overlaps(part) for part in parts)
    assert len({round(axes.get_position().x0, 2) for axes in figure.axes}) == min(ratios, 2)
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= figure.bbox.y0


def test_the_plane_shows_what_each_method_keeps():
    figure = figures.filters_in_the_plane(portrait())
    removed, kept = figure.axes[0].collections
    assert removed.get_offsets().tolist() == [[1, 0]] and kept.get_offsets().tolist() == [[0, 0], [0, 3]]
    assert list(figure.data["kept by topological"]) == [True, True, False]
