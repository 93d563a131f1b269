"""seaborn figures from records, nothing else.

Every function returns a matplotlib figure whose attribute `data` is the frame that it draws; `show`
puts both into a chapter. A shade or bar is the 95 % t-interval over seeds where nothing else is said; with
one seed there is none.
"""

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.figure import Figure

from topoprune.report import evidence
from topoprune.report.tables import (
    LAYERWISE_NAMES,
    NAMES,
    PUBLISHED,
    dense_accuracy,
    in_network,
    layer_frame,
    name_of,
    of_kind,
    recovery_frame,
    t_interval,
    trials,
)
from topoprune.study.trial import Dense, Record, Trial

COLOURS = dict(zip(NAMES.values(), itertools.cycle(sns.color_palette("colorblind"))))
MARKERS = dict(zip(NAMES.values(), itertools.cycle("osD^PXv<>p*hH")))


DOWNLOADS = Path("downloads")
"""Where a chapter leaves its figures (SVG) and their data (CSV), beside itself."""


def style() -> None:
    """Set the look of every figure of the book: vector graphics, one palette."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "topoprune"})


def show(figure: Figure, caption: str, alt: str, name: str) -> None:
    """Display a figure: numbered, with its downloads, in the book; as it is in a notebook.

    Args:
        caption: MyST.
        alt: what a reader who cannot see it should know.
        name: of the files and of the target that text refers to.
    """
    from IPython.display import display

    DOWNLOADS.mkdir(exist_ok=True)
    picture, data = DOWNLOADS / f"{name}.svg", DOWNLOADS / f"{name}.csv"
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    picture.write_text(text.getvalue())
    figure.data.to_csv(data, index=False)
    myst = "\n".join(
        [
            f":::{{figure}} {picture}",
            f":name: {name}",
            f":alt: {alt}",
            "",
            f"{caption} {{download}}`SVG <{picture}>`, {{download}}`data (CSV) <{data}>`.",
            ":::",
        ]
    )
    display({"text/markdown": myst, "text/html": text.getvalue()}, raw=True)


def training_curves(records: Sequence[Record]) -> Figure:
    """Accuracy of the dense networks by epoch."""
    rows = [
        {"epoch": epoch["epoch"], "accuracy (%)": 100 * epoch[split], "split": split, "seed": record.spec.seed}
        for record in of_kind(records, Dense)
        for epoch in record.result["history"]
        for split in ("validation", "test")
    ]
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    frame = pd.DataFrame(rows)
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
    return _closed(figure, frame)


def accuracy_by_ratio(records: Sequence[Record]) -> Figure:
    """Test accuracy before and after fine-tuning against the pruning ratio."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"), ("before fine-tuning", "after fine-tuning"), strict=True):
        _by_method(frame, "ratio", column, axes)
        axes.set(title=title, xlabel="pruning ratio", ylabel="test accuracy (%)")
        axes.axhline(dense_accuracy(records), color="grey", linestyle=":", linewidth=1)
    both[0].get_legend().remove()
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return _closed(figure, frame)


def accuracy_by_cost(records: Sequence[Record]) -> Figure:
    """Test accuracy after fine-tuning against what remains of parameters and FLOPs.

    On CIFAR-10 at full width the published results of `tables.PUBLISHED` stand beside them.
    """
    frame = trials(records)
    dense = of_kind(records, Dense)[0].spec
    figure, both = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axes, column, title in zip(both, ("parameters", "flops"), ("parameters", "FLOPs"), strict=True):
        # Global criteria leave every network its own share: their points are drawn at the mean.
        frame[f"{column} %"] = 100 * frame.groupby(["method", "ratio"])[column].transform("mean")
        _by_method(frame, f"{column} %", "test", axes)
        layerwise = frame[frame["method"].isin(LAYERWISE_NAMES)]
        shares = sorted(layerwise.groupby("ratio")[f"{column} %"].mean())
        axes.set(xscale="log", xlabel=f"remaining {title} (%)", ylabel="test accuracy (%)")
        axes.set_xticks(shares, [f"{share:.2g}" for share in shares])
        axes.minorticks_off()
        axes.axhline(dense_accuracy(records), color="grey", linestyle=":", linewidth=1)
        if dense.dataset == "cifar10" and dense.width == 1:
            known = PUBLISHED.dropna(subset=[f"{title} removed"])
            axes.scatter(
                100 - known[f"{title} removed"],
                known["pruned"],
                marker="+",
                s=50,
                color="black",
                linewidths=1,
                zorder=3,
                label="published (see text)",
            )
            axes.legend()
    both[0].get_legend().remove()
    both[1].legend(bbox_to_anchor=(1, 1), loc="upper left")
    return _closed(figure, frame)


