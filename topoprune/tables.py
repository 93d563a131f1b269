"""Tables and numbers from records, nothing else.

A value after ± is the standard error over seeds; with one seed there is none.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, nan
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from topoprune.store import StoreError
from topoprune.study import LAYERWISE, Profile, describe, trial_specs, variant
from topoprune.trial import WITHIN, Dense, Record, Trial, spec_key

NAMES = {
    "random": "random", "l1": "L1", "l2": "L2", "fpgm": "FPGM", "topological": "topological",
    "activations": "topological, activations", "pointed": "topological, pointed",
    "magnitude": "global magnitude", "taylor": "global Taylor",
    "folded": "BatchNorm folded in", "h0": "H0 alone", "cosine": "cosine",
    "correlation": "correlation", "bottleneck": "bottleneck", "landscape": "landscape",
    "betti": "Betti curve", "entropy": "entropy", "random search": "random search",
    "greedy": "greedy", "farthest": "farthest point",
}
"""What the book calls the methods of `study.VARIANTS`."""

LAYERWISE_NAMES = tuple(NAMES[name] for name in LAYERWISE)
_NNI = [  # ratio's parameters and FLOPs removed, then L1, L2, FPGM
    (50.4, 50.5, 93.41, 93.37, 93.59), (63.3, 63.5, 93.17, 93.08, 93.02),
    (74.5, 74.8, 93.09, 92.85, 92.33), (83.5, 83.6, 92.29, 92.08, 92.20),
    (90.5, 90.6, 90.31, 90.90, 90.22), (95.6, 95.8, 87.56, 86.98, 87.94)]
PUBLISHED = pd.DataFrame(
    [(f"{method} (NNI's comparison, v2.0)", 92.98, row[2 + i], row[0], row[1])
     for row in _NNI for i, method in enumerate(("L1", "L2", "FPGM"))]
    + [("L1 (Li et al., 2017)", 93.25, 93.40, 64.0, 34.3),
       ("FPGM (He et al., 2019)", 93.58, 94.00, np.nan, 34.2),
       ("HRank (Lin et al., 2020)", 93.96, 92.34, 82.0, 65.3),
       ("CHIP (Sui et al., 2021)", 93.96, 93.86, 81.6, 58.1),
       ("CHIP (Sui et al., 2021)", 93.96, 93.72, 83.3, 66.6),
       ("CHIP (Sui et al., 2021)", 93.96, 93.18, 87.3, 78.6)],
    columns=["method", "dense", "pruned", "parameters removed", "FLOPs removed"])
"""Published test accuracies (%) of VGG-16 on CIFAR-10 after fine-tuning (longer than ours), from
NNI's `comparison_result_vgg16.json` and the papers."""

BENCHMARK = Path(__file__).parent.parent / "book" / "results" / "bench-fitness.json"
TORTURE = BENCHMARK.with_name("torture.json")


def name_of(trial: Trial) -> str:
    """What the book calls the method of a trial."""
    return NAMES.get(variant(trial), variant(trial))


