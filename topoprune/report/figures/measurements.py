"""Figures of the benchmarks: what `topoprune.measure` wrote."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from topoprune.report.figures.drawing import finished
from topoprune.report.figures.panels import WIDTH, label_outer, panels, shared_legend


def bench_growth(measured: dict) -> Figure:
    """Milliseconds of an evaluation of the fitness against the filters, the kept filters and the population."""
    rows = pd.DataFrame(measured["growth"])
    rows = rows[rows["varied"] != "memory"]
    rows["size"] = [row[row["varied"]] for _, row in rows.iterrows()]
    names = {"n": "filters", "k": "kept filters", "population": "population"}
    rows["varied"] = rows["varied"].map(names)
    figure, axes = panels(rows["varied"].nunique(), height=2.8)
    for panel, (varied, part) in zip(axes, rows.groupby("varied", sort=False), strict=True):
        sns.lineplot(part, x="size", y="ms", hue="fitness", style="fitness", markers=True, dashes=False, ax=panel)
        panel.set(xscale="log", yscale="log", title=varied)
        sizes = sorted(part["size"].unique())[::2]
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.tick_params(axis="x", labelsize="small")
        panel.minorticks_off()
    shared_legend(figure, axes, title="fitness")
    label_outer(axes, "", "ms an evaluation")
    return finished(figure, rows)


def engine_operations(measured: dict) -> Figure:
    """Shares of a training step by family of operations."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
    rows = pd.DataFrame(measured["operations"])
    sns.barplot(rows, x="share (%)", y="family", color="C0", ax=axes)
    axes.set(xlabel="share of a step (%)", ylabel="")
    return finished(figure, rows)


def engine_removal(measured: dict) -> Figure:
    """Seconds of an epoch against the remaining FLOPs, and what the FLOPs promise."""
    rows = pd.DataFrame(measured["removal"])
    dense = rows[rows["ratio"] == 0]
    multiples = sorted(rows["multiple"].unique())
    lines = pd.concat([rows[rows["ratio"] > 0], *(dense.assign(multiple=m) for m in multiples)], ignore_index=True)
    lines["kept filters"] = lines["multiple"].map(lambda m: f"multiples of {m}" if m > 1 else "as they come")
    figure, axes = plt.subplots(figsize=(WIDTH, 4))
    sns.lineplot(
        lines.sort_values(["multiple", "FLOPs (%)"]),
        x="FLOPs (%)",
        y="s an epoch",
        hue="kept filters",
        style="kept filters",
        markers=True,
        dashes=False,
        errorbar=None,
        ax=axes,
    )
    ends = np.array([rows["FLOPs (%)"].min(), 100.0])
    proportional = dense["s an epoch"].item() * ends / 100
    axes.plot(ends, proportional, color="grey", linestyle=":", label="in proportion to FLOPs")
    axes.set(xscale="log", yscale="log", xlabel="remaining FLOPs (%)", ylabel="seconds an epoch")
    axes.legend()
    return finished(figure, lines)


def engine_growth(measured: dict) -> Figure:
    """Time of a training step and memory against the width."""
    rows = pd.DataFrame(measured["growth"]).astype({"peak MiB": float})
    rows = rows[rows["varied"] == "width"]
    figure, both = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    for axes, column in zip(both, ("ms a step", "peak MiB"), strict=True):
        sns.lineplot(rows, x="width", y=column, marker="o", ax=axes)
        axes.set(xscale="log", yscale="log", xlabel="width")
        axes.set_xticks(rows["width"], [f"{width:g}" for width in rows["width"]])
        axes.xaxis.minorticks_off()
    return finished(figure, rows)
