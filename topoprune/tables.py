"""Tables and numbers from records, nothing else.

A value after ± is the standard error over seeds; with one seed there is none.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from topoprune.store import StoreError
from topoprune.study import Profile, describe
from topoprune.trial import WITHIN, Dense, Record, Trial

NAMES = {"random": "random", "l1": "L1", "l2": "L2", "fpgm": "FPGM", "topological": "topological"}
BENCHMARK = Path(__file__).parent.parent / "book" / "results" / "bench-fitness.json"
TORTURE = BENCHMARK.with_name("torture.json")


def trials(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial; accuracies in percent, costs as shares of the dense network's."""
    dense = {record.spec: record.result for record in records if isinstance(record.spec, Dense)}
    rows = [_row(record, dense[record.spec.dense]) for record in records
            if isinstance(record.spec, Trial)]
    return pd.DataFrame(rows)


def recovery_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and epoch (0: before fine-tuning), test accuracy in percent."""
    rows = []
    for record in of_kind(records, Trial):
        curve = [(0, record.result["damage"]["test"])]
        curve += [(epoch["epoch"], epoch["test"]) for epoch in record.result["history"]]
        rows += [{"method": NAMES[record.spec.method], "ratio": record.spec.ratio,
                  "seed": record.spec.seed, "epoch": epoch, "test accuracy (%)": 100 * value}
                 for epoch, value in curve]
    return pd.DataFrame(rows)


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
    """What remains by ratio, in percent of the dense network: size, FLOPs and measured times."""
    columns = ["parameters", "flops", "latency", "batch time", "epoch time"]
    table = 100 * trials(records).groupby("ratio")[columns].median()
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
        rows.append({"ratio": f"{record.spec.ratio:g}", "method": NAMES[record.spec.method],
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
        for ratio, pairs in (wide["topological"] - wide[rival]).groupby(level="ratio"):
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

    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |"
            for row in table.itertuples(index=False)]
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
        "method": NAMES[spec.method], "ratio": spec.ratio, "seed": spec.seed,
        "test": 100 * last["test"],
        "damaged": 100 * result["damage"]["test"], "dense test": 100 * dense["test"],
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
    }


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
