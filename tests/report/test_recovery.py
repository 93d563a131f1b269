"""Recovery times against lifelines, SciPy and numbers by hand."""

import numpy as np
import pytest
from planted import networks, planted, record
from scipy import stats

from topoprune.report import evidence

TIMES = {"topological": [1, 3, 5, 5], "l1": [2, 2, 4, 5]}  # of a budget of 5: those runs never recovered


@pytest.fixture
def records():
    return networks(4) + [
        record(name, 0.5, seed, 80, 1, 0.5, epochs=time)
        for name, times in TIMES.items()
        for seed, time in enumerate(times)
    ]


def test_restricted_means_are_the_areas_under_kaplan_meier(records):
    from lifelines import KaplanMeierFitter
    from lifelines.utils import restricted_mean_survival_time

    means = {
        name: restricted_mean_survival_time(KaplanMeierFitter().fit(times, [time < 5 for time in times]), t=5)
        for name, times in TIMES.items()
    }
    row = evidence.restricted_means(records).iloc[0]
    assert row["difference"] == pytest.approx(means["topological"] - means["l1"])
    assert row["recovered"] == 5
    paired = stats.ttest_rel(TIMES["topological"], TIMES["l1"])
    assert row["p"] == pytest.approx(paired.pvalue)
    np.testing.assert_allclose([row["low"], row["high"]], paired.confidence_interval())


def test_random_removal_is_no_rival_of_claim_1_and_costs_its_rivals_nothing(records):
    alone = evidence.restricted_means(records).set_index("rival")["p"]
    times = enumerate([3, 4, 5, 5])
    both = [*records, *(record("random", 0.5, seed, 80, 1, 0.5, epochs=time) for seed, time in times)]
    assert evidence.restricted_means(both).set_index("rival")["p"]["L1"] == alone["L1"]


def test_the_survival_curve_by_hand(records):
    curve = evidence.survival(records)
    curve = curve[curve["method"] == "topological"]
    assert dict(zip(curve["epoch"], curve["share"], strict=True)) == pytest.approx({0: 1, 1: 0.75, 3: 0.5, 5: 0.5})


def test_whole_epochs_that_tie_prove_nothing():
    """Three networks, each one epoch later: the p-value was 0."""
    table = evidence.restricted_means(planted(seeds=3, slow=1))
    assert (table["difference"] == 1).all() and (table["p"] >= 0.25).all() and table["low"].isna().all()
