"""The look that all figures of the book share."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topoprune.report.evidence.statistics import t_interval
from topoprune.report.frames import NAMES, methods_in

COLOURS = dict(zip(NAMES.values(), itertools.cycle(sns.color_palette("colorblind"))))
MARKERS = dict(zip(NAMES.values(), itertools.cycle("osD^PXv<>p*hH")))


def style() -> None:
    """Set the look of every figure: vector graphics, one palette."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "topoprune"})


def finished(figure: Figure, data: pd.DataFrame) -> Figure:
    """Lay the figure out, attach the data that it draws, and close it for pyplot: `show` displays it."""
    if not figure.legends:  # seaborn's grids have made room for theirs
        figure.tight_layout()
    plt.close(figure)
    figure.data = data  # type: ignore[attr-defined]  # `show` offers it for download
    return figure


def without_records(data: pd.DataFrame) -> Figure:
    """A small figure that says that nothing is on record."""
    return in_words("nothing on record", data)


def in_words(text: str, data: pd.DataFrame) -> Figure:
    """A small figure of one sentence, where curves would show nothing."""
    figure, axes = plt.subplots(figsize=(6, 0.8))
    axes.text(0.5, 0.5, text, ha="center", va="center", color="dimgrey")
    axes.set_axis_off()
    return finished(figure, data)


def none_recovered(frame: pd.DataFrame) -> Figure:
    """What stands in the place of the curves of `survival` where all stay at 1."""
    return in_words(f"No run has recovered within {frame['epoch'].max():.0f} epochs: every curve stays at 1.", frame)


def by_method(frame: pd.DataFrame) -> dict:
    """Arguments of a seaborn plot that give each method its colour, marker and place in the legend."""
    order = methods_in(frame)
    return {"hue": "method", "style": "method", "palette": COLOURS, "hue_order": order, "style_order": order}


def draw_means(frame: pd.DataFrame, x: str, y: str, axes: Axes) -> None:
    """A line through the mean of each method, with 95 % t-intervals over dense networks."""
    sns.lineplot(frame, x=x, y=y, **by_method(frame), markers=MARKERS, dashes=False, errorbar=None, ax=axes)
    for method, group in frame.groupby("method"):
        points = group.groupby(x)[y]
        low, high = np.transpose([t_interval(values.to_numpy()) for _, values in points])
        mean = points.mean()
        bars = np.nan_to_num([mean - low, high - mean])
        axes.errorbar(mean.index, mean, yerr=bars, fmt="none", capsize=3, color=COLOURS[method], linewidth=1)
