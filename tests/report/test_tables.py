"""Tables hold the numbers of the records, whatever of a profile is on record."""

import dataclasses

import numpy as np
import pytest
from planted import COST, PROVENANCE, RATIOS, RECIPE, networks, only_trials, planted, portrait, record

from topoprune import study
from topoprune.report import evidence, figures, tables
from topoprune.study import Dense, Record

FROM_RECORDS = [
    tables.comparison_table,
    tables.cost_table,
    tables.damage_table,
    tables.dense_table,
    tables.distance_by_layer,
    tables.how_it_was_run,
    tables.commits_table,
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


def test_what_is_quoted_of_no_record_is_said_to_be_none():
    assert tables.mean_accuracy([]) == "not part of this profile"
    assert np.isnan(evidence.findings([])["low_gain"]) and evidence.findings([])["low_seeds"] == 0
    assert tables.commit_numbers([]) == {"records": 0, "commits": 0, "dirty": 0}
    assert tables.optimizers_table([], []).empty
    assert '<div id="explorer">' in figures.explorer([])


def test_the_thesis_s_table_by_hand():
    trials = [record("l1", 0.5, seed, test, 30, 0.4, epochs=time) for seed, test, time in ((0, 80, 2), (1, 82, 5))]
    row = tables.comparison_table([*networks(2), *trials, record("topological", 0.5, 0, 81, 20, 0.1)])
    assert list(row["method"]) == ["L1", "topological"]
    l1 = row.iloc[0]
    assert l1["test accuracy (%)"] == "81.00 ± 1.00" and l1["before fine-tuning (%)"] == "60.00 ± 0.00"
    assert (l1["recovered"], l1["recovery (epochs)"]) == ("1 of 2", "3.5 ± 1.5")
    assert row.iloc[1]["test accuracy (%)"] == "81.00"  # no standard error of one


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
