"""Tables and numbers from records, nothing else.

A value after ± is the standard error over seeds; with one seed there is none.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

import numpy as np
import pandas as pd
import torch
from scipy import stats

from topoprune.data import CALIBRATION
from topoprune.files import FileError
from topoprune.models import build
from topoprune.network import couplings
from topoprune.study.execution import WITHIN
from topoprune.study.profiles import LAYERWISE, Profile, describe, trial_specs, variant
from topoprune.study.trial import Dense, Record, Trial, spec_key
from topoprune.topological import points

NAMES = {
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
}
"""What the book calls the methods of `study.VARIANTS`."""


LAYERWISE_NAMES = tuple(NAMES[name] for name in LAYERWISE)


_NNI = [  # ratio's parameters and FLOPs removed, then L1, L2, FPGM
    (50.4, 50.5, 93.41, 93.37, 93.59),
    (63.3, 63.5, 93.17, 93.08, 93.02),
    (74.5, 74.8, 93.09, 92.85, 92.33),
    (83.5, 83.6, 92.29, 92.08, 92.20),
    (90.5, 90.6, 90.31, 90.90, 90.22),
    (95.6, 95.8, 87.56, 86.98, 87.94),
]


PUBLISHED = pd.DataFrame(
    [
        (f"{method} (NNI's comparison, v2.0)", 92.98, row[2 + i], row[0], row[1])
        for row in _NNI
        for i, method in enumerate(("L1", "L2", "FPGM"))
    ]
    + [
        ("L1 (Li et al., 2017)", 93.25, 93.40, 64.0, 34.3),
        ("FPGM (He et al., 2019)", 93.58, 94.00, np.nan, 34.2),
        ("HRank (Lin et al., 2020)", 93.96, 92.34, 82.0, 65.3),
        ("CHIP (Sui et al., 2021)", 93.96, 93.86, 81.6, 58.1),
        ("CHIP (Sui et al., 2021)", 93.96, 93.72, 83.3, 66.6),
        ("CHIP (Sui et al., 2021)", 93.96, 93.18, 87.3, 78.6),
        ("CORING (Pham et al., 2024)", 93.96, 94.42, 81.6, 58.1),
        ("CORING (Pham et al., 2024)", 93.96, 94.20, 83.3, 66.6),
        ("CORING (Pham et al., 2024)", 93.96, 93.83, 87.3, 78.6),
    ],
    columns=["method", "dense", "pruned", "parameters removed", "FLOPs removed"],
)
"""Published test accuracies (%) of VGG-16 on CIFAR-10 after fine-tuning (longer than ours), from
NNI's `comparison_result_vgg16.json` and the papers."""


def name_of(trial: Trial) -> str:
    """What the book calls the method of a trial."""
    return NAMES.get(variant(trial), variant(trial))


def trials(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial; accuracies in percent, costs as shares of the dense network's.

    Raises:
        FileError: the record of a trial's dense network is missing, or is of another network.
    """
    dense = {record.spec: record.result for record in records if isinstance(record.spec, Dense)}
    for record in of_kind(records, Trial):
        if record.spec.dense not in dense:
            raise FileError(
                f"{describe(record.spec)} has no record of its dense network: add "
                "`study.dense_specs` to what is asked for"
            )
    rows = [_row(record, dense[record.spec.dense]) for record in records if isinstance(record.spec, Trial)]
    return pd.DataFrame(rows)


def recovery_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and epoch (0: before fine-tuning), test accuracy in percent."""
    rows = []
    for record in of_kind(records, Trial):
        curve = [(0, record.result["damage"]["test"])]
        curve += [(epoch["epoch"], epoch["test"]) for epoch in record.result["history"]]
        rows += [
            {
                "method": name_of(record.spec),
                "ratio": record.spec.ratio,
                "seed": record.spec.seed,
                "epoch": epoch,
                "test accuracy (%)": 100 * value,
            }
            for epoch, value in curve
        ]
    return pd.DataFrame(rows)


def layer_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and convolution, in the network's order.

    Columns: method, ratio, seed, layer (1 for the first), topological distance (H0 and H1 summed),
    kept filters, live channels (%) after fine-tuning, removed norm (share).
    """
    rows = []
    for record in of_kind(records, Trial):
        damage = record.result["damage"]
        for index, layer in enumerate(sorted(damage["topological"], key=in_network)):
            rows.append(
                {
                    "method": name_of(record.spec),
                    "ratio": record.spec.ratio,
                    "seed": record.spec.seed,
                    "layer": index + 1,
                    "topological distance": sum(damage["topological"][layer].values()),
                    "kept filters": len(record.result["kept"][layer]),
                    "live channels (%)": 100 * record.result["live"][index],
                    "removed norm": damage.get("plain", {}).get(layer, {}).get("norm", np.nan),
                }
            )
    return pd.DataFrame(rows)


def in_network(layer: str) -> list:
    """Sorts names of layers as the network has them, where JSON has "features.10" before "features.3"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer)]