def recovery_curves(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch of fine-tuning, one panel a ratio; shades are standard errors over seeds."""
    frame = recovery_frame(records)
    grid = sns.relplot(
        frame,
        x="epoch",
        y="test accuracy (%)",
        hue="method",
        style="method",
        col="ratio",
        kind="line",
        errorbar="se",
        markers=MARKERS,
        dashes=False,
        palette=COLOURS,
        hue_order=_present(frame),
        style_order=_present(frame),
        height=3.2,
        aspect=1.1,
        col_wrap=min(2, frame["ratio"].nunique()),
        facet_kws={"sharey": False},
    )
    grid.set_titles("ratio {col_name:g}")
    return _closed(grid.figure, frame)


def damage_against_recovery(records: Sequence[Record]) -> Figure:
    """Topological distance of a trial (mean over layers, H0 and H1) against its accuracies."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"), ("before fine-tuning", "after fine-tuning"), strict=True):
        sns.scatterplot(
            frame,
            x="topological distance",
            y=column,
            hue="method",
            style="method",
            size="ratio",
            palette=COLOURS,
            markers=MARKERS,
            sizes=(30, 120),
            hue_order=_present(frame),
            style_order=_present(frame),
            ax=axes,
            legend=axes is both[1],
        )
        axes.set(title=title, ylabel="test accuracy (%)")
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return _closed(figure, frame)


