"""Tables of what was asked beside the claims of the chapter "Beyond the thesis"."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.beyond import PRIMARY_MENDING, PRIMARY_RATIO, RANDOM
from topoprune.report.evidence.explored import PLAIN, REFITTED, fine_tunings, kept_gains, recipe_gains, untrained_losses
from topoprune.report.evidence.optimizers import gaps_by_optimizer
from topoprune.report.frames import records_by_ratio, trials
from topoprune.report.tables.beyond import difference_and_interval, in_order, mending_table
from topoprune.report.tables.comparison import mean_and_interval
from topoprune.study import Record

BESIDE_FIRST = f"{REFITTED}, less the first recipe"


def untrained_table(records: Sequence[Record]) -> pd.DataFrame:
    """Points of test accuracy that each choice loses without any training, by ratio, as removed and refitted."""
    frame = untrained_losses(records)
    ratios = sorted(frame["ratio"].unique())
    cells = {f"{ratio:g}, {arm}": (ratio, arm) for ratio in ratios for arm in (PLAIN, REFITTED)}
    rows = [
        {"choice": choice}
        | {name: mean_and_interval(own.loc[own["ratio"] == ratio, arm], 1) for name, (ratio, arm) in cells.items()}
        for choice, own in frame.groupby("method")
    ]
    return in_order(rows, ["choice", *cells])


def fine_tunings_table(records: Sequence[Record]) -> pd.DataFrame:
    """Test accuracy (%) after each way of fine-tuning, plain and refitted, and what is left of refitting's gain.

    All ways are those of the same networks, where there are any; their number stands in the last column.
    """
    frame, gains, better = fine_tunings(records), kept_gains(records), recipe_gains(records)
    better = better[better["arm"] == REFITTED].set_index("recipe")
    steps = {"before": "gain before", "first": "after 1 epoch", "last": "at the end"}
    rows = []
    for recipe, own in frame.groupby("recipe", sort=False):
        row = {"recipe": recipe}
        row |= {f"{arm} (%)": mean_and_interval(runs["last"], 1) for arm, runs in own.groupby("arm")}
        row[BESIDE_FIRST] = difference_and_interval(better.loc[recipe]) if recipe in better.index else ""
        for _, gain in gains[gains["recipe"] == recipe].iterrows():
            row[steps[gain["measured"]]] = difference_and_interval(gain)
        row["recovered"] = f"{own['recovered'].sum()} of {len(own)}"
        row["networks"] = own["seed"].nunique()
        rows.append(row)
    others = [f"{arm} (%)" for arm in frame["arm"].unique() if arm not in (PLAIN, REFITTED)]
    ends = [f"{PLAIN} (%)", f"{REFITTED} (%)", *others]
    columns = ["recipe", *ends, BESIDE_FIRST, *steps.values(), "recovered", "networks"]
    return pd.DataFrame(rows, columns=columns).fillna("")


def fine_tunings_by_ratio_table(records: Sequence[Record]) -> pd.DataFrame:
    """`fine_tunings_table` of each ratio, one below the other."""
    parts = [fine_tunings_table(own).assign(ratio=f"{ratio:g}") for ratio, own in records_by_ratio(records).items()]
    whole = pd.concat(parts or [fine_tunings_table([]).assign(ratio="")], ignore_index=True).fillna("")
    return whole[["ratio", *whole.columns.drop("ratio")]]


def mass_table(records: Sequence[Record]) -> pd.DataFrame:
    """Test accuracy at `PRIMARY_RATIO` as removed, refitted and fine-tuned, and the mass that is lost, by choice."""
    before, after = mending_table(records), trials(records)
    after = after[after["ratio"] == PRIMARY_RATIO]
    ends = {choice: mean_and_interval(own["test"], 1) for choice, own in after.groupby("method")}
    table = before.assign(tuned=before["choice"].map(ends).fillna(""))
    steps = {"none (%)": "as removed (%)", f"{PRIMARY_MENDING} (%)": "refitted (%)", "tuned": "fine-tuned (%)"}
    return table.rename(columns=steps)[["choice", *steps.values(), "lost mass (%)", "covering radius", "networks"]]


def gaps_table(groups: Iterable[Sequence[Record]]) -> pd.DataFrame:
    """Accuracy of each choice, and its difference from random removal, by who trained the dense networks.

    Args:
        groups: as for `gaps_by_optimizer`.
    """
    gaps = gaps_by_optimizer(groups)
    rows = [
        {
            "dense network": f"{cell['optimizer']}, width {cell['width']:g}",
            "measured": cell["measured"],
            "choice": cell["method"],
            "accuracy (%)": f"{cell['accuracy']:.1f}",
            "less random removal": difference_and_interval(cell) if cell["method"] != RANDOM else "",
            "norm removed (%)": f"{cell['removed norm']:.1f}",
            "lost mass (%)": "" if np.isnan(cell["lost mass"]) else f"{cell['lost mass']:.1f}",
            "networks": cell["seeds"],
        }
        for _, cell in gaps.iterrows()
    ]
    columns = ["dense network", "measured", "choice", "accuracy (%)", "less random removal"]
    return pd.DataFrame(rows, columns=[*columns, "norm removed (%)", "lost mass (%)", "networks"])