def published_table() -> pd.DataFrame:
    """Results that others published for VGG-16 on CIFAR-10."""
    return PUBLISHED.rename(
        columns={
            "dense": "dense (%)",
            "pruned": "pruned (%)",
            "parameters removed": "parameters removed (%)",
            "FLOPs removed": "FLOPs removed (%)",
        }
    )


def dense_table(records: Sequence[Record]) -> pd.DataFrame:
    """The dense networks: one row a seed."""
    return pd.DataFrame(
        [
            {
                "data set": record.spec.dataset,
                "seed": record.spec.seed,
                "epochs": record.spec.recipe.epochs,
                "cutout": record.spec.recipe.cutout,
                "test accuracy (%)": 100 * record.result["test"],
                "validation accuracy (%)": 100 * record.result["validation"],
                "parameters (M)": record.result["cost"]["parameters"] / 1e6,
                "multiply-adds (M)": record.result["cost"]["flops"] / 1e6,
                "training (min)": sum(e["seconds"] for e in record.result["history"]) / 60,
                "device": record.provenance["device"],
            }
            for record in of_kind(records, Dense)
        ]
    )


def mean_accuracy(records: Sequence[Record]) -> str:
    """Mean test accuracy of dense networks, in words."""
    table = dense_table(records)
    if table.empty:
        return "not part of this profile"
    counted = "one network" if len(table) == 1 else f"mean of {len(table)} networks"
    return f"{table['test accuracy (%)'].mean():.2f} % on the test images ({counted})"


def recipe_table(profile: Profile) -> pd.DataFrame:
    """The settings of dense training and fine-tuning, side by side."""
    dense, recovery = asdict(profile.dense), asdict(profile.recovery)
    return pd.DataFrame(
        [
            {
                "setting": name.replace("_", " "),
                "dense training": f"{dense[name]:g}",
                "fine-tuning": f"{recovery[name]:g}",
            }
            for name in dense
        ]
    )


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """The thesis's table: accuracy, parameters, FLOPs and recovery time by method and ratio.

    Means over seeds, with the standard error where there are several. Recovery time counts a run
    that never recovered with all its fine-tuning, and says how many recovered.
    """
    frame = trials(records)
    rows = []
    for (ratio, method), group in frame.groupby(["ratio", "method"], sort=True):
        rows.append(
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
        )
    table = pd.DataFrame(rows)
    order = table["method"].map(list(NAMES.values()).index)
    return table.assign(order=order).sort_values(["ratio", "order"]).drop(columns="order")


