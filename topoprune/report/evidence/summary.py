"""Numbers that the summary of the verdicts quotes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.differences import RIVALS, TOPOLOGICAL
from topoprune.report.frames import LAYERWISE_NAMES, NAMES, trials
from topoprune.study import Record


def findings(records: Sequence[Record]) -> dict[str, int | float]:
    """The layer-wise methods at the smallest and the largest ratio at which a dense network has all of them.

    Returns:
        Means over those networks, NaN without any; for each name below `low_` and `high_` of it. ratio; seeds;
        topological, random, rivals: percent of test accuracy before fine-tuning, the last of L1, L2 and FPGM;
        after: of topological after it; spread: points between the best and the worst method after it; gain: points
        of topological over random after it; epochs: seconds of the topological selection in epochs of fine-tuning.
    """
    values = ["test", "damaged", "selection seconds", "epoch seconds"]
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values=values)
    wide = wide.reindex(columns=pd.MultiIndex.from_product([values, LAYERWISE_NAMES])).dropna()
    ratios = wide.index.get_level_values("ratio")
    ends = {"low": min(ratios, default=np.nan), "high": max(ratios, default=np.nan)}
    return {
        f"{end}_{name}": value
        for end, ratio in ends.items()
        for name, value in {"ratio": ratio, **_means(wide[ratios == ratio])}.items()
    }


def _means(networks: pd.DataFrame) -> dict[str, int | float]:
    before, after = networks["damaged"].mean(), networks["test"].mean()
    random = NAMES["random"]
    seconds = networks["selection seconds"][TOPOLOGICAL] / networks["epoch seconds"][TOPOLOGICAL]
    return {
        "seeds": len(networks),
        "topological": before[TOPOLOGICAL],
        "random": before[random],
        "rivals": before[list(RIVALS)].mean(),
        "after": after[TOPOLOGICAL],
        "spread": after.max() - after.min(),
        "gain": after[TOPOLOGICAL] - after[random],
        "epochs": seconds.mean(),
    }
