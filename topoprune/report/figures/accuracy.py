"""Figures of accuracy: dense training, after removal, along fine-tuning, and differences between methods."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from topoprune.report.evidence.differences import GLOBAL, TOPOLOGICAL, ablations, accuracy_equivalence
from topoprune.report.evidence.recovery import survival
from topoprune.report.evidence.statistics import MARGIN, t_interval
from topoprune.report.figures.drawing import (
    COLOURS,
    MARKERS,
    by_method,
    draw_means,
    finished,
    none_recovered,
    without_records,
)
from topoprune.report.figures.panels import WIDTH, label_outer, panels, shared_legend
from topoprune.report.frames import (
    LAYERWISE_NAMES,
    dense_accuracy,
    methods_in,
    of_kind,
    recovery_frame,
    trials,
    typed_frame,
)
from topoprune.report.tables.published import published_table
from topoprune.study import Dense, Record


def training_curves(records: Sequence[Record]) -> Figure:
    """Accuracy of the dense networks by epoch."""
    rows = [
        {"epoch": epoch["epoch"], "accuracy (%)": 100 * epoch[split], "split": split, "seed": record.spec.seed}
        for record in of_kind(records, Dense)
        for epoch in record.result["history"]
        for split in ("validation", "test")
    ]
    frame = typed_frame(rows, {"epoch": "int64", "accuracy (%)": "float64", "split": "object", "seed": "int64"})
    if frame.empty:
        return without_records(frame)
    figure, axes = plt.subplots(figsize=(WIDTH, 3.8))
    sns.lineplot(
        frame,
        x="epoch",
        y="accuracy (%)",
        hue="split",
        style="split",
        errorbar=t_interval,
        markers=True,
        dashes=False,
        ax=axes,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finished(figure, frame)


def accuracy_by_ratio(records: Sequence[Record]) -> Figure:
    """Test accuracy before and after fine-tuning against the pruning ratio."""
    frame = trials(records)
    if frame.empty:
        return without_records(frame)
    figure, both = panels(2, height=3.0, legend_height=1.1, sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"), ("before fine-tuning", "after fine-tuning"), strict=True):
        draw_means(frame, "ratio", column, axes)
        axes.set(title=title, xlabel="pruning ratio", ylabel="test accuracy (%)" if column == "damaged" else "")
        axes.xaxis.set_major_locator(MultipleLocator(0.1))
        axes.tick_params(axis="x", labelsize="small")
        axes.axhline(dense_accuracy(records), color="grey", linestyle=":", linewidth=1)
    shared_legend(figure, both)
    return finished(figure, frame)


def accuracy_by_cost(records: Sequence[Record]) -> Figure:
    """Test accuracy after fine-tuning against what remains of parameters and FLOPs.

    On CIFAR-10 at full width, published results stand beside the study's.
    """
    frame = trials(records)
    if frame.empty:
        return without_records(frame)
    dense = of_kind(records, Dense)[0].spec
    figure, both = panels(2, height=3.6, legend_height=1.2, sharey=True)
    for axes, column, title in zip(both, ("parameters", "flops"), ("parameters", "FLOPs"), strict=True):
        # Global criteria leave every network its own share, so draw their points at the mean.
        frame[f"{column} %"] = 100 * frame.groupby(["method", "ratio"])[column].transform("mean")
        draw_means(frame, f"{column} %", "test", axes)
        axes.set(xscale="log", xlabel=f"remaining {title} (%)", ylabel="test accuracy (%)")
        _tick_layerwise_shares(axes, frame, f"{column} %")
        axes.axhline(dense_accuracy(records), color="grey", linestyle=":", linewidth=1)
        if dense.dataset == "cifar10" and dense.width == 1:
            _draw_published(axes, f"{title} removed (%)")
    shared_legend(figure, both)
    return finished(figure, frame)


def recovery_curves(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch of fine-tuning, one panel for each ratio; shades are standard errors."""
    frame = recovery_frame(records)
    if frame.empty:
        return without_records(frame)
    figure, axes = _draw_by_epoch(frame, "test accuracy (%)", errorbar="se", markers=MARKERS, dashes=False)
    label_outer(axes, "epoch", "test accuracy (%)")
    return finished(figure, frame)


def survival_curves(records: Sequence[Record]) -> Figure:
    """Kaplan-Meier: the share of runs that has not recovered yet, by epoch of fine-tuning."""
    frame = survival(records)
    if frame.empty:
        return without_records(frame)
    if frame["share"].min() == 1:
        return none_recovered(frame)
    figure, axes = _draw_by_epoch(frame, "share", errorbar=None, height=2.1, drawstyle="steps-post")
    for panel in axes:
        panel.set_ylim(-0.05, 1.05)
    label_outer(axes, "epoch of fine-tuning", "not recovered yet")
    return finished(figure, frame)