def difference_plot(records: Sequence[Record], margin: float = 0.5) -> Figure:
    """The paired differences by ratio from methods that judge within the layer, with the margin.

    Bars are the 90 % t-interval, which the test of equivalence compares with the margin. The global
    criteria, which can be tens of points apart, have a table.
    """
    layerwise = [name for name in _present(trials(records)) if name not in (evidence.TOPOLOGICAL, *evidence.GLOBAL)]
    frame = evidence.accuracy_equivalence(records, second=layerwise)
    figure, axes = plt.subplots(figsize=(7.4, 4))
    axes.axhspan(-margin, margin, color="lightgrey", alpha=0.5, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    ratios = sorted(frame["ratio"].unique())
    for shift, (rival, group) in enumerate(frame.groupby("rival")):
        aside = 0.8 * ((shift + 0.5) / frame["rival"].nunique() - 0.5)
        x = [ratios.index(ratio) + aside for ratio in group["ratio"]]
        bars = np.nan_to_num([group["difference"] - group["low"], group["high"] - group["difference"]])
        axes.errorbar(
            x,
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
    axes.legend(bbox_to_anchor=(1, 1), loc="upper left")
    return _closed(figure, frame)


def convergence(records: Sequence[Record]) -> Figure:
    """Best fitness by generation, relative to the first, one line a layer, mean over seeds."""
    rows = []
    for record in of_kind(records, Trial):
        for layer, history in record.result["searches"].items():
            start = history["best"][0] or 1.0
            rows += [
                {
                    "generation": generation,
                    "layer": layer,
                    "ratio": f"{record.spec.ratio:g}",
                    "best fitness (share of the first)": best / start,
                }
                for generation, best in zip(history["generation"], history["best"], strict=True)
            ]
    frame = pd.DataFrame(rows)
    layers = sorted(frame["layer"].unique(), key=in_network)
    grid = sns.relplot(
        frame,
        x="generation",
        y="best fitness (share of the first)",
        hue="layer",
        hue_order=layers,
        col="ratio",
        kind="line",
        errorbar=None,
        col_order=sorted(frame["ratio"].unique(), key=float),
        palette="viridis",
        height=3.2,
        aspect=1.1,
        col_wrap=min(2, frame["ratio"].nunique()),
    )
    grid.set_titles("ratio {col_name}")
    return _closed(grid.figure, frame)


def persistence_diagrams(portrait: Record) -> Figure:
    """Diagrams of the whole layer beside those of what each method keeps, H0 and H1 apart."""
    diagrams = portrait.result["diagrams"]
    methods = [m for m in portrait.spec.methods if m in diagrams]
    figure, panels = plt.subplots(
        2, len(methods), figsize=(2.4 * len(methods), 5), sharex="row", sharey="row", squeeze=False
    )
    for column, method in enumerate(methods):
        for row, dimension in enumerate(("0", "1")):
            axes = panels[row, column]
            _diagram(axes, diagrams["full"][dimension], "whole layer", "lightgrey", 22.0)
            _diagram(axes, diagrams[method][dimension], "kept", COLOURS[NAMES[method]], 9.0)
            axes.set(
                title=NAMES[method] if row == 0 else "",
                xlabel=f"birth (H{dimension})",
                ylabel="death" if column == 0 else "",
            )
    rows = [
        {"kept by": NAMES.get(name, "whole layer"), "dimension": int(dimension), "birth": birth, "death": death}
        for name, made in diagrams.items()
        for dimension, pairs in made.items()
        for birth, death in pairs
    ]
    return _closed(figure, pd.DataFrame(rows))


def filters_in_the_plane(portrait: Record) -> Figure:
    """The layer's filters by multidimensional scaling, kept and removed, one panel a method."""
    plane = np.asarray(portrait.result["plane"])
    kept = portrait.result["kept"]
    figure, panels = plt.subplots(1, len(kept), figsize=(2.6 * len(kept), 2.9), sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(panels[0], portrait.spec.methods, strict=True):
        chosen = kept[method]
        removed = np.setdiff1d(np.arange(len(plane)), chosen)
        axes.scatter(*plane[removed].T, s=14, facecolors="none", edgecolors="grey", label="removed")
        axes.scatter(*plane[chosen].T, s=14, color=COLOURS[NAMES[method]], label="kept")
        axes.set(title=NAMES[method], aspect="equal", xticks=[], yticks=[])
    panels[0, 0].legend(fontsize="small", loc="best")
    frame = pd.DataFrame(plane, columns=["x", "y"])
    for method, chosen in kept.items():
        frame[f"kept by {NAMES[method]}"] = frame.index.isin(chosen)
    return _closed(figure, frame)


def barcodes(portrait: Record) -> Figure:
    """Bars of the layer's diagrams, longest first: the whole layer beside what each method keeps."""
    made = portrait.result["diagrams"]
    rows = [
        {
            "kept by": NAMES.get(name, "whole layer"),
            "dimension": f"H{dimension}",
            "bar": rank,
            "birth": birth,
            "death": death,
        }
        for name, diagram in made.items()
        for dimension, pairs in diagram.items()
        for rank, (birth, death) in enumerate(sorted(pairs, key=lambda p: p[0] - p[1]))
    ]
    frame = pd.DataFrame(rows)
    names = list(frame["kept by"].unique())
    figure, panels = plt.subplots(
        2, len(names), figsize=(2.1 * len(names), 5), sharex="row", sharey="row", squeeze=False
    )
    for (row, column), axes in np.ndenumerate(panels):
        bars = frame[(frame["kept by"] == names[column]) & (frame["dimension"] == f"H{row}")]
        axes.hlines(bars["bar"], bars["birth"], bars["death"], linewidth=0.8, color=COLOURS.get(names[column], "grey"))
        axes.set(
            title=names[column] if row == 0 else "", xlabel=f"distance (H{row})", ylabel="bar" if column == 0 else ""
        )
    return _closed(figure, frame)


def survival_curves(records: Sequence[Record]) -> Figure:
    """Kaplan-Meier: the share of runs that has not recovered yet, by epoch of fine-tuning."""
    frame = evidence.survival(records)
    grid = sns.relplot(
        frame,
        x="epoch",
        y="share",
        hue="method",
        style="method",
        col="ratio",
        kind="line",
        drawstyle="steps-post",
        errorbar=None,
        palette=COLOURS,
        hue_order=_present(frame),
        style_order=_present(frame),
        height=3,
        aspect=1.1,
        col_wrap=min(3, frame["ratio"].nunique()),
    )
    grid.set(ylim=(-0.05, 1.05)).set_titles("ratio {col_name:g}")
    grid.set_axis_labels("epoch of fine-tuning", "not recovered yet")
    return _closed(grid.figure, frame)


def layer_map(records: Sequence[Record], column: str) -> Figure:
    """One quantity of `tables.layer_frame` by layer and method, one panel a ratio, mean over seeds.

    Percentages have a linear scale, distances and numbers of filters a logarithmic one: single layers
    tower above the rest.
    """
    frame = layer_frame(records).dropna(subset=[column])
    ratios = sorted(frame["ratio"].unique())
    figure, panels = plt.subplots(1, len(ratios), figsize=(3.2 * len(ratios) + 1.6, 3.6), sharey=True, squeeze=False)
    least = frame.loc[frame[column] > 0, column].min()
    scale = (
        Normalize(0, 100)
        if column.endswith("(%)")
        else LogNorm(least, frame[column].max())
        if column in (evidence.DISTANCE, "kept filters")
        else Normalize(0, frame[column].max())
    )
    for axes, ratio in zip(panels[0], ratios, strict=True):
        part = frame[frame["ratio"] == ratio].pivot_table(index="method", columns="layer", values=column, sort=False)
        part = part.reindex(_present(frame))  # the panels share their rows: blank where none is on record
        sns.heatmap(
            part.clip(lower=least) if isinstance(scale, LogNorm) else part,
            norm=scale,
            cmap="viridis",
            ax=axes,
            cbar=ratio == ratios[-1],
            cbar_kws={"label": column},
        )
        axes.set(title=f"ratio {ratio:g}", xlabel="convolution", ylabel="")
    return _closed(figure, frame)


def partial_effect(records: Sequence[Record]) -> Figure:
    """Damage and recovery against the topological distance, what ratio and method tell taken away."""
    frame = evidence.residuals(records, "topological distance")
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4))
    for axes, column in zip(both, ("damage", "recovery area"), strict=True):
        sns.scatterplot(
            frame,
            x="topological distance",
            y=column,
            hue="method",
            style="method",
            palette=COLOURS,
            markers=MARKERS,
            hue_order=_present(frame),
            style_order=_present(frame),
            ax=axes,
            legend=axes is both[1],
        )
        axes.set(xlabel="topological distance, adjusted", ylabel=f"{column} (points), adjusted")
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return _closed(figure, frame)


def ablation_plot(records: Sequence[Record]) -> Figure:
    """Points of test accuracy that each exchanged part costs, with the margin."""
    frame = evidence.ablations(records)
    figure, axes = plt.subplots(figsize=(7.4, 0.36 * len(frame) + 1.4))
    axes.axvspan(-evidence.MARGIN, evidence.MARGIN, color="lightgrey", alpha=0.5, linewidth=0)
    axes.axvline(0, color="grey", linewidth=0.8)
    bars = np.nan_to_num([frame["accuracy"] - frame["low"], frame["high"] - frame["accuracy"]])
    axes.errorbar(frame["accuracy"], frame["variant"], xerr=bars, fmt="o", capsize=3)
    axes.set(xlabel="default less variant (points of test accuracy)", ylabel="")
    axes.invert_yaxis()
    return _closed(figure, frame)


def searches(records: Sequence[Record]) -> Figure:
    """Fitness found by each search, layer by layer, relative to the genetic algorithm's."""
    rows = [
        {
            "search": name_of(record.spec),
            "layer": layer,
            "seed": record.spec.seed,
            "ratio": record.spec.ratio,
            "fitness": history["best"][-1],
        }
        for record in of_kind(records, Trial)
        if name_of(record.spec) in ("topological", *evidence.SAME_FITNESS)
        for layer, history in record.result["searches"].items()
        if history
    ]
    frame = pd.DataFrame(rows)
    genetic = frame[frame["search"] == "topological"].drop(columns="search")
    frame = frame.merge(genetic, on=["layer", "seed", "ratio"], suffixes=("", " of the genetic"))
    frame = frame[frame["fitness of the genetic"] > 0].replace({"search": {"topological": "genetic"}})
    frame["relative fitness"] = frame["fitness"] / frame["fitness of the genetic"]
    figure, axes = plt.subplots(figsize=(7.4, 0.5 * frame["search"].nunique() + 1.4))
    sns.stripplot(frame, x="relative fitness", y="search", hue="search", legend=False, ax=axes)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="fitness found, relative to the genetic algorithm's (lower is better)", ylabel="")
    return _closed(figure, frame)


