"""Tables that compare methods by ratio: accuracy, cost, recovery, damage.

A value after ± is half of the 95 % t-interval over dense networks; with fewer than three networks there is none.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.claims import LEAST_SEEDS
from topoprune.report.evidence.differences import collapses
from topoprune.report.evidence.statistics import t_interval
from topoprune.report.frames import (
    DISTANCE,
    LAYERWISE_NAMES,
    NAMES,
    name_of,
    network_order,
    of_kind,
    trials,
    typed_frame,
)
from topoprune.study import Portrait, Record, Trial

_COMPARISON_COLUMNS = (
    *("ratio", "method", "test accuracy (%)", "before fine-tuning (%)", "parameters (%)", "FLOPs (%)"),
    *("recovery (epochs)", "recovery (s)", "recovery area (%)", "recovered", "selection (s)"),
)


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """The thesis's table: accuracy, parameters, FLOPs and recovery time by method and ratio.

    Means over dense networks. A run that never recovered counts with all its fine-tuning, so that the mean is a lower
    bound; where none recovered it has no interval.
    """
    frame = trials(records)
    rows = [
        {
            "ratio": f"{ratio:g}",
            "method": method,
            "test accuracy (%)": mean_and_interval(group["test"], 2),
            "before fine-tuning (%)": mean_and_interval(group["damaged"], 2),
            "parameters (%)": f"{100 * group['parameters'].mean():.1f}",
            "FLOPs (%)": f"{100 * group['flops'].mean():.1f}",
            "recovery (epochs)": _time(group["recovery epochs"], group["recovered"], 1),
            "recovery (s)": _time(group["recovery seconds"], group["recovered"], 0),
            "recovery area (%)": mean_and_interval(group["recovery area"], 1),
            "recovered": f"{int(group['recovered'].sum())} of {len(group)}",
            "selection (s)": mean_and_interval(group["selection seconds"], 1),
        }
        for (ratio, method), group in frame.groupby(["ratio", "method"], sort=True)
    ]
    table = pd.DataFrame(rows, columns=[*_COMPARISON_COLUMNS])
    order = table["method"].map(list(NAMES.values()).index)
    return table.assign(order=order).sort_values(["ratio", "order"]).drop(columns="order")


def mean_and_interval(values: pd.Series, digits: int) -> str:
    """Mean and half of the 95 % t-interval, as text; the mean alone of fewer than `LEAST_SEEDS` values.

    >>> mean_and_interval(pd.Series([1.0, 2.0, 3.0]), 1)
    '2.0 ± 2.5'
    """
    if len(values) < LEAST_SEEDS:
        return f"{values.mean():.{digits}f}"
    low, high = t_interval(values)
    return f"{values.mean():.{digits}f} ± {np.nan_to_num(high - low) / 2:.{digits}f}"


def _time(values: pd.Series, recovered: pd.Series, digits: int) -> str:
    """A mean time of recovery, as text; a lower bound where some runs never recovered."""
    if recovered.all():
        return mean_and_interval(values, digits)
    return f"≥ {mean_and_interval(values, digits)}" if recovered.any() else f"> {values.mean():.{digits}f}"


def by_ratio(records: Sequence[Record], column: str, digits: int = 2) -> pd.DataFrame:
    """Mean of one column of `frames.trials`: a line for each method, a column for each ratio."""
    cells = trials(records).groupby(["method", "ratio"])[column]
    return _methods_by_ratio(cells.agg(lambda values: mean_and_interval(values, digits)))


def differences_by_ratio(differences: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """The same for differences from rivals, such as `evidence.restricted_means`, with half of their interval."""
    frame = differences.rename(columns={"rival": "method"}).set_index(["method", "ratio"])
    halves = (frame["high"] - frame["low"]) / 2
    cells = [
        f"{difference:+z.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")
        for difference, half in zip(frame["difference"], halves, strict=True)
    ]
    table = _methods_by_ratio(pd.Series(cells, index=frame.index, dtype=object))
    return table.rename(columns={"method": "rival"})


def method_table(records: Sequence[Record], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of `comparison_table`."""
    return comparison_table(records)[list(columns)]


def cost_table(records: Sequence[Record]) -> pd.DataFrame:
    """Size, FLOPs and times that remain where every layer loses its share, in percent of the dense network."""
    columns = {
        "parameters": "parameters (%)",
        "flops": "FLOPs (%)",
        "latency": "latency, batch 1 (%)",
        "batch time": "time, batch 256 (%)",
        "epoch time": "training epoch (%)",
    }
    frame = trials(records)
    layerwise = frame[frame["method"].isin(LAYERWISE_NAMES)]
    table = 100 * layerwise.groupby("ratio")[list(columns)].median()
    table.index = table.index.map("{:g}".format)
    return table.rename(columns=columns).round(1).reset_index(names="ratio")


