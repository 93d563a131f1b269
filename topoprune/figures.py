"""seaborn figures from records, nothing else.

Every function returns a matplotlib figure. A shade or bar is the standard error over seeds; with
one seed there is none.
"""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from topoprune.tables import NAMES, differences, of_kind, recovery_frame, trials
from topoprune.trial import Dense, Record, Trial

COLOURS = dict(zip(NAMES.values(), itertools.cycle(sns.color_palette("colorblind"))))
MARKERS = dict(zip(NAMES.values(), itertools.cycle("osD^PXv<>p*hH")))


def style() -> None:
    """Set the look of every figure of the book: vector graphics, one palette."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "topoprune"})
    set_matplotlib_formats("svg")


def training_curves(records: Sequence[Record]) -> Figure:
    """Accuracy of the dense networks by epoch."""
    rows = [{"epoch": epoch["epoch"], "accuracy (%)": 100 * epoch[split], "split": split,
             "seed": record.spec.seed}
            for record in of_kind(records, Dense) for epoch in record.result["history"]
            for split in ("validation", "test")]
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    sns.lineplot(pd.DataFrame(rows), x="epoch", y="accuracy (%)", hue="split", style="split",
                 errorbar="se", markers=True, dashes=False, ax=axes)
    return _closed(figure)


def accuracy_by_ratio(records: Sequence[Record]) -> Figure:
    """Test accuracy before and after fine-tuning against the pruning ratio."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"),
                                   ("before fine-tuning", "after fine-tuning"), strict=True):
        _by_method(frame, "ratio", column, axes)
        axes.set(title=title, xlabel="pruning ratio", ylabel="test accuracy (%)")
        axes.axhline(frame["dense test"].mean(), color="grey", linestyle=":", linewidth=1)
    both[0].get_legend().remove()
    return _closed(figure)


def accuracy_by_cost(records: Sequence[Record]) -> Figure:
    """Test accuracy after fine-tuning against what remains of parameters and FLOPs."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    for axes, column, title in zip(both, ("parameters", "flops"), ("parameters", "FLOPs"),
                                   strict=True):
        frame[f"{column} %"] = 100 * frame[column]
        _by_method(frame, f"{column} %", "test", axes)
        shares = sorted(frame.groupby("ratio")[f"{column} %"].mean())
        axes.set(xscale="log", xlabel=f"remaining {title} (%)", ylabel="test accuracy (%)")
        axes.set_xticks(shares, [f"{share:.2g}" for share in shares])
        axes.minorticks_off()
        axes.axhline(frame["dense test"].mean(), color="grey", linestyle=":", linewidth=1)
    both[0].get_legend().remove()
    return _closed(figure)


def recovery_curves(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch of fine-tuning, one panel a ratio."""
    frame = recovery_frame(records)
    grid = sns.relplot(frame, x="epoch", y="test accuracy (%)", hue="method", style="method",
                       col="ratio", kind="line", errorbar="se", markers=MARKERS, dashes=False,
                       palette=COLOURS, hue_order=_present(frame), style_order=_present(frame),
                       height=3.2, aspect=1.1, col_wrap=min(2, frame["ratio"].nunique()),
                       facet_kws={"sharey": False})
    grid.set_titles("ratio {col_name:g}")
    return _closed(grid.figure)


