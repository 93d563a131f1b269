"""Figures of layers, and of the topological distance against damage and recovery."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from topoprune.report.evidence.explanation import adjusted
from topoprune.report.figures.drawing import MARKERS, by_method, finished, without_records
from topoprune.report.figures.panels import panels, shared_legend
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
    ratios, methods = sorted(frame["ratio"].unique()), methods_in(frame)
    scale = _scale(frame[column], column)
    figure, axes = panels(len(ratios) + 1, height=0.25 * len(methods) + 0.7)  # the last is the scale's
    for number, (panel, ratio) in enumerate(zip(axes[:-1], ratios, strict=True)):
        part = frame[frame["ratio"] == ratio].pivot_table(index="method", columns="layer", values=column, sort=False)
        part = part.reindex(methods)  # the panels share their rows: blank where none is on record
        sns.heatmap(
            part.clip(lower=scale.vmin) if isinstance(scale, LogNorm) else part,
            norm=scale,
            cmap="viridis",
            ax=panel,
            cbar=False,
            xticklabels=3,
            yticklabels=number % 2 == 0,
        )
        panel.set(title=f"ratio {ratio:g}", xlabel="convolution", ylabel="")
        panel.tick_params(labelsize="small", rotation=0)
    _draw_scale(axes[-1], scale, column)
    return finished(figure, frame)


def damage_against_recovery(records: Sequence[Record]) -> Figure:
    """Topological distance of a trial (mean over layers, H0 and H1) against its accuracies."""
    frame = trials(records)
    if frame.empty:
        return without_records(frame)
    figure, both = panels(2, height=3.2, legend_height=1.9, sharex=True)
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
        )
        axes.set(title=title, ylabel="test accuracy (%)" if column == "damaged" else "")
    shared_legend(figure, both)
    return finished(figure, frame)


def partial_effect(records: Sequence[Record]) -> Figure:
    """Damage and recovery area against the topological distance, without what ratio, method and seed explain."""
    frame = adjusted(records, DISTANCE)
    if frame.empty:
        return without_records(frame)
    figure, both = panels(2, height=3.2, legend_height=1.2)
    for axes, column in zip(both, ("damage", "recovery area"), strict=True):
        sns.scatterplot(frame, x=DISTANCE, y=column, **by_method(frame), markers=MARKERS, ax=axes)
        axes.set(title=column, xlabel=f"{DISTANCE},\nadjusted", ylabel="points, adjusted" if column == "damage" else "")
    shared_legend(figure, both)
    return finished(figure, frame)


def _draw_scale(axes: Axes, scale: Normalize, label: str) -> None:
    """The colours of a map, in a panel of their own."""
    axes.set_axis_off()
    axes.figure.colorbar(
        ScalarMappable(scale, "viridis"),
        cax=axes.inset_axes((0.1, 0.55, 0.8, 0.1)),
        orientation="horizontal",
        label=label,
    )


def _scale(values: pd.Series, column: str) -> Normalize:
    positive = values[values > 0]
    if column.endswith("(%)"):
        return Normalize(0, 100)
    if column in (DISTANCE, "kept filters") and len(positive):
        return LogNorm(positive.min(), values.max())
    return Normalize(0, values.max())