def search_courses(records: Sequence[Record]) -> Figure:
    """Best fitness by evaluations, as a multiple of what the genetic algorithm ends at in that layer.

    The median over layers and seeds, at every twentieth of the evaluations that the search made.
    """
    found = {
        (r.spec.seed, r.spec.ratio, layer): steps["best"][-1]
        for r in of_kind(records, Trial)
        if name_of(r.spec) == evidence.TOPOLOGICAL
        for layer, steps in r.result["searches"].items()
        if steps
    }
    rows = []
    for record in of_kind(records, Trial):
        if (name := name_of(record.spec)) in (evidence.TOPOLOGICAL, NAMES["random search"]):
            for layer, steps in record.result["searches"].items():
                end = found.get((record.spec.seed, record.spec.ratio, layer))
                if not (steps and end):
                    continue
                spent = np.array(steps["evaluations"]) / steps["evaluations"][-1]
                for share in np.linspace(0.05, 1, 20):
                    reached = steps["best"][max(np.searchsorted(spent, share + 1e-9) - 1, 0)]
                    rows.append(
                        {
                            "search": name,
                            "layer": layer,
                            "seed": record.spec.seed,
                            "share of its evaluations": share.round(2),
                            "relative fitness": reached / end,
                        }
                    )
    frame = pd.DataFrame(rows).replace({"search": {evidence.TOPOLOGICAL: "genetic"}})
    figure, axes = plt.subplots(figsize=(7.4, 3.8))
    sns.lineplot(
        frame,
        x="share of its evaluations",
        y="relative fitness",
        hue="search",
        style="search",
        estimator="median",
        errorbar=("pi", 50),
        ax=axes,
    )
    axes.set(ylabel="best fitness (the genetic algorithm's last: 1)")
    return _closed(figure, frame)


