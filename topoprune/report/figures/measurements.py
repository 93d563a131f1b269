"""Figures of the benchmarks: what `topoprune.measure` wrote."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from topoprune.report.figures.drawing import finished


def bench_growth(measured: dict) -> Figure:
    """Milliseconds of an evaluation of the fitness against the filters, the kept filters and the population."""
    rows = pd.DataFrame(measured["growth"])
    rows = rows[rows["varied"] != "memory"]
    rows["size"] = [row[row["varied"]] for _, row in rows.iterrows()]
    names = {"n": "filters", "k": "kept filters", "population": "population"}
    rows["varied"] = rows["varied"].map(names)
    grid = sns.relplot(
        rows,
        x="size",
        y="ms",
        hue="fitness",
        style="fitness",
        col="varied",
        kind="line",
        markers=True,
        dashes=False,
        height=3,
        aspect=1,
        facet_kws={"sharex": False},
    )
    grid.set(xscale="log", yscale="log").set_titles("{col_name}")
    grid.set_axis_labels("", "ms an evaluation")
    for axes, (_, panel) in zip(grid.axes.flat, rows.groupby("varied", sort=False), strict=True):
        sizes = sorted(panel["size"].unique())[::2]
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    return finished(grid.figure, rows)


def engine_operations(measured: dict) -> Figure:
    """Shares of a training step by family of operations."""
    figure, axes = plt.subplots(figsize=(7.4, 3.6))
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
    figure, axes = plt.subplots(figsize=(7.4, 4))
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
    figure, both = plt.subplots(1, 2, figsize=(8.8, 3.6))
    for axes, column in zip(both, ("ms a step", "peak MiB"), strict=True):
        sns.lineplot(rows, x="width", y=column, marker="o", ax=axes)
        axes.set(xscale="log", yscale="log", xlabel="width")
        axes.set_xticks(rows["width"], [f"{width:g}" for width in rows["width"]])
        axes.xaxis.minorticks_off()
    return finished(figure, rows)
