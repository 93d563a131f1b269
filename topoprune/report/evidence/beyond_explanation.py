"""Claim B5: what the functional distance of a choice tells of its damage and recovery."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.claims import LEAST_SEEDS, NOT_SUPPORTED, SUPPORTED
from topoprune.report.evidence.differences import UNDECIDED
from topoprune.report.evidence.explanation import CELLS, PREDICTOR_COLUMNS, RATIO_AND_METHOD, predictor_effect
from topoprune.report.evidence.statistics import LEVEL, holm, slope_over_networks, standardized
from topoprune.report.frames import DISTANCE, removals, removals_by_network, trials
from topoprune.study import Record
from topoprune.study.profiles import COMPENSATED

LOST_MASS, RADIUS = "lost mass", "covering radius"

SIMPLER = ("removed norm", "lost rank", DISTANCE)
"""Predictors that the lost mass has to surpass."""

FUNCTIONAL_PREDICTORS = (LOST_MASS, RADIUS, *SIMPLER)

ACCURACIES = ("none", "convolution", "fine-tuned")
"""Targets: test accuracy after removal, plain and refitted, and after fine-tuning without compensation.

The more a choice loses, the lower they should be.
"""

SAME_CHOICE = 1e-3
"""Relative difference of the losses up to which a removal and a trial made the same choice: records round to five
digits."""


def explained(records: Sequence[Record]) -> pd.DataFrame:
    """B5: what a loss tells of the accuracy beyond ratio and method.

    Returns:
        The columns of `explanation.predictors` for each of `ACCURACIES` and `FUNCTIONAL_PREDICTORS`, p corrected by
        Holm over all rows. The runs are those of `losses`, of cells with enough networks if there are any.
    """
    return _effects([predictor_effect(*asked, RATIO_AND_METHOD) for asked in _asked(records)])


def explained_over_networks(records: Sequence[Record]) -> pd.DataFrame:
    """The effects of `explained`, one slope for each dense network and tested over the networks.

    Only networks that were pruned at several ratios have a slope, since ratio and method are factors.

    Returns:
        A row for each target and predictor: target, predictor, and seeds, effect, low, high, p (corrected by Holm) of
        `slope_over_networks`.
    """
    rows = [
        {"target": target, "predictor": name, **slope_over_networks(known, RATIO_AND_METHOD)}
        for known, target, name in _asked(records)
    ]
    table = pd.DataFrame(rows, columns=["target", "predictor", "seeds", "effect", "low", "high", "p"])
    return table.assign(p=holm(table["p"]))


def explained_by_cell(records: Sequence[Record]) -> pd.DataFrame:
    """The effects of `explained` where each pair of ratio and method has a level of its own: a description.

    So what a method does at one ratio explains nothing, and only what sets the networks apart is left.

    Returns:
        The columns of `explained`, p corrected by Holm over all rows.
    """
    return _effects(
        [
            predictor_effect(known.assign(cell=known["method"] + known["ratio"].astype(str)), target, name, CELLS)
            for known, target, name in _asked(records)
        ]
    )


def losses(records: Sequence[Record]) -> pd.DataFrame:
    """Accuracy of each run, and what its choice lost.

    A fine-tuned run counts if a removal on record made the same choice: only a removal measures the lost mass.

    Returns:
        A row for each run: target, method, ratio, seed, accuracy (%), `FUNCTIONAL_PREDICTORS`.
    """
    damaged = removals_by_network(records)
    parts = [damaged.assign(target=target, accuracy=damaged[target]) for target in ACCURACIES[:2]]
    parts.append(_fine_tuned(records).assign(target=ACCURACIES[2]))
    columns = ["target", "method", "ratio", "seed", "accuracy", *FUNCTIONAL_PREDICTORS]
    filled = [part[columns] for part in parts if len(part)]
    return pd.concat(filled or [parts[0][columns]], ignore_index=True).dropna()


def accuracy_verdict(table: pd.DataFrame, target: str) -> str:
    """Whether the lost mass explains one of `ACCURACIES`.

    It does if its effect is negative and significant, and if it lowers the error on other networks by more than each
    of `SIMPLER`. It does not if its effect is surely positive, or if a simpler loss passes the same test with as small
    an error, as in claim 5.

    Args:
        table: as of `explained`.
    """
    rows = table[table["target"] == target].set_index("predictor")
    if LOST_MASS not in rows.index or np.isnan(rows.loc[LOST_MASS, "p"]):
        return UNDECIDED
    passing = rows[(rows["p"] < LEVEL) & (rows["effect"] < 0) & (rows["error"] < rows["error without"])]
    mass = rows.loc[LOST_MASS]
    simpler = rows[rows.index.isin(SIMPLER)]
    as_good = passing[passing.index.isin(SIMPLER) & (passing["error"] <= mass["error"])]
    if mass["low"] > 0 or len(as_good):
        return NOT_SUPPORTED
    leads = len(simpler) == len(SIMPLER) and (simpler["error"] > mass["error"]).all()
    return SUPPORTED if LOST_MASS in passing.index and leads else UNDECIDED


def accuracy_verdicts(records: Sequence[Record], table: pd.DataFrame) -> dict[str, str]:
    """`accuracy_verdict` for each of `ACCURACIES`; undecided where no cell has enough networks.

    Args:
        table: as of `explained`.
    """
    decides = replicated_cells(records) > 0
    return {target: accuracy_verdict(table, target) if decides else UNDECIDED for target in ACCURACIES}


def rank_correlations(frame: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Spearman's rank correlation of what a choice loses with its accuracy, over the choices: a description.

    Args:
        frame: as of `frames.removals_by_network`.

    Returns:
        A row for "none" and "convolution", a column for each of `FUNCTIONAL_PREDICTORS`; NaN for less than two choices.
    """
    targets, predictors = list(ACCURACIES[:2]), list(FUNCTIONAL_PREDICTORS)
    means = frame[frame["ratio"] == ratio].groupby("method")[targets + predictors].mean()
    return means.corr("spearman").loc[targets, predictors]


