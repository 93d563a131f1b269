"""The forest plot of the verdicts: what each claim needs, what was measured, and how far its interval reaches."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topoprune.report.evidence.claims import NOT_SUPPORTED, SUPPORTED
from topoprune.report.figures.drawing import finished, without_records

VERDICT_COLOURS = {SUPPORTED: "#027a5b", NOT_SUPPORTED: "#b04a00"}
"""Colours of verdicts that say something; the others are black. Dark enough to be read as text."""

FOR = "#d5efe6"
"""Colour of the side on which an effect speaks for the claim."""


def verdict_forest(verdicts: pd.DataFrame) -> Figure:
    """One row for each test: the effect that speaks most against the claim, with its interval, on an axis of its own.

    On the shaded side an effect speaks for the claim. Thin grey lines are the other cells with enough networks.

    Args:
        verdicts: rows of `evidence.verdicts` or `evidence.beyond_verdicts`.
    """
    shown = verdicts[verdicts["difference"].notna()]
    data = shown.drop(columns="others")
    if shown.empty:
        return without_records(data)
    figure, panels = plt.subplots(len(shown), 1, figsize=(6, 0.98 * len(shown)), squeeze=False)
    for axes, row in zip(panels[:, 0], shown.to_dict("records"), strict=True):
        _draw_effect(axes, row)
    return finished(figure, data)


def _draw_effect(axes: Axes, row: dict) -> None:
    others = np.array(row["others"]).reshape(-1, 3)
    ends = np.array([row["difference"], row["low"], row["high"]])
    seen = np.nan_to_num([*ends, *others[:, 0], 0.0, row["bound"]], nan=row["difference"])
    pad = 0.08 * (np.ptp(seen) or 10.0)
    limits = seen.min() - pad, seen.max() + pad
    if row["side"]:
        axes.axvspan(row["bound"], limits[1] if row["side"] > 0 else limits[0], color=FOR, linewidth=0)
    axes.axvline(0, color="grey", linewidth=1)
    for height, (effect, low, high) in zip(np.linspace(-0.8, 0.8, len(others)), others, strict=True):
        axes.plot([low, high], [height, height], color="darkgrey", linewidth=0.8)
        axes.plot(effect, height, ".", color="darkgrey", markersize=4)
    colour = VERDICT_COLOURS.get(row["verdict"], "black")
    axes.plot(ends[1:], [0, 0], color=colour, linewidth=3, solid_capstyle="butt")
    axes.plot(row["difference"], 0, "o", color=colour, markersize=8, markeredgecolor="white")
    axes.set(xlim=limits, ylim=(-1, 1), yticks=[])
    axes.grid(visible=False)
    axes.set_title(f"{row['claim']}  {row['name']} ({row['unit']})", loc="left", fontsize=10)
    axes.set_title(row["verdict"], loc="right", fontsize=10, color=colour, fontweight="bold")
    axes.tick_params(axis="x", labelsize=9, pad=1)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
