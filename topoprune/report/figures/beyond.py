"""Figures of the chapter "Beyond the thesis", readable on a telephone: few colours, large letters.

Intervals are those of Student's t over at least three dense networks: at 95 %, and for B3, an equivalence, at 90 %.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topoprune.report.evidence.beyond import (
    AFTER,
    FPGM,
    FUNCTIONAL,
    MENDED_METHODS,
    PRIMARY_RATIO,
    QR,
    RANDOM,
    lasting_gains,
    rivals,
)
from topoprune.report.evidence.beyond_explanation import ACCURACIES, LOST_MASS, losses
from topoprune.report.evidence.claims import LEAST_SEEDS
from topoprune.report.evidence.differences import TOPOLOGICAL
from topoprune.report.evidence.recovery import survival
from topoprune.report.evidence.statistics import t_interval
from topoprune.report.figures.drawing import finished, in_words, none_recovered, without_records
from topoprune.report.frames import (
    MENDINGS,
    NAMES,
    cloud_frame,
    of_kind,
    recovery_frame,
    removals_by_network,
    trials,
)
from topoprune.study import Clouds, Record
from topoprune.study.profiles import COMPENSATED

HIGHLIGHTED = {RANDOM: "black", "L1": "#56b4e9", FPGM: "#0173b2", TOPOLOGICAL: "#d55e00", FUNCTIONAL: "#029e73"}
HIGHLIGHTED[QR] = "#cc78bc"
"""Choices that a figure names, and their colours; the others are grey."""

OTHERS, OTHER_CHOICES = "lightgrey", "other choices"
SPACES = {"weights": "#d55e00", "functional": "#029e73"}
MENDING_TITLES = {"none": "as removed", "channels": "channels refitted", "convolution": "convolutions refitted"}
WIDTH = 7.4


def choices_compared(records: Sequence[Record]) -> Figure:
    """Test accuracy of each choice at the primary ratio: as removed, refitted, and after fine-tuning."""
    frame = _by_step(records)
    if frame.empty:
        return without_records(frame)
    order = frame[frame["step"] == MENDING_TITLES["convolution"]].groupby("method")["accuracy"].mean().sort_values()
    figure, axes = plt.subplots(figsize=(WIDTH, 0.36 * len(order) + 1.6))
    for step, (marker, colour) in STEPS.items():
        own = frame[frame["step"] == step]
        for height, method in enumerate(order.index):
            values = own.loc[own["method"] == method, "accuracy"]
            if len(values):
                _draw_interval(axes, values, height, marker, colour, step)
    axes.axvline(frame["dense test"].mean(), color="grey", linestyle=":", linewidth=1.2)
    axes.set(xlabel="test accuracy (%)", xlim=(0, 100), yticks=range(len(order)), yticklabels=order.index)
    axes.grid(axis="y", alpha=0.4)
    legend_below(figure, axes, columns=2)
    return finished(figure, frame)


STEPS = {
    "as removed": ("o", "black"),
    "channels refitted": ("D", "#56b4e9"),
    "convolutions refitted": ("s", "#029e73"),
    "fine-tuned": ("^", "#d55e00"),
}
"""Steps after a removal, with marker and colour."""


def damage_by_choice(records: Sequence[Record]) -> Figure:
    """Test accuracy before fine-tuning by ratio, one panel for each way of mending."""
    frame = removals_by_network(records)
    if frame.empty:
        return without_records(frame)
    ratios = sorted(frame["ratio"].unique())
    if len(ratios) == 1:
        return in_words(f"Only ratio {ratios[0]:g} is on record: the table above has all of it.", frame)
    figure, panels = plt.subplots(1, len(MENDINGS), figsize=(WIDTH, 4.6), sharey=True)
    order = [name for name in NAMES.values() if name in set(frame["method"]) - set(HIGHLIGHTED)]
    order += [name for name in HIGHLIGHTED if name in set(frame["method"])]  # on top of the grey lines
    for axes, mending in zip(panels, MENDINGS, strict=True):
        for method in order:
            own = frame[frame["method"] == method].groupby("ratio")[mending]
            _draw_mean(axes, own, HIGHLIGHTED.get(method, OTHERS), method if method in HIGHLIGHTED else OTHER_CHOICES)
        axes.axhline(frame["dense test"].mean(), color="grey", linestyle=":", linewidth=1.2)
        axes.set(title=MENDING_TITLES[mending], xlabel="share removed", ylim=(0, 100), xticks=ratios)
        axes.set_xticklabels(ratios, rotation=90)
        axes.title.set_fontsize("medium")
    panels[0].set_ylabel("test accuracy (%)")
    legend_below(figure, panels[0], columns=4)
    return finished(figure, frame)


def difference_forest(records: Sequence[Record]) -> Figure:
    """The functional choice less each rival after fine-tuning, and less its strongest rivals before it."""
    lasting = lasting_gains(records).assign(measured=AFTER, margin=0.0, claim="B2")
    strongest = rivals(records).assign(claim="B3")
    columns = ["claim", "measured", "method", "rival", "ratio", "seeds", "difference", "low", "high", "margin"]
    parts = [part[columns] for part in (lasting, strongest) if len(part)]
    frame = pd.concat(parts, ignore_index=True) if parts else lasting[columns]
    if frame.empty:
        return without_records(frame)
    claims = frame.groupby("claim").size()
    size = (WIDTH, 0.34 * len(frame) + 1.2 * len(claims) + 0.6)
    figure, panels = plt.subplots(len(claims), 1, figsize=size, height_ratios=list(claims + 1), squeeze=False)
    for axes, claim in zip(panels[:, 0], claims.index, strict=True):
        _draw_forest(axes, frame[frame["claim"] == claim], claim)
    panels[-1, 0].set_xlabel("difference in test accuracy (points)")
    return finished(figure, frame)


def clouds_by_layer(records: Sequence[Record]) -> Figure:
    """How far the distances of a layer spread, and how large the holes of a cover are, in both spaces."""
    frame = cloud_frame(records)
    if frame.empty:
        return without_records(frame)
    figure, panels = plt.subplots(2, 1, figsize=(WIDTH, 6.4), sharex=True)
    labels = {
        "spread": "spread of the distances\n(/ median)",
        "radius": "covering radius of a cover\n(/ median distance)",
    }
    for axes, (column, label) in zip(panels, labels.items(), strict=True):
        for space, colour in SPACES.items():
            own = frame[frame["space"] == space].groupby("layer")[column]
            _draw_mean(axes, own, colour, _SPACE_NAMES[space])
        axes.set(ylabel=label, ylim=(0, None))
    panels[1].set(xlabel="convolution", xticks=sorted(frame["layer"].unique()))
    legend_below(figure, panels[0], columns=2)
    return finished(figure, frame)


def functional_barcode(records: Sequence[Record]) -> Figure:
    """Bars of one layer of the first network: components in both spaces, and merges of the functional tree.

    Each bar is drawn as a share of the longest of its kind, so that the three can be compared.
    """
    frame = _bars(records)
    if frame.empty:
        return without_records(frame)
    kinds = list(frame["kind"].unique())
    figure, panels = plt.subplots(1, len(kinds), figsize=(WIDTH, 4.2), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        bars = frame[frame["kind"] == kind]
        colour = SPACES["weights"] if kind == _BARS[0][0] else SPACES["functional"]
        axes.barh(bars["bar"], bars["share of the longest"], height=1.0, color=colour, linewidth=0)
        axes.set(title=kind, xlabel="share of the longest", xlim=(0, 1.02), xticks=[0, 0.5, 1])
        axes.title.set_fontsize("medium")
    panels[0].set_ylabel("bar, longest first")
    panels[0].invert_yaxis()
    return finished(figure, frame)


def lost_mass_plot(records: Sequence[Record]) -> Figure:
    """Accuracy after removal against the lost mass, plain and refitted; one dot for each choice and network."""
    frame = losses(records)
    frame = frame[frame["target"].isin(ACCURACIES[:2])]
    if frame.empty:
        return without_records(frame)
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.2), sharey=True)
    ratios = sorted(frame["ratio"].unique())
    colours = dict(zip(ratios, sns.color_palette("viridis", len(ratios)), strict=True))
    for axes, target in zip(panels, ACCURACIES[:2], strict=True):
        for ratio in ratios:
            own = frame[(frame["target"] == target) & (frame["ratio"] == ratio)]
            axes.scatter(
                100 * own[LOST_MASS], own["accuracy"], s=22, alpha=0.7, color=colours[ratio], label=f"{ratio:g}"
            )
        axes.set(title=MENDING_TITLES[target], xlabel="lost mass (%)", ylim=(0, 100))
        axes.title.set_fontsize("medium")
    panels[0].set_ylabel("test accuracy (%)")
    legend_below(figure, panels[0], columns=len(ratios) + 1, title="share removed")
    return finished(figure, frame)


def mended_curves(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch of fine-tuning, compensated (solid) and plain (dashed), means over networks."""
    frame = _arms(recovery_frame(records))
    return _by_arm(frame, "test accuracy (%)", "epoch of fine-tuning", "test accuracy (%)")


