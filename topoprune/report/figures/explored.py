"""The figure of what was explored beside the claims of the chapter "Beyond the thesis"."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topoprune.report.evidence.explored import PLAIN, REFITTED, fine_tuning_curves, shares_networks
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
    return f"means over the same {number} networks" if number > 1 else "one network"
