"""Differences between methods: what is a pair, what decides, what is counted."""

from dataclasses import replace

import numpy as np
import pytest
from planted import METHODS, RATIOS, networks, only_trials, planted, record, without
from scipy import stats

from topoprune.report import evidence
from topoprune.report.frames import trials
from topoprune.study import Dense, Record, Trial


def with_flops(records: list[Record], shares: dict[tuple[str, float, int], float]) -> list[Record]:
    """The records with other FLOPs for the trials of these methods, ratios and seeds."""
    for one in only_trials(records):
        if (share := shares.get((one.spec.method, one.spec.ratio, one.spec.seed))) is not None:
            one.result["cost"] = {**one.result["cost"], "flops": share}
    return records


def test_one_network_gives_no_interval_and_no_p_value():
    records = planted(seeds=1)
    table = evidence.accuracy_equivalence(records)
    assert table["low"].isna().all() and set(table["verdict"]) == {"undecided"}
    for differences in (evidence.restricted_means(records), evidence.damage_differences(records)):
        assert differences["p"].isna().all() and len(differences)


def test_methods_that_are_planted_alike_are_equivalent_and_worse_ones_are_worse():
    assert set(evidence.accuracy_equivalence(planted(seeds=5))["verdict"]) == {"equivalent"}
    assert set(evidence.accuracy_equivalence(planted(seeds=5, advantage=-2))["verdict"]) == {"worse"}
    assert set(evidence.accuracy_equivalence(planted(seeds=5, advantage=2))["verdict"]) == {"not inferior"}


def test_networks_with_other_flops_are_no_pair():
    """On the mean over networks, 98.2 % and 101 % would pass for equal."""
    seeds = 5
    shares = {("taylor", 0.9, 0): 0.982, ("taylor", 0.9, 1): 1.01}
    records = with_flops(planted(seeds), shares)
    table = evidence.accuracy_equivalence(records, second=evidence.GLOBAL).set_index(["rival", "ratio"])
    cell = table.loc[("global Taylor", 0.9)]
    assert cell["seeds"] == seeds - 1 and cell["FLOPs (%)"] == pytest.approx(100.25)
    assert table.loc[("global Taylor", 0.8), "seeds"] == seeds
    frame = trials(records).set_index(["method", "ratio", "seed"])["test"]
    pairs = [frame["topological", 0.9, seed] - frame["global Taylor", 0.9, seed] for seed in range(seeds) if seed != 0]
    assert cell["difference"] == pytest.approx(np.mean(pairs))
    mismatches = evidence.flops_mismatches(records)
    assert mismatches.to_dict("records") == [
        {"method": "topological", "rival": "global Taylor", "ratio": 0.9, "seed": 0, "FLOPs (%)": pytest.approx(98.2)}
    ]


def test_a_cell_without_any_pair_is_shown_and_undecided():
    records = with_flops(planted(seeds=3), {("taylor", 0.9, seed): 1.05 for seed in range(3)})
    table = evidence.accuracy_equivalence(records, second=evidence.GLOBAL).set_index(["rival", "ratio"])
    cell = table.loc[("global Taylor", 0.9)]
    assert cell["seeds"] == 0 and np.isnan(cell["difference"]) and cell["verdict"] == "undecided"
    assert table.loc[("global Taylor", 0.8), "verdict"] == "equivalent"


def test_the_differences_in_damage_are_those_planted():
    table = evidence.damage_differences(planted(seeds=5, hurt=-3, noise=0.01))
    assert set(table["rival"]) == {"random", "L1", "L2", "FPGM"} and set(table["ratio"]) == set(RATIOS)
    np.testing.assert_allclose(table["difference"], 3, atol=0.05)
    assert (table["p"] < 0.001).all() and set(table["at chance"]) == {"no"}


def test_networks_at_chance_are_marked():
    records = planted(seeds=3, hurt=3)
    for one in only_trials(records):
        one.result["damage"]["test"] = 0.12
    assert set(evidence.damage_differences(records)["at chance"]) == {"yes"}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar10-whole", "digits"])