def mended_survival(records: Sequence[Record]) -> Figure:
    """Kaplan-Meier: the share of networks that has not recovered yet, compensated (solid) and plain (dashed)."""
    frame = _arms(survival(records))
    if len(frame) and frame["share"].min() == 1:
        return none_recovered(frame)
    return _by_arm(frame, "share", "epoch of fine-tuning", "not recovered yet", drawstyle="steps-post")


def _by_step(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each choice, network and step at the primary ratio."""
    before = removals_by_network(records)
    parts = [before.assign(step=title, accuracy=before[name]) for name, title in MENDING_TITLES.items()]
    after = trials(records)
    parts.append(after[~after["method"].str.endswith(COMPENSATED)].assign(step="fine-tuned", accuracy=after["test"]))
    columns = ["method", "ratio", "seed", "step", "accuracy", "dense test"]
    filled = [part[columns] for part in parts if len(part)]
    frame = pd.concat(filled or [parts[0][columns]], ignore_index=True)
    return frame[(frame["ratio"] == PRIMARY_RATIO) & frame["method"].isin(before["method"])]


def _draw_interval(axes: Axes, values: pd.Series, height: int, marker: str, colour: str, label: str) -> None:
    mean = values.mean()
    if len(values) >= LEAST_SEEDS:
        low, high = t_interval(values.to_numpy())
        axes.plot([low, high], [height, height], color=colour, linewidth=1.5, alpha=0.7)
    axes.plot(mean, height, marker, color=colour, markersize=8, markeredgecolor="white", label=label)


_SPACE_NAMES = {"weights": "weight space", "functional": "functional space"}
_BARS = (
    ("weight space,\ncomponents (H0)", "weights", "h0"),
    ("functional space,\ncomponents (H0)", "functional", "h0"),
    ("functional space,\nmerge tree", "functional", "merges"),
)
"""Title of a panel of `functional_barcode`, space, and the name of its lengths in the record."""


def _draw_mean(axes: Axes, values, colour: str, label: str) -> None:
    """A line through the means of groups; one with a name of its own has 95 % t-intervals, of enough networks."""
    means, width = values.mean(), 2.6 if label == FUNCTIONAL else 1.5
    axes.plot(means.index, means, color=colour, label=label, linewidth=width, marker="o", markersize=1.6 * width)
    intervals = {place: t_interval(group.to_numpy()) for place, group in values if len(group) >= LEAST_SEEDS}
    if label != OTHER_CHOICES and intervals:
        centres = means.loc[list(intervals)]
        low, high = np.transpose(list(intervals.values()))
        bars = np.nan_to_num([centres - low, high - centres])
        axes.errorbar(centres.index, centres, yerr=bars, fmt="none", color=colour, linewidth=1, capsize=2)


def legend_below(figure: Figure, axes: Axes, columns: int, title: str = "") -> None:
    """One legend under all panels, each name once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.tight_layout()
    rows = -(-len(once) // columns) + bool(title)
    figure.subplots_adjust(bottom=0.7 / figure.get_figheight() + 0.3 * rows / figure.get_figheight())
    figure.legend(once.values(), once.keys(), loc="lower center", ncols=columns, frameon=False, title=title or None)


def _draw_forest(axes: Axes, frame: pd.DataFrame, claim: str) -> None:
    """Differences with their intervals (B2: 95 %, B3: 90 %), one row each, the margins as grey bands."""
    frame = frame.sort_values(["ratio", "measured"], ascending=[False, True], kind="stable").reset_index(drop=True)
    for row, cell in frame.iterrows():
        axes.barh(row, 2 * cell["margin"], left=-cell["margin"], height=0.9, color="lightgrey", alpha=0.6, linewidth=0)
        bars = np.nan_to_num([[cell["difference"] - cell["low"]], [cell["high"] - cell["difference"]]])
        colour = HIGHLIGHTED[FUNCTIONAL] if COMPENSATED in cell["method"] or cell["measured"] != AFTER else "black"
        axes.errorbar(cell["difference"], row, xerr=bars, fmt="o", capsize=3, color=colour)
    names = [_row_name(cell) for _, cell in frame.iterrows()]
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axes.set_title(f"{claim}: {FUNCTIONAL} less its rival", loc="left", fontsize="medium")


def _row_name(cell: pd.Series) -> str:
    before = "" if cell["measured"] == AFTER else " (before)"
    return f"{cell['rival']}{before}, {cell['ratio']:g}"


def _bars(records: Sequence[Record]) -> pd.DataFrame:
    """The bars of the first network's layer whose barcodes are on record."""
    rows = []
    for record in sorted(of_kind(records, Clouds), key=lambda record: record.spec.dense.seed)[:1]:
        spaces = record.result["layers"][record.spec.layer]
        for kind, space, name in _BARS:
            lengths = sorted(spaces[space][name], reverse=True)
            rows += [
                {
                    "layer": record.spec.layer,
                    "kind": kind,
                    "bar": rank + 1,
                    "length": length,
                    "share of the longest": length / (lengths[0] or 1.0),
                }
                for rank, length in enumerate(lengths)
            ]
    return pd.DataFrame(rows, columns=["layer", "kind", "bar", "length", "share of the longest"])


def _arms(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `MENDED_METHODS`, with the choice and its arm apart."""
    frame = frame.assign(
        arm=np.where(frame["method"].str.endswith(COMPENSATED), "compensated", "plain"),
        choice=frame["method"].str.removesuffix(COMPENSATED),
    )
    return frame[frame["choice"].isin(MENDED_METHODS)]


def _by_arm(frame: pd.DataFrame, y: str, xlabel: str, ylabel: str, **options) -> Figure:
    if frame.empty:
        return without_records(frame)
    ratios = sorted(frame["ratio"].unique())
    figure, panels = plt.subplots(1, len(ratios), figsize=(WIDTH, 4.4), squeeze=False, sharey=True)
    for axes, ratio in zip(panels[0], ratios, strict=True):
        for (choice, arm), own in frame[frame["ratio"] == ratio].groupby(["choice", "arm"]):
            means = own.groupby("epoch")[y].mean()
            style = "-" if arm == "compensated" else "--"
            axes.plot(means.index, means, style, color=HIGHLIGHTED[choice], label=f"{choice}, {arm}", **options)
        axes.set(title=f"ratio {ratio:g}", xlabel=xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel(ylabel)
    legend_below(figure, panels[0, -1], columns=2)
    return finished(figure, frame)
