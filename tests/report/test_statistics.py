"""Statistics against independent implementations."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from topoprune.report.evidence import statistics

spread_out = (
    st.lists(st.floats(-2, 2), min_size=2, max_size=8).filter(lambda values: np.ptp(values) > 1e-3).map(np.array)
)


@settings(max_examples=40)
@given(spread_out)
def test_equivalence_is_two_one_sided_tests(differences):
    from statsmodels.stats.weightstats import ttost_paired

    tested = statistics.equivalence(differences, 0.5)
    p, above, _ = ttost_paired(differences, np.zeros(len(differences)), -0.5, 0.5)
    assert tested["p equivalent"] == pytest.approx(p)
    assert tested["p not inferior"] == pytest.approx(above[1])
    inside = -0.5 < tested["low"] and tested["high"] < 0.5  # the 90 % interval says the same
    assert inside == (tested["p equivalent"] < 0.05)
    assert (tested["high"] < -0.5) == (tested["p worse"] < 0.05)


@settings(max_examples=40)
@given(spread_out)
def test_a_paired_difference_is_student_s(differences):
    tested = statistics.paired_difference(differences)
    expected = stats.ttest_1samp(differences, 0)
    assert tested["p"] == pytest.approx(expected.pvalue)
    np.testing.assert_allclose([tested["low"], tested["high"]], expected.confidence_interval())
    mirrored = statistics.paired_difference(-differences)
    assert mirrored["p"] == pytest.approx(tested["p"])
    assert (mirrored["low"], mirrored["high"]) == pytest.approx((-tested["high"], -tested["low"]))


@pytest.mark.parametrize("value", [-3.0, 0.0, 1.0])
@pytest.mark.parametrize("networks", [2, 3, 5])
def test_equal_differences_have_no_interval_and_the_p_value_of_a_sign_flip_test(value, networks):
    differences = np.full(networks, value)
    tested = statistics.paired_difference(differences)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=False, alternative="greater"
    )
    assert statistics.p_above(differences) == pytest.approx(expected.pvalue)
    assert np.isnan([tested["low"], tested["high"]]).all()
    assert tested["difference"] == value


def test_three_equal_differences_decide_nothing():
    assert statistics.paired_difference(np.ones(3))["p"] == 0.25
    assert statistics.equivalence(np.zeros(3))["p equivalent"] == 0.125


def test_one_network_has_a_difference_and_nothing_else():
    for tested in (statistics.paired_difference(np.array([2.0])), statistics.equivalence(np.array([2.0]))):
        assert tested.pop("seeds") == 1 and tested.pop("difference") == 2
        assert np.isnan(list(tested.values())).all()


def test_no_network_has_nothing():
    tested = statistics.paired_difference(np.array([]))
    assert tested.pop("seeds") == 0 and np.isnan(list(tested.values())).all()


def test_cells_beside_a_test_are_a_family_of_their_own():
    p = pd.Series([0.01, 0.04, 0.02, np.nan])
    corrected = statistics.holm_in_families(p, pd.Series([True, False, True, False]))
    np.testing.assert_allclose(corrected, [0.02, 0.04, 0.02, np.nan])


def test_holm_by_hand_where_a_missing_test_does_not_count():
    corrected = statistics.holm(pd.Series([0.04, 0.01, np.nan, 0.03]))
    np.testing.assert_allclose(corrected, [0.06, 0.03, np.nan, 0.06])
    assert len(statistics.holm(pd.Series([], dtype=float))) == 0


@settings(max_examples=3)
@given(st.lists(st.floats(0, 1) | st.just(0.02), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(values):
    from statsmodels.stats.multitest import multipletests

    np.testing.assert_array_equal(statistics.holm(pd.Series(values)), multipletests(values, method="holm")[1])


def runs(y: list[float]) -> pd.DataFrame:
    """Three networks with x = 1, 2, 3 each."""
    return pd.DataFrame({"seed": [0, 0, 0, 1, 1, 1, 2, 2, 2], "x": [1.0, 2.0, 3.0] * 3, "y": y})


APART = runs([1.0, 2.1, 2.9, 2.0, 3.2, 3.8, 0.0, 1.1, 1.9])


def test_a_mixed_model_without_a_fit_gives_way_to_networks_as_a_factor(monkeypatch):
    import statsmodels.formula.api as smf
    from statsmodels.regression.mixed_linear_model import MixedLM

    def fails(*_, **__):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(MixedLM, "fit", fails)
    effect = statistics.mixed_effect("y ~ x", APART, "x")
    fit = smf.ols("y ~ x + C(seed)", APART).fit()
    assert effect["model"] == "seeds as a factor" and effect["p"] == pytest.approx(fit.pvalues["x"])
    np.testing.assert_allclose([effect["low"], effect["high"]], fit.conf_int().loc["x"])


def test_the_mixed_effect_of_a_balanced_grid_is_that_of_networks_as_a_factor():
    import statsmodels.formula.api as smf

    effect = statistics.mixed_effect("y ~ x", APART, "x")
    assert effect["model"] == "mixed" and effect["low"] < effect["effect"] < effect["high"]
    assert effect["effect"] == pytest.approx(smf.ols("y ~ x + C(seed)", APART).fit().params["x"], abs=0.01)


def test_a_model_that_explains_everything_has_an_effect_and_no_test():
    exact = runs([1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0])
    effect = statistics.mixed_effect("y ~ x", exact, "x")
    assert effect["effect"] == pytest.approx(1)
    assert np.isnan([effect["low"], effect["high"], effect["p"]]).all()


def test_slopes_are_fitted_in_each_network_and_tested_over_the_networks():
    slopes = [np.polyfit(part["x"], part["y"], 1)[0] for _, part in APART.groupby("seed")]
    tested = statistics.slope_over_networks(APART)
    expected = stats.ttest_1samp(slopes, 0)
    assert tested["seeds"] == 3 and tested["effect"] == pytest.approx(np.mean(slopes))
    assert tested["p"] == pytest.approx(expected.pvalue)
    np.testing.assert_allclose([tested["low"], tested["high"]], expected.confidence_interval())


def test_more_runs_of_the_same_networks_prove_no_more():
    once, often = APART, pd.concat([APART] * 20, ignore_index=True)
    assert statistics.slope_over_networks(often)["p"] == pytest.approx(statistics.slope_over_networks(once)["p"])
    assert statistics.mixed_effect("y ~ x", often, "x")["p"] < statistics.mixed_effect("y ~ x", once, "x")["p"] / 100


def test_a_network_without_spread_given_the_factors_has_no_slope():
    frame = APART.assign(cell=["a", "b", "c"] * 3)
    assert statistics.slope_over_networks(frame, "C(cell)")["seeds"] == 0
    frame.loc[frame["seed"] == 0, "x"] = 5.0
    assert statistics.slope_over_networks(frame)["seeds"] == 2


def test_the_error_on_other_networks_leaves_one_out():
    frame = APART.assign(ratio=0.5, method="l1", cell="l1 0.5")
    errors = []
    for seed in (0, 1, 2):
        others, own = frame[frame["seed"] != seed], frame[frame["seed"] == seed]
        errors += list(own["y"] - np.polyval(np.polyfit(others["x"], others["y"], 1), own["x"]))
    assert statistics.error_on_other_networks("y ~ x", frame) == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert np.isnan(statistics.error_on_other_networks("y ~ x", frame[frame["seed"] == 0]))