def trials(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial; accuracies in percent, costs as shares of the dense network's.

    Raises:
        StoreError: the record of a trial's dense network is missing, or is of another network.
    """
    dense = {record.spec: record.result for record in records if isinstance(record.spec, Dense)}
    for record in of_kind(records, Trial):
        if record.spec.dense not in dense:
            raise StoreError(f"{describe(record.spec)} has no record of its dense network: add "
                             "`study.dense_specs` to what is asked for")
    rows = [_row(record, dense[record.spec.dense]) for record in records
            if isinstance(record.spec, Trial)]
    return pd.DataFrame(rows)


def recovery_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and epoch (0: before fine-tuning), test accuracy in percent."""
    rows = []
    for record in of_kind(records, Trial):
        curve = [(0, record.result["damage"]["test"])]
        curve += [(epoch["epoch"], epoch["test"]) for epoch in record.result["history"]]
        rows += [{"method": name_of(record.spec), "ratio": record.spec.ratio,
                  "seed": record.spec.seed, "epoch": epoch, "test accuracy (%)": 100 * value}
                 for epoch, value in curve]
    return pd.DataFrame(rows)


def layer_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and convolution, in the network's order.

    Columns: method, ratio, seed, layer (1 for the first), topological distance (H0 and H1 summed),
    live channels (%) after fine-tuning, kept filters (%), removed norm (share).
    """
    rows = []
    for record in of_kind(records, Trial):
        damage = record.result["damage"]
        for index, (layer, apart) in enumerate(damage["topological"].items()):
            rows.append({"method": name_of(record.spec), "ratio": record.spec.ratio,
                         "seed": record.spec.seed, "layer": index + 1,
                         "topological distance": sum(apart.values()),
                         "kept filters": len(record.result["kept"][layer]),
                         "live channels (%)": 100 * record.result["live"][index],
                         "removed norm": damage.get("plain", {}).get(layer, {}).get("norm", np.nan)})
    return pd.DataFrame(rows)


def published_table() -> pd.DataFrame:
    """Results that others published for VGG-16 on CIFAR-10."""
    return PUBLISHED.rename(columns={"dense": "dense (%)", "pruned": "pruned (%)",
                                     "parameters removed": "parameters removed (%)",
                                     "FLOPs removed": "FLOPs removed (%)"})


def dense_table(records: Sequence[Record]) -> pd.DataFrame:
    """The dense networks: one row a seed."""
    return pd.DataFrame([{
        "seed": record.spec.seed, "epochs": record.spec.recipe.epochs,
        "test accuracy (%)": 100 * record.result["test"],
        "validation accuracy (%)": 100 * record.result["validation"],
        "parameters (M)": record.result["cost"]["parameters"] / 1e6,
        "multiply-adds (M)": record.result["cost"]["flops"] / 1e6,
        "training (min)": sum(e["seconds"] for e in record.result["history"]) / 60,
    } for record in of_kind(records, Dense)])


def recipe_table(profile: Profile) -> pd.DataFrame:
    """The settings of dense training and fine-tuning, side by side."""
    dense, recovery = asdict(profile.dense), asdict(profile.recovery)
    return pd.DataFrame([{"setting": name.replace("_", " "), "dense training": f"{dense[name]:g}",
                          "fine-tuning": f"{recovery[name]:g}"} for name in dense])


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """The thesis's table: accuracy, parameters, FLOPs and recovery time by method and ratio.

    Means over seeds, with the standard error where there are several. Recovery time counts a run
    that never recovered with all its fine-tuning, and says how many recovered.
    """
    frame = trials(records)
    rows = []
    for (ratio, method), group in frame.groupby(["ratio", "method"], sort=True):
        rows.append({
            "ratio": f"{ratio:g}", "method": method,
            "test accuracy (%)": _mean(group["test"], 2),
            "before fine-tuning (%)": _mean(group["damaged"], 2),
            "parameters (%)": f"{100 * group['parameters'].mean():.1f}",
            "FLOPs (%)": f"{100 * group['flops'].mean():.1f}",
            "recovery (epochs)": _mean(group["recovery epochs"], 1),
            "recovery (s)": _mean(group["recovery seconds"], 0),
            "recovery area (%)": _mean(group["recovery area"], 1),
            "recovered": f"{int(group['recovered'].sum())} of {len(group)}",
            "selection (s)": _mean(group["selection seconds"], 1),
        })
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
    table.columns = ["parameters (%)", "FLOPs (%)", "latency, batch 1 (%)", "time, batch 256 (%)",
                     "training epoch (%)"]
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
        rows.append({"ratio": f"{record.spec.ratio:g}", "method": name_of(record.spec),
                     **{f"H{d}": float(np.mean([layer[d] for layer in layers]))
                        for d in next(iter(layers))},
                     "live channels, least (%)": 100 * min(record.result["live"])})
    return pd.DataFrame(rows).groupby(["ratio", "method"], sort=True).mean().reset_index()


def search_table(records: Sequence[Record]) -> pd.DataFrame:
    """What the search of a whole network took: generations, evaluations, seconds, gain."""
    rows = []
    for record in of_kind(records, Trial):
        histories = [h for h in record.result["searches"].values() if h]
        first, last = ([h[i]["best"] for h in histories] for i in (0, -1))
        rows.append({"ratio": f"{record.spec.ratio:g}",
                     "layers": len(histories),
                     "generations, mean": np.mean([h[-1]["generation"] for h in histories]),
                     "subsets evaluated": sum(h[-1]["evaluations"] for h in histories),
                     "seconds": record.result["selection_seconds"],
                     "fitness, first population": np.mean(first),
                     "fitness, found": np.mean(last)})
    whole = {"layers": int, "subsets evaluated": int}
    return pd.DataFrame(rows).groupby("ratio").mean().astype(whole).reset_index()


def differences(records: Sequence[Record]) -> pd.DataFrame:
    """Paired differences of test accuracy (points): topological minus rival, by ratio.

    Columns: ratio, rival, seeds, difference, low, high (95 % t-interval over the seeds' paired
    differences; NaN with fewer than two seeds).
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="test")
    rows = []
    for rival in (name for name in NAMES.values() if name in wide and name != "topological"):
        for ratio, pairs in (wide["topological"] - wide[rival]).dropna().groupby(level="ratio"):
            low, high = t_interval(pairs.to_numpy())
            rows.append({"ratio": ratio, "rival": rival, "seeds": len(pairs),
                         "difference": pairs.mean(), "low": low, "high": high})
    return pd.DataFrame(rows).sort_values(["ratio", "rival"], ignore_index=True)


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def difference_table(records: Sequence[Record]) -> pd.DataFrame:
    """The paired differences as text."""
    frame = differences(records)
    known = frame["low"].notna()
    interval = [f"{low:+.2f} to {high:+.2f}" if ok else "one seed"
                for low, high, ok in zip(frame["low"], frame["high"], known, strict=True)]
    return pd.DataFrame({"ratio": frame["ratio"].map("{:g}".format), "rival": frame["rival"],
                         "seeds": frame["seeds"],
                         "difference (points)": frame["difference"].map("{:+.2f}".format),
                         "95 % interval": interval})


