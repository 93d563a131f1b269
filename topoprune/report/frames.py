"""Records as data frames, with the names that the book gives to methods.

A frame without rows has its columns all the same, so that a chapter can show a profile of which nothing, or only
dense networks, is on record.
"""

import json
import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from topoprune.compensation import MODES
from topoprune.files import FileError
from topoprune.study import LAYERWISE, Clouds, Dense, Record, Removal, Trial, describe, variant
from topoprune.study.execution import RECOVERY_MARGIN
from topoprune.study.profiles import COMPENSATED
from topoprune.study.trial import AnySpec

_PLAIN_NAMES = {
    "random": "random",
    "l1": "L1",
    "l2": "L2",
    "fpgm": "FPGM",
    "topological": "topological",
    "activations": "topological, activations",
    "pointed": "topological, pointed",
    "magnitude": "global magnitude",
    "taylor": "global Taylor",
    "folded": "BatchNorm folded in",
    "h0": "H0 alone",
    "cosine": "cosine",
    "correlation": "correlation",
    "bottleneck": "bottleneck",
    "landscape": "landscape",
    "betti": "Betti curve",
    "entropy": "entropy",
    "random search": "random search",
    "greedy": "greedy",
    "farthest": "farthest point",
    "functional": "topological, functional",
    "functional farthest": "farthest point, functional",
    "cover": "functional cover",
    "merge": "merge tree",
    "mass": "mass alone",
    "qr": "pivoted QR",
    "obs": "optimal brain surgeon",
    "folding": "folding",
}

Choice = TypeVar("Choice", Trial, Removal)

NAMES = _PLAIN_NAMES | {f"{key}{COMPENSATED}": f"{name}{COMPENSATED}" for key, name in _PLAIN_NAMES.items()}
"""Name of a method in `study.VARIANTS`, compensated or not -> its name in the book."""

LAYERWISE_NAMES = tuple(NAMES[name] for name in LAYERWISE)
"""The plain methods that judge a filter within its layer."""

DISTANCE = "topological distance"
"""Column of `trials` and `layer_frame`: distance between the diagrams of a layer and of its kept filters."""

CAP = 1.0
"""Largest value at which one dimension of a layer counts in the capped topological distance."""

TRIAL_COLUMNS = {
    "method": "object",
    "ratio": "float64",
    "seed": "int64",
    "test": "float64",
    "damaged": "float64",
    "dense test": "float64",
    "damage": "float64",
    "parameters": "float64",
    "flops": "float64",
    "latency": "float64",
    "batch time": "float64",
    "epoch time": "float64",
    "recovered": "bool",
    "recovery epochs": "int64",
    "recovery seconds": "float64",
    "recovery area": "float64",
    "selection seconds": "float64",
    DISTANCE: "float64",
    f"{DISTANCE}, H0 alone": "float64",
    f"{DISTANCE}, median layer": "float64",
    f"{DISTANCE}, capped": "float64",
    "removed norm": "float64",
    "lost rank": "float64",
    "epoch seconds": "float64",
    "collapsed layers": "int64",
}
"""Columns of `trials` and their types."""

MENDINGS = ("none", *MODES)
"""Columns of `removals`: how the next layers were refitted after removal."""

REMOVAL_COLUMNS = {
    "method": "object",
    "ratio": "float64",
    "seed": "int64",
    "draw": "int64",
    "dense test": "float64",
    **dict.fromkeys(MENDINGS, "float64"),
    "covering radius": "float64",
    "lost mass": "float64",
    "removed norm": "float64",
    "lost rank": "float64",
    DISTANCE: "float64",
    "selection seconds": "float64",
    "refitting seconds": "float64",
}
"""Columns of `removals` and their types."""

CLOUD_COLUMNS = {
    "seed": "int64",
    "layer": "int64",
    "space": "object",
    "median": "float64",
    "spread": "float64",
    "radius": "float64",
}
"""Columns of `cloud_frame` and their types."""

SPREAD = (0.05, 0.95)
"""The spread of the distances of a layer lies between these quantiles."""


def typed_frame(rows: list[dict], columns: dict[str, str]) -> pd.DataFrame:
    """Rows as a frame with these columns and types, also where there is no row.

    >>> typed_frame([], {"ratio": "float64"}).dtypes.to_dict()
    {'ratio': dtype('float64')}
    """
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def of_kind(records: Sequence[Record], kind: type[AnySpec]) -> list[Record[AnySpec]]:
    """The records whose spec is of one kind, such as `Dense` or `Trial`."""
    return [record for record in records if isinstance(record.spec, kind)]


def each_once(records: Sequence[Record]) -> list[Record]:
    """The records without repetition: a run that stands in the files of two profiles counts once."""
    runs = {(record.key, json.dumps(record.provenance, sort_keys=True)): record for record in records}
    return list(runs.values())


def name_of(spec: Trial | Removal) -> str:
    """Name of a method in the book."""
    return NAMES.get(variant(spec), variant(spec))


def methods_in(frame: pd.DataFrame) -> list[str]:
    """Methods of a frame, in the book's order."""
    return [name for name in NAMES.values() if name in set(frame["method"])]