def difference_plot(records: Sequence[Record], margin: float = MARGIN) -> Figure:
    """Topological less each method that judges within the layer, paired, by ratio, with the margin.

    Bars are the 90 % t-interval, which the test of equivalence compares with the margin. The global criteria, which
    can be tens of points apart, have a table.
    """
    layerwise = [name for name in methods_in(trials(records)) if name not in (TOPOLOGICAL, *GLOBAL)]
    frame = accuracy_equivalence(records, second=layerwise)
    if frame.empty:
        return without_records(frame)
    figure, (axes,) = panels(1, height=4.0, legend_height=0.5)
    axes.axhspan(-margin, margin, color="lightgrey", alpha=0.5, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    ratios = sorted(frame["ratio"].unique())
    for position, (rival, group) in enumerate(frame.groupby("rival")):
        shift = 0.8 * ((position + 0.5) / frame["rival"].nunique() - 0.5)
        bars = np.nan_to_num([group["difference"] - group["low"], group["high"] - group["difference"]])
        axes.errorbar(
            [ratios.index(ratio) + shift for ratio in group["ratio"]],
            group["difference"],
            yerr=bars,
            fmt=MARKERS[rival],
            capsize=3,
            color=COLOURS[rival],
            label=f"minus {rival}",
        )
    axes.set(
        xticks=range(len(ratios)),
        xticklabels=[f"{ratio:g}" for ratio in ratios],
        xlabel="pruning ratio",
        ylabel="difference (points)",
    )
    shared_legend(figure, [axes])
    return finished(figure, frame)


def ablation_plot(records: Sequence[Record]) -> Figure:
    """Points of test accuracy that each exchanged part costs, with the margin."""
    frame = ablations(records)
    if frame.empty:
        return without_records(frame)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.36 * len(frame) + 1.4))
    axes.axvspan(-MARGIN, MARGIN, color="lightgrey", alpha=0.5, linewidth=0)
    axes.axvline(0, color="grey", linewidth=0.8)
    bars = np.nan_to_num([frame["accuracy"] - frame["low"], frame["high"] - frame["accuracy"]])
    axes.errorbar(frame["accuracy"], frame["variant"], xerr=bars, fmt="o", capsize=3)
    axes.set(xlabel="default less variant (points of test accuracy)", ylabel="")
    axes.invert_yaxis()
    return finished(figure, frame)


def selection_cost(records: Sequence[Record]) -> Figure:
    """Seconds that selection takes, by method; dotted lines are one epoch of fine-tuning at each ratio."""
    frame = trials(records)
    if frame.empty:
        return without_records(frame)
    order = methods_in(frame)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.4 * len(order) + 1.2))
    sns.stripplot(
        frame,
        x="selection seconds",
        y="method",
        hue="method",
        palette=COLOURS,
        order=order,
        hue_order=order,
        legend=False,
        ax=axes,
    )
    for number, (ratio, seconds) in enumerate(frame.groupby("ratio")["epoch seconds"].median().items()):
        axes.axvline(seconds, color="grey", linestyle=":")
        axes.annotate(
            f"{ratio:g}",
            (seconds, 1),
            xytext=(0, 2 + 24 * (number % 2)),  # neighbours would overlap on one line
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90,
            fontsize="small",
            color="grey",
        )
    axes.set(xscale="log", ylabel="")
    return finished(figure, frame)


def _draw_by_epoch(frame: pd.DataFrame, column: str, height: float = 2.6, **look) -> tuple[Figure, list[Axes]]:
    """Lines of all methods by epoch, one panel for each ratio."""
    ratios = sorted(frame["ratio"].unique())
    figure, axes = panels(len(ratios), height=height, legend_height=1.2)
    for panel, ratio in zip(axes, ratios, strict=True):
        sns.lineplot(frame[frame["ratio"] == ratio], x="epoch", y=column, **by_method(frame), **look, ax=panel)
        panel.set_title(f"ratio {ratio:g}")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    shared_legend(figure, axes)
    return figure, axes


def _tick_layerwise_shares(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    """Ticks at what remains where every layer loses the same share."""
    layerwise = frame[frame["method"].isin(LAYERWISE_NAMES)]
    shares = sorted(layerwise.groupby("ratio")[column].mean())
    axes.set_xticks(shares, [f"{share:.2g}" for share in shares], fontsize="small")
    axes.minorticks_off()


def _draw_published(axes: Axes, removed: str) -> None:
    known = published_table().dropna(subset=[removed])
    axes.scatter(
        100 - known[removed],
        known["pruned (%)"],
        marker="+",
        s=50,
        color="black",
        linewidths=1,
        zorder=3,
        label="published (see text)",
    )
