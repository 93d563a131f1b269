"""Tables of the chapter "Beyond the thesis": one line for each choice.

A value after ± is half of the 95 % t-interval over dense networks; with fewer than three networks there is none.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.beyond import FUNCTIONAL, OBS, PRIMARY_MENDING, PRIMARY_RATIO, QR, RANDOM, mending_gains
from topoprune.report.evidence.claims import LEAST_SEEDS
from topoprune.report.evidence.differences import TOPOLOGICAL
from topoprune.report.frames import MENDINGS, NAMES, removals_by_network, trials
from topoprune.report.tables.comparison import mean_and_interval
from topoprune.study import Record
from topoprune.study.profiles import COMPENSATED

IN_SHORT = {
    RANDOM: "random removal",
    NAMES["l1"]: "L1",
    TOPOLOGICAL: "the thesis's method",
    FUNCTIONAL: "the cover",
    QR: "pivoted QR",
    OBS: "optimal brain surgeon",
}
"""Choices of `steps_table`, and what the front page calls them."""


def steps_table(records: Sequence[Record], ratio: float = PRIMARY_RATIO) -> pd.DataFrame:
    """Test accuracy (%) of a few choices at one ratio, step by step; an empty cell where nothing was run.

    Each choice is shown as removed, with its convolutions refitted, fine-tuned, and refitted before fine-tuning.
    """
    before, after = removals_by_network(records), trials(records)
    removed, refitted = (_means(before, ratio, column) for column in ("none", PRIMARY_MENDING))
    tuned = _means(after, ratio, "test")
    both = {name.removesuffix(COMPENSATED): cell for name, cell in tuned.items() if name.endswith(COMPENSATED)}
    steps = {"as removed": removed, "refitted": refitted, "fine-tuned": tuned, "both": both}
    rows = [
        {"choice": called, **{step: cells.get(name, "") for step, cells in steps.items()}}
        for name, called in IN_SHORT.items()
        if any(name in cells for cells in steps.values())
    ]
    return pd.DataFrame(rows, columns=["choice", *steps])


def _means(frame: pd.DataFrame, ratio: float, column: str) -> dict[str, str]:
    """Method -> the mean of a column at a ratio over networks, with its interval."""
    own = frame[frame["ratio"] == ratio].groupby("method")[column]
    return {method: mean_and_interval(values, 1) for method, values in own}


def mending_table(records: Sequence[Record], ratio: float = PRIMARY_RATIO) -> pd.DataFrame:
    """Test accuracy before fine-tuning at one ratio, by choice and way of mending, and what the choice loses."""
    frame = removals_by_network(records)
    rows = [
        {
            "choice": choice,
            **{f"{mending} (%)": mean_and_interval(own[mending], 1) for mending in MENDINGS},
            "lost mass (%)": mean_and_interval(100 * own["lost mass"], 1),
            "covering radius": mean_and_interval(own["covering radius"], 2),
            "choosing (s)": f"{own['selection seconds'].median():.1f}",
            "refitting (s)": f"{own['refitting seconds'].median():.0f}",
            "networks": len(own),
        }
        for choice, own in frame[frame["ratio"] == ratio].groupby("method")
    ]
    losses = ("lost mass (%)", "covering radius", "choosing (s)", "refitting (s)")
    return in_order(rows, ["choice", *(f"{mending} (%)" for mending in MENDINGS), *losses, "networks"])


def gain_table(records: Sequence[Record]) -> pd.DataFrame:
    """Points of test accuracy before fine-tuning that refitting the convolutions gains, by choice and ratio."""
    gains = mending_gains(records)
    gains = gains[gains["mending"] == PRIMARY_MENDING]
    ratios = sorted(gains["ratio"].unique())
    rows = [
        {
            "choice": choice,
            **{f"{ratio:g}": _gain(own[own["ratio"] == ratio]) for ratio in ratios},
        }
        for choice, own in gains.groupby("method")
    ]
    return in_order(rows, ["choice", *(f"{ratio:g}" for ratio in ratios)])


def fine_tuned_table(records: Sequence[Record]) -> pd.DataFrame:
    """Test accuracy after fine-tuning by choice, plain and compensated, at each ratio."""
    frame = trials(records)
    choices = frame["method"].str.removesuffix(COMPENSATED)
    arms = np.where(frame["method"].str.endswith(COMPENSATED), ", compensated (%)", ", plain (%)")
    labels = [f"{ratio:g}{arm}" for ratio, arm in zip(frame["ratio"], arms, strict=True)]
    frame = frame.assign(choice=choices, column=labels)
    columns = sorted(frame["column"].unique(), key=lambda name: (-float(name.split(",")[0]), "compensated" in name))
    rows = [
        {
            "choice": choice,
            **{column: mean_and_interval(part["test"], 2) for column, part in own.groupby("column")},
        }
        for choice, own in frame.groupby("choice")
    ]
    return in_order(rows, ["choice", *columns])


def networks_by_ratio(records: Sequence[Record], before: bool = False) -> str:
    """How many dense networks stand behind each ratio, in words, such as "4 at 0.5, 3 at 0.3".

    Args:
        before: count those that were pruned without fine-tuning instead of the fine-tuned ones.
    """
    frame = removals_by_network(records) if before else trials(records)
    counts = frame[["ratio", "seed"]].drop_duplicates()["ratio"].value_counts()
    return ", ".join(f"{networks} at {ratio:g}" for ratio, networks in counts.items()) or "none"


def in_order(rows: list[dict], columns: list[str]) -> pd.DataFrame:
    """Rows in the book's order of methods; an empty cell where nothing is on record."""
    order = list(NAMES.values())
    table = pd.DataFrame(sorted(rows, key=lambda row: order.index(row["choice"])), columns=columns)
    return table.fillna("")


def _gain(cell: pd.DataFrame) -> str:
    return "" if cell.empty else difference_and_interval(cell.iloc[0])


def difference_and_interval(row: pd.Series) -> str:
    """A difference in points with its sign, and half of its interval where there are networks enough."""
    interval = f" ± {np.nan_to_num(row['high'] - row['low']) / 2:.1f}" if row["seeds"] >= LEAST_SEEDS else ""
    return f"{row['difference']:+z.1f}{interval}"