def shared_choices(portrait: Record) -> pd.DataFrame:
    """Share of kept filters (%) that two methods have in common in the portrait's layer."""
    kept = {NAMES[m]: set(portrait.result["kept"][m]) for m in portrait.spec.methods}
    table = pd.DataFrame({a: {b: 100 * len(kept[a] & kept[b]) / len(kept[a]) for b in kept}
                          for a in kept}).round(0).astype(int)
    return table.reset_index(names="method")


def coverage(profile: str, records: Sequence[Record],
             seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """How many seeds of the profile's grid are on record: one row a method, one column a ratio."""
    done = {record.key for record in records}
    frame = pd.DataFrame([{"method": name_of(spec), "ratio": f"{spec.ratio:g}",
                           "done": spec_key(spec) in done}
                          for spec in trial_specs(profile, seeds)])
    counts = frame.groupby(["method", "ratio"], sort=False)["done"]
    cells = counts.sum().astype(str) + " of " + counts.size().astype(str)
    table = cells.unstack("ratio")
    return table[sorted(table.columns, key=float)].reset_index()


def how_it_was_run(records: Sequence[Record]) -> pd.DataFrame:
    """Where, when and for how long the records were made."""
    frame = pd.DataFrame([{
        "kind": type(record.spec).__name__, "device": record.provenance["device"],
        "date": record.provenance["date"], "commit": record.provenance["commit"],
        "Python": record.provenance["python"], "torch": record.provenance["versions"]["torch"],
        "seconds": record.provenance["seconds"],
    } for record in records])
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
    return pd.DataFrame([{"library": name, "versions": ", ".join(sorted(known))}
                         for name, known in found.items()])


def benchmark(path: Path = BENCHMARK) -> dict:
    """A measurement that `python -m topoprune.bench` wrote; by default the committed one."""
    return json.loads(path.read_text())


def bench_evaluations(measured: dict) -> pd.DataFrame:
    """The reference beside the fast ways."""
    table = pd.DataFrame(measured["evaluations"]).rename(columns={"ms": "ms an evaluation"})
    difference = "largest relative difference"
    return table.assign(**{difference: table[difference].map("{:.1e}".format)})


def bench_engines(measured: dict) -> pd.DataFrame:
    """The ways tried in dimension 1."""
    return pd.DataFrame(measured["engines"])


def bench_network(measured: dict) -> pd.DataFrame:
    """One row a layer, the searches in dimension 0 and in both side by side."""
    rows = pd.DataFrame(measured["network"])
    rows["layer"] = rows["layer"].map(lambda x: x if x == "all" else str(x + 1))
    columns = ["first best", "best", "evaluations", "seconds"]
    wide = rows.pivot(index=["layer", "n"], columns="fitness", values=columns)
    wide = wide.astype({c: int for c in wide.columns if c[0] == "evaluations"})
    wide.columns = [f"{field}, {fitness}" for field, fitness in wide.columns]
    order = rows["layer"].drop_duplicates()
    return wide.reset_index().set_index("layer").loc[order].reset_index()


def bench_wide(measured: dict) -> pd.DataFrame:
    """The layer of many neurons."""
    return pd.DataFrame(measured["wide"])[["fitness", "what", "n", "evaluations", "seconds"]]


def bench_numbers(measured: dict) -> dict:
    """What the prose of the page quotes."""
    fast = {row["fitness"]: row for row in measured["evaluations"] if row["way"] == "fast"}
    tight = [row for row in measured["evaluations"] if row["way"].endswith("1e-6")]
    total = {row["fitness"]: row for row in measured["network"] if row["layer"] == "all"}
    return {
        "ratio_h0": fast["H0"]["times giotto-tda"],
        "ratio_h1": fast["H0 + H1"]["times giotto-tda"],
        "difference": max(row["largest relative difference"] for row in tight),
        "filters": total["H0"]["n"],
        "wide": measured["wide"][0]["n"],
        "seconds_h0": total["H0"]["seconds"],
        "seconds_h1": total["H0 + H1"]["seconds"],
        "processor": measured["machine"]["processor"],
        "cores": measured["machine"]["cores"],
        "load": measured["machine"]["load before"],
        "network": measured["filters"]["network"],
        "epochs": measured["filters"]["epochs"],
    }


def show(table: pd.DataFrame, caption: str, name: str) -> None:
    """Display a table: MyST (numbered, with a caption) in the book, HTML in a notebook."""
    from IPython.display import display

    if "ratio" in table and pd.api.types.is_float_dtype(table["ratio"]):
        table = table.assign(ratio=table["ratio"].map("{:g}".format))
    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |"
            for row in table.itertuples(index=False)]
    rows = rows or ["| none |" + " |" * (len(table.columns) - 1)]
    myst = "\n".join([f":::{{table}} {caption}", f":name: {name}", "", header, rule, *rows, ":::"])
    display({"text/markdown": myst, "text/html": table.to_html(index=False)}, raw=True)