def damage_against_recovery(records: Sequence[Record]) -> Figure:
    """Topological distance of a trial (mean over layers, H0 and H1) against its accuracies."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"),
                                   ("before fine-tuning", "after fine-tuning"), strict=True):
        sns.scatterplot(frame, x="topological distance", y=column, hue="method", style="method",
                        size="ratio", palette=COLOURS, markers=MARKERS, sizes=(30, 120),
                        hue_order=_present(frame), style_order=_present(frame), ax=axes,
                        legend=axes is both[1])
        axes.set(title=title, ylabel="test accuracy (%)")
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return _closed(figure)


def difference_plot(records: Sequence[Record], margin: float = 0.5) -> Figure:
    """The paired differences by ratio, with the margin of equivalence."""
    frame = differences(records)
    figure, axes = plt.subplots(figsize=(7.4, 4))
    axes.axhspan(-margin, margin, color="lightgrey", alpha=0.5, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    ratios = sorted(frame["ratio"].unique())
    for shift, (rival, group) in enumerate(frame.groupby("rival")):
        aside = 0.8 * ((shift + 0.5) / frame["rival"].nunique() - 0.5)
        x = [ratios.index(ratio) + aside for ratio in group["ratio"]]
        bars = np.nan_to_num([group["difference"] - group["low"],
                              group["high"] - group["difference"]])
        axes.errorbar(x, group["difference"], yerr=bars, fmt=MARKERS[rival], capsize=3,
                      color=COLOURS[rival], label=f"minus {rival}")
    axes.set(xticks=range(len(ratios)), xticklabels=[f"{ratio:g}" for ratio in ratios],
             xlabel="pruning ratio", ylabel="difference (points)")
    axes.legend()
    return _closed(figure)


def convergence(records: Sequence[Record]) -> Figure:
    """Best fitness by generation, relative to the first, one line a layer, mean over seeds."""
    rows = []
    for record in of_kind(records, Trial):
        for layer, history in record.result["searches"].items():
            start = history[0]["best"] or 1.0
            rows += [{"generation": step["generation"], "layer": layer,
                      "ratio": f"{record.spec.ratio:g}",
                      "best fitness (share of the first)": step["best"] / start}
                     for step in history]
    frame = pd.DataFrame(rows)
    layers = sorted(frame["layer"].unique(), key=lambda name: (len(name), name))
    grid = sns.relplot(frame, x="generation", y="best fitness (share of the first)", hue="layer",
                       hue_order=layers, col="ratio", kind="line", errorbar=None,
                       palette="viridis", height=3.2, aspect=1.1,
                       col_wrap=min(2, frame["ratio"].nunique()))
    grid.set_titles("ratio {col_name}")
    return _closed(grid.figure)


def persistence_diagrams(portrait: Record) -> Figure:
    """Diagrams of the whole layer beside those of what each method keeps, H0 and H1 apart."""
    diagrams = portrait.result["diagrams"]
    methods = [m for m in portrait.spec.methods if m in diagrams]
    figure, panels = plt.subplots(2, len(methods), figsize=(2.4 * len(methods), 5),
                                  sharex="row", sharey="row", squeeze=False)
    for column, method in enumerate(methods):
        for row, dimension in enumerate(("0", "1")):
            axes = panels[row, column]
            _diagram(axes, diagrams["full"][dimension], "whole layer", "lightgrey", 22.0)
            _diagram(axes, diagrams[method][dimension], "kept", COLOURS[NAMES[method]], 9.0)
            axes.set(title=NAMES[method] if row == 0 else "", xlabel=f"birth (H{dimension})",
                     ylabel="death" if column == 0 else "")
    return _closed(figure)


def filters_in_the_plane(portrait: Record) -> Figure:
    """The layer's filters by multidimensional scaling, kept and removed, one panel a method."""
    plane = np.asarray(portrait.result["plane"])
    kept = portrait.result["kept"]
    figure, panels = plt.subplots(1, len(kept), figsize=(2.6 * len(kept), 2.9), sharex=True,
                                  sharey=True, squeeze=False)
    for axes, method in zip(panels[0], portrait.spec.methods, strict=True):
        chosen = kept[method]
        removed = np.setdiff1d(np.arange(len(plane)), chosen)
        axes.scatter(*plane[removed].T, s=14, facecolors="none", edgecolors="grey",
                     label="removed")
        axes.scatter(*plane[chosen].T, s=14, color=COLOURS[NAMES[method]], label="kept")
        axes.set(title=NAMES[method], aspect="equal", xticks=[], yticks=[])
    panels[0, 0].legend(fontsize="small", loc="best")
    return _closed(figure)


