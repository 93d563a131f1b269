"""Small multiples that a telephone can show: two side by side at most, with one legend for all."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.6
"""Width of a figure in inches. A telephone of 360 pixels nearly halves it: its text stays readable."""


def panels(count: int, height: float = 2.7, legend_height: float = 0.0, **shared) -> tuple[Figure, list[Axes]]:
    """Draw empty panels in rows of two; a single one has the whole width.

    Args:
        height: of a row, in inches.
        legend_height: of a legend below, in inches. An odd number of panels leaves room for it beside the last.
        shared: `sharex` and `sharey` of `plt.subplots`.
    """
    columns = min(count, 2)
    rows = -(-count // columns)
    below = 0.0 if _has_free_place(count) else legend_height
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, rows * height + below), squeeze=False, **shared)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    axes[count - 1].tick_params(labelleft=True)
    if _has_free_place(count):
        axes[count - 2].tick_params(labelbottom=True)  # nothing stands below it
    return figure, axes[:count]


def shared_legend(figure: Figure, axes: list[Axes], columns: int = 2, title: str | None = None) -> None:
    """Replace the legends of the panels by one of the figure, beside an odd last panel or below all."""
    figure.set_layout_engine("constrained")  # it makes room for a legend outside
    handles, labels = axes[0].get_legend_handles_labels()
    for panel in axes:
        if legend := panel.get_legend():
            legend.remove()
    if _has_free_place(len(axes)):
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.02)}
        columns = 1 if len(labels) < 12 else 2
    else:
        place = {"loc": "outside lower center"}
    compact: dict[str, Any] = {"fontsize": "small", "handlelength": 1.4, "columnspacing": 1.0}
    figure.legend(handles, labels, ncols=columns, title=title, **compact, **place)


def label_outer(axes: list[Axes], xlabel: str, ylabel: str) -> None:
    """Label the y axes of the first column, and the x axis of the last panel of each column."""
    for number, panel in enumerate(axes):
        panel.set(xlabel=xlabel if number >= len(axes) - 2 else "", ylabel="" if number % 2 else ylabel)


def _has_free_place(count: int) -> bool:
    return count > 1 and bool(np.mod(count, 2))
