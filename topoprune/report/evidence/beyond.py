"""Claims B1 to B4 of the book's page "Claims beyond the thesis", cell by cell.

Every comparison is paired within a dense network. p-values are corrected by Holm over the cells of a claim's test; the
cells that only stand beside them are a family of their own. A cell with fewer than three networks is undecided.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.claims import LEAST_SEEDS
from topoprune.report.evidence.differences import TOPOLOGICAL, UNDECIDED
from topoprune.report.evidence.statistics import (
    LEVEL,
    MARGIN,
    equivalence,
    holm_in_families,
    p_above,
    paired_difference,
    t_interval,
)
from topoprune.report.frames import NAMES, removals_by_network, trials
from topoprune.study import Record
from topoprune.study.profiles import COMPENSATED, FUNCTIONAL_CHOICE

FUNCTIONAL = NAMES[FUNCTIONAL_CHOICE]
RANDOM, FPGM, QR, OBS = (NAMES[name] for name in ("random", "fpgm", "qr", "obs"))

PRIMARY_RATIO = 0.5
"""The ratio of the primary cells of B1 to B3."""

RECOVERY_RATIO = 0.3
"""The ratio of the primary cell of B4."""

LASTING_RATIOS = (PRIMARY_RATIO, 0.3)
"""The ratios of B2 and B4."""

PRIMARY_MENDING = "convolution"
"""The way of mending that B1 and B3 judge."""

MARGIN_BEFORE = 2.0
"""Points of test accuracy that count as equal before fine-tuning."""

MENDED_METHODS = (RANDOM, FPGM, FUNCTIONAL, QR)
"""The choices that are fine-tuned both plain and compensated."""

ALL_FOUR = "mean of the four"
"""The row of `sooner` that averages `MENDED_METHODS` within a network."""

LASTING_PAIRS = (
    *((FUNCTIONAL, rival) for rival in (RANDOM, "L1", "L2", FPGM, TOPOLOGICAL)),
    *((FUNCTIONAL + COMPENSATED, rival + COMPENSATED) for rival in (RANDOM, FPGM)),
)
"""Method and rival of each comparison of B2."""

AFTER, BEFORE = "after fine-tuning", "before fine-tuning, convolution"

ABOVE, BELOW = "above zero", "below zero"
EQUIVALENT, BETTER, WORSE = "equivalent", "better", "worse"
SOONER, LATER = "sooner", "later"

_DIFFERENCE = ("seeds", "difference", "low", "high", "p", "verdict")


def mending_gains(records: Sequence[Record]) -> pd.DataFrame:
    """B1: test accuracy before fine-tuning that refitting the next layers gains, by choice.

    Returns:
        A row for each method, ratio and mending ("channels" or "convolution"): method, ratio, mending, primary
        (whether the claim's test has the cell); seeds; difference (points) with its 95 % interval; p (one-sided,
        Holm); verdict ("above zero", "below zero" or "undecided").
    """
    frame = removals_by_network(records)
    rows = [
        {
            "method": method,
            "ratio": ratio,
            "mending": mending,
            "primary": ratio == PRIMARY_RATIO and mending == PRIMARY_MENDING,
            **_one_sided(cell[mending] - cell["none"]),
        }
        for mending in (PRIMARY_MENDING, "channels")
        for (ratio, method), cell in frame.groupby(["ratio", "method"])
    ]
    table = pd.DataFrame(rows, columns=["method", "ratio", "mending", "primary", *_DIFFERENCE])
    return _gains_judged(table, table["primary"].astype(bool))


def lasting_gains(records: Sequence[Record]) -> pd.DataFrame:
    """B2: test accuracy after fine-tuning, the functional choice less each of its rivals, plain and compensated.

    Returns:
        A row for each of `LASTING_PAIRS` and ratio on record: method, rival, ratio, primary; seeds, difference
        (points), low, high, p and verdict as of `mending_gains`; matters ("yes" from `MARGIN` points on).
    """
    wide = _wide(records, "test")
    rows = [
        {"method": method, "rival": rival, "ratio": ratio, "primary": ratio == PRIMARY_RATIO, **_one_sided(pairs)}
        for method, rival in LASTING_PAIRS
        for ratio, pairs in _differences(wide, method, rival)
    ]
    table = pd.DataFrame(rows, columns=["method", "rival", "ratio", "primary", *_DIFFERENCE])
    table = _gains_judged(table, table["ratio"].isin(LASTING_RATIOS))
    return table.assign(matters=np.where(table["difference"] >= MARGIN, "yes", "no"))


def rivals(records: Sequence[Record]) -> pd.DataFrame:
    """B3: the functional choice less pivoted QR after fine-tuning, and less QR and OBS before it, refitted.

    "equivalent" where the two one-sided tests, corrected by Holm, place the difference within the margin; "better" or
    "worse" where the 95 % interval excludes zero and the means differ by more than the margin; "undecided" otherwise.

    Returns:
        A row for each comparison and ratio: method, rival, measured, ratio, primary, margin; seeds, difference
        (points); low, high: its 90 % interval; low 95, high 95; p of equivalence (Holm); verdict.
    """
    after = _wide(records, "test")
    before = removals_by_network(records).pivot_table(
        index=["ratio", "seed"], columns="method", values=PRIMARY_MENDING, dropna=False
    )
    asked = [
        (after, AFTER, MARGIN, FUNCTIONAL, QR),
        (after, AFTER, MARGIN, FUNCTIONAL + COMPENSATED, QR + COMPENSATED),
        *((before, BEFORE, MARGIN_BEFORE, FUNCTIONAL, rival) for rival in (QR, OBS)),
    ]
    rows = [
        {
            "method": method,
            "rival": rival,
            "measured": measured,
            "ratio": ratio,
            "primary": ratio == PRIMARY_RATIO,
            "margin": margin,
            **_equivalent(pairs.to_numpy(), margin),
        }
        for wide, measured, margin, method, rival in asked
        for ratio, pairs in _differences(wide, method, rival)
    ]
    cell = ["method", "rival", "measured", "ratio", "primary", "margin"]
    columns = [*cell, "seeds", "difference", "low", "high", "low 95", "high 95", "p", "verdict"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(p=holm_in_families(table["p"], table["primary"].astype(bool)))
    return table.assign(verdict=_rivals_judged(table))


def sooner(records: Sequence[Record]) -> pd.DataFrame:
    """B4: epochs until a network has recovered, the compensated one less the plain one.

    Every run has the same budget of epochs, so that the restricted mean is the mean of the times.

    Returns:
        A row for each ratio and each of `MENDED_METHODS`, and one for their mean in each network that has all four:
        method, ratio, primary, recovered (runs of both arms that recovered at all); seeds, difference (epochs), low,
        high, p (two-sided, Holm over the means), verdict ("sooner", "later" or "undecided").
    """
    epochs, reached = _wide(records, "recovery epochs"), _wide(records, "recovered")
    saved = _by_choice(epochs, lambda plain, mended: mended - plain)
    recoveries = _by_choice(reached, lambda plain, mended: plain + mended)
    rows = []
    for method in (ALL_FOUR, *MENDED_METHODS):
        known = saved.dropna().mean(axis=1) if method == ALL_FOUR else saved[method].dropna()
        counted = recoveries.loc[known.index] if method == ALL_FOUR else recoveries.loc[known.index, [method]]
        for ratio, times in known.groupby(level="ratio"):
            recovered = int(counted.loc[times.index].sum().sum())
            tested = paired_difference(times.to_numpy())
            rows.append(
                {
                    "method": method,
                    "ratio": ratio,
                    "primary": ratio == RECOVERY_RATIO and method == ALL_FOUR,
                    "recovered": recovered,
                    **tested,
                    "verdict": _recovery_verdict(tested, recovered),
                }
            )
    table = pd.DataFrame(rows, columns=["method", "ratio", "primary", "recovered", *_DIFFERENCE])
    tested = (table["method"] == ALL_FOUR) & table["ratio"].isin(LASTING_RATIOS)
    return table.assign(p=holm_in_families(table["p"], tested))


def over_rival(frame: pd.DataFrame, column: str, method: str, rival: str = RANDOM) -> dict:
    """A method less its rival at `PRIMARY_RATIO`, paired within networks, as of `paired_difference`.

    Args:
        frame: `removals_by_network` or `trials`.
        column: of an accuracy in percent.
    """
    own = frame[frame["ratio"] == PRIMARY_RATIO]
    wide = own.pivot_table(index="seed", columns="method", values=column).reindex(columns=[method, rival]).dropna()
    return paired_difference(wide.iloc[:, 0] - wide.iloc[:, 1])


def _wide(records: Sequence[Record], column: str) -> pd.DataFrame:
    """A column of `trials` by method; a row for each ratio and network."""
    frame = trials(records).astype({column: float})
    return frame.pivot_table(index=["ratio", "seed"], columns="method", values=column, dropna=False)


def _differences(wide: pd.DataFrame, method: str, rival: str) -> list[tuple[float, pd.Series]]:
    """Ratio and paired differences of two columns, for the ratios that have any."""
    both = wide.reindex(columns=[method, rival]).dropna()
    return list((both[method] - both[rival]).groupby(level="ratio"))


def _by_choice(wide: pd.DataFrame, combine) -> pd.DataFrame:
    """One column for each of `MENDED_METHODS`, from those of its plain and its compensated networks."""
    both = wide.reindex(columns=[name + end for name in MENDED_METHODS for end in ("", COMPENSATED)])
    return pd.DataFrame({name: combine(both[name], both[name + COMPENSATED]) for name in MENDED_METHODS})


def _one_sided(differences: pd.Series) -> dict:
    return {**paired_difference(differences.to_numpy()), "p": p_above(differences.to_numpy())}


def _equivalent(differences: np.ndarray, margin: float) -> dict:
    tested = equivalence(differences, margin)
    low, high = t_interval(differences)
    shown = {name: tested[name] for name in ("seeds", "difference", "low", "high")}
    return {**shown, "low 95": low, "high 95": high, "p": tested["p equivalent"]}


def _rivals_judged(table: pd.DataFrame) -> np.ndarray:
    """The verdict of each cell of `rivals`."""
    enough = table["seeds"] >= LEAST_SEEDS
    above = enough & (table["low 95"] > 0) & (table["difference"] > table["margin"])
    below = enough & (table["high 95"] < 0) & (table["difference"] < -table["margin"])
    return np.select([enough & (table["p"] < LEVEL), above, below], [EQUIVALENT, BETTER, WORSE], UNDECIDED)


def _recovery_verdict(tested: dict, recovered: int) -> str:
    if tested["seeds"] < LEAST_SEEDS or not recovered:
        return UNDECIDED
    return SOONER if tested["high"] < 0 else LATER if tested["low"] > 0 else UNDECIDED


def _gains_judged(table: pd.DataFrame, tested: pd.Series) -> pd.DataFrame:
    """The table with p corrected and the verdict of each cell."""
    p = holm_in_families(table["p"], tested)
    enough = table["seeds"] >= LEAST_SEEDS
    verdict = np.select([enough & (p < LEVEL), enough & (table["high"] < 0)], [ABOVE, BELOW], UNDECIDED)
    return table.assign(p=p, verdict=verdict)