def of_kind(records: Sequence[Record], kind: type) -> list[Record]:
    """The records whose spec is of one kind."""
    return [record for record in records if isinstance(record.spec, kind)]


def _row(record: Record, dense: dict) -> dict:
    result, spec = record.result, record.spec
    if abs(result["recovery"]["goal"] + WITHIN - dense["validation"]) > 1e-9:
        raise StoreError(f"{describe(spec)} pruned another dense network than the one on record: "
                         "run both again with force, so that every comparison is paired")
    last = result["history"][-1] if result["history"] else result["damage"]
    layers = result["damage"]["topological"].values()
    return {
        "method": name_of(spec), "ratio": spec.ratio, "seed": spec.seed,
        "test": 100 * last["test"],
        "damaged": 100 * result["damage"]["test"], "dense test": 100 * dense["test"],
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
        "removed norm": _layer_mean(result["damage"].get("plain"), "norm"),
        "lost rank": _layer_mean(result["damage"].get("plain"), "rank"),
        "dense epoch seconds": _epoch_seconds(dense),
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


def _cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


TRAINING = BENCHMARK.with_name("bench-training.json")
"""The committed run of `python -m topoprune.bench_training`; `benchmark(TRAINING)` reads it."""


@dataclass(frozen=True)
class Campaign:
    """A study of ImageNet's size, which nobody here has run: every field is an assumption.

    Attributes:
        images: of the training split.
        multiply_adds: of VGG-16 for one image of 224 pixels.
        networks: dense networks that are trained, one a seed.
        dense_epochs: of training each of them.
        trials: prunings that are fine-tuned, over all networks.
        recovery_epochs: of fine-tuning each of them.
        devices: GPUs; each trains one network or trial at a time.
        peak: floating-point operations a second of one GPU on bfloat16 matrices (an H100's or H200's
            data sheet, without sparsity).
        share: of that peak, which training reaches.
    """

    images: int = 1_281_167
    multiply_adds: float = 15.5e9
    networks: int = 3
    dense_epochs: int = 90
    trials: int = 75
    recovery_epochs: int = 30
    devices: int = 64
    peak: float = 989e12
    share: float = 0.3

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}: it is a share of the GPU's peak")

    def hours(self, pruned: float) -> dict[str, float]:
        """Hours of an epoch and of the study, where a trial's epoch takes `pruned` of a dense one."""
        epoch = 6 * self.multiply_adds * self.images / (self.peak * self.share) / 3600
        dense, trial = self.dense_epochs * epoch, self.recovery_epochs * epoch * pruned
        total = self.networks * dense + self.trials * trial
        rounds = [ceil(n / self.devices) for n in (self.networks, self.trials)]
        return {"epoch": epoch, "dense": dense, "trial": trial, "total": total,
                "shared": total / self.devices, "scheduled": rounds[0] * dense + rounds[1] * trial}


