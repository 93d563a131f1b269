"""Verdicts follow what was planted, claim by claim."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import METHODS, RATIOS, networks, only_trials, planted, record, without

from topoprune import study
from topoprune.report import evidence
from topoprune.report.evidence import claims

PLAN = replace(study.profile("study"), ratios=RATIOS, methods=METHODS)
MORE_RATIOS = replace(PLAN, ratios=(*RATIOS, 0.95))


def verdicts_by_differences(records, plan=PLAN) -> dict[str, str]:
    """The claims that compare methods in pairs."""
    rows = {
        "accuracy": claims.competes(records, plan),
        "speed": claims.recovers(records, plan),
        "damage": claims.damages_less(records, plan),
        "damage, at chance counted": claims.damages_less(records, plan, at_chance="counted"),
        "layer": claims.layer_is_enough(records, plan),
    }
    return {name: row["verdict"] for name, row in rows.items()}


def test_one_network_decides_nothing():
    assert set(verdicts_by_differences(planted(seeds=1)).values()) == {"undecided"}


def test_verdicts_follow_what_was_planted():
    equal = verdicts_by_differences(planted(seeds=5))
    assert equal["accuracy"] == equal["layer"] == "supported"
    worse = verdicts_by_differences(planted(seeds=5, advantage=-2, hurt=3))
    assert {worse[name] for name in ("accuracy", "damage", "damage, at chance counted")} == {"not supported"}
    gentle = verdicts_by_differences(planted(seeds=5, hurt=-3))
    assert gentle["damage"] == gentle["damage, at chance counted"] == "supported"


def in_epochs(times: dict[str, list[int]], ratios=RATIOS) -> list:
    """Dense networks whose methods recover in these epochs, one for each network."""
    return networks(len(times["l1"])) + [
        record(name, ratio, seed, 80, 1, 0.5, epochs=time)
        for name, column in times.items()
        for ratio in ratios
        for seed, time in enumerate(column)
    ]


SLOW, FAST = [4, 3, 4, 3, 4, 4, 3, 4], [1, 1, 1, 1, 1, 1, 2, 1]
NEARLY = [4, 3, 4, 3, 4, 4, 4, 4]


@pytest.mark.parametrize(
    "mine, others, verdict",
    [
        (FAST, SLOW, "supported"),
        (SLOW, FAST, "not supported"),
        (SLOW, SLOW, "undecided"),  # equal times have no spread
        (FAST[:3], [2, 2, 2], "undecided"),  # three ties
        (NEARLY, SLOW, "undecided"),
    ],
)
def test_recovery_is_as_fast_if_holm_s_correction_leaves_it_so(mine, others, verdict):
    records = in_epochs({"topological": mine, "l1": others, "l2": others, "fpgm": others})
    assert claims.recovers(records, PLAN)["verdict"] == verdict


def test_an_interval_below_zero_that_holm_s_correction_does_not_confirm_supports_nothing():
    records = in_epochs({"topological": [1, 2, 2], "l1": [4, 4, 4], "l2": [4, 4, 4], "fpgm": [4, 4, 4]})
    table = evidence.restricted_means(records)
    assert (table["high"] < 0).all() and (table["p"] > 0.05).all()
    row = claims.recovers(records, PLAN)
    assert row["verdict"] == "undecided" and row["interval"].startswith("-3.77 to -0.90")


def test_runs_that_never_recover_are_no_evidence_of_equal_speed():
    never = [5, 5, 5, 5]
    row = claims.recovers(in_epochs({"topological": never, "l1": never, "l2": never, "fpgm": never}), PLAN)
    assert (row["verdict"], row["interval"]) == ("undecided", "none: no spread")
    assert row["effect"] == "no run recovered within its fine-tuning"


def test_networks_at_chance_tell_no_damage_apart():
    lost = planted(seeds=5, hurt=3)
    for one in only_trials(lost):
        one.result["damage"]["test"] = 0.12
    found = verdicts_by_differences(lost)
    assert (found["damage"], found["damage, at chance counted"]) == ("undecided", "not supported")


def test_cells_whose_networks_have_other_flops_support_nothing():
    apart = planted(seeds=4)
    for one in only_trials(apart):
        if one.spec.method == "taylor" and one.spec.ratio == 0.9 and one.spec.seed < 2:
            one.result["cost"] = {**one.result["cost"], "flops": 0.98 if one.spec.seed else 1.02}
    assert claims.layer_is_enough(apart, PLAN)["verdict"] == "undecided"


def test_the_row_of_a_verdict_shows_the_cell_that_decided():
    mixed = planted(seeds=5, noise=0.01)
    for one in only_trials(mixed):
        if one.spec.method == "topological":
            down = {0.5: 2.0, 0.9: 4.0}.get(one.spec.ratio, 0.0)
            one.result["history"][-1]["test"] -= down / 100
    lonely = [one for one in mixed if getattr(one.spec, "ratio", 0) != 0.9 or one.spec.seed == 0]
    row = claims.competes(lonely, PLAN)
    assert row["verdict"] == "not supported" and row["seeds"] == 5
    assert "ratio 0.5" in row["effect"] and "-2.0" in row["effect"]


@pytest.mark.parametrize("seeds, plan", [(2, PLAN), (5, MORE_RATIOS)])
def test_too_few_networks_or_cells_support_nothing(seeds, plan):
    assert "supported" not in verdicts_by_differences(planted(seeds, hurt=-3), plan).values()


def test_too_few_networks_refute_nothing_but_a_missing_cell_cannot_save_a_claim():
    assert "not supported" not in verdicts_by_differences(planted(2, advantage=-2, hurt=3)).values()
    assert verdicts_by_differences(planted(5, advantage=-2), MORE_RATIOS)["accuracy"] == "not supported"


def test_the_cost_is_the_mean_difference_over_what_networks_share():
    records = planted(seeds=3)
    for one in only_trials(records):
        if one.spec.method == "topological":
            one.result["selection_seconds"] = 10.0 + one.spec.seed  # the others take 1
    row = claims.cost_of_selection(records)
    assert row["effect"] == "+10.0 s (medians: topological 11.0, L1 1.0, L2 1.0, FPGM 1.0)"
    half = 4.302653 * 1 / np.sqrt(3)  # Student's quantile for 2 degrees of freedom
    assert row["interval"] == f"{10 - half:+.2f} to {10 + half:+.2f}"
    assert claims.cost_of_selection(networks(3) + records[3:4])["interval"] == "none: not on record"


def predictor(target: str, name: str, effect: float, half: float, p: float, error: float) -> dict:
    return {
        "target": target,
        "predictor": name,
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "p": p,
        "error": error,
        "error without": 1.0,
    }


DISTANCE = "topological distance"


@pytest.mark.parametrize(
    "rows, verdict",
    [
        ([("damage", DISTANCE, 2.0, 0.2, 0.001, 0.5)], "supported"),
        ([("area", DISTANCE, -2.0, 0.2, 0.001, 0.5)], "supported"),
        ([("damage", DISTANCE, 2.0, 3.0, 0.200, 0.5)], "undecided"),  # not significant
        ([("damage", DISTANCE, 2.0, 0.2, 0.001, 1.5)], "undecided"),  # predicts no unseen network
        ([("damage", DISTANCE, 0.2, 0.2, 0.001, 0.5)], "not supported"),  # certainly smaller than the margin
        ([("damage", DISTANCE, -2.0, 0.2, 0.001, 0.5)], "not supported"),  # of the wrong sign
        ([("damage", DISTANCE, 2.0, 0.2, np.nan, 0.5)], "undecided"),
        ([("damage", DISTANCE, 2.0, 0.2, 0.001, 0.5), ("damage", "norm", 2.0, 0.2, 0.001, 0.4)], "not supported"),
        ([("damage", DISTANCE, 2.0, 0.2, 0.001, 0.5), ("damage", "norm", 2.0, 0.2, 0.001, 0.6)], "supported"),
        ([("damage", DISTANCE, 2.0, 0.2, 0.001, 0.5), ("damage", "norm", -2.0, 0.2, 0.001, 0.4)], "supported"),
        ([("damage", "norm", 2.0, 0.2, 0.001, 0.5)], "undecided"),
    ],
)
def test_topology_explains_a_target_if_it_tells_it_and_nothing_simpler_does(rows, verdict):
    table = pd.DataFrame([predictor(*row) for row in rows])
    assert claims.target_verdict(table, table["target"].iloc[0]) == verdict


def explanation(damage: float, area: float) -> pd.DataFrame:
    rows = [("damage", DISTANCE, damage, 0.2, 0.001, 0.5), ("area", DISTANCE, area, 0.2, 0.001, 0.5)]
    return pd.DataFrame([predictor(*row) for row in rows])


def test_topology_explains_if_it_explains_both_targets_on_the_whole_grid():
    both = explanation(2.0, -2.0)
    assert claims.explanation_verdict(both, decides=True, complete=True)[0] == "supported"
    assert claims.explanation_verdict(both, decides=True, complete=False)[0] == "undecided"
    assert claims.explanation_verdict(both, decides=False, complete=False)[0] == "undecided"
    verdict, row = claims.explanation_verdict(explanation(2.0, 0.1), decides=True, complete=True)
    assert verdict == "not supported" and row["target"] == "area"


def test_claim_5_leaves_out_cells_with_too_few_networks_and_has_a_row_for_either_unit_of_replication():
    linked = planted(seeds=3, link=5.0, lasts=True)
    rows = claims.explains(linked, PLAN)
    assert [row["verdict"] for row in rows] == ["supported", "supported"]
    assert ["mixed model" in rows[0]["tested"], "single networks" in rows[1]["tested"]] == [True, True]
    incomplete = claims.explains(without(linked, ratio=0.9, method="taylor", seed=2), PLAN)
    assert [row["verdict"] for row in incomplete] == ["undecided", "undecided"]


def ablated(search: list[float], h0: list[float]) -> list:
    """Networks whose default ends at 80 %, and how far random search and H0 alone stay below."""
    return networks(len(search)) + [
        record(name, 0.5, seed, 80 - below, 5, 0.5)
        for name, column in {"topological": [0.0] * len(search), "random search": search, "h0": h0}.items()
        for seed, below in enumerate(column)
    ]


@pytest.mark.parametrize(
    "search, h0, verdict",
    [
        ([2.0, 2.1, 2.2], [3.0, 3.1, 2.9], "supported"),
        ([2.0, 2.1, 2.2], [0.0, 0.1, -0.1], "not supported"),
        ([2.0, 2.1, 2.2], [0.0, 3.1, -2.1], "undecided"),
        ([2.0, 2.0, 2.0], [3.0, 3.1, 2.9], "undecided"),  # ties
        ([2.0, 2.1], [0.0, 0.1], "undecided"),
    ],
)
def test_a_part_carries_the_effect_if_exchanging_it_costs_more_than_the_margin(search, h0, verdict):
    assert claims.parts_carry(ablated(search, h0))["verdict"] == verdict


def test_the_table_has_a_row_for_each_test_and_one_more_where_there_is_time_to_recover():
    long = study.profile("recovery")
    table = evidence.verdicts(networks(1), "study", PLAN)
    assert list(table["claim"]) == ["1", "1", "1", "2", "2", "3", "4", "5", "5", "6"]
    assert f"recovers as fast, width {long.width:g} and {long.recovery.epochs} epochs" in table["tested"][2]
    assert set(table["command"]) == {
        f"`python -m topoprune run --profile {name}`" for name in ("study", "recovery", "ablation")
    }
    assert len(evidence.verdicts(networks(1), "study", replace(PLAN, longer="", ablation=""))) == 8
    assert set(table["interval"]) == {"none: not on record"}
