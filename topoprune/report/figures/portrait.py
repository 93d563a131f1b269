"""Figures of one layer: its filters, their diagrams and barcodes, and what each method keeps."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topoprune.report.figures.drawing import COLOURS, finished
from topoprune.report.frames import NAMES
from topoprune.study import Portrait, Record


def persistence_diagrams(portrait: Record[Portrait]) -> Figure:
    """Diagrams of the whole layer beside those of what each method keeps, H0 and H1 apart."""
    diagrams = portrait.result["diagrams"]
    methods = [method for method in portrait.spec.methods if method in diagrams]
    figure, panels = plt.subplots(
        2, len(methods), figsize=(2.4 * len(methods), 5), sharex="row", sharey="row", squeeze=False
    )
    for column, method in enumerate(methods):
        for row, dimension in enumerate(("0", "1")):
            axes = panels[row, column]
            _draw_diagram(axes, diagrams["full"][dimension], "whole layer", "lightgrey", 22.0)
            _draw_diagram(axes, diagrams[method][dimension], "kept", COLOURS[NAMES[method]], 9.0)
            axes.set(
                title=NAMES[method] if row == 0 else "",
                xlabel=f"birth (H{dimension})",
                ylabel="death" if column == 0 else "",
            )
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
    names = list(frame["kept by"].unique())
    figure, panels = plt.subplots(
        2, len(names), figsize=(2.1 * len(names), 5), sharex="row", sharey="row", squeeze=False
    )
    for (row, column), axes in np.ndenumerate(panels):
        name = names[column]
        bars = frame[(frame["kept by"] == name) & (frame["dimension"] == f"H{row}")]
        axes.hlines(bars["bar"], bars["birth"], bars["death"], linewidth=0.8, color=COLOURS.get(name, "grey"))
        axes.set(title=name if row == 0 else "", xlabel=f"distance (H{row})", ylabel="bar" if column == 0 else "")
    return finished(figure, frame)


def filters_in_the_plane(portrait: Record[Portrait]) -> Figure:
    """The layer's filters by multidimensional scaling, kept and removed, one panel for each method."""
    plane = np.asarray(portrait.result["plane"])
    kept = portrait.result["kept"]
    figure, panels = plt.subplots(1, len(kept), figsize=(2.6 * len(kept), 2.9), sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(panels[0], portrait.spec.methods, strict=True):
        removed = np.setdiff1d(np.arange(len(plane)), kept[method])
        axes.scatter(*plane[removed].T, s=14, facecolors="none", edgecolors="grey", label="removed")
        axes.scatter(*plane[kept[method]].T, s=14, color=COLOURS[NAMES[method]], label="kept")
        axes.set(title=NAMES[method], aspect="equal", xticks=[], yticks=[])
    panels[0, 0].legend(fontsize="small", loc="best")
    frame = pd.DataFrame(plane, columns=["x", "y"])
    for method, filters in kept.items():
        frame[f"kept by {NAMES[method]}"] = frame.index.isin(filters)
    return finished(figure, frame)


def _draw_diagram(axes: Axes, pairs: list, label: str, colour, size: float) -> None:
    births, deaths = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    axes.scatter(births, deaths, s=size, color=colour, label=label, linewidths=0)
    if len(births) and births.max() > 0:
        ends = [min(births.min(), deaths.min()), max(births.max(), deaths.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)
