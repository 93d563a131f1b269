"""The claims' tests against independent implementations, and verdicts that follow planted effects."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoprune import study
from topoprune.report import evidence
from topoprune.study.trial import Dense, Record, Trial
from topoprune.training import Recipe

RECIPE = Recipe(epochs=5)
METHODS = ("random", "l1", "l2", "fpgm", "topological", "magnitude", "taylor")


def record(
    name: str, ratio: float, seed: int, test: float, damage: float, distance: float, epochs: int = 5, live: float = 1.0
) -> Record:
    """A trial with the numbers that matter here."""
    method, options = study.VARIANTS[name]
    dense = Dense("cifar10", "vgg16", 1.0, seed, RECIPE)
    history = [
        {"epoch": i + 1, "seconds": 1.0, "loss": 0.0, "validation": test / 100, "test": test / 100} for i in range(5)
    ]
    result = {
        "cost": {"parameters": 1, "flops": 1, "latency_ms": 1.0, "images_per_second": 1.0},
        "damage": {
            "validation": 0.9 - damage / 100,
            "test": 0.9 - damage / 100,
            "topological": {"layer": {"0": distance, "1": 0.0}},
            "plain": {"layer": {"norm": 0.1 * distance, "rank": distance**2}},
        },
        "history": history,
        "live": [live],
        "searches": {"layer": {"best": [distance], "evaluations": [8]}},
        "recovery": {
            "goal": 0.895,
            "reached": epochs < 5,
            "epochs": epochs,
            "seconds": 1.0 * epochs,
            "area": test / 100 - 0.05,
        },
        "selection_seconds": 1.0,
        "kept": {},
    }
    return Record(Trial(dense, method, ratio, seed, RECIPE, options), result, {})


def networks(seeds: int) -> list[Record]:
    cost = {"parameters": 1, "flops": 1, "latency_ms": 1.0, "images_per_second": 1.0}
    history = [{"epoch": 1, "seconds": 1.0, "loss": 0.0, "validation": 0.9, "test": 0.9}]
    return [
        Record(
            Dense("cifar10", "vgg16", 1.0, seed, RECIPE),
            {"cost": cost, "history": history, "validation": 0.9, "test": 0.9},
            {},
        )
        for seed in range(seeds)
    ]


def planted(
    seeds: int,
    advantage: float = 0.0,
    hurt: float = 0.0,
    slow: int = 0,
    link: float = 0.0,
    noise: float = 0.05,
    lasts: bool = False,
    rival: str = "",
) -> list[Record]:
    """All methods alike but for the topological one, and damage linked to the distance.

    `lasts`: the area under the recovery curve is linked as well. `rival`: a measure that is what the
    distance only follows.
    """
    random = np.random.default_rng(1)
    made = networks(seeds)
    for seed in range(seeds):
        for ratio in RATIOS:
            for name in METHODS:
                mine = name == "topological"
                distance = random.uniform(0.1, 0.9)
                made.append(
                    record(
                        name,
                        ratio,
                        seed,
                        90 - 10 * ratio + advantage * mine + noise * random.normal(),
                        20 * ratio + hurt * mine + link * distance + noise * random.normal(),
                        distance,
                        epochs=2 + slow * mine,
                    )
                )
                result = made[-1].result
                result["damage"]["plain"]["layer"] = {"norm": random.uniform(), "rank": random.uniform()}
                if lasts:
                    result["recovery"]["area"] -= link * distance / 100
                if rival:
                    result["damage"]["plain"]["layer"][rival] = distance
                    result["damage"]["topological"]["layer"]["0"] += 0.3 * random.normal()
    return made


RATIOS = (0.5, 0.8, 0.9)


def verdicts(records: list[Record], ratios: tuple[float, ...] = RATIOS, longer: list[Record] = ()) -> dict:
    plan = replace(study.profile("study"), ratios=ratios, methods=METHODS)
    table = evidence.verdicts(records, "study", plan, longer=longer)
    return dict(zip(table["tested"].str.split(":").str[0], table["verdict"], strict=True))


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8).filter(lambda x: np.ptp(x) > 1e-3))
def test_equivalence_is_two_one_sided_tests(values):
    from statsmodels.stats.weightstats import ttost_paired

    values = np.array(values)
    made = evidence.equivalence(values, 0.5)
    p, above, _ = ttost_paired(values, np.zeros(len(values)), -0.5, 0.5)
    assert made["p equivalent"] == pytest.approx(p)
    assert made["p not inferior"] == pytest.approx(above[1])
    inside = -0.5 < made["low"] and made["high"] < 0.5  # the 90 % interval says the same
    assert inside == (made["p equivalent"] < 0.05)
    assert (made["high"] < -0.5) == (made["p worse"] < 0.05)


def test_one_seed_gives_no_interval_and_no_verdict():
    records = planted(seeds=1)
    table = evidence.accuracy_equivalence(records)
    assert table["low"].isna().all() and set(table["verdict"]) == {"undecided"}
    for differences in (evidence.restricted_means(records), evidence.damage_differences(records)):
        assert differences["p"].isna().all() and len(differences)
    found = set(verdicts(records).values())
    assert found == {"undecided", "measured"}


def test_holm_by_hand_and_missing_tests_do_not_count():
    corrected = evidence.holm(pd.Series([0.04, 0.01, np.nan, 0.03]))
    np.testing.assert_allclose(corrected, [0.06, 0.03, np.nan, 0.06])


ACCURACY, SPEED, LAYER = "competes in accuracy", "recovers as fast", "the layer is enough"
DAMAGE = "damages less from ratio 0.7 on (cells at chance left out)"
DAMAGE_AT_FLOOR = "damages less from ratio 0.7 on (cells at chance counted)"
EXPLAINS = "topological distance tells damage and recovery beyond ratio and method"


def test_verdicts_follow_what_was_planted():
    equal = verdicts(planted(seeds=5))
    assert {equal[claim] for claim in (ACCURACY, SPEED, LAYER)} == {"supported"}
    worse = verdicts(planted(seeds=5, advantage=-2, hurt=3, slow=2))
    assert {worse[claim] for claim in (ACCURACY, SPEED, DAMAGE, DAMAGE_AT_FLOOR)} == {"not supported"}
    gentle = verdicts(planted(seeds=5, hurt=-3))
    assert gentle[DAMAGE] == gentle[DAMAGE_AT_FLOOR] == "supported"


def test_the_cost_is_the_mean_difference_over_what_networks_share():
    records = planted(seeds=3)
    for r in records:
        if isinstance(r.spec, Trial) and r.spec.method == "topological":
            r.result["selection_seconds"] = 10.0 + r.spec.seed  # the others take 1
    row = evidence._cost(records)
    assert row["effect"] == "+10.0 s (medians: 11.0 against 1.00)"
    half = 4.302653 * 1 / np.sqrt(3)  # Student's quantile for 2 degrees of freedom
    assert row["interval"] == f"{10 - half:+.2f} to {10 + half:+.2f}"
    assert evidence._cost(networks(3) + records[3:4])["interval"] == "none: not on record"


def test_findings_are_means_over_networks_that_have_all_layerwise_methods():
    records = [
        r
        for r in planted(seeds=3, advantage=2, hurt=-3, noise=0.0)
        if not (isinstance(r.spec, Trial) and r.spec.seed == 2 and r.spec.method == "l1")
    ]
    found = evidence.findings(records)
    assert (found["low_ratio"], found["high_ratio"], found["low_seeds"]) == (0.5, 0.9, 2)
    assert found["low_topological"] - found["low_random"] == pytest.approx(3)
    assert found["high_rivals"] == pytest.approx(90 - 18)
    assert found["high_after"] == pytest.approx(90 - 9 + 2)
    assert found["low_spread"] == found["low_gain"] == pytest.approx(2)
    assert found["low_epochs"] == 1
    without = evidence.findings([r for r in records if isinstance(r.spec, Dense) or r.spec.method != "l2"])
    assert np.isnan(without["low_gain"]) and without["low_seeds"] == 0


@pytest.mark.parametrize(
    "planted_effect, verdict",
    [
        ({}, "not supported"),  # an effect that is certainly smaller than the margin
        ({"noise": 20.0}, "undecided"),
        ({"link": 5.0, "lasts": True}, "supported"),
        ({"link": 5.0}, "not supported"),  # damage alone
        ({"link": 5.0, "lasts": True, "rival": "norm"}, "not supported"),  # that tells it better
        ({"link": -5.0, "lasts": True}, "not supported"),
    ],
)
def test_topology_explains_if_it_tells_both_targets_and_nothing_simpler_does(planted_effect, verdict):
    assert verdicts(planted(seeds=5, **planted_effect))[EXPLAINS] == verdict


def test_no_explanation_rests_on_cells_with_too_few_networks():
    linked = planted(seeds=3, link=5.0, lasts=True)
    assert verdicts(linked)[EXPLAINS] == "supported"
    lacks_one = [
        r
        for r in linked
        if not (isinstance(r.spec, Trial) and r.spec.ratio == 0.9 and r.spec.method == "taylor" and r.spec.seed == 2)
    ]
    assert verdicts(lacks_one)[EXPLAINS] == "undecided"
    assert verdicts(planted(seeds=2, link=5.0, lasts=True))[EXPLAINS] == "undecided"


def test_networks_at_chance_tell_no_damage_apart():
    lost = planted(seeds=5, hurt=3)
    for one in lost:
        if isinstance(one.spec, Trial):
            one.result["damage"]["test"] = 0.12
    table = evidence.damage_differences(lost)
    assert set(table["at chance"]) == {"yes"} and (table["p"] < 0.05).all()
    found = verdicts(lost)
    assert (found[DAMAGE], found[DAMAGE_AT_FLOOR]) == ("undecided", "not supported")


def test_a_global_criterion_with_other_flops_is_not_compared():
    apart = planted(seeds=5)
    for one in apart:
        if isinstance(one.spec, Trial) and one.spec.method == "taylor" and one.spec.ratio == 0.9:
            one.result["cost"] = {**one.result["cost"], "flops": 1.02}
    table = evidence.accuracy_equivalence(apart, second=evidence.GLOBAL).set_index(["rival", "ratio"])
    assert table.loc[("global Taylor", 0.9), "FLOPs (%)"] == pytest.approx(102)
    assert table.loc[("global Taylor", 0.9), "verdict"] == "undecided"
    assert table.loc[("global Taylor", 0.8), "verdict"] == "equivalent"
    assert verdicts(apart)[LAYER] == "undecided"


def test_the_row_of_a_verdict_shows_the_cell_that_decided():
    mixed = planted(seeds=5, noise=0.01)
    for one in mixed:
        if isinstance(one.spec, Trial) and one.spec.method == "topological":
            down = {0.5: 2.0, 0.9: 4.0}.get(one.spec.ratio, 0.0)
            one.result["history"][-1]["test"] -= down / 100
    lonely = [r for r in mixed if not (isinstance(r.spec, Trial) and r.spec.ratio == 0.9 and r.spec.seed)]
    plan = replace(study.profile("study"), ratios=RATIOS)
    row = evidence.verdicts(lonely, "study", plan).iloc[0]
    assert row["verdict"] == "not supported" and row["seeds"] == 5
    assert "ratio 0.5" in row["effect"] and "-2.0" in row["effect"]


@pytest.mark.parametrize("seeds, ratios", [(2, RATIOS), (5, (*RATIOS, 0.95))])
def test_too_few_networks_or_cells_support_nothing(seeds, ratios):
    assert "supported" not in verdicts(planted(seeds, hurt=-3), ratios).values()


def test_too_few_networks_refute_nothing_but_a_missing_cell_cannot_save_a_claim():
    bad = {"advantage": -2, "hurt": 3, "slow": 2}
    assert "not supported" not in verdicts(planted(2, **bad)).values()
    assert verdicts(planted(5, **bad), (*RATIOS, 0.95))[ACCURACY] == "not supported"


def test_runs_that_never_recover_are_no_evidence_of_equal_speed():
    never = planted(seeds=5)
    for one in never:
        if isinstance(one.spec, Trial):
            one.result["recovery"] |= {"reached": False, "epochs": 5}
    assert verdicts(never)[SPEED] == "undecided"


def test_recovery_has_a_verdict_of_its_own_where_there_is_time_for_it():
    plan = study.profile("recovery")
    long = f"{SPEED}, width {plan.width:g} and {plan.recovery.epochs} epochs"
    assert verdicts(planted(seeds=3))[long] == "undecided"  # none on record
    assert verdicts(planted(seeds=3), longer=planted(seeds=3))[long] == "supported"
    assert verdicts(planted(seeds=3), longer=planted(seeds=3, slow=2))[long] == "not supported"
    quick = evidence.verdicts(planted(seeds=3), "quick-recovery", replace(study.profile("study"), longer=""))
    assert len(quick) == 8


def test_a_planted_link_is_found_and_predicts_unseen_networks():
    linked = planted(seeds=4, link=5.0)
    for table in (evidence.predictors(linked), evidence.sensitivity(linked)):
        row = table.set_index(["target", "predictor"]).loc["damage", "topological distance"]
        assert row["p"] < 1e-6 and row["partial correlation"] > 0.9
        assert row["error"] < 0.5 * row["error without"]
        assert row["low"] < row["effect"] < row["high"]
    none = evidence.predictors(planted(seeds=4)).set_index(["target", "predictor"])
    assert none.loc["area", "lost rank"]["p"] > 0.05


def test_what_a_method_does_at_one_ratio_alone_explains_nothing_where_cells_are_given():
    """Additive factors leave it over, so that any measure that does it too seems to explain."""
    records = planted(seeds=4)
    for one in records:
        if isinstance(one.spec, Trial) and (one.spec.method, one.spec.ratio) == ("l1", 0.9):
            one.result["damage"]["validation"] -= 0.2
            one.result["damage"]["topological"]["layer"]["0"] += 5
    first = ("damage", "topological distance")
    assert evidence.predictors(records).set_index(["target", "predictor"]).loc[first]["p"] < 0.001
    assert evidence.sensitivity(records).set_index(["target", "predictor"]).loc[first]["p"] > 0.05


def test_a_single_layer_cannot_decide_the_median():
    records = [*networks(1), record("l1", 0.5, 0, 80, 1, 0.5)]
    layers = records[-1].result["damage"]["topological"]
    layers |= {"b": {"0": 0.5, "1": 0.1}, "c": {"0": 0.7, "1": 90.0}}
    from topoprune.report.tables import trials

    row = trials(records).iloc[0]
    assert row["topological distance"] == pytest.approx((0.5 + 0.6 + 90.7) / 3)
    assert row["topological distance, median layer"] == pytest.approx(0.6)
    assert row["topological distance, H0 alone"] == pytest.approx(1.7 / 3)


def test_the_mixed_model_that_does_not_converge_gives_way_to_seeds_as_a_factor(monkeypatch):
    frame = pd.DataFrame(
        {"seed": [0, 0, 0, 1, 1, 1, 2, 2, 2], "x": [1.0, 2, 3] * 3, "y": [1.0, 2.1, 2.9, 2, 3.2, 3.8, 0, 1.1, 1.9]}
    )
    monkeypatch.setattr(evidence, "_mixed", lambda *_: None)
    made = evidence._effect("y ~ x", frame, "x")
    import statsmodels.formula.api as smf

    fit = smf.ols("y ~ x + C(seed)", frame).fit()
    assert made["model"] == "seeds as a factor" and made["p"] == pytest.approx(fit.pvalues["x"])
    np.testing.assert_allclose([made["low"], made["high"]], fit.conf_int().loc["x"])
    monkeypatch.undo()
    assert evidence._effect("y ~ x", frame, "x")["effect"] == pytest.approx(made["effect"], abs=0.05)


def test_partial_correlation_is_that_of_regression_s_residuals():
    records = planted(seeds=3, link=1.0, noise=1.0)
    from topoprune.report.tables import trials

    frame = trials(records)
    factors = pd.get_dummies(frame[["ratio", "method", "seed"]].astype(str)).to_numpy(float)
    left = [
        y - factors @ np.linalg.lstsq(factors, y, rcond=None)[0]
        for y in (frame["topological distance"].to_numpy(), frame["damage"].to_numpy())
    ]
    table = evidence.predictors(records).set_index(["target", "predictor"])
    assert table.loc["damage", "topological distance"]["partial correlation"] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_restricted_means_are_the_areas_under_kaplan_meier():
    from lifelines import KaplanMeierFitter
    from lifelines.utils import restricted_mean_survival_time

    times = {"topological": [1, 3, 5, 5], "l1": [2, 2, 4, 5]}
    records = networks(4) + [
        record(name, 0.5, seed, 80, 1, 0.5, epochs=time)
        for name, column in times.items()
        for seed, time in enumerate(column)
    ]
    means = {
        name: restricted_mean_survival_time(KaplanMeierFitter().fit(column, [time < 5 for time in column]), t=5)
        for name, column in times.items()
    }
    row = evidence.restricted_means(records).iloc[0]
    assert row["difference"] == pytest.approx(means["topological"] - means["l1"])
    from scipy import stats

    paired = stats.ttest_rel(times["topological"], times["l1"])
    assert row["p"] == pytest.approx(paired.pvalue)
    np.testing.assert_allclose([row["low"], row["high"]], paired.confidence_interval())
    curve = evidence.survival(records)
    curve = curve[curve["method"] == "topological"]
    assert dict(zip(curve["epoch"], curve["share"], strict=True)) == pytest.approx({0: 1, 1: 0.75, 3: 0.5, 5: 0.5})


def test_collapse_and_chance_are_counted():
    records = [*networks(2), record("l1", 0.9, 0, 10, 70, 0.5, live=0.0), record("l1", 0.9, 1, 60, 70, 0.5)]
    row = evidence.collapses(records).iloc[0]
    assert (row["runs"], row["collapsed"], row["at chance"]) == (2, 1, 1)


def test_ablations_are_paired_with_the_default():
    records = networks(3)
    for seed in range(3):
        records += [
            record("topological", 0.5, seed, 80 + seed, 5, 0.5),
            record("random search", 0.5, seed, 78 + seed, 6, 0.75),
            record("h0", 0.5, seed, 80 + seed, 5, 0.1),
        ]
    table = evidence.ablations(records).set_index("variant")
    assert table.loc["random search", "accuracy"] == pytest.approx(2)
    assert table.loc["random search", "damage"] == pytest.approx(1)
    assert table.loc["random search", "fitness"] == pytest.approx(0.5)
    assert table.loc["random search", "evaluations"] == 8
    assert np.isnan(table.loc["H0 alone", "fitness"])  # another fitness, not comparable
    assert table.loc["H0 alone", "accuracy"] == pytest.approx(0)


def test_hazards_need_ten_recoveries():
    assert evidence.hazards(planted(seeds=1)[:5]).empty
    table = evidence.hazards(planted(seeds=3))
    assert set(table["predictor"]) == set(evidence.PREDICTORS)
    assert (table["low"] < table["hazard ratio"]).all()
