"""Figures of one layer: its filters, their diagrams and barcodes, and what each method keeps."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topoprune.report.figures.drawing import COLOURS, finished
from topoprune.report.figures.panels import label_outer, panels, shared_legend
from topoprune.report.frames import NAMES
from topoprune.study import Portrait, Record


def persistence_diagrams(portrait: Record[Portrait]) -> Figure:
    """Diagrams of the whole layer under those of what each method keeps: H1 by method, H0 in the last panel.

    All classes of H0 are born at 0, so that their deaths say everything.
    """
    diagrams = portrait.result["diagrams"]
    methods = [method for method in portrait.spec.methods if method in diagrams]
    figure, axes = panels(len(methods) + 1, height=2.7)
    for panel in axes[1:-1]:
        panel.sharex(axes[0])
        panel.sharey(axes[0])
    for panel, method in zip(axes[:-1], methods, strict=True):
        _draw_diagram(panel, diagrams["full"]["1"], "lightgrey", 22.0)
        _draw_diagram(panel, diagrams[method]["1"], COLOURS[NAMES[method]], 9.0)
        panel.set(title=f"{NAMES[method]}, H1", xlabel="birth", ylabel="death")
    _draw_deaths(axes[-1], {"full": diagrams["full"], **{method: diagrams[method] for method in methods}})
    rows = [
        {"kept by": NAMES.get(name, "whole layer"), "dimension": int(dimension), "birth": birth, "death": death}
        for name, by_dimension in diagrams.items()
        for dimension, pairs in by_dimension.items()
        for birth, death in pairs
    ]
    return finished(figure, pd.DataFrame(rows, columns=["kept by", "dimension", "birth", "death"]))


def barcodes(portrait: Record[Portrait]) -> Figure:
    """Bars of the layer's diagrams, longest first: the whole layer beside what each method keeps."""
    rows = [
        {
            "kept by": NAMES.get(name, "whole layer"),
            "dimension": f"H{dimension}",
            "bar": rank,
            "birth": birth,
            "death": death,
        }
        for name, by_dimension in portrait.result["diagrams"].items()
        for dimension, pairs in by_dimension.items()
        for rank, (birth, death) in enumerate(sorted(pairs, key=lambda pair: pair[0] - pair[1]))
    ]
    frame = pd.DataFrame(rows, columns=["kept by", "dimension", "bar", "birth", "death"])
    names = ["whole layer", *(NAMES[method] for method in portrait.spec.methods if method in portrait.result["kept"])]
    figure, axes = panels(2 * len(names), height=1.5, sharex="col", sharey="col")
    for panel, (name, row) in zip(axes, itertools.product(names, (0, 1)), strict=True):
        bars = frame[(frame["kept by"] == name) & (frame["dimension"] == f"H{row}")]
        panel.hlines(bars["bar"], bars["birth"], bars["death"], linewidth=0.8, color=COLOURS.get(name, "grey"))
        panel.set_title(f"{name}, H{row}", fontsize="medium")
    label_outer(axes, "distance", "bar")
    return finished(figure, frame)


def filters_in_the_plane(portrait: Record[Portrait]) -> Figure:
    """The layer's filters by multidimensional scaling, kept and removed, one panel for each method."""
    plane = np.asarray(portrait.result["plane"])
    kept = portrait.result["kept"]
    figure, axes = panels(len(kept), height=2.9, legend_height=0.4)
    for panel, method in zip(axes, portrait.spec.methods, strict=True):
        removed = np.setdiff1d(np.arange(len(plane)), kept[method])
        panel.scatter(plane[removed, 0], plane[removed, 1], s=14, facecolors="none", edgecolors="grey", label="removed")
        panel.scatter(
            plane[kept[method], 0],
            plane[kept[method], 1],
            s=14,
            color=COLOURS[NAMES[method]],
            label="kept (in each method's colour)",
        )
        panel.set(title=NAMES[method], aspect="equal", xticks=[], yticks=[])
    shared_legend(figure, axes)
    frame = pd.DataFrame(plane, columns=["x", "y"])
    for method, filters in kept.items():
        frame[f"kept by {NAMES[method]}"] = frame.index.isin(filters)
    return finished(figure, frame)


def _draw_diagram(axes: Axes, pairs: list, colour, size: float) -> None:
    births, deaths = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    axes.scatter(births, deaths, s=size, color=colour, linewidths=0)
    if len(births) and births.max() > 0:
        ends = [min(births.min(), deaths.min()), max(births.max(), deaths.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)


def _draw_deaths(axes: Axes, diagrams: dict[str, dict[str, list]]) -> None:
    """Deaths of dimension 0, one row of dots for the whole layer and for each method."""
    names = [NAMES.get(name, "whole layer") for name in diagrams]
    for row, (name, by_dimension) in enumerate(zip(names, diagrams.values(), strict=True)):
        deaths = [death for _, death in by_dimension["0"]]
        axes.scatter(deaths, [row] * len(deaths), s=9.0, color=COLOURS.get(name, "grey"), linewidths=0)
    axes.set(title="H0", xlabel="death", yticks=range(len(names)), yticklabels=names)
    axes.invert_yaxis()
