"""The figure of what was explored beside the claims of the chapter "Beyond the thesis"."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topoprune.report.evidence.explored import REFITTED, fine_tuning_curves
from topoprune.report.figures.beyond import WIDTH, legend_below
from topoprune.report.figures.drawing import finished, without_records
from topoprune.report.frames import dense_accuracy
from topoprune.study import Record


def ways_of_fine_tuning(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch, one colour for each recipe, refitted (solid) and plain (dashed), means over networks."""
    frame = fine_tuning_curves(records)
    if frame.empty:
        return without_records(frame)
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6))
    recipes = list(frame["recipe"].unique())
    colours = dict(zip(recipes, sns.color_palette("colorblind", len(recipes)), strict=True))
    for (recipe, arm), own in frame.groupby(["recipe", "arm"], sort=False):
        means = own.groupby("epoch")["accuracy"].mean()
        style = "-" if arm == REFITTED else "--"
        axes.plot(means.index, means, style, color=colours[recipe], label=f"{recipe}; {arm}")
    axes.axhline(dense_accuracy(records), color="grey", linestyle=":", linewidth=1.2)
    axes.set(xlabel="epoch of fine-tuning", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes, columns=1)
    return finished(figure, frame)