def method_table(records: Sequence[Record], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of the thesis's table."""
    return comparison_table(records)[list(columns)]


def cost_table(records: Sequence[Record]) -> pd.DataFrame:
    """What remains by ratio where every layer loses its share: size, FLOPs and measured times.

    In percent of the dense network.
    """
    columns = ["parameters", "flops", "latency", "batch time", "epoch time"]
    frame = trials(records)
    layerwise = frame[frame["method"].isin(LAYERWISE_NAMES)]
    table = 100 * layerwise.groupby("ratio")[columns].median()
    table.columns = ["parameters (%)", "FLOPs (%)", "latency, batch 1 (%)", "time, batch 256 (%)", "training epoch (%)"]
    table.index = table.index.map("{:g}".format)
    return table.round(1).reset_index(names="ratio")


def damage_table(records: Sequence[Record]) -> pd.DataFrame:
    """Topological damage (mean over layers, by dimension) and collapse, by ratio and method.

    The last column is the smallest share of live channels that a layer has after fine-tuning; 0 is
    a collapsed layer.
    """
    rows = []
    for record in of_kind(records, Trial):
        layers = record.result["damage"]["topological"].values()
        rows.append(
            {
                "ratio": f"{record.spec.ratio:g}",
                "method": name_of(record.spec),
                **{f"H{d}": float(np.mean([layer[d] for layer in layers])) for d in next(iter(layers))},
                "live channels, least (%)": 100 * min(record.result["live"]),
            }
        )
    return pd.DataFrame(rows).groupby(["ratio", "method"], sort=True).mean().reset_index()


def optimizers_table(records: Sequence[Record], contrast: Sequence[Record]) -> pd.DataFrame:
    """What both have on record, side by side by the optimiser that trained the dense networks.

    A side's trial counts if the other side has it too: same ratio, method and seed.
    """
    columns = {"dense test": "dense (%)", "test": "fine-tuned (%)", "removed norm": "norm removed (%)"}
    cell = ["ratio", "method"]
    frames = [trials(side) for side in (records, contrast)]
    if any(frame.empty for frame in frames):
        return pd.DataFrame(columns=cell)
    both = frames[0][[*cell, "seed"]].merge(frames[1][[*cell, "seed"]])
    sides = []
    for side, frame in zip((records, contrast), frames, strict=True):
        frame["removed norm"] *= 100
        grouped = frame.merge(both).groupby(cell, sort=False)
        means = grouped[list(columns)].mean().rename(columns=columns)
        means.insert(0, "networks", grouped.size())
        sides.append(means.add_prefix(f"{_optimizer(side)}: "))
    return sides[0].join(sides[1], how="inner").reset_index()


def _optimizer(records: Sequence[Record]) -> str:
    recipe = of_kind(records, Dense)[0].spec.recipe
    return "Muon" if recipe.muon_rate else "SGD"


def search_table(records: Sequence[Record]) -> pd.DataFrame:
    """What the search of a whole network took: generations, evaluations, seconds, gain."""
    rows = []
    for record in of_kind(records, Trial):
        histories = [h for h in record.result["searches"].values() if h]
        first, last = ([h["best"][i] for h in histories] for i in (0, -1))
        rows.append(
            {
                "ratio": f"{record.spec.ratio:g}",
                "layers": len(histories),
                "generations, mean": np.mean([h["generation"][-1] for h in histories]),
                "subsets evaluated": sum(h["evaluations"][-1] for h in histories),
                "seconds": record.result["selection_seconds"],
                "fitness, first population": np.mean(first),
                "fitness, found": np.mean(last),
            }
        )
    whole = {"layers": int, "subsets evaluated": int}
    return pd.DataFrame(rows).groupby("ratio").mean().astype(whole).reset_index()


def search_by_layer(records: Sequence[Record]) -> pd.DataFrame:
    """What the search takes in each layer, mean over networks and ratios."""
    rows = [
        {"layer": layer, "subsets evaluated": steps["evaluations"][-1], "seconds": sum(steps["seconds"])}
        for record in of_kind(records, Trial)
        for layer, steps in record.result["searches"].items()
        if steps
    ]
    table = pd.DataFrame(rows).groupby("layer").mean().astype({"subsets evaluated": int})
    return table.loc[sorted(table.index, key=in_network)].reset_index()


def selection_table(records: Sequence[Record]) -> pd.DataFrame:
    """Seconds of selection beside those of one epoch of fine-tuning, and what it computes.

    Medians over networks by ratio and method; for the last two columns see `_multiply_adds` and `_distances`.
    """
    columns = {
        "selection seconds": "selection (s)",
        "epoch seconds": "epoch of fine-tuning (s)",
        "multiply-adds": "multiply-adds (G)",
        "distances": "distances compared (G)",
    }
    forward = {record.spec: record.result["cost"]["flops"] for record in of_kind(records, Dense)}
    made = of_kind(records, Trial)
    adds = [_multiply_adds(record.spec, forward[record.spec.dense]) / 1e9 for record in made]
    distances = [_distances(record) / 1e9 for record in made]
    frame = trials(records).assign(**{"multiply-adds": adds, "distances": distances})
    table = frame.groupby(["ratio", "method"])[list(columns)].median()
    table = table.rename(columns=columns).reset_index()
    table.insert(4, "selection (epochs)", table.iloc[:, 2] / table.iloc[:, 3])
    return table


def _multiply_adds(trial: Trial, forward: int) -> int:
    """Multiply-adds of a selection, from the shapes of the network; `forward` are those of one image.

    With n filters of d weights in a layer, norms take n d, the distances between all filters n^2 d. The
    global magnitude takes the norms of a layer's filters and of what reads them in the next. Activations
    and gradients take a pass of the calibration batch, gradients one forward and two backward.
    """
    batch = CALIBRATION * forward
    space, more = trial.options.get("space", "weights"), int(trial.options.get("pointed", False))
    shapes = _shapes(trial.dense.architecture, trial.dense.width, space)
    norms = sum(n * d for n, d in shapes)
    pairs = sum((n + more) ** 2 * d for n, d in shapes)
    return {
        "random": 0,
        "l1": norms,
        "l2": norms,
        "fpgm": pairs,
        "magnitude": 2 * norms,
        "taylor": 3 * batch + 2 * norms,
        "topological": pairs + (batch if space == "activations" else 0),
    }[trial.method]


def _distances(record: Record) -> int:
    """Distances among the kept filters of all subsets that a search judged: what their trees compare."""
    kept, searches = record.result["kept"], record.result["searches"]
    return sum(
        steps["evaluations"][-1] * len(kept[layer]) * (len(kept[layer]) - 1) // 2
        for layer, steps in searches.items()
        if steps
    )


@cache
def _shapes(architecture: str, width: float, space: str) -> tuple[tuple[int, int], ...]:
    """Filters of each coupling, and numbers that make up a filter's point."""
    images = 2
    with torch.random.fork_rng(devices=[]):
        model, example = build(architecture, width=width).eval(), torch.randn(images, 3, 32, 32)
    clouds = points(model, example, couplings(model, example), space)
    more = CALIBRATION // images if space == "activations" else 1
    return tuple((len(cloud), cloud.shape[1] * more) for cloud in clouds)


def t_interval(values: np.ndarray | pd.Series, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def shared_choices(portrait: Record) -> pd.DataFrame:
    """Share of kept filters (%) that two methods have in common in the portrait's layer."""
    kept = {NAMES[m]: set(portrait.result["kept"][m]) for m in portrait.spec.methods}
    table = (
        pd.DataFrame({a: {b: 100 * len(kept[a] & kept[b]) / len(kept[a]) for b in kept} for a in kept})
        .round(0)
        .astype(int)
    )
    return table.reset_index(names="method")


def coverage(profile: str, records: Sequence[Record], seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """How many seeds of the profile's grid are on record: one row a method, one column a ratio."""
    done = {record.key for record in records}
    frame = pd.DataFrame(
        [
            {"method": name_of(spec), "ratio": f"{spec.ratio:g}", "done": spec_key(spec) in done}
            for spec in trial_specs(profile, seeds)
        ]
    )
    counts = frame.groupby(["method", "ratio"], sort=False)["done"]
    cells = counts.sum().astype(str) + " of " + counts.size().astype(str)
    table = cells.unstack("ratio")
    return table[sorted(table.columns, key=float)].reset_index()


def how_it_was_run(records: Sequence[Record]) -> pd.DataFrame:
    """Where, when and for how long the records were made."""
    frame = pd.DataFrame(
        [
            {
                "kind": type(record.spec).__name__,
                "device": record.provenance["device"],
                "date": record.provenance["date"],
                "commit": record.provenance["commit"],
                "Python": record.provenance["python"],
                "torch": record.provenance["versions"]["torch"],
                "seconds": record.provenance["seconds"],
            }
            for record in records
        ]
    )
    keys = [column for column in frame.columns if column != "seconds"]
    table = frame.groupby(keys).agg(records=("seconds", "size"), minutes=("seconds", "sum"))
    table["minutes"] = (table["minutes"] / 60).round(1)
    return table.reset_index()


def versions(records: Sequence[Record]) -> pd.DataFrame:
    """Library versions that the records were made with."""
    found: dict[str, set] = {}
    for record in records:
        for name, version in record.provenance["versions"].items():
            found.setdefault(name, set()).add(version)
    return pd.DataFrame([{"library": name, "versions": ", ".join(sorted(known))} for name, known in found.items()])


def dense_accuracy(records: Sequence[Record]) -> float:
    """Mean test accuracy (%) of the dense networks that were pruned, each counted once."""
    return float(trials(records).drop_duplicates("seed")["dense test"].mean())


def of_kind(records: Sequence[Record], kind: type) -> list[Record]:
    """The records whose spec is of one kind."""
    return [record for record in records if isinstance(record.spec, kind)]


def _row(record: Record, dense: dict) -> dict:
    result, spec = record.result, record.spec
    if abs(result["recovery"]["goal"] + WITHIN - dense["validation"]) > 1e-9:
        raise FileError(
            f"{describe(spec)} pruned another dense network than the one on record: "
            "run both again with force, so that every comparison is paired"
        )
    last = result["history"][-1] if result["history"] else result["damage"]
    layers = result["damage"]["topological"].values()
    return {
        "method": name_of(spec),
        "ratio": spec.ratio,
        "seed": spec.seed,
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
        "topological distance": float(np.mean([sum(layer.values()) for layer in layers])),
        "topological distance, H0 alone": float(np.mean([layer["0"] for layer in layers])),
        "topological distance, median layer": float(np.median([sum(layer.values()) for layer in layers])),
        "removed norm": _layer_mean(result["damage"].get("plain"), "norm"),
        "lost rank": _layer_mean(result["damage"].get("plain"), "rank"),
        "epoch seconds": _epoch_seconds(result),
        "collapsed layers": sum(share == 0 for share in result["live"]),
    }


def _layer_mean(layers: dict | None, what: str) -> float:
    """Mean over layers; NaN where a record is older than the measure."""
    return float(np.mean([layer[what] for layer in layers.values()])) if layers else float("nan")


def _epoch_seconds(result: dict) -> float:
    """Median seconds of an epoch of training; NaN without any."""
    seconds = [epoch["seconds"] for epoch in result["history"]]
    return float(np.median(seconds)) if seconds else float("nan")


def _mean(values: pd.Series, digits: int) -> str:
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.sem():.{digits}f}"