def network_order(layer: str) -> list:
    """Sort key that puts layers in the order of the network; as text, "features.10" precedes "features.3".

    >>> sorted(["features.10", "features.3"], key=network_order)
    ['features.3', 'features.10']
    """
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer)]


def trials(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial, with the columns `TRIAL_COLUMNS`.

    Accuracies, damage and recovery area are in percent; parameters, FLOPs and times are shares of the dense
    network's; the topological distance is a mean over layers of H0 and H1 together.

    Args:
        records: trials and the dense networks that they pruned.

    Raises:
        FileError: the record of a trial's dense network is missing, or is of another network.
    """
    pairs = _with_dense_networks(records, Trial)
    return typed_frame([_trial_row(record, dense) for record, dense in pairs], TRIAL_COLUMNS)


def removals(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each removal without fine-tuning, with the columns `REMOVAL_COLUMNS`.

    Accuracies are those of the test set, in percent, by how the next layers were refitted; losses are means over the
    layers; `draw` is the seed of the choice.

    Args:
        records: removals and the dense networks that they pruned.

    Raises:
        FileError: as `trials`.
    """
    pairs = _with_dense_networks(records, Removal)
    return typed_frame([_removal_row(record, dense) for record, dense in pairs], REMOVAL_COLUMNS)


def removals_by_network(records: Sequence[Record]) -> pd.DataFrame:
    """`removals` with the draws of a random choice averaged: one row for each method, ratio and dense network."""
    frame = removals(records)
    return frame.groupby(["method", "ratio", "seed"], sort=False).mean().drop(columns="draw").reset_index()


def cloud_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each layer of a dense network and space, with the columns `CLOUD_COLUMNS`.

    `median` is that of the distances between its points. `spread` (between the quantiles `SPREAD`) and `radius` (the
    covering radius of a cover) are shares of it. The layers are numbered in the order of the network.
    """
    rows = []
    for record in of_kind(records, Clouds):
        orders = record.result["quantiles"]
        for index, layer in enumerate(sorted(record.result["layers"], key=network_order)):
            for space, cloud in record.result["layers"][layer].items():
                low, median, high = (cloud["distances"][orders.index(q)] for q in (SPREAD[0], 0.5, SPREAD[1]))
                rows.append(
                    {
                        "seed": record.spec.dense.seed,
                        "layer": index + 1,
                        "space": space,
                        "median": median,
                        "spread": (high - low) / median,
                        "radius": cloud["radius"] / median,
                    }
                )
    return typed_frame(rows, CLOUD_COLUMNS)


def records_by_ratio(records: Sequence[Record]) -> dict[float, list[Record]]:
    """Ratio -> the dense networks and the trials at that ratio, the smallest ratio first."""
    dense, found = of_kind(records, Dense), of_kind(records, Trial)
    ratios = sorted({trial.spec.ratio for trial in found})
    return {ratio: [*dense, *(trial for trial in found if trial.spec.ratio == ratio)] for ratio in ratios}


def dense_accuracy(records: Sequence[Record]) -> float:
    """Mean test accuracy (%) of the dense networks that were pruned, each counted once; NaN without trials."""
    return float(trials(records).drop_duplicates("seed")["dense test"].mean())


def trained_by(records: Sequence[Record]) -> dict[str, str | float]:
    """Optimizer ("Muon" or "SGD") and width of the dense networks, which have both in common; empty without any."""
    dense = [record.spec for record in of_kind(records, Dense)]
    return {"optimizer": "Muon" if dense[0].recipe.muon_rate else "SGD", "width": dense[0].width} if dense else {}


def recovery_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and epoch of fine-tuning (0: before it), test accuracy in percent."""
    rows = [
        {**_cell(record), "epoch": epoch["epoch"], "test accuracy (%)": 100 * epoch["test"]}
        for record in of_kind(records, Trial)
        for epoch in [{"epoch": 0, "test": record.result["damage"]["test"]}, *record.result["history"]]
    ]
    return typed_frame(rows, {**_CELL_COLUMNS, "epoch": "int64", "test accuracy (%)": "float64"})


def layer_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and convolution, in the order of the network.

    Columns: method, ratio, seed; layer (1 for the first); topological distance (H0 and H1 summed); kept filters;
    live channels (%) after fine-tuning; removed norm (share).
    """
    rows = []
    for record in of_kind(records, Trial):
        damage = record.result["damage"]
        for index, layer in enumerate(sorted(damage["topological"], key=network_order)):
            rows.append(
                {
                    **_cell(record),
                    "layer": index + 1,
                    DISTANCE: sum(damage["topological"][layer].values()),
                    "kept filters": len(record.result["kept"][layer]),
                    "live channels (%)": 100 * record.result["live"][index],
                    "removed norm": damage.get("plain", {}).get(layer, {}).get("norm", np.nan),
                }
            )
    return typed_frame(rows, _LAYER_COLUMNS)


_CELL_COLUMNS = {"method": "object", "ratio": "float64", "seed": "int64"}


_LAYER_COLUMNS = {
    **_CELL_COLUMNS,
    "layer": "int64",
    DISTANCE: "float64",
    "kept filters": "int64",
    "live channels (%)": "float64",
    "removed norm": "float64",
}


def _with_dense_networks(records: Sequence[Record], kind: type[Choice]) -> list[tuple[Record[Choice], dict]]:
    """The records of one kind, each with the result of the dense network that it pruned."""
    dense = {record.spec: record.result for record in of_kind(records, Dense)}
    pruned = of_kind(records, kind)
    for record in pruned:
        if record.spec.dense not in dense:
            raise FileError(
                f"{describe(record.spec)} has no record of its dense network: "
                "add study.dense_specs to the specs that are asked for"
            )
        _refuse_another_network(record, dense[record.spec.dense])
    return [(record, dense[record.spec.dense]) for record in pruned]


def _removal_row(record: Record[Removal], dense: dict) -> dict:
    accuracy, layers = record.result["accuracy"], record.result["layers"]
    return {
        "method": name_of(record.spec),
        "ratio": record.spec.ratio,
        "seed": record.spec.dense.seed,
        "draw": record.spec.seed,
        "dense test": 100 * dense["test"],
        **{mending: 100 * accuracy[mending]["test"] for mending in MENDINGS},
        "covering radius": _layer_mean(layers, "radius"),
        "lost mass": _layer_mean(layers, "cost"),
        "removed norm": _layer_mean(layers, "norm"),
        "lost rank": _layer_mean(layers, "rank"),
        DISTANCE: _layer_mean(layers, "weights"),
        "selection seconds": record.result["selection_seconds"],
        "refitting seconds": accuracy["convolution"]["seconds"],
    }


def _cell(record: Record[Trial]) -> dict:
    return {"method": name_of(record.spec), "ratio": record.spec.ratio, "seed": record.spec.seed}


def _trial_row(record: Record[Trial], dense: dict) -> dict:
    result = record.result
    last = result["history"][-1] if result["history"] else result["damage"]
    return {
        **_cell(record),
        "test": 100 * last["test"],
        "damaged": 100 * result["damage"]["test"],
        "dense test": 100 * dense["test"],
        "damage": 100 * (dense["validation"] - result["damage"]["validation"]),
        "parameters": result["cost"]["parameters"] / dense["cost"]["parameters"],
        "flops": result["cost"]["flops"] / dense["cost"]["flops"],
        "latency": result["cost"]["latency_ms"] / dense["cost"]["latency_ms"],
        "batch time": dense["cost"]["images_per_second"] / result["cost"]["images_per_second"],
        "epoch time": _epoch_seconds(result) / _epoch_seconds(dense),
        "recovered": result["recovery"]["reached"],
        "recovery epochs": result["recovery"]["epochs"],
        "recovery seconds": result["recovery"]["seconds"],
        "recovery area": 100 * result["recovery"]["area"],
        "selection seconds": result["selection_seconds"],
        **_distances(result["damage"]["topological"]),
        "removed norm": _layer_mean(result["damage"].get("plain"), "norm"),
        "lost rank": _layer_mean(result["damage"].get("plain"), "rank"),
        "epoch seconds": _epoch_seconds(result),
        "collapsed layers": sum(share == 0 for share in result["live"]),
    }


def _refuse_another_network(record: Record, dense: dict) -> None:
    """Compare the digests of the weights; older trials lack them, so compare their validation accuracies."""
    digests = record.result.get("network"), dense.get("network")
    goal = record.result.get("recovery", {}).get("goal", np.nan)
    same = digests[0] == digests[1] if all(digests) else not abs(goal + RECOVERY_MARGIN - dense["validation"]) > 1e-9
    if not same:
        raise FileError(
            f"{describe(record.spec)} pruned another dense network than the one on record: "
            "run both again with force, so that every comparison is paired"
        )


def _distances(layers: dict[str, dict[str, float]]) -> dict[str, float]:
    """The topological distance of a trial in four ways.

    Dimension 1 of a layer is divided by a total persistence that can vanish, so that one layer can decide the mean.
    The median layer, H0 alone and the capped mean, where no dimension of a layer counts more than `CAP`, are robust.
    """
    both = [sum(layer.values()) for layer in layers.values()]
    return {
        DISTANCE: float(np.mean(both)),
        f"{DISTANCE}, H0 alone": float(np.mean([layer["0"] for layer in layers.values()])),
        f"{DISTANCE}, median layer": float(np.median(both)),
        f"{DISTANCE}, capped": float(
            np.mean([sum(min(value, CAP) for value in layer.values()) for layer in layers.values()])
        ),
    }


def _layer_mean(layers: dict | None, measure: str) -> float:
    """Mean over layers; NaN if the record is older than the measure."""
    return float(np.mean([layer[measure] for layer in layers.values()])) if layers else float("nan")


def _epoch_seconds(result: dict) -> float:
    """Median seconds of a training epoch; NaN without epochs."""
    seconds = [epoch["seconds"] for epoch in result["history"]]
    return float(np.median(seconds)) if seconds else float("nan")
