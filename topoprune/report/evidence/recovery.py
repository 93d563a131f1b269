"""How long fine-tuning takes until a network has recovered, which may be never within its budget."""

from collections.abc import Sequence

import pandas as pd

from topoprune.report.evidence.differences import RIVALS, TOPOLOGICAL
from topoprune.report.evidence.statistics import holm_in_families, paired_difference
from topoprune.report.frames import trials
from topoprune.study import Record


def survival(records: Sequence[Record]) -> pd.DataFrame:
    """Kaplan-Meier estimate of not having recovered yet.

    Runs that never recover are censored at their last epoch.

    Returns:
        A row for each step: ratio, method, epoch, share.
    """
    from lifelines import KaplanMeierFitter

    rows = []
    for (ratio, method), group in trials(records).groupby(["ratio", "method"], sort=False):
        curve = KaplanMeierFitter().fit(group["recovery epochs"], group["recovered"])
        steps = curve.survival_function_["KM_estimate"]
        end = (group["recovery epochs"].max(), steps.iloc[-1])
        rows += [
            {"ratio": ratio, "method": method, "epoch": epoch, "share": share} for epoch, share in [*steps.items(), end]
        ]
    return pd.DataFrame(rows, columns=["ratio", "method", "epoch", "share"])


def restricted_means(records: Sequence[Record]) -> pd.DataFrame:
    """Mean recovery time within the budget of epochs, topological less rival, by ratio.

    Every run has the same budget, so the restricted mean (Royston & Parmar, 2013) is the mean of the times, each cut
    at the budget.

    Returns:
        A row for each rival and ratio: recovered (runs of both methods that recovered at all: without any, nothing
        is compared); seeds, difference (epochs), low, high, p of `paired_difference`, p corrected by Holm over the
        rows of `RIVALS`, and over those of random removal by themselves.
    """
    index = ["ratio", "seed"]
    frame = trials(records).astype({"recovered": float})
    epochs = frame.pivot_table(index=index, columns="method", values="recovery epochs")
    recovered = frame.pivot_table(index=index, columns="method", values="recovered")
    rows = []
    for rival in ("random", *RIVALS):
        if not {rival, TOPOLOGICAL} <= set(epochs):
            continue
        for ratio, pairs in (epochs[TOPOLOGICAL] - epochs[rival]).dropna().groupby(level="ratio"):
            reached = int(recovered.loc[pairs.index, [TOPOLOGICAL, rival]].sum().sum())
            rows.append({"rival": rival, "ratio": ratio, "recovered": reached, **paired_difference(pairs.to_numpy())})
    columns = ["rival", "ratio", "seeds", "recovered", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p=holm_in_families(table["p"], table["rival"].isin(RIVALS)))