def campaign_table(measured: dict, campaign: Campaign | None = None) -> pd.DataFrame:
    """The arithmetic of a study of ImageNet's size: what goes in, from where, and what comes out."""
    campaign = campaign or Campaign()
    pruned, hours = _pruned_epoch(measured), campaign.hours(_pruned_epoch(measured))
    assumed = {
        "images": f"{campaign.images:,}",
        "multiply-adds of an image": f"{campaign.multiply_adds / 1e9:g} G",
        "dense networks": f"{campaign.networks}, {campaign.dense_epochs} epochs each",
        "trials": f"{campaign.trials}, {campaign.recovery_epochs} epochs each",
        "GPUs": f"{campaign.devices}",
        "peak of a GPU": f"{campaign.peak / 1e12:g} TFLOP/s",
        "share of the peak": f"{100 * campaign.share:g} %",
    }
    computed = {
        "an epoch of a dense network, one GPU": _hours(hours["epoch"]),
        "a dense network, one GPU": _hours(hours["dense"]),
        "a trial, one GPU": _hours(hours["trial"]),
        "all, GPU hours": f"{hours['total']:,.0f}",
        "all, if every GPU were always busy": _hours(hours["shared"]),
        "all, one run a GPU at a time": _hours(hours["scheduled"]),
    }
    rows = [(name, value, "assumed") for name, value in assumed.items()]
    rows += [("a trial's epoch, of a dense one's", f"{100 * pruned:.0f} %", "measured: mean over the ratios")]
    rows += [(name, value, "computed") for name, value in computed.items()]
    return pd.DataFrame(rows, columns=["quantity", "value", "source"])


def _pruned_epoch(measured: dict) -> float:
    """Time of an epoch after removal, as a share of the dense one's; the mean over the ratios."""
    times = [1 / row["times faster, training"] for row in measured["removal"]
             if row["ratio"] and row["multiple"] == 1]
    return float(np.mean(times))


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def engine_loops(measured: dict) -> pd.DataFrame:
    """Training by the usual loop and in steps to ours, with the share of the machine's peak."""
    return pd.DataFrame([{
        "way": row["way"], "images/s": f"{row['images/s']:,.0f}",
        "lowest to highest": f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
        "times the first": f"{row['times plain']:.2f}",
        "TFLOP/s": row["TFLOP/s"], "share of its precision's peak (%)": share,
    } for row, share in zip(measured["loops"], _peak_shares(measured), strict=True)])


def _peak_shares(measured: dict) -> list[float]:
    peaks = {row["precision"]: row["TFLOP/s"] for row in measured["peaks"]}
    return [100 * row["TFLOP/s"] / peaks[row["precision"]] for row in measured["loops"]]


def engine_peaks(measured: dict) -> pd.DataFrame:
    """The rate of large matrix products, which stands for the peak."""
    return pd.DataFrame(measured["peaks"])


def engine_operations(measured: dict) -> pd.DataFrame:
    """A step's time by family of operations; what convolutions reach of the bfloat16 peak."""
    table = pd.DataFrame(measured["operations"]).astype({"TFLOP/s": float})
    peak = next(row["TFLOP/s"] for row in measured["peaks"] if row["precision"] == "bfloat16")
    return table.assign(**{"share of the peak (%)": 100 * table["TFLOP/s"] / peak})


def engine_removal(measured: dict) -> pd.DataFrame:
    """What remains and what it costs, by ratio and rounding; times and rates are medians."""
    table = pd.DataFrame(measured["removal"])
    for column in ("ratio", "multiple"):
        table[column] = table[column].map("{:g}".format)
    for column in ("training images/s", "inference images/s"):
        table[column] = table[column].map("{:,.0f}".format)
    return table.rename(columns={"multiple": "multiple of"})


def engine_growth(measured: dict) -> pd.DataFrame:
    """Time of a step and memory by width, and by the number of images held."""
    table = pd.DataFrame(measured["growth"]).astype({"peak MiB": float})
    return table.assign(images=table["images"].map("{:,}".format)).rename(columns={"images": "images held"})


def engine_processes(measured: dict) -> pd.DataFrame:
    """Training on several processes side by side."""
    table = pd.DataFrame(measured["processes"])
    return table.assign(**{"images/s": table["images/s"].map("{:,.0f}".format)})


