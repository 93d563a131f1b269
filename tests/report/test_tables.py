"""Tables hold the numbers of the records, whatever of a profile is on record."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from planted import (
    COST,
    METHODS,
    PROVENANCE,
    RATIOS,
    RECIPE,
    networks,
    only_trials,
    planted,
    portrait,
    record,
    without,
)
from scipy import stats

from topoprune import study
from topoprune.report import benchmarks, evidence, figures, tables
from topoprune.report.frames import NAMES
from topoprune.study import Dense, Record

FROM_RECORDS = [
    tables.collapse_table,
    tables.commits_by_state,
    tables.comparison_table,
    tables.cost_table,
    tables.damage_table,
    tables.dense_summary,
    tables.dense_table,
    tables.distance_by_layer,
    tables.how_it_was_run,
    tables.commits_table,
    tables.runs_by_device,
    tables.search_by_layer,
    tables.search_table,
    tables.selection_table,
    tables.trials,
    tables.versions,
    evidence.ablations,
    evidence.accuracy_equivalence,
    evidence.collapses,
    evidence.damage_differences,
    evidence.damage_slopes,
    evidence.damage_slopes_over_networks,
    evidence.flops_mismatches,
    evidence.hazards,
    evidence.predictors_over_networks,
    evidence.restricted_means,
    evidence.survival,
]


def by_name(function) -> str:
    return function.__name__


@pytest.mark.parametrize("make", FROM_RECORDS, ids=by_name)
def test_a_table_has_the_same_columns_with_no_record_with_dense_networks_only_and_with_one_of_them(make):
    full = make(planted(seeds=2))
    for records in ([], networks(2), planted(seeds=1)):
        assert list(make(records).columns) == list(full.columns)


@pytest.mark.parametrize("make", [evidence.predictors, evidence.sensitivity], ids=by_name)
@pytest.mark.parametrize("records", [[], networks(2)], ids=["none", "dense"])
def test_nothing_predicts_without_trials(make, records):
    table = make(records)
    assert table.empty and {"target", "predictor", "effect", "p"} <= set(table.columns)


@pytest.mark.parametrize("make", [tables.effect_table, tables.effects_by_target], ids=by_name)
def test_tables_of_effects_may_be_empty(make):
    assert make(evidence.predictors([])).empty


def test_what_is_quoted_of_no_record_is_said_to_be_none():
    assert tables.mean_accuracy([]) == "not part of this profile"
    assert np.isnan(evidence.findings([])["low_gain"]) and evidence.findings([])["low_seeds"] == 0
    assert tables.commit_numbers([]) == {"records": 0, "commits": 0, "dirty": 0}
    assert tables.optimizers_table([], []).empty
    assert '<div id="explorer">' in figures.explorer([])


def test_the_thesis_s_table_by_hand():
    runs = ((0, 80, 2), (1, 81, 5), (2, 82, 5))
    trials = [record("l1", 0.5, seed, test, 30, 0.4, epochs=time) for seed, test, time in runs]
    never = record("l2", 0.5, 0, 80, 30, 0.4, epochs=5)
    row = tables.comparison_table([*networks(3), *trials, never, record("topological", 0.5, 0, 81, 20, 0.1)])
    assert list(row["method"]) == ["L1", "L2", "topological"]
    l1 = row.iloc[0]
    assert l1["test accuracy (%)"] == "81.00 ± 2.48"  # 4.303 / sqrt(3)
    assert l1["before fine-tuning (%)"] == "60.00 ± 0.00"
    assert (l1["recovered"], l1["recovery (epochs)"]) == ("1 of 3", "≥ 4.0 ± 4.3")
    assert (row.iloc[1]["recovered"], row.iloc[1]["recovery (epochs)"]) == ("0 of 1", "> 5.0")
    assert row.iloc[2]["test accuracy (%)"] == "81.00"  # no interval of one


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("column, digits", [("test", 2), ("damaged", 1), ("topological distance", 3)])
def test_one_line_a_method_has_the_means_and_intervals_of_the_trials(seeds, column, digits):
    records = planted(seeds=seeds)
    table = tables.by_ratio(records, column, digits)
    assert list(table.columns) == ["method", *(f"{ratio:g}" for ratio in RATIOS)]
    assert list(table["method"]) == [NAMES[name] for name in METHODS]
    frame = tables.trials(records)
    for method, cells in table.set_index("method").iterrows():
        for ratio in RATIOS:
            values = frame[(frame["method"] == method) & (frame["ratio"] == ratio)][column]
            mean, _, half = cells[f"{ratio:g}"].partition(" ± ")
            assert float(mean) == pytest.approx(values.mean(), abs=0.6 * 10**-digits)
            if seeds == 1:
                assert half == ""
            else:
                low, high = stats.t.interval(0.95, seeds - 1, values.mean(), stats.sem(values))
                assert float(half) == pytest.approx((high - low) / 2, abs=0.6 * 10**-digits)


def test_a_method_that_is_not_on_record_at_a_ratio_has_an_empty_cell():
    table = tables.by_ratio(without(planted(seeds=1), method="l1", ratio=0.8), "test").set_index("method")
    assert table.loc["L1", "0.8"] == "" and table.loc["L1", "0.5"] and (table.loc["L2"] != "").all()


@pytest.mark.parametrize(
    "make, column", [(tables.distance_by_layer, "H1, largest"), (tables.search_by_layer, "seconds")]
)
def test_a_table_of_layers_can_be_cut_to_the_largest(make, column):
    assert make([]).nlargest(5, column).empty
    assert make(planted(seeds=1)).nlargest(1, column)[column].item() == make(planted(seeds=1))[column].max()


def test_differences_from_rivals_are_signed_and_have_half_of_their_interval():
    means = evidence.restricted_means(planted(seeds=3, slow=1))
    table = tables.differences_by_ratio(means).set_index("rival")
    assert set(table.index) == set(means["rival"]) and table.loc["L1", "0.5"] == "+1.00"  # the same in each network
    means.loc[means.index[0], ["difference", "low", "high"]] = [-1.0, -3.0, 1.0]
    first = means.iloc[0]
    assert tables.differences_by_ratio(means).set_index("rival").loc[first["rival"], "0.5"] == "-1.00 ± 2.00"


@pytest.mark.parametrize(
    "make", [lambda few: tables.by_ratio(few, "test"), tables.selection_by_ratio], ids=["by_ratio", "selection"]
)
def test_a_table_by_ratio_of_no_trial_is_empty(make):
    assert make([]).empty and list(make(networks(1)).columns) == ["method"]
    assert tables.differences_by_ratio(evidence.restricted_means([])).empty


def test_seconds_of_selection_stand_over_those_of_an_epoch():
    table = tables.selection_by_ratio(planted(seeds=2)).set_index("method")
    assert list(table.index) == [*(NAMES[name] for name in METHODS), "one epoch of fine-tuning"]
    assert (table == "1.0").all(axis=None)


def test_collapses_are_added_up_over_ratios():
    records = [*networks(1), *(record("l1", ratio, 0, 80, 1, 0.4, live=0.0) for ratio in RATIOS)]
    (row,) = tables.collapse_table([*records, record("l2", 0.5, 0, 10, 1, 0.4)]).query("method == 'L1'").itertuples()
    assert (row.runs, row.collapsed) == (3, 3)
    counts = tables.collapse_table(planted(seeds=2)).set_index("method")
    by_ratio = evidence.collapses(planted(seeds=2)).groupby("method")[["runs", "collapsed", "at chance"]].sum()
    assert counts.loc[by_ratio.index].equals(by_ratio)


def test_effects_have_their_interval_in_parentheses():
    effects = evidence.predictors(planted(seeds=3, link=5))
    table = tables.effect_table(effects)
    first = effects.iloc[0]
    assert table.loc[0, "effect (points)"] == f"{first['effect']:.2f} ({first['low']:.2f} to {first['high']:.2f})"
    assert table["p"].equals(effects["p"]) and table["error without"].equals(effects["error without"])
    wide = tables.effects_by_target(effects).set_index("predictor")
    assert list(wide.columns) == list(effects["target"].unique())
    for number, row in effects.iterrows():
        assert wide.loc[row["predictor"], row["target"]] == table.loc[number, "effect (points)"]
    alone = tables.effect_table(evidence.predictors(planted(seeds=1)))
    assert not alone["effect (points)"].str.contains("to").any()


def test_costs_are_medians_in_percent_of_the_dense_network():
    records = planted(seeds=3)
    for one in only_trials(records):
        one.result["cost"] = {**COST, "flops": 0.1 * (one.spec.seed + 1), "images_per_second": 4.0}
    table = tables.cost_table(records).set_index("ratio")
    assert list(table.index) == [f"{ratio:g}" for ratio in RATIOS]
    assert table.loc["0.5", "FLOPs (%)"] == 20 and table.loc["0.5", "time, batch 256 (%)"] == 25


def test_the_distances_that_a_search_compares_are_those_of_the_subsets_it_judged():
    """Four subsets of 4 filters and four of 2: 6 and 1 distances each."""
    table = tables.selection_table(planted(seeds=1)).set_index(["ratio", "method"])
    assert table.loc[(0.5, "topological"), "distances compared (G)"] == pytest.approx(4 * (6 + 1) / 1e9)
    assert table.loc[(0.5, "L1"), "distances compared (G)"] == 0
    assert table.loc[(0.5, "L1"), "selection (epochs)"] == 1


def test_searches_by_hand():
    records = [*networks(1), record("topological", 0.5, 0, 80, 1, 0.3), record("l1", 0.5, 0, 80, 1, 0.3)]
    row = tables.search_table(records).iloc[0]
    assert (row["layers"], row["subsets evaluated"], row["generations, mean"]) == (2, 8, 1)
    assert (row["fitness, first population"], row["fitness, found"]) == pytest.approx((0.6, 0.3))
    layers = tables.search_by_layer(records)
    assert list(layers["layer"]) == ["features.3", "features.10"] and list(layers["subsets evaluated"]) == [4, 4]


def test_a_layer_that_decides_the_distance_is_seen():
    records = planted(seeds=2)
    for number, one in enumerate(only_trials(records)):
        one.result["damage"]["topological"]["features.10"]["1"] = 10.0 * number
    table = tables.distance_by_layer(records).set_index("convolution")
    assert list(table.index) == ["features.3", "features.10"]
    assert table.loc["features.10", "H1, largest"] == 10 * (len(only_trials(records)) - 1)
    assert table.loc["features.10", "correlation with the mean"] > 0.999
    assert abs(table.loc["features.3", "correlation with the mean"]) < 0.5


def test_damage_by_dimension_and_the_least_live_layer():
    records = [*networks(1), record("l1", 0.5, 0, 80, 1, 0.4, live=0.25)]
    row = tables.damage_table(records).iloc[0]
    assert (row["H0"], row["H1"], row["live channels, least (%)"]) == pytest.approx((0.4, 0, 25))


def with_optimizer(records: list[Record], muon_rate: float) -> list[Record]:
    recipe = dataclasses.replace(RECIPE, muon_rate=muon_rate)

    def changed(spec):
        if isinstance(spec, Dense):
            return dataclasses.replace(spec, recipe=recipe)
        return dataclasses.replace(spec, dense=changed(spec.dense))

    return [dataclasses.replace(one, spec=changed(one.spec)) for one in records]


def test_only_trials_that_both_optimizers_have_stand_side_by_side():
    muon = with_optimizer(planted(seeds=2, advantage=3, noise=0), 0.05)
    sgd = with_optimizer(
        [*networks(1), record("l1", 0.5, 0, 70, 1, 0.5), record("topological", 0.5, 0, 71, 1, 1.0)], 0.0
    )
    table = tables.optimizers_table(muon, sgd).set_index("method")
    assert list(table.index) == ["L1", "topological"] and set(table["Muon: networks"]) == {1}
    assert table["Muon: fine-tuned (%)"].to_dict() == pytest.approx({"L1": 85, "topological": 88})
    assert table["SGD: fine-tuned (%)"].to_dict() == pytest.approx({"L1": 70, "topological": 71})
    assert table.loc["topological", "SGD: norm removed (%)"] == pytest.approx(10)


def test_dense_networks_and_their_mean_in_words():
    record, other = networks(2)
    other.result["test"] = 0.8
    assert list(tables.dense_table([record, other])["test accuracy (%)"]) == [90, 80]
    assert tables.mean_accuracy([other]) == "80.00 % on the test images (one network)"
    assert tables.mean_accuracy([record, other]) == "85.00 % on the test images (mean of 2 networks)"


def test_dense_networks_in_short():
    records = networks(3)
    for one, test in zip(records, (0.89, 0.90, 0.91), strict=True):
        one.result["test"] = test
    (row,) = tables.dense_summary(records).itertuples(index=False)
    assert tuple(row)[:4] == ("cifar10", 0, 3, "90.00 ± 2.48")
    other = networks(1, "digits")
    assert list(tables.dense_summary([*records, *other])["networks"]) == [3, 1]


def test_recipes_stand_side_by_side():
    plan = study.profile("study")
    table = tables.recipe_table(plan).set_index("setting")
    assert table.loc["epochs"].to_dict() == {"dense training": "20", "fine-tuning": "5"}


def test_coverage_counts_what_is_on_record(monkeypatch):
    plan = dataclasses.replace(study.profile("study"), ratios=(0.5,), methods=("l1", "topological"), seeds=(0, 1))
    monkeypatch.setitem(study.PROFILES, "small", plan)
    found = [Record(spec, {}, {}) for spec in study.trial_specs("small", [0], ["l1"])]
    for records, l1 in (([], "0 of 2"), (found, "1 of 2")):
        table = tables.coverage("small", records).set_index("method")
        assert table["0.5"].to_dict() == {"L1": l1, "topological": "0 of 2"}


def test_coverage_in_short_counts_methods():
    table = pd.DataFrame({"method": ["a", "b", "c"], "0.5": ["3 of 3", "1 of 3", "3 of 3"], "0.9": ["0 of 3"] * 3})
    rows = tables.coverage_summary(table).to_numpy().tolist()
    assert rows == [["0.5", "3 of 3", 2], ["0.5", "1 of 3", 1], ["0.9", "0 of 3", 3]]


def test_a_profile_without_methods_has_an_empty_coverage():
    assert tables.coverage("study-whole", []).empty


def made_from(commit: str, date: str) -> Record:
    return dataclasses.replace(networks(1)[0], provenance={**PROVENANCE, "commit": commit, "date": date})


def test_commits_are_listed_and_those_with_uncommitted_changes_are_named():
    records = [
        made_from("bbbb", "2026-01-02"),
        made_from("aaaa-dirty", "2026-01-03"),
        made_from("aaaa", "2026-01-01"),
        made_from("aaaa", "2026-01-04"),
    ]
    table = tables.commits_table(records)
    assert table[["commit", "clean", "records"]].to_numpy().tolist() == [
        ["aaaa", "yes", 2],
        ["bbbb", "yes", 1],
        ["aaaa-dirty", "no", 1],
    ]
    assert table.iloc[0][["from", "to"]].to_list() == ["2026-01-01", "2026-01-04"]
    assert tables.commit_numbers(records) == {"records": 4, "commits": 2, "dirty": 1}


def test_commits_and_runs_in_short():
    records = [
        made_from("bbbb", "2026-01-02"),
        made_from("aaaa-dirty", "2026-01-03"),
        made_from("aaaa", "2026-01-01"),
        made_from("aaaa", "2026-01-04"),
    ]
    assert tables.commits_by_state(records).to_numpy().tolist() == [
        ["yes", 2, 3, "2026-01-01", "2026-01-04"],
        ["no", 1, 1, "2026-01-03", "2026-01-03"],
    ]
    (row,) = tables.runs_by_device(records).to_numpy().tolist()
    assert row == ["Dense", "cpu", 4, "2026-01-01 to 2026-01-04", "0.07"]
    assert tables.runs_by_device(records[:1])["dates"].item() == "2026-01-02"


def test_how_it_was_run_adds_up():
    row = tables.how_it_was_run(networks(3)).iloc[0]
    assert (row["kind"], row["records"], row["minutes"]) == ("Dense", 3, 3.0)
    assert tables.versions(networks(2)).to_dict("records") == [{"library": "torch", "versions": "2.9.0"}]


def test_shared_choices_are_shares_of_what_a_method_keeps():
    table = tables.shared_choices(portrait()).set_index("method")
    assert table.loc["L1", "L1"] == 100 and table.loc["L1", "topological"] == 50


def test_published_accuracies_stand_as_printed():
    table = tables.published_table()
    row = table[table["method"] == "FPGM (NNI's comparison, v2.0)"].iloc[0]
    assert (row["pruned (%)"], row["parameters removed (%)"], row["FLOPs removed (%)"]) == (93.59, 50.4, 50.5)
    assert len(table) == 6 * 3 + 9
    ranges = tables.published_ranges().set_index("method")
    assert len(ranges) == 8
    assert ranges.loc["FPGM (NNI's comparison, v2.0)"].to_list() == ["92.98", "50.5 to 95.8", "93.59 to 87.94"]
    assert ranges.loc["HRank (Lin et al., 2020)"].to_list() == ["93.96", "65.3", "92.34"]


def test_training_gains_are_those_of_the_whole_table():
    measured = benchmarks.benchmark(benchmarks.TRAINING)
    table = benchmarks.training_gains(measured).set_index("ratio")
    whole = benchmarks.engine_removal(measured).set_index(["ratio", "multiple of"])["times faster, training"]
    assert table.loc[0.5, "as they come"] == whole["0.5", "1"]
    assert table.loc[0.5, "multiples of 16"] == whole["0.5", "16"]
    assert table.notna().sum().sum() == len(whole) - 1  # without the dense network
