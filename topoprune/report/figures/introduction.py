"""Figures of the visual introduction: a dozen filters in the plane, their shape, and what a choice keeps of it.

Everything is computed from `FILTERS` by the package. Figures are five inches wide or less, with large letters: they
are to be read on a telephone.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from topoprune.cover import cover, covering_radius, replacement_costs
from topoprune.criteria import l2
from topoprune.fitness import Fitness, diagram_distance, diagrams, distance_matrix
from topoprune.report.figures.drawing import finished
from topoprune.study import Portrait, Record

FILTERS = np.array(
    [
        [3.67, 2.07],
        [3.06, 2.70],
        [2.56, 3.07],
        [1.60, 2.46],
        [1.83, 1.13],
        [2.21, 0.56],
        [3.11, 1.15],
        [3.48, 2.02],
        [3.00, 2.93],
        [2.07, 0.86],
        [1.15, 1.93],
        [0.68, 1.66],
    ]
)
"""A dozen filters of two weights each, set by hand: a loop with close neighbours, and an arm on its left."""

KEPT = 6
"""Filters that each choice keeps: half of them."""

SCALES = (0.4, 0.9, 1.3, 2.0)
"""Distances at which the growing balls are drawn."""

COVER, NORMS, CLOSEST, LOOK_ALIKE = "cover", "largest norms", "closest diagrams", "look-alike"
"""The choices that the chapter speaks of, see `choices`."""

COMPONENTS, LOOPS, RADIUS, REMOVED = "#0173b2", "#d55e00", "#d55e00", "grey"
LOOK = {COVER: ("#029e73", "s"), NORMS: ("#cc78bc", "^"), CLOSEST: ("#0173b2", "D"), LOOK_ALIKE: ("#d55e00", "v")}
"""Colour and marker of each choice."""


def choices() -> dict[str, list[int]]:
    """Choices of half of the filters: name -> kept filters.

    The cover stands for all filters at the least cost. The largest norms are what L2 keeps. The closest diagrams have
    the least topological fitness of all choices. The look-alike has nearly the diagrams of the cover, see `look_alike`.
    """
    covering = cover(replacement_costs(FILTERS, distance_matrix(FILTERS), "euclidean"), KEPT)
    every = all_choices()
    return {
        COVER: covering,
        NORMS: sorted(np.argsort(-l2(FILTERS))[:KEPT].tolist()),
        CLOSEST: list(every["kept"][every["fitness"].idxmin()]),
        LOOK_ALIKE: look_alike(covering),
    }


@cache
def all_choices() -> pd.DataFrame:
    """Every choice of half of the filters, one a row: kept filters, topological fitness and covering radius."""
    delta = distance_matrix(FILTERS)
    kept = list(combinations(range(len(FILTERS)), KEPT))
    radii = [covering_radius(delta, choice) for choice in kept]
    return pd.DataFrame({"kept": kept, "fitness": Fitness(delta)(kept), "radius": radii})


def look_alike(kept: Sequence[int]) -> list[int]:
    """The choice whose diagrams are nearest to those of `kept`, among those with twice its covering radius or more."""
    every = all_choices()
    reach = 2 * covering_radius(distance_matrix(FILTERS), kept)
    others = every["kept"][every["radius"] >= reach]
    return list(min(others, key=lambda other: diagrams_apart(kept, list(other))))


def diagrams_apart(kept: Sequence[int], other: Sequence[int], distance: str = "wasserstein") -> float:
    """Distance between the diagrams of two sets of filters, the sum over dimensions 0 and 1."""
    mine, theirs = bars_of(kept), bars_of(other)
    return sum(diagram_distance(mine[q], theirs[q], distance) for q in (0, 1))


def bars_of(kept: Sequence[int]) -> dict[int, np.ndarray]:
    """Diagrams of some of the filters: dimension -> rows (birth, death)."""
    return diagrams(distance_matrix(FILTERS[list(kept)]))


def findings(chosen: dict[str, list[int]]) -> dict[str, float | int]:
    """The numbers of the text."""
    delta, everyone = distance_matrix(FILTERS), range(len(FILTERS))
    whole, cover, every = bars_of(everyone), bars_of(chosen[COVER]), all_choices()
    ((born, filled),) = whole[1]
    ranks = every[["fitness", "radius"]].corr("spearman")
    numbers: dict[str, float | int] = {
        "filters": len(FILTERS),
        "kept": KEPT,
        "choices": len(every),
        "merges": len(whole[0]),
        "first_merge": whole[0][0, 1],
        "last_merge": whole[0][-1, 1],
        "loop_born": born,
        "loop_filled": filled,
        "certificate": 2 * covering_radius(delta, chosen[COVER]),
        "half_longest": max(np.ptp(rows, axis=1).max() for rows in (*whole.values(), *cover.values())) / 2,
        "most_moved": max(diagram_distance(whole[q], cover[q], "bottleneck") for q in (0, 1)),
        "apart": diagrams_apart(chosen[COVER], chosen[LOOK_ALIKE]),
        "total": sum(np.ptp(rows, axis=1).sum() for rows in cover.values()),
        "rank_correlation": ranks.loc["fitness", "radius"],
    }
    fitness = Fitness(delta)
    for name, kept in chosen.items():
        key = name.replace(" ", "_").replace("-", "_")
        numbers[f"{key}_radius"] = covering_radius(delta, kept)
        numbers[f"{key}_fitness"] = fitness([kept])[0]
    return numbers


def filters_as_points() -> Figure:
    """The filters, numbered, with the zero filter."""
    figure, axes = plt.subplots(figsize=(4.8, 4.2))
    axes.scatter(FILTERS[:, 0], FILTERS[:, 1], s=60, color=COMPONENTS)
    axes.scatter(0, 0, marker="x", s=60, color="black")
    axes.annotate("zero filter", (0, 0), (0.15, -0.03), va="center")
    for number, (point, away) in enumerate(zip(FILTERS, _directions_with_room(), strict=True), 1):
        axes.annotate(str(number), point, 14 * away, textcoords="offset points", ha="center", va="center")
    axes.set(xlabel="first weight", ylabel="second weight", aspect="equal", xlim=(-0.3, 4.2), ylim=(-0.4, 3.5))
    return finished(figure, _points())


def growing_balls() -> Figure:
    """Balls around the filters at growing scales, with the edges and triangles of the Vietoris-Rips complex."""
    delta = distance_matrix(FILTERS)
    figure, panels = plt.subplots(2, 2, figsize=(5, 5.2), sharex=True, sharey=True)
    rows = []
    for axes, scale in zip(panels.flat, SCALES, strict=True):
        _draw_complex(axes, delta, scale)
        components, loops = _alive(scale)
        axes.set_title(f"distance {scale:g}\n{_count(components, 'component')}, {_count(loops, 'loop')}", fontsize=12)
        rows.append({"distance": scale, "components": components, "loops": loops})
    return finished(figure, pd.DataFrame(rows))


def merge_tree_and_barcode() -> Figure:
    """The tree of merging components above the barcode, on one axis of distances."""
    tree = linkage(squareform(distance_matrix(FILTERS), checks=False), "single")
    bars = bars_of(range(len(FILTERS)))
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.8, 6.4), sharex=True)
    dendrogram(
        tree,
        orientation="right",
        ax=above,
        labels=np.arange(1, len(FILTERS) + 1),
        color_threshold=0,
        above_threshold_color=COMPONENTS,
        leaf_font_size=11,
    )
    above.xaxis.set_inverted(False)  # scipy lets distances grow to the left
    above.yaxis.tick_left()
    above.set(ylabel="filter", title="components merge")
    _draw_bars(below, bars, 0, COMPONENTS, "component")
    below.set(xlabel="distance", ylabel="bar", title="barcode", xlim=(0, 2.1), yticks=[])
    below.legend(loc="upper right", framealpha=1)
    for axes in (above, below):
        axes.grid(False)
        axes.vlines(tree[:, 2], *axes.get_ylim(), color="lightgrey", linewidth=0.8, zorder=0)
    return finished(figure, _bars_frame({"whole": bars}))


def persistence_diagram() -> Figure:
    """The persistence diagram of the filters: components and loops, above the diagonal."""
    bars = bars_of(range(len(FILTERS)))
    figure, axes = plt.subplots(figsize=(4.4, 4.2))
    axes.plot([0, 2.1], [0, 2.1], color="grey", linewidth=1)
    axes.scatter(bars[0][:, 0], bars[0][:, 1], s=50, color=COMPONENTS, label="components", clip_on=False, zorder=3)
    axes.scatter(bars[1][:, 0], bars[1][:, 1], s=90, color=LOOPS, marker="^", label="loop", zorder=3)
    axes.set(xlabel="birth", ylabel="death", xlim=(0, 2.1), ylim=(0, 2.1), aspect="equal")
    axes.legend(loc="lower right")
    return finished(figure, _bars_frame({"whole": bars}))


def kept_and_removed(chosen: dict[str, list[int]]) -> Figure:
    """What two choices keep: the filters with the covering radius above, their barcodes beside the whole below."""
    delta, whole = distance_matrix(FILTERS), bars_of(range(len(FILTERS)))
    figure, panels = plt.subplots(2, len(chosen), figsize=(5, 5.6), sharex="row", sharey="row", squeeze=False)
    for column, (name, kept) in enumerate(chosen.items()):
        _draw_choice(panels[0, column], delta, name, kept)
        axes, bars = panels[1, column], bars_of(kept)
        _draw_bars(axes, whole, KEPT + 1.5, "darkgrey", "all", loops="darkgrey")
        _draw_bars(axes, bars, 0, COMPONENTS, "kept")
        axes.grid(False)
        axes.set(xlabel="distance", xlim=(0, 2.1))
    middles = [(KEPT - 1) / 2, KEPT + 1.5 + (len(whole[0]) + len(whole[1]) - 1) / 2]
    panels[1, 0].set_yticks(middles, ["kept", "all"], rotation="vertical", va="center")
    rows = {"whole": whole, **{name: bars_of(kept) for name, kept in chosen.items()}}
    return finished(figure, _bars_frame(rows))


def fitness_against_radius(chosen: dict[str, list[int]]) -> Figure:
    """Every choice of half of the filters: topological fitness against covering radius, the named ones marked."""
    names = {tuple(kept): name for name, kept in chosen.items()}
    every = all_choices()
    every = every.assign(choice=every["kept"].map(names).fillna(""))
    figure, axes = plt.subplots(figsize=(4.8, 4.8))
    axes.scatter(every["radius"], every["fitness"], s=9, color="darkgrey", linewidths=0)
    for _, row in every[every["choice"] != ""].iterrows():
        colour, marker = LOOK[row["choice"]]
        axes.scatter(row["radius"], row["fitness"], s=110, color=colour, marker=marker, edgecolors="black", zorder=3)
    for name in chosen:
        colour, marker = LOOK[name]
        axes.scatter([], [], s=80, color=colour, marker=marker, edgecolors="black", label=name)
    axes.set(xlabel="covering radius", ylabel="topological fitness")
    axes.legend(loc="upper right", framealpha=1)
    return finished(figure, every)


def layer_and_barcode(portrait: Record[Portrait]) -> Figure:
    """A layer on record: its filters in the plane above, its barcode below."""
    plane = np.asarray(portrait.result["plane"])
    bars = {int(q): np.asarray(rows, float).reshape(-1, 2) for q, rows in portrait.result["diagrams"]["full"].items()}
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.8, 7), height_ratios=(3, 2))
    above.scatter(plane[:, 0], plane[:, 1], s=12, color=COMPONENTS)
    above.set(aspect="equal", xticks=[], yticks=[], title="filters in the plane")
    _draw_bars(below, bars, 0, COMPONENTS, "component", width=0.8)
    below.grid(False)
    below.set(xlabel="distance", ylabel="bar", title="barcode", yticks=[])
    below.set_xlim(left=0)
    below.legend(loc="lower left")
    return finished(figure, _bars_frame({"layer": bars}))


def layer_findings(portrait: Record[Portrait]) -> dict[str, float | int | str]:
    """The numbers of the text on a layer on record."""
    components, loops = (np.asarray(portrait.result["diagrams"]["full"][q], float).reshape(-1, 2) for q in "01")
    deaths = components[:, 1]
    low, high = np.quantile(deaths, (0.05, 0.95))
    lasts = np.ptp(loops, axis=1).max(initial=0.0)
    return {
        "layer": portrait.spec.layer,
        "layer_filters": len(portrait.result["plane"]),
        "layer_loops": len(loops),
        "layer_low": low,
        "layer_high": high,
        "layer_loop": lasts,
        "layer_loop_share": 100 * lasts / deaths.max(),
    }


def _points() -> pd.DataFrame:
    frame = pd.DataFrame(FILTERS, columns=["first weight", "second weight"])
    frame.insert(0, "filter", np.arange(1, len(FILTERS) + 1))
    return frame


def _directions_with_room() -> np.ndarray:
    """For each filter the unit vector away from its two nearest neighbours: there is room for its number."""
    nearest = distance_matrix(FILTERS).argsort(axis=1)[:, 1:3]
    away = FILTERS - FILTERS[nearest].mean(axis=1)
    return away / np.linalg.norm(away, axis=1, keepdims=True)


def _alive(scale: float) -> tuple[int, int]:
    """Components and loops at a scale: the bars that hold it, and the component that never dies."""
    bars = bars_of(range(len(FILTERS)))
    components, loops = (int(((rows[:, 0] <= scale) & (scale < rows[:, 1])).sum()) for rows in bars.values())
    return components + 1, loops


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _draw_complex(axes: Axes, delta: np.ndarray, scale: float) -> None:
    """Balls that touch at the scale, an edge for each pair within it, a triangle for each three."""
    joined = delta <= scale
    triangles = [c for c in combinations(range(len(delta)), 3) if all(joined[i, j] for i, j in combinations(c, 2))]
    edges = [pair for pair in combinations(range(len(delta)), 2) if joined[pair]]
    for point in FILTERS:
        axes.add_patch(Circle(tuple(point), scale / 2, color=COMPONENTS, alpha=0.12, linewidth=0))
    axes.add_collection(PolyCollection([FILTERS[list(c)] for c in triangles], facecolors="#ece133", alpha=0.25))
    axes.add_collection(LineCollection([FILTERS[list(pair)] for pair in edges], colors="black", linewidths=0.8))
    axes.scatter(FILTERS[:, 0], FILTERS[:, 1], s=22, color="black", zorder=3)
    axes.set(aspect="equal", xlim=(-0.4, 4.8), ylim=(-0.5, 4.2), xticks=[], yticks=[])


def _draw_choice(axes: Axes, delta: np.ndarray, name: str, kept: list[int]) -> None:
    """Kept and removed filters, each removed one joined to its nearest kept one, the longest line in full."""
    removed = np.setdiff1d(np.arange(len(delta)), kept)
    nearest = np.asarray(kept)[delta[removed][:, kept].argmin(axis=1)]
    farthest = delta[removed, nearest].argmax()
    for index, pair in enumerate(zip(removed, nearest, strict=True)):
        line = {"color": RADIUS, "linewidth": 2.5} if index == farthest else {"color": REMOVED, "linestyle": ":"}
        axes.plot(*FILTERS[list(pair)].T, **line, zorder=1)
    axes.scatter(FILTERS[kept, 0], FILTERS[kept, 1], s=50, color=COMPONENTS, zorder=3)
    axes.scatter(FILTERS[removed, 0], FILTERS[removed, 1], s=50, facecolors="white", edgecolors=REMOVED, zorder=3)
    axes.set_title(f"{name}\nradius {covering_radius(delta, kept):.2f}", fontsize=12)
    axes.set(aspect="equal", xlim=(0.4, 4), ylim=(0.2, 3.4), xticks=[], yticks=[])


def _draw_bars(
    axes: Axes,
    bars: dict[int, np.ndarray],
    lowest: float | int,
    colour: str,
    label: str,
    loops: str = LOOPS,
    width: float = 3.0,
) -> None:
    """Loops at the bottom, components above them, the longest first; loops are dashed."""
    place = lowest
    for dimension, name, shade in ((1, "loop", loops), (0, label, colour)):
        rows = bars[dimension][np.argsort(-np.ptp(bars[dimension], axis=1), kind="stable")]
        places = place + np.arange(len(rows))
        lines = axes.hlines(places, rows[:, 0], rows[:, 1], color=shade, linewidth=width, label=name)
        if dimension == 1:
            lines.set_linestyle((0, (3, 1)))
        place += len(rows)


def _bars_frame(bars: dict[str, dict[int, np.ndarray]]) -> pd.DataFrame:
    rows = [
        {"filters": name, "dimension": dimension, "birth": birth, "death": death}
        for name, by_dimension in bars.items()
        for dimension, found in by_dimension.items()
        for birth, death in found
    ]
    return pd.DataFrame(rows, columns=["filters", "dimension", "birth", "death"])
