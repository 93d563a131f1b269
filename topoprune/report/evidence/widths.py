"""What networks of full width say of the claims beyond the thesis, beside those of a quarter of the width."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.beyond import (
    AFTER,
    ALL_FOUR,
    LASTING_RATIOS,
    PRIMARY_MENDING,
    lasting_gains,
    mending_gains,
    rivals,
    sooner,
)
from topoprune.study import Record

_CELL = ["claim", "compared", "ratio"]
_NUMBERS = ["seeds", "difference", "low", "high"]


def widths_compared(narrow: Sequence[Record], wide: Sequence[Record]) -> pd.DataFrame:
    """The cells of B1 to B4 at `LASTING_RATIOS` at two widths, which are never mixed.

    Args:
        narrow, wide: records of the same choices on networks of either width.

    Returns:
        A row for each cell that `wide` has: claim; compared; ratio; narrow and wide (mean differences, in points of
        test accuracy, or in epochs for B4); low, high (where the wide mean would lie if neither width nor recipe made
        a difference: the 95 % prediction interval from the narrow networks); inside ("yes", "no", or "" without an
        interval); narrow networks, wide networks.
    """
    of_narrow, of_wide = _cells(narrow), _cells(wide)
    table = of_wide.merge(of_narrow, on=_CELL, how="left", suffixes=(" wide", " narrow"))
    margin = _prediction_margin(table)
    low, high = table["difference narrow"] - margin, table["difference narrow"] + margin
    within = table["difference wide"].between(low, high)
    return table[_CELL].assign(
        **{
            "narrow": table["difference narrow"],
            "wide": table["difference wide"],
            "low": low,
            "high": high,
            "inside": np.where(margin.isna(), "", np.where(within, "yes", "no")),
            "narrow networks": table["seeds narrow"].fillna(0).astype(int),
            "wide networks": table["seeds wide"].astype(int),
        }
    )


def _prediction_margin(table: pd.DataFrame) -> pd.Series:
    """Half of the prediction interval of a mean of m networks, t s sqrt(1/n + 1/m), from a mean's, t s / sqrt(n)."""
    half = (table["high narrow"] - table["low narrow"]) / 2
    return half * np.sqrt(1 + table["seeds narrow"] / table["seeds wide"])


def _cells(records: Sequence[Record]) -> pd.DataFrame:
    """The cells of B1 to B4: claim, compared (in words), ratio, seeds, difference, low, high (95 % interval)."""
    mended, lasting, strongest, times = (table(records) for table in (mending_gains, lasting_gains, rivals, sooner))
    mended = mended[mended["mending"] == PRIMARY_MENDING]
    times = times[times["method"] == ALL_FOUR]
    strongest = strongest.assign(low=strongest["low 95"], high=strongest["high 95"])
    parts = (
        mended.assign(claim="B1", compared=mended["method"] + ", refitted less as removed"),
        lasting.assign(claim="B2", compared=_against(lasting) + AFTER),
        strongest.assign(claim="B3", compared=_against(strongest) + strongest["measured"]),
        times.assign(claim="B4", compared=times["method"] + ", refitted less plain, epochs to recovery"),
    )
    frame = pd.concat([part[[*_CELL, *_NUMBERS]] for part in parts], ignore_index=True)
    frame = frame[frame["ratio"].isin(LASTING_RATIOS)]
    return frame.astype(dict.fromkeys(["ratio", *_NUMBERS], "float64")).sort_values(["claim", "ratio"], kind="stable")


def _against(table: pd.DataFrame) -> pd.Series:
    return table["method"] + " less " + table["rival"] + ", "