def test_every_data_set_has_a_chance_level(dataset):
    """Trials on cifar10-whole ended in a KeyError."""
    spec = networks(1, dataset)[0].spec
    records = networks(1, dataset) + [
        replace(one, spec=replace(one.spec, dense=spec))
        for one in (record("l1", 0.9, 0, 10.5, 80, 0.5), record("topological", 0.9, 0, 11.5, 80, 0.5))
    ]
    counted = evidence.collapses(records).set_index("method")["at chance"]
    assert counted.to_dict() == {"L1": 1, "topological": 0}
    assert set(evidence.damage_differences(records)["at chance"]) == {"yes"}


def test_slopes_of_damage_are_those_planted_by_either_unit_of_replication():
    records = planted(seeds=4, noise=0.2)
    for one in only_trials(records):
        if one.spec.method == "l1":
            one.result["damage"]["validation"] -= 0.4 * one.spec.ratio  # 4 points for each 0.1
    mixed = evidence.damage_slopes(records).set_index("rival")
    single = evidence.damage_slopes_over_networks(records).set_index("rival")
    for table in (mixed, single):
        assert table.loc["L1", "slope"] == pytest.approx(4, abs=0.3) and table.loc["L1", "p"] < 0.001
        assert table.loc["L2", "low"] < 0.3 and table.loc["L2", "high"] > -0.3
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="damage")
    slopes = [
        np.polyfit(10 * part.index.get_level_values("ratio"), part, 1)[0]
        for _, part in (wide["L1"] - wide["topological"]).groupby(level="seed")
    ]
    assert single.loc["L1", "slope"] == pytest.approx(np.mean(slopes))
    assert single.loc["L1", "p"] == pytest.approx(stats.ttest_1samp(slopes, 0).pvalue)


def test_one_ratio_has_no_slope():
    records = [one for one in planted(seeds=3) if isinstance(one.spec, Dense) or one.spec.ratio == 0.5]
    assert evidence.damage_slopes(records).empty and evidence.damage_slopes_over_networks(records).empty


def test_collapse_and_chance_are_counted():
    records = [*networks(2), record("l1", 0.9, 0, 10, 70, 0.5, live=0.0), record("l1", 0.9, 1, 60, 70, 0.5)]
    row = evidence.collapses(records).iloc[0]
    assert (row["runs"], row["collapsed"], row["at chance"]) == (2, 1, 1)


def test_ablations_are_paired_with_the_default():
    records = networks(3)
    for seed in range(3):
        records += [
            record("topological", 0.5, seed, 80 + seed, 5, 0.5),
            record("random search", 0.5, seed, 78 + 1.5 * seed, 6, 0.75),
            record("h0", 0.5, seed, 80 + seed, 5, 0.1),
        ]
    table = evidence.ablations(records).set_index("variant")
    assert table.loc["random search", "accuracy"] == pytest.approx(1.5)
    expected = stats.ttest_1samp([2.0, 1.5, 1.0], 0).confidence_interval()
    np.testing.assert_allclose(table.loc["random search", ["low", "high"]].astype(float), expected)
    assert table.loc["random search", "damage"] == pytest.approx(1)
    assert table.loc["random search", "fitness"] == pytest.approx(0.5)
    assert table.loc["random search", "evaluations"] == 8
    assert np.isnan(table.loc["H0 alone", "fitness"])  # another fitness, not comparable
    assert table.loc["H0 alone", "accuracy"] == 0 and np.isnan(table.loc["H0 alone", "low"])  # no spread


def test_findings_are_means_over_networks_that_have_all_layerwise_methods():
    records = without(planted(seeds=3, advantage=2, hurt=-3, noise=0.0), seed=2, method="l1")
    found = evidence.findings(records)
    assert (found["low_ratio"], found["high_ratio"], found["low_seeds"]) == (0.5, 0.9, 2)
    assert found["low_topological"] - found["low_random"] == pytest.approx(3)
    assert found["high_rivals"] == pytest.approx(90 - 18)
    assert found["high_after"] == pytest.approx(90 - 9 + 2)
    assert found["low_spread"] == found["low_gain"] == pytest.approx(2)
    assert found["low_epochs"] == 1
    incomplete = evidence.findings(without(records, method="l2"))
    assert np.isnan(incomplete["low_gain"]) and incomplete["low_seeds"] == 0


def test_planted_records_have_every_method_at_every_ratio():
    cells = {(one.spec.method, one.spec.ratio) for one in planted(1) if isinstance(one.spec, Trial)}
    assert len(cells) == len(METHODS) * len(RATIOS)
