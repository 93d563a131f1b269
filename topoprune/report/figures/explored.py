"""Figures of what was asked beside the claims of the chapter "Beyond the thesis"."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topoprune.report.evidence.beyond import RANDOM
from topoprune.report.evidence.explored import PLAIN, REFITTED, fine_tuning_curves, shares_networks
from topoprune.report.evidence.optimizers import AS_REMOVED, gaps_by_optimizer
from topoprune.report.figures.beyond import WIDTH, legend_below
from topoprune.report.figures.drawing import finished, without_records
from topoprune.report.frames import dense_accuracy, records_by_ratio
from topoprune.study import Record


def ways_of_fine_tuning(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch, one panel for each ratio, one colour for each recipe.

    Lines are solid for refitted networks, dashed for plain ones, and dash-dotted for random removal. All of a panel are
    means over the networks that the ways share, the dotted one before removal. The number of these networks stands
    above the legend.
    """
    by_ratio = records_by_ratio(records)
    frames = [fine_tuning_curves(own).assign(ratio=ratio) for ratio, own in by_ratio.items()]
    if not frames:
        return without_records(fine_tuning_curves([]))
    frame = pd.concat(frames, ignore_index=True)
    figure, panels = plt.subplots(1, len(frames), figsize=(WIDTH, 5), squeeze=False)
    for axes, (ratio, own) in zip(panels[0], by_ratio.items(), strict=True):
        drawn = frame[frame["ratio"] == ratio]
        _draw_ways(axes, drawn, list(frame["recipe"].unique()))
        dense = dense_accuracy([one for one in own if one.spec.seed in set(drawn["seed"])])
        axes.axhline(dense, color="grey", linestyle=":", linewidth=1.2)
        axes.set(xlabel="epoch of fine-tuning", title=f"ratio {ratio:g}" if len(frames) > 1 else "")
    panels[0, 0].set_ylabel("test accuracy (%)")
    legend_below(figure, panels[0, 0], columns=1, title=_networks_in_words(frame))
    return finished(figure, frame)


def gaps_over_random(groups: Iterable[Sequence[Record]]) -> Figure:
    """Accuracy as removed, each choice less random removal, one colour for each group of `gaps_by_optimizer`.

    Drawn are the choices that all groups on record share; bars are 95 % t-intervals over networks.
    """
    frame = gaps_by_optimizer(groups)
    frame = frame[(frame["measured"] == AS_REMOVED) & (frame["method"] != RANDOM)]
    drawn = list(frame.groupby(["optimizer", "width"], sort=False))
    if not drawn:
        return without_records(frame)
    methods = [name for name in drawn[0][1]["method"] if all(name in set(own["method"]) for _, own in drawn)]
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 * len(methods) + 2.2))
    for number, ((optimizer, width), own) in enumerate(drawn):
        cells = own.set_index("method").loc[methods]
        heights = np.arange(len(methods)) + 0.22 * (number - (len(drawn) - 1) / 2)
        bars = np.nan_to_num([cells["difference"] - cells["low"], cells["high"] - cells["difference"]])
        label = f"{optimizer}, width {width:g}: {_counted(int(cells['seeds'].max()))}"
        axes.errorbar(cells["difference"], heights, xerr=bars, fmt="osD"[number], capsize=3, label=label)
    axes.axvline(0, color="grey", linestyle=":", linewidth=1.2)
    axes.set(xlabel="points above random removal, as removed", yticks=range(len(methods)), yticklabels=methods)
    axes.invert_yaxis()
    legend_below(figure, axes, columns=1)
    return finished(figure, frame)


def _counted(networks: int) -> str:
    return "one network" if networks == 1 else f"{networks} networks"


def _draw_ways(axes: Axes, frame: pd.DataFrame, recipes: list[str]) -> None:
    colours = dict(zip(recipes, sns.color_palette("colorblind", len(recipes)), strict=True))
    for (recipe, arm), own in frame.groupby(["recipe", "arm"], sort=False):
        means = own.groupby("epoch")["accuracy"].mean()
        style = {REFITTED: "-", PLAIN: "--"}.get(arm, "-.")
        axes.plot(means.index, means, style, color=colours[recipe], label=f"{recipe}; {arm}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _networks_in_words(frame: pd.DataFrame) -> str:
    number = frame["seed"].nunique()
    if not shares_networks(frame):
        return f"means over different networks, {number} in all"
    return f"means over the same {number} networks" if number > 1 else _counted(number)