def search_growth(fitness: dict) -> pd.DataFrame:
    """Time and memory of one evaluation of the fitness against the filters of a layer.

    Args:
        fitness: what `python -m topoprune.bench` measured (half of the filters kept).
    """
    rows = pd.DataFrame(fitness["growth"])
    rows = rows[rows["varied"] == "n"].rename(columns={"n": "filters", "ms": "ms an evaluation"})
    wide = rows.pivot(index="filters", columns="fitness", values=["ms an evaluation", "peak MiB"])
    wide.columns = [f"{field}, {name}" for field, name in wide.columns]
    return wide.astype(float).reset_index()


def engine_numbers(measured: dict) -> dict:
    """What the prose of the page on the engine quotes."""
    ours = next(row for row in measured["loops"] if row["way"].endswith("(ours)"))
    share = dict(zip((row["way"] for row in measured["loops"]), _peak_shares(measured), strict=True))
    spent = {row["family"]: row["share (%)"] for row in measured["operations"]}
    pruned = [row for row in measured["removal"] if row["multiple"] == 1]
    most = max(pruned, key=lambda row: row["ratio"])
    rounded = max((row for row in measured["removal"] if row["ratio"] == most["ratio"]),
                  key=lambda row: row["efficiency (%)"])
    held = [row for row in measured["growth"] if row["varied"] == "images"]
    hours = Campaign().hours(_pruned_epoch(measured))
    return {
        "way": ours["way"], "ours": ours["images/s"], "plain": measured["loops"][0]["images/s"],
        "ratio": ours["times plain"], "share": share[ours["way"]],
        "plain_share": _peak_shares(measured)[0],
        "convolutions": spent["convolution, forward"] + spent["convolution, backward"],
        "norm": spent["BatchNorm"], "input": spent["data and augmentation"],
        "most_ratio": most["ratio"], "most_flops": most["FLOPs (%)"],
        "most_faster": most["times faster, training"], "most_efficiency": most["efficiency (%)"],
        "most_promise": 100 / most["FLOPs (%)"], "most_inference": most["times faster, inference"],
        "best_multiple": rounded["multiple"], "best_efficiency": rounded["efficiency (%)"],
        "held": held[-1]["images"], "narrow": held[-1]["width"], "held_memory": held[-1]["peak MiB"] or nan,
        "total": hours["total"], "scheduled": hours["scheduled"], "shared": hours["shared"],
        "gigabytes": Campaign().images * 3 * 224**2 / 1e9, "devices": Campaign().devices,
        "processor": measured["machine"]["processor"], "cores": measured["machine"]["cores"],
        "load": nan if measured["machine"]["load before"] is None else measured["machine"]["load before"],
        **{name.replace(" ", "_").replace("-", "_"): value for name, value in measured["settings"].items()},
    }


def torture(path: Path = TORTURE) -> dict:
    """What `python -m topoprune.torture` wrote; by default the committed run."""
    return json.loads(path.read_text())


def torture_numbers(measured: dict) -> dict:
    """What the prose of the page quotes."""
    machine = measured["machine"]
    return {"kills": measured["kills"], "minutes": measured["seconds"] / 60, "commit": measured["commit"],
            "processor": machine["processor"], "cores": machine["cores"], "load": machine["load before"]}


def torture_phases(measured: dict) -> pd.DataFrame:
    """Where the kills of `python -m topoprune.torture` landed."""
    return pd.DataFrame(measured["phases"])


def torture_counts(measured: dict) -> pd.DataFrame:
    """What came of the kills."""
    names = {"kills": "kills that landed", "processes": "processes",
             "continued": "went on from what the disk held", "began anew": "began anew: it held nothing yet",
             "finished": "trials that came to their end", "records compared": "records compared",
             "lost": "finished epochs, selections or records that were lost", "torn": "torn files",
             "left over": "temporary files left beside a finished trial"}
    rows = [{"what": text, "count": measured[name]} for name, text in names.items()]
    return pd.DataFrame([*rows, {"what": "differences", "count": len(measured["differences"])}])


def torture_disk(measured: dict) -> pd.DataFrame:
    """What a full disk did."""
    return pd.DataFrame([{
        "file that could not be written": case["file"],
        "the error names file, cause and cure": "yes" if case["named"] else "no",
        "torn files": case["damaged"],
        "the same command went on to the same record":
            "yes" if case["continued to the same record"] else "no",
    } for case in measured["full disk"]])