def replicated_cells(records: Sequence[Record]) -> int:
    """Cells of target, method and ratio with enough networks to decide anything."""
    return sum(count >= LEAST_SEEDS for count in _networks_by_cell(losses(records)).values())


def _asked(records: Sequence[Record]) -> list[tuple[pd.DataFrame, str, str]]:
    """For each target and predictor that vary: the runs with columns x and y, and the two names."""
    return [
        (known.assign(x=standardized(known[name]), y=known["accuracy"]), target, name)
        for target, known in _decisive(losses(records)).groupby("target", sort=False)
        for name in FUNCTIONAL_PREDICTORS
        if len(known) > 2 and known[name].std() > 0
    ]


def _effects(rows: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=[*PREDICTOR_COLUMNS])
    return table.assign(p=holm(table["p"]))


def _fine_tuned(records: Sequence[Record]) -> pd.DataFrame:
    """Runs that were fine-tuned without compensation, with the losses of their own choices."""
    plain = trials(records)
    plain = plain[~plain["method"].str.endswith(COMPENSATED)].rename(columns={"test": "accuracy"})
    both = plain.merge(removals(records), on=["method", "ratio", "seed"], suffixes=("", " of the removal"))
    same = [np.isclose(both[name], both[f"{name} of the removal"], rtol=SAME_CHOICE) for name in SIMPLER]
    return both[np.logical_and.reduce(same)].drop_duplicates(["method", "ratio", "seed"])


def _decisive(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of cells with enough networks; all of them where no cell has."""
    counts = _networks_by_cell(frame)
    enough = [counts[cell] >= LEAST_SEEDS for cell in _cells(frame)]
    return frame[enough] if any(enough) else frame


def _networks_by_cell(frame: pd.DataFrame) -> Counter:
    return Counter(_cells(frame))


def _cells(frame: pd.DataFrame) -> list[tuple]:
    return list(zip(frame["target"], frame["method"], frame["ratio"], strict=True))
