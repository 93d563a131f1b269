"""Tables that compare methods by ratio: accuracy, cost, recovery, damage.

A value after ± is the standard error over dense networks; with one network there is none.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.frames import DISTANCE, LAYERWISE_NAMES, NAMES, name_of, network_order, of_kind, trials
from topoprune.study import Portrait, Record, Trial

_COMPARISON_COLUMNS = (
    *("ratio", "method", "test accuracy (%)", "before fine-tuning (%)", "parameters (%)", "FLOPs (%)"),
    *("recovery (epochs)", "recovery (s)", "recovery area (%)", "recovered", "selection (s)"),
)


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """The thesis's table: accuracy, parameters, FLOPs and recovery time by method and ratio.

    Means over dense networks, with the standard error. A run that never recovered counts with all its fine-tuning.
    """
    frame = trials(records)
    rows = [
        {
            "ratio": f"{ratio:g}",
            "method": method,
            "test accuracy (%)": _mean(group["test"], 2),
            "before fine-tuning (%)": _mean(group["damaged"], 2),
            "parameters (%)": f"{100 * group['parameters'].mean():.1f}",
            "FLOPs (%)": f"{100 * group['flops'].mean():.1f}",
            "recovery (epochs)": _mean(group["recovery epochs"], 1),
            "recovery (s)": _mean(group["recovery seconds"], 0),
            "recovery area (%)": _mean(group["recovery area"], 1),
            "recovered": f"{int(group['recovered'].sum())} of {len(group)}",
            "selection (s)": _mean(group["selection seconds"], 1),
        }
        for (ratio, method), group in frame.groupby(["ratio", "method"], sort=True)
    ]
    table = pd.DataFrame(rows, columns=[*_COMPARISON_COLUMNS])
    order = table["method"].map(list(NAMES.values()).index)
    return table.assign(order=order).sort_values(["ratio", "order"]).drop(columns="order")


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
    columns = ["convolution", "H0, median", "H1, median", "H1, largest", "correlation with the mean"]
    return pd.DataFrame(table, columns=columns)


def shared_choices(portrait: Record[Portrait]) -> pd.DataFrame:
    """Share (%) of kept filters of the portrait's layer that two methods have in common."""
    kept = {NAMES[method]: set(portrait.result["kept"][method]) for method in portrait.spec.methods}
    shares = {a: {b: 100 * len(kept[a] & kept[b]) / len(kept[a]) for b in kept} for a in kept}
    return pd.DataFrame(shares).round(0).astype(int).reset_index(names="method")


def _mean(values: pd.Series, digits: int) -> str:
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.sem():.{digits}f}"


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