def selection_table(records: Sequence[Record]) -> pd.DataFrame:
    """Seconds of selection beside those of one epoch of fine-tuning, and how many distances a search compared.

    Medians over dense networks by ratio and method.
    """
    columns = {
        "selection seconds": "selection (s)",
        "epoch seconds": "epoch of fine-tuning (s)",
        "distances": "distances compared (G)",
    }
    distances = np.array([_distances_compared(record) / 1e9 for record in of_kind(records, Trial)], dtype=float)
    frame = trials(records).assign(distances=distances)
    table = frame.groupby(["ratio", "method"])[list(columns)].median().rename(columns=columns).reset_index()
    table.insert(4, "selection (epochs)", table["selection (s)"] / table["epoch of fine-tuning (s)"])
    return table


def selection_by_ratio(records: Sequence[Record]) -> pd.DataFrame:
    """Median seconds of selection by method and ratio; the last line is one epoch of fine-tuning."""
    frame = trials(records)
    table = _methods_by_ratio(
        frame.groupby(["method", "ratio"])["selection seconds"].median().map("{:.1f}".format).astype(object)
    )
    if len(table):
        epochs = frame.groupby("ratio")["epoch seconds"].median()
        table.loc[len(table)] = ["one epoch of fine-tuning", *epochs.map("{:.1f}".format)]
    return table


def collapse_table(records: Sequence[Record]) -> pd.DataFrame:
    """Runs of each method over all ratios, those with a collapsed layer, and those at chance."""
    counts = collapses(records).drop(columns="ratio").groupby("method").sum()
    return counts.reindex([name for name in NAMES.values() if name in counts.index]).reset_index(names="method")


def damage_table(records: Sequence[Record]) -> pd.DataFrame:
    """Topological distance (mean over layers, by dimension) and live channels, by ratio and method.

    The last column is the smallest share of live channels that a layer has after fine-tuning; 0 is a collapsed
    layer.
    """
    rows = [
        {
            "ratio": f"{record.spec.ratio:g}",
            "method": name_of(record.spec),
            **_means_by_dimension(record.result["damage"]["topological"]),
            "live channels, least (%)": 100 * min(record.result["live"]),
        }
        for record in of_kind(records, Trial)
    ]
    if not rows:
        return pd.DataFrame(columns=["ratio", "method", "H0", "H1", "live channels, least (%)"])
    return pd.DataFrame(rows).groupby(["ratio", "method"], sort=True).mean().reset_index()


def distance_by_layer(records: Sequence[Record]) -> pd.DataFrame:
    """How much each convolution decides of the topological distance of a trial, which is the mean over them.

    Returns:
        A row for each convolution, in the order of the network: H0 and H1, medians over trials; H1, largest;
        correlation of the layer's distance with the mean over all layers, over trials.
    """
    rows = [
        {"layer": layer, "trial": number, "H0": distances["0"], "H1": distances.get("1", 0.0)}
        for number, record in enumerate(of_kind(records, Trial))
        for layer, distances in record.result["damage"]["topological"].items()
    ]
    frame = pd.DataFrame(rows, columns=["layer", "trial", "H0", "H1"])
    frame[DISTANCE] = frame["H0"] + frame["H1"]
    mean = frame.groupby("trial")[DISTANCE].mean()
    table = []
    for layer in sorted(frame["layer"].unique(), key=network_order):
        part = frame[frame["layer"] == layer].set_index("trial")
        varies = part[DISTANCE].std() > 0 and mean.std() > 0
        table.append(
            {
                "convolution": layer,
                "H0, median": part["H0"].median(),
                "H1, median": part["H1"].median(),
                "H1, largest": part["H1"].max(),
                "correlation with the mean": part[DISTANCE].corr(mean) if varies else np.nan,
            }
        )
    numbers = ("H0, median", "H1, median", "H1, largest", "correlation with the mean")
    return typed_frame(table, {"convolution": "object", **dict.fromkeys(numbers, "float64")})


def shared_choices(portrait: Record[Portrait]) -> pd.DataFrame:
    """Share (%) of kept filters of the portrait's layer that two methods have in common."""
    kept = {NAMES[method]: set(portrait.result["kept"][method]) for method in portrait.spec.methods}
    shares = {a: {b: 100 * len(kept[a] & kept[b]) / len(kept[a]) for b in kept} for a in kept}
    return pd.DataFrame(shares).round(0).astype(int).reset_index(names="method")


def _methods_by_ratio(cells: pd.Series) -> pd.DataFrame:
    """A line for each method in the book's order, a column for each ratio; empty where nothing is on record.

    Args:
        cells: text, indexed by method and ratio.
    """
    table = cells.unstack("ratio").fillna("")
    order = [name for name in NAMES.values() if name in table.index]
    table = table.reindex([*order, *table.index.difference(order)])
    table.columns = [f"{ratio:g}" for ratio in table.columns]
    return table.reset_index(names="method")


def _means_by_dimension(layers: dict[str, dict[str, float]]) -> dict[str, float]:
    dimensions = next(iter(layers.values()))
    return {f"H{d}": float(np.mean([layer[d] for layer in layers.values()])) for d in dimensions}


def _distances_compared(record: Record) -> int:
    """Distances among the kept filters, summed over all subsets that a search judged."""
    kept, searches = record.result["kept"], record.result["searches"]
    return sum(
        steps["evaluations"][-1] * len(kept[layer]) * (len(kept[layer]) - 1) // 2
        for layer, steps in searches.items()
        if steps
    )