def selection_cost(records: Sequence[Record]) -> Figure:
    """Seconds that selection takes, by method and ratio."""
    frame = trials(records)
    figure, axes = plt.subplots(figsize=(7.4, 0.4 * frame["method"].nunique() + 1.2))
    sns.stripplot(
        frame,
        x="selection seconds",
        y="method",
        hue="method",
        palette=COLOURS,
        order=_present(frame),
        hue_order=_present(frame),
        legend=False,
        ax=axes,
    )
    for ratio, seconds in frame.groupby("ratio")["epoch seconds"].median().items():
        axes.axvline(seconds, color="grey", linestyle=":")
        axes.annotate(
            f"{ratio:g}",
            (seconds, 1),
            xycoords=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize="small",
            color="grey",
        )
    axes.set(xscale="log", ylabel="")
    return _closed(figure, frame)


def explorer(records: Sequence[Record]) -> str:
    """HTML in which a reader picks method, ratio and seed; `_static/explorer.js` draws the curves."""
    runs = []
    for record, (_, row) in zip(of_kind(records, Trial), trials(records).iterrows(), strict=True):
        curve = [record.result["damage"], *record.result["history"]]
        runs.append(
            {
                "method": row["method"],
                "ratio": f"{row['ratio']:g}",
                "seed": row["seed"],
                "test": [round(100 * point["test"], 2) for point in curve],
                "dense": round(row["dense test"], 2),
                "flops": round(100 * row["flops"], 2),
                "recovered": bool(row["recovered"]),
                "colour": to_hex(COLOURS.get(row["method"], "grey")),
            }
        )
    runs.sort(key=lambda run: float(run["ratio"]))
    data = json.dumps(runs).replace("<", "\\u003c")  # no text of a record ends the script
    return (
        f'<div id="explorer"></div><script type="application/json" id="explorer-data">{data}'
        '</script><script src="../_static/explorer.js"></script>'
    )


