"""The figure of what was explored beside the claims of the chapter "Beyond the thesis"."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topoprune.report.evidence.explored import REFITTED, fine_tuning_curves, shares_networks
from topoprune.report.figures.beyond import WIDTH, legend_below
from topoprune.report.figures.drawing import finished, without_records
from topoprune.report.frames import dense_accuracy, of_kind
from topoprune.study import Dense, Record, Trial


def ways_of_fine_tuning(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch, one colour for each recipe, refitted (solid) and plain (dashed).

    All lines are means over the networks that the ways share, the dotted one before removal. The number of these
    networks stands above the legend.
    """
    frame = fine_tuning_curves(records)
    if frame.empty:
        return without_records(frame)
    figure, axes = plt.subplots(figsize=(WIDTH, 5))
    recipes = list(frame["recipe"].unique())
    colours = dict(zip(recipes, sns.color_palette("colorblind", len(recipes)), strict=True))
    for (recipe, arm), own in frame.groupby(["recipe", "arm"], sort=False):
        means = own.groupby("epoch")["accuracy"].mean()
        style = "-" if arm == REFITTED else "--"
        axes.plot(means.index, means, style, color=colours[recipe], label=f"{recipe}; {arm}")
    drawn = [one for one in of_kind(records, Dense) + of_kind(records, Trial) if one.spec.seed in set(frame["seed"])]
    axes.axhline(dense_accuracy(drawn), color="grey", linestyle=":", linewidth=1.2)
    axes.set(xlabel="epoch of fine-tuning", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes, columns=1, title=_networks_in_words(frame))
    return finished(figure, frame)


def _networks_in_words(frame: pd.DataFrame) -> str:
    number = frame["seed"].nunique()
    if not shares_networks(frame):
        return f"means over different networks, {number} in all"
    return f"means over the same {number} networks" if number > 1 else "one network"
