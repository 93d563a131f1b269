"""The figure that opens the README and the front page: what was found, in two panels."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topoprune.report.figures.drawing import COLOURS, MARKERS, draw_means, finished, without_records
from topoprune.report.frames import LAYERWISE_NAMES, NAMES, trials
from topoprune.study import Record


def main_figure(records: Sequence[Record]) -> Figure:
    """Accuracy before fine-tuning, and after it the difference from random removal, of the layer-wise methods.

    On the right a small dot is one network, a large one the mean over networks.
    """
    frame = trials(records)
    frame = frame[frame["method"].isin(LAYERWISE_NAMES)]
    paired = frame.pivot_table(index=["ratio", "seed"], columns="method", values="test")
    if NAMES["random"] not in paired:
        return without_records(frame)
    figure, (before, after) = plt.subplots(1, 2, figsize=(7.4, 3.6))
    draw_means(frame, "ratio", "damaged", before)
    before.set(title="Before fine-tuning", xlabel="share of filters removed", ylabel="test accuracy (%)")
    before.legend(title=None, fontsize="small")
    _draw_differences(paired.sub(paired[NAMES["random"]], axis=0), after)
    after.set(title="After five epochs", xlabel="share of filters removed", ylabel="points above random removal")
    return finished(figure, frame)


def _draw_differences(differences: pd.DataFrame, axes: Axes) -> None:
    """Draw one column of dots for each method and ratio; `differences` is indexed by ratio and seed."""
    methods = [name for name in LAYERWISE_NAMES if name in differences and name != NAMES["random"]]
    ratios = sorted(differences.index.unique("ratio"))
    axes.axhline(0, color=COLOURS[NAMES["random"]], linewidth=1.5)
    for method, shift in zip(methods, np.linspace(-0.27, 0.27, len(methods)), strict=True):
        by_ratio = differences[method].groupby("ratio")
        style = {"color": COLOURS[method], "marker": MARKERS[method], "linestyle": "none"}
        for position, ratio in enumerate(ratios):
            values = by_ratio.get_group(ratio)
            axes.plot([position + shift] * len(values), values, markersize=3, alpha=0.6, **style)
            axes.plot(position + shift, values.mean(), markersize=8, markeredgecolor="white", **style)
    axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    sns.despine(ax=axes, bottom=True)