def bench_growth(measured: dict) -> Figure:
    """Milliseconds an evaluation against n, k and the population."""
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
    return _closed(grid.figure, rows)


def _by_method(frame: pd.DataFrame, x: str, y: str, axes) -> None:
    sns.lineplot(
        frame,
        x=x,
        y=y,
        hue="method",
        style="method",
        markers=MARKERS,
        dashes=False,
        palette=COLOURS,
        hue_order=_present(frame),
        style_order=_present(frame),
        errorbar=None,
        ax=axes,
    )
    for method, group in frame.groupby("method"):
        points = group.groupby(x)[y]
        low, high = np.transpose([t_interval(values.to_numpy()) for _, values in points])
        mean = points.mean()
        axes.errorbar(
            mean.index,
            mean,
            yerr=np.nan_to_num([mean - low, high - mean]),
            fmt="none",
            capsize=3,
            color=COLOURS[method],
            linewidth=1,
        )


def _present(frame: pd.DataFrame) -> list[str]:
    return [name for name in NAMES.values() if name in set(frame["method"])]


def _diagram(axes, pairs: list, label: str, colour, size: float) -> None:
    births, deaths = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    axes.scatter(births, deaths, s=size, color=colour, label=label, linewidths=0)
    if len(births) and births.max() > 0:
        ends = [min(births.min(), deaths.min()), max(births.max(), deaths.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)


def _closed(figure: Figure, data: pd.DataFrame) -> Figure:
    """Lay the figure out with its data, and close it for pyplot: `show` displays it."""
    if not figure.legends:  # seaborn's grids have made room for theirs
        figure.tight_layout()
    plt.close(figure)
    figure.data = data
    return figure


def engine_operations(measured: dict) -> Figure:
    """Shares of a training step by family of operations."""
    figure, axes = plt.subplots(figsize=(7.4, 3.6))
    rows = pd.DataFrame(measured["operations"])
    sns.barplot(rows, x="share (%)", y="family", color="C0", ax=axes)
    axes.set(xlabel="share of a step (%)", ylabel="")
    return _closed(figure, rows)


def engine_removal(measured: dict) -> Figure:
    """Seconds an epoch against the remaining FLOPs, and what the FLOPs promise."""
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
    axes.plot(
        ends, dense["s an epoch"].item() * ends / 100, color="grey", linestyle=":", label="in proportion to FLOPs"
    )
    axes.set(xscale="log", yscale="log", xlabel="remaining FLOPs (%)", ylabel="seconds an epoch")
    axes.legend()
    return _closed(figure, lines)


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
    return _closed(figure, rows)
