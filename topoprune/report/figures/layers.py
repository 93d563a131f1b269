"""Figures of layers, and of the topological distance against damage and recovery."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from topoprune.report.evidence.explanation import adjusted
from topoprune.report.figures.drawing import MARKERS, by_method, finished, without_records
from topoprune.report.frames import DISTANCE, layer_frame, methods_in, trials
from topoprune.study import Record


def layer_map(records: Sequence[Record], column: str) -> Figure:
    """One quantity of `frames.layer_frame` by layer and method, one panel for each ratio, mean over networks.

    Percentages have a linear scale, distances and numbers of filters a logarithmic one, where single layers tower
    above the rest.
    """
    frame = layer_frame(records).dropna(subset=[column])
    if frame.empty:
        return without_records(frame)
    ratios = sorted(frame["ratio"].unique())
    figure, panels = plt.subplots(1, len(ratios), figsize=(3.2 * len(ratios) + 1.6, 3.6), sharey=True, squeeze=False)
    scale = _scale(frame[column], column)
    for axes, ratio in zip(panels[0], ratios, strict=True):
        part = frame[frame["ratio"] == ratio].pivot_table(index="method", columns="layer", values=column, sort=False)
        part = part.reindex(methods_in(frame))  # the panels share their rows: blank where none is on record
        sns.heatmap(
            part.clip(lower=scale.vmin) if isinstance(scale, LogNorm) else part,
            norm=scale,
            cmap="viridis",
            ax=axes,
            cbar=ratio == ratios[-1],
            cbar_kws={"label": column},
        )
        axes.set(title=f"ratio {ratio:g}", xlabel="convolution", ylabel="")
    return finished(figure, frame)


def damage_against_recovery(records: Sequence[Record]) -> Figure:
    """Topological distance of a trial (mean over layers, H0 and H1) against its accuracies."""
    frame = trials(records)
    if frame.empty:
        return without_records(frame)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"), ("before fine-tuning", "after fine-tuning"), strict=True):
        sns.scatterplot(
            frame,
            x=DISTANCE,
            y=column,
            **by_method(frame),
            size="ratio",
            markers=MARKERS,
            sizes=(30, 120),
            ax=axes,
            legend=axes is both[1],
        )
        axes.set(title=title, ylabel="test accuracy (%)")
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return finished(figure, frame)


def partial_effect(records: Sequence[Record]) -> Figure:
    """Damage and recovery area against the topological distance, without what ratio, method and seed explain."""
    frame = adjusted(records, DISTANCE)
    if frame.empty:
        return without_records(frame)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4))
    for axes, column in zip(both, ("damage", "recovery area"), strict=True):
        sns.scatterplot(
            frame, x=DISTANCE, y=column, **by_method(frame), markers=MARKERS, ax=axes, legend=axes is both[1]
        )
        axes.set(xlabel=f"{DISTANCE}, adjusted", ylabel=f"{column} (points), adjusted")
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return finished(figure, frame)


def _scale(values: pd.Series, column: str) -> Normalize:
    positive = values[values > 0]
    if column.endswith("(%)"):
        return Normalize(0, 100)
    if column in (DISTANCE, "kept filters") and len(positive):
        return LogNorm(positive.min(), values.max())
    return Normalize(0, values.max())
