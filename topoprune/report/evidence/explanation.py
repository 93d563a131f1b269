"""Claim 5: what the topological distance tells of damage and recovery beyond ratio and method."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.statistics import (
    error_on_other_networks,
    holm,
    mixed_effect,
    residuals,
    slope_over_networks,
    standardized,
)
from topoprune.report.frames import DISTANCE, LAYERWISE_NAMES, trials
from topoprune.study import Record

PREDICTORS = (DISTANCE, "removed norm", "lost rank", "damage")
ROBUST_DISTANCES = (f"{DISTANCE}, H0 alone", f"{DISTANCE}, median layer", f"{DISTANCE}, capped")
"""Distances that no single layer decides."""

TARGETS = {"damage": 1, "area": -1}
"""Target -> expected sign of the effect of a larger distance."""

RATIO_AND_METHOD = "C(ratio) + C(method)"
CELLS = "C(cell)"
"""Each pair of ratio and method has a level of its own."""

FEWEST_RECOVERIES = 10
"""Recovered runs below which no hazards model is fitted."""


PREDICTOR_COLUMNS = (
    *("target", "predictor", "runs", "seeds", "partial correlation", "effect", "low", "high", "p", "model"),
    *("error", "error without"),
)


def predictors(records: Sequence[Record]) -> pd.DataFrame:
    """What a measure of the removal tells beyond ratio and method, of damage and of recovery.

    Returns:
        A row for each target and predictor: runs; seeds; partial correlation (given ratio, method and seed as
        factors); effect (points of the target for one standard deviation), low, high, p (corrected by Holm) and
        model of `mixed_effect`; error and error without: root mean squared error in points when each dense network
        is predicted from the others, with the predictor and without it. NaN where networks are too few.
    """
    rows = [predictor_effect(*asked, RATIO_AND_METHOD) for asked in _registered(records)]
    return _corrected(rows, PREDICTOR_COLUMNS)


def predictors_over_networks(records: Sequence[Record]) -> pd.DataFrame:
    """The effects of `predictors`, one slope for each dense network and tested over the networks.

    Returns:
        A row for each target and predictor: target, predictor, and seeds, effect, low, high, p (corrected by Holm) of
        `slope_over_networks`.
    """
    rows = [
        {"target": target, "predictor": name, **slope_over_networks(known, RATIO_AND_METHOD)}
        for known, target, name in _registered(records)
    ]
    return _corrected(rows, ("target", "predictor", "seeds", "effect", "low", "high", "p"))


def sensitivity(records: Sequence[Record]) -> pd.DataFrame:
    """`predictors` by other choices than the registered ones: a description, p uncorrected.

    Each pair of ratio and method has a level of its own, so that what a method does at one ratio explains nothing.
    Robust distances stand beside the registered one. A third target is the accuracy lost after fine-tuning, which,
    unlike the recovery area, does not contain the damage.
    """
    frame = _targets(records)
    asked = [
        (_known(frame, target, name), target, name)
        for target in (*TARGETS, "lost accuracy")
        for name in (DISTANCE, *ROBUST_DISTANCES, *PREDICTORS[1:])
        if name != target
    ]
    return pd.DataFrame(
        [predictor_effect(*each, CELLS) for each in asked if _varies(each)], columns=[*PREDICTOR_COLUMNS]
    )


def distance_ranks(records: Sequence[Record]) -> pd.DataFrame:
    """Spearman's rank correlation of the topological distance with test accuracy, over the layer-wise methods.

    A description: below zero, closer diagrams go with more accuracy. Unlike networks, methods were not drawn at random.

    Returns:
        A row for each ratio: ratio; networks; as removed, fine-tuned: of the means over the networks before and after
        fine-tuning; lowest, highest: of single networks, as removed. NaN for less than two methods.
    """
    frame = trials(records)
    frame = frame[frame["method"].isin(LAYERWISE_NAMES)]
    rows = []
    for ratio, cell in frame.groupby("ratio"):
        single = [_ranks(runs, "damaged") for _, runs in cell.groupby("seed")]
        means = cell.groupby("method")[[DISTANCE, "damaged", "test"]].mean()
        rows.append(
            {
                "ratio": ratio,
                "networks": len(single),
                "as removed": _ranks(means, "damaged"),
                "lowest": min(single),
                "highest": max(single),
                "fine-tuned": _ranks(means, "test"),
            }
        )
    return pd.DataFrame(rows, columns=["ratio", "networks", "as removed", "lowest", "highest", "fine-tuned"])


def predictor_effect(known: pd.DataFrame, target: str, name: str, factors: str) -> dict:
    """What one predictor x tells of a target y beyond some factors: a row of `predictors`, p uncorrected.

    Args:
        known: runs, with columns x (standardised), y, ratio, method, seed and those of `factors`.
        target, name: of y and x.
        factors: formula.
    """
    x, y = (residuals(known, column, f"{factors} + C(seed)") for column in ("x", "y"))
    varies = min(x.std(), y.std()) > 1e-9
    return {
        "target": target,
        "predictor": name,
        "runs": len(known),
        "seeds": known["seed"].nunique(),
        "partial correlation": float(np.corrcoef(x, y)[0, 1]) if varies else np.nan,
        **mixed_effect(f"y ~ {factors} + x", known, "x"),
        "error": error_on_other_networks(f"y ~ {factors} + x", known),
        "error without": error_on_other_networks(f"y ~ {factors}", known),
    }


def adjusted(records: Sequence[Record], name: str) -> pd.DataFrame:
    """A predictor, damage and recovery area, each without what ratio, method and seed explain of it.

    Returns:
        A row for each trial: method, ratio, seed, the predictor, damage, recovery area.
    """
    frame = trials(records).dropna(subset=[name])
    columns = (name, "damage", "recovery area")
    if len(frame):
        factors = f"{RATIO_AND_METHOD} + C(seed)"
        frame = frame.assign(**{column: residuals(frame.assign(y=frame[column]), "y", factors) for column in columns})
    return frame[["method", "ratio", "seed", *columns]]


def hazards(records: Sequence[Record]) -> pd.DataFrame:
    """Cox's proportional hazards of recovery, stratified by ratio and method; empty under ten recoveries.

    Runs that share a dense network count as independent: the table describes, and enters no verdict.

    Returns:
        A row for each predictor: recovered (runs); hazard ratio of one standard deviation; low, high: its 95 %
        interval; p, corrected by Holm.
    """
    frame = trials(records)
    rows = []
    for name in PREDICTORS:
        known = frame.dropna(subset=[name])
        if known["recovered"].sum() >= FEWEST_RECOVERIES and known[name].std() > 0:
            rows.append({"predictor": name, "recovered": int(known["recovered"].sum()), **_hazard(known, name)})
    table = pd.DataFrame(rows, columns=["predictor", "recovered", "hazard ratio", "low", "high", "p"])
    return table.assign(p=holm(table["p"]))


def _ranks(runs: pd.DataFrame, accuracy: str) -> float:
    return float(runs[[DISTANCE, accuracy]].corr("spearman").iloc[0, 1])


def _targets(records: Sequence[Record]) -> pd.DataFrame:
    frame = trials(records).rename(columns={"recovery area": "area"})
    cells = frame["method"] + frame["ratio"].astype(str)
    return frame.assign(cell=cells, **{"lost accuracy": frame["dense test"] - frame["test"]})


def _registered(records: Sequence[Record]) -> list[tuple[pd.DataFrame, str, str]]:
    """Runs with columns x and y, target and predictor of each registered question."""
    frame = _targets(records)
    asked = [(_known(frame, target, name), target, name) for target in TARGETS for name in PREDICTORS if name != target]
    return [each for each in asked if _varies(each)]


def _known(frame: pd.DataFrame, target: str, name: str) -> pd.DataFrame:
    """The runs whose records have the predictor: x, standardised; y is the target."""
    known = frame.dropna(subset=[name])
    return known.assign(x=standardized(known[name]), y=known[target])


def _varies(asked: tuple[pd.DataFrame, str, str]) -> bool:
    known, _, name = asked
    return bool(len(known) > 2 and known[name].std() != 0)


def _corrected(rows: list[dict], columns: tuple[str, ...]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=[*columns])
    return table.assign(p=holm(table["p"]))


def _hazard(known: pd.DataFrame, name: str) -> dict:
    from lifelines import CoxPHFitter

    data = pd.DataFrame(
        {
            "x": standardized(known[name]),
            "ratio": known["ratio"],
            "method": known["method"],
            "time": known["recovery epochs"].clip(lower=0.5),
            "recovered": known["recovered"],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = CoxPHFitter(penalizer=0.01).fit(data, "time", "recovered", strata=["ratio", "method"])
    low, high = np.exp(fit.confidence_intervals_.loc["x"])
    return {"hazard ratio": float(np.exp(fit.params_["x"])), "low": low, "high": high, "p": fit.summary.loc["x", "p"]}