def bench_growth(measured: dict) -> Figure:
    """Milliseconds an evaluation against n, k and the population."""
    rows = pd.DataFrame(measured["growth"])
    rows = rows[rows["varied"] != "memory"]
    rows["size"] = [row[row["varied"]] for _, row in rows.iterrows()]
    names = {"n": "filters", "k": "kept filters", "population": "population"}
    rows["varied"] = rows["varied"].map(names)
    grid = sns.relplot(rows, x="size", y="ms", hue="fitness", style="fitness", col="varied",
                       kind="line", markers=True, dashes=False, height=3, aspect=1,
                       facet_kws={"sharex": False})
    grid.set(xscale="log", yscale="log").set_titles("{col_name}")
    grid.set_axis_labels("", "ms an evaluation")
    for axes, (_, panel) in zip(grid.axes.flat, rows.groupby("varied", sort=False), strict=True):
        sizes = sorted(panel["size"].unique())[::2]
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    return _closed(grid.figure)


def _by_method(frame: pd.DataFrame, x: str, y: str, axes) -> None:
    sns.lineplot(frame, x=x, y=y, hue="method", style="method", markers=MARKERS, dashes=False,
                 palette=COLOURS, hue_order=_present(frame), style_order=_present(frame),
                 errorbar="se", ax=axes)


def _present(frame: pd.DataFrame) -> list[str]:
    return [name for name in NAMES.values() if name in set(frame["method"])]


def _diagram(axes, pairs: list, label: str, colour, size: float) -> None:
    births, deaths = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    axes.scatter(births, deaths, s=size, color=colour, label=label, linewidths=0)
    if len(births) and births.max() > 0:
        ends = [min(births.min(), deaths.min()), max(births.max(), deaths.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)


def _closed(figure: Figure) -> Figure:
    """Lay the figure out, and close it for pyplot: a notebook shows it only where it is glued."""
    if not figure.legends:  # seaborn's grids have made room for theirs
        figure.tight_layout()
    plt.close(figure)
    return figure


def engine_operations(measured: dict) -> Figure:
    """Shares of a training step by family of operations."""
    figure, axes = plt.subplots(figsize=(7.4, 3.6))
    sns.barplot(pd.DataFrame(measured["operations"]), x="share (%)", y="family", color="C0", ax=axes)
    axes.set(xlabel="share of a step (%)", ylabel="")
    return _closed(figure)


def engine_removal(measured: dict) -> Figure:
    """Seconds an epoch against the remaining FLOPs, and what the FLOPs promise."""
    rows = pd.DataFrame(measured["removal"])
    dense = rows[rows["ratio"] == 0]
    multiples = sorted(rows["multiple"].unique())
    lines = pd.concat([rows[rows["ratio"] > 0], *(dense.assign(multiple=m) for m in multiples)],
                      ignore_index=True)
    lines["kept filters"] = lines["multiple"].map(lambda m: f"multiples of {m}" if m > 1 else "as they come")
    figure, axes = plt.subplots(figsize=(7.4, 4))
    sns.lineplot(lines.sort_values(["multiple", "FLOPs (%)"]), x="FLOPs (%)", y="s an epoch",
                 hue="kept filters", style="kept filters", markers=True, dashes=False, errorbar=None, ax=axes)
    ends = np.array([rows["FLOPs (%)"].min(), 100.0])
    axes.plot(ends, dense["s an epoch"].item() * ends / 100, color="grey", linestyle=":",
              label="in proportion to FLOPs")
    axes.set(xscale="log", yscale="log", xlabel="remaining FLOPs (%)", ylabel="seconds an epoch")
    axes.legend()
    return _closed(figure)


def engine_growth(measured: dict) -> Figure:
    """Time of a step and memory against the width."""
    rows = pd.DataFrame(measured["growth"]).astype({"peak MiB": float})
    rows = rows[rows["varied"] == "width"]
    figure, both = plt.subplots(1, 2, figsize=(8.8, 3.6))
    for axes, column in zip(both, ("ms a step", "peak MiB"), strict=True):
        sns.lineplot(rows, x="width", y=column, marker="o", ax=axes)
        axes.set(xscale="log", yscale="log", xlabel="width")
        axes.set_xticks(rows["width"], [f"{width:g}" for width in rows["width"]])
        axes.xaxis.minorticks_off()
    return _closed(figure)
