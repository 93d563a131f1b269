"""What the topological distance tells beyond ratio and method, on planted links."""

import numpy as np
import pandas as pd
import pytest
from planted import networks, only_trials, planted, record
from scipy.stats import spearmanr

from topoprune.report import evidence
from topoprune.report.frames import LAYERWISE_NAMES, trials


@pytest.fixture(scope="module")
def linked():
    return planted(seeds=4, link=5.0)


@pytest.fixture(scope="module")
def predictors(linked):
    return evidence.predictors(linked).set_index(["target", "predictor"])


def test_a_planted_link_is_found_and_predicts_unseen_networks(predictors):
    row = predictors.loc["damage", "topological distance"]
    assert row["p"] < 1e-6 and row["partial correlation"] > 0.9
    assert row["error"] < 0.5 * row["error without"]
    assert row["low"] < row["effect"] < row["high"]
    assert predictors.loc[("area", "lost rank"), "p"] > 0.05


def test_a_planted_link_is_found_over_networks(linked, predictors):
    table = evidence.predictors_over_networks(linked).set_index(["target", "predictor"])
    assert list(table.index) == list(predictors.index)
    row = table.loc["damage", "topological distance"]
    assert row["seeds"] == 4 and row["p"] < 0.001
    assert row["effect"] == pytest.approx(predictors.loc[("damage", "topological distance"), "effect"], rel=0.1)
    assert table.loc[("area", "lost rank"), "p"] > 0.05


def test_the_partial_correlation_is_that_of_regression_s_residuals(linked, predictors):
    frame = trials(linked)
    factors = pd.get_dummies(frame[["ratio", "method", "seed"]].astype(str)).to_numpy(float)
    left = [
        y - factors @ np.linalg.lstsq(factors, y, rcond=None)[0]
        for y in (frame["topological distance"].to_numpy(), frame["damage"].to_numpy())
    ]
    expected = np.corrcoef(*left)[0, 1]
    assert predictors.loc[("damage", "topological distance"), "partial correlation"] == pytest.approx(expected)
    adjusted = evidence.adjusted(linked, "topological distance")
    np.testing.assert_allclose(adjusted["topological distance"], left[0], atol=1e-9)
    np.testing.assert_allclose(adjusted["damage"], left[1], atol=1e-9)


def test_what_a_method_does_at_one_ratio_alone_explains_nothing_where_cells_are_given():
    """Additive factors leave it over, so that any measure that does it too seems to explain."""
    records = planted(seeds=2)
    for one in only_trials(records):
        if (one.spec.method, one.spec.ratio) == ("l1", 0.9):
            one.result["damage"]["validation"] -= 0.2
            for layer in one.result["damage"]["topological"].values():
                layer["0"] += 5
    first = ("damage", "topological distance")
    assert evidence.predictors(records).set_index(["target", "predictor"]).loc[first]["p"] < 0.001
    sensitivity = evidence.sensitivity(records).set_index(["target", "predictor"])
    assert sensitivity.loc[first]["p"] > 0.05
    targets = sensitivity.index.get_level_values("target")
    assert set(targets) == {"damage", "area", "lost accuracy"}
    assert {"topological distance, capped", "damage"} <= set(sensitivity.loc["area"].index)


def test_rank_correlations_of_the_distance_are_those_of_scipy(linked):
    table = evidence.distance_ranks(linked).set_index("ratio")
    frame = trials(linked)
    frame = frame[frame["method"].isin(LAYERWISE_NAMES)]
    for ratio, cell in frame.groupby("ratio"):
        means = cell.groupby("method")[["topological distance", "damaged", "test"]].mean()
        single = [spearmanr(runs["topological distance"], runs["damaged"])[0] for _, runs in cell.groupby("seed")]
        expected = [spearmanr(means["topological distance"], means[name])[0] for name in ("damaged", "test")]
        row = table.loc[ratio]
        assert row[["as removed", "fine-tuned"]].tolist() == pytest.approx(expected)
        assert row[["lowest", "highest", "networks"]].tolist() == pytest.approx([min(single), max(single), 4])
    assert evidence.distance_ranks([]).empty


def test_hazards_need_ten_recoveries():
    assert evidence.hazards(planted(seeds=1)[:5]).empty
    table = evidence.hazards(planted(seeds=2))
    assert set(table["predictor"]) == set(evidence.PREDICTORS)
    assert (table["low"] < table["hazard ratio"]).all() and (table["hazard ratio"] < table["high"]).all()


def test_two_runs_are_too_few_for_any_predictor():
    records = [*networks(1), record("l1", 0.5, 0, 80, 1, 0.5), record("topological", 0.5, 0, 81, 2, 0.4)]
    assert evidence.predictors(records).empty and evidence.predictors_over_networks(records).empty
    assert evidence.sensitivity(records).empty
