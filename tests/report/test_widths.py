"""Networks of full width stand beside those of a quarter of the width, and are measured by what these let expect."""

import numpy as np
import pytest
from planted_beyond import beyond
from scipy.stats import t

from topoprune.report import evidence
from topoprune.report.evidence import FUNCTIONAL
from topoprune.study import Removal

REFITTED = f"{FUNCTIONAL}, refitted less as removed"


@pytest.fixture(scope="module")
def narrow():
    return beyond(seeds=4, link=5.0)


def test_one_network_has_a_row_for_each_cell(narrow):
    every = evidence.widths_compared(narrow, beyond(seeds=1, link=5.0))
    assert set(every["ratio"]) == {0.3, 0.5}
    table = every[every["ratio"] == evidence.PRIMARY_RATIO]
    counts = table["claim"].value_counts()
    assert dict(counts[["B1", "B2"]]) == {
        "B1": evidence.mending_gains(narrow)["primary"].sum(),
        "B2": evidence.lasting_gains(narrow)["primary"].sum(),
    }
    assert counts["B3"] == evidence.rivals(narrow)["primary"].sum()
    assert set(table["narrow networks"]) == {4} and set(table["wide networks"]) == {1}


def test_the_interval_is_the_prediction_interval_of_scipy_s_quantile(narrow):
    wide = beyond(seeds=2, link=5.0)
    row = evidence.widths_compared(narrow, wide).set_index(["compared", "ratio"]).loc[(REFITTED, 0.5)]
    gains = [
        100 * (r.result["accuracy"]["convolution"]["test"] - r.result["accuracy"]["none"]["test"])
        for r in narrow
        if isinstance(r.spec, Removal) and r.spec.options.get("search") == "cover" and r.spec.ratio == 0.5
    ]
    margin = t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) * np.sqrt(1 / len(gains) + 1 / 2)
    assert row["narrow"] == pytest.approx(np.mean(gains))
    assert (row["low"], row["high"]) == pytest.approx((np.mean(gains) - margin, np.mean(gains) + margin))


def test_recovery_is_compared_in_epochs(narrow):
    table = evidence.widths_compared(narrow, beyond(seeds=2, saved=1))
    cells = table[(table["claim"] == "B4") & (table["ratio"] == 0.3)]
    assert cells[["narrow", "wide"]].to_numpy().tolist() == [[-2, -1]] and "epochs" in cells["compared"].item()


def test_inside_says_whether_the_wide_mean_lies_in_it(narrow):
    far = evidence.widths_compared(narrow, beyond(seeds=3, link=5.0, gain=50.0))
    assert set(far.loc[far["claim"] == "B1", "inside"]) == {"no"}
    same = evidence.widths_compared(narrow, narrow)
    times = same["claim"] == "B4"  # all alike, so that there is no interval
    assert set(same.loc[~times, "inside"]) == {"yes"} and set(same.loc[times, "inside"]) == {""}
    assert (same["narrow"] == same["wide"]).all()


def test_without_an_interval_nothing_is_said_to_lie_inside(narrow):
    alone = evidence.widths_compared([], narrow)
    assert set(alone["inside"]) == {""} and set(alone["narrow networks"]) == {0} and alone["narrow"].isna().all()


def test_without_wide_networks_there_is_no_row(narrow):
    assert evidence.widths_compared(narrow, []).empty
