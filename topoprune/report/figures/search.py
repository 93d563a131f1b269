"""Figures of the searches for subsets of filters."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from topoprune.report.evidence.differences import SAME_FITNESS, TOPOLOGICAL
from topoprune.report.figures.drawing import finished, without_records
from topoprune.report.figures.panels import WIDTH, label_outer, panels, shared_legend
from topoprune.report.frames import NAMES, name_of, network_order, of_kind, typed_frame
from topoprune.study import Record, Trial

GENETIC = "genetic"
"""Name of the default method's search."""


def convergence(records: Sequence[Record]) -> Figure:
    """Best fitness by generation, relative to the first, one line for each layer, mean over networks."""
    rows = []
    for record in of_kind(records, Trial):
        for layer, steps in record.result["searches"].items():
            start = steps["best"][0] or 1.0
            rows += [
                {
                    "generation": generation,
                    "layer": layer,
                    "ratio": f"{record.spec.ratio:g}",
                    "best fitness (share of the first)": best / start,
                }
                for generation, best in zip(steps["generation"], steps["best"], strict=True)
            ]
    columns = ["generation", "layer", "ratio", "best fitness (share of the first)"]
    frame = pd.DataFrame(rows, columns=columns)
    if frame.empty:
        return without_records(frame)
    ratios = sorted(frame["ratio"].unique(), key=float)
    figure, axes = panels(len(ratios), height=2.8, legend_height=1.4, sharex=True)
    for panel, ratio in zip(axes, ratios, strict=True):
        sns.lineplot(
            frame[frame["ratio"] == ratio],
            x="generation",
            y="best fitness (share of the first)",
            hue="layer",
            hue_order=sorted(frame["layer"].unique(), key=network_order),
            palette="viridis",
            errorbar=None,
            ax=panel,
        )
        panel.set_title(f"ratio {ratio}")
    shared_legend(figure, axes, columns=3)
    label_outer(axes, "generation", "best fitness")
    return finished(figure, frame)


def searches(records: Sequence[Record]) -> Figure:
    """Fitness that each search found, layer by layer, relative to the genetic algorithm's."""
    frame = _fitness_by_search(records)
    if frame.empty:
        return without_records(frame)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 * frame["search"].nunique() + 1.4))
    sns.stripplot(frame, x="relative fitness", y="search", hue="search", legend=False, ax=axes)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="fitness found, genetic algorithm: 1 (lower is better)", ylabel="")
    axes.xaxis.set_major_formatter(LogFormatter())  # 2 instead of 2 x 10^0
    axes.xaxis.set_minor_formatter(LogFormatter())
    return finished(figure, frame)


def search_courses(records: Sequence[Record]) -> Figure:
    """Best fitness by evaluations, as a multiple of what the genetic algorithm ends at in that layer.

    The median over layers and networks, at every twentieth of the evaluations that a search made.
    """
    frame = _fitness_by_evaluations(records)
    if frame.empty:
        return without_records(frame)
    figure, (axes,) = panels(1, height=3.6, legend_height=0.5)
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
    axes.set(ylabel="best fitness (genetic, last: 1)")
    shared_legend(figure, [axes])
    return finished(figure, frame)


def _fitness_by_search(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each search of a layer whose genetic search ended above zero."""
    rows = [
        {
            "search": name_of(record.spec),
            "layer": layer,
            "seed": record.spec.seed,
            "ratio": record.spec.ratio,
            "fitness": steps["best"][-1],
        }
        for record in of_kind(records, Trial)
        if name_of(record.spec) in (TOPOLOGICAL, *SAME_FITNESS)
        for layer, steps in record.result["searches"].items()
        if steps
    ]
    columns = {"search": "object", "layer": "object", "seed": "int64", "ratio": "float64", "fitness": "float64"}
    frame = typed_frame(rows, columns)
    genetic = frame[frame["search"] == TOPOLOGICAL].drop(columns="search")
    frame = frame.merge(genetic, on=["layer", "seed", "ratio"], suffixes=("", " of the genetic"))
    frame = frame[frame["fitness of the genetic"] > 0].replace({"search": {TOPOLOGICAL: GENETIC}})
    frame["relative fitness"] = frame["fitness"] / frame["fitness of the genetic"]
    return frame


def _fitness_by_evaluations(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each twentieth of the evaluations of the genetic and the random search of a layer."""
    pruned = of_kind(records, Trial)
    ends = {
        (record.spec.seed, record.spec.ratio, layer): steps["best"][-1]
        for record in pruned
        if name_of(record.spec) == TOPOLOGICAL
        for layer, steps in record.result["searches"].items()
        if steps
    }
    rows = []
    for record in pruned:
        if (name := name_of(record.spec)) not in (TOPOLOGICAL, NAMES["random search"]):
            continue
        for layer, steps in record.result["searches"].items():
            end = ends.get((record.spec.seed, record.spec.ratio, layer))
            if steps and end:
                about = {"search": name, "layer": layer, "seed": record.spec.seed}
                rows += [
                    {**about, **point, "relative fitness": point["relative fitness"] / end} for point in _course(steps)
                ]
    columns = ["search", "layer", "seed", "share of its evaluations", "relative fitness"]
    return pd.DataFrame(rows, columns=columns).replace({"search": {TOPOLOGICAL: GENETIC}})


def _course(steps: dict) -> list[dict]:
    """Best fitness at every twentieth of the evaluations."""
    spent = np.array(steps["evaluations"]) / steps["evaluations"][-1]
    return [
        {
            "share of its evaluations": share.round(2),
            "relative fitness": steps["best"][max(np.searchsorted(spent, share + 1e-9) - 1, 0)],
        }
        for share in np.linspace(0.05, 1, 20)
    ]
