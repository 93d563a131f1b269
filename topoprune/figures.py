"""Tables and seaborn figures from records, nothing else.

Every function takes records (or the tidy frame made of them) and returns a matplotlib figure, a
pandas table or a number. A shade or bar is the standard error over seeds; with one seed there is
none.
"""

from collections.abc import Sequence
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy import stats

from topoprune.study import Profile
from topoprune.trial import Dense, Portrait, Record, Trial

NAMES = {"random": "random", "l1": "L1", "l2": "L2", "fpgm": "FPGM", "topological": "topological"}
COLOURS = dict(zip(NAMES.values(), sns.color_palette("colorblind"), strict=False))
MARKERS = dict(zip(NAMES.values(), "osD^P", strict=True))


def style() -> None:
    """Set the look of every figure of the book: vector graphics, one palette."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "topoprune"})
    set_matplotlib_formats("svg")


def trials(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial; accuracies in percent, costs as shares of the dense network's."""
    dense = {record.spec: record.result for record in records if isinstance(record.spec, Dense)}
    rows = [_row(record, dense[record.spec.dense]) for record in records
            if isinstance(record.spec, Trial)]
    return pd.DataFrame(rows)


def recovery_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial and epoch (0: before fine-tuning), test accuracy in percent."""
    rows = []
    for record in _of(records, Trial):
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
    } for record in _of(records, Dense)])


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """The thesis's table: accuracy, parameters, FLOPs and recovery time by method and ratio.

    Means over seeds, with the standard error where there are several. Recovery time counts a run
    that never recovered with all its fine-tuning, and says how many recovered.
    """
    frame = trials(records)
    rows = []
    for (ratio, method), group in frame.groupby(["ratio", "method"], sort=True):
        rows.append({
            "ratio": f"{ratio:g}", "method": method, "seeds": len(group),
            "test accuracy (%)": _mean(group["test"], 2),
            "before fine-tuning (%)": _mean(group["damaged"], 2),
            "parameters (%)": f"{100 * group['parameters'].mean():.1f}",
            "FLOPs (%)": f"{100 * group['flops'].mean():.1f}",
            "recovery (epochs)": _mean(group["recovery epochs"], 1),
            "recovery (s)": _mean(group["recovery seconds"], 0),
            "recovered": f"{int(group['recovered'].sum())} of {len(group)}",
            "selection (s)": _mean(group["selection seconds"], 1),
        })
    table = pd.DataFrame(rows)
    order = table["method"].map(list(NAMES.values()).index)
    return table.assign(order=order).sort_values(["ratio", "order"]).drop(columns="order")


def method_table(records: Sequence[Record], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of the thesis's table."""
    return comparison_table(records)[list(columns)]


def damage_table(records: Sequence[Record]) -> pd.DataFrame:
    """Mean topological damage over layers, by method and ratio, for each dimension of homology."""
    rows = []
    for record in _of(records, Trial):
        layers = record.result["damage"]["topological"].values()
        rows.append({"ratio": f"{record.spec.ratio:g}", "method": NAMES[record.spec.method],
                     **{f"H{d}": float(np.mean([layer[d] for layer in layers]))
                        for d in next(iter(layers))}})
    frame = pd.DataFrame(rows).groupby(["ratio", "method"], sort=True).mean().reset_index()
    return frame.round(4)


def recipe_table(profile: Profile) -> pd.DataFrame:
    """The settings of dense training and fine-tuning, side by side."""
    dense, recovery = asdict(profile.dense), asdict(profile.recovery)
    return pd.DataFrame([{"setting": name.replace("_", " "), "dense training": f"{dense[name]:g}",
                          "fine-tuning": f"{recovery[name]:g}"} for name in dense])


def cost_table(records: Sequence[Record]) -> pd.DataFrame:
    """Remaining parameters, FLOPs and latency by ratio, in percent of the dense network."""
    columns = ["parameters", "flops", "latency"]
    table = 100 * trials(records).groupby("ratio")[columns].mean()
    table.columns = ["parameters (%)", "FLOPs (%)", "latency, batch 1 (%)"]
    return table.round(1).reset_index()


def search_table(records: Sequence[Record]) -> pd.DataFrame:
    """What the search of a whole network took: generations, evaluations, seconds, gain."""
    rows = []
    for record in _of(records, Trial):
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


def difference_plot(records: Sequence[Record], margin: float = 0.5) -> Figure:
    """The paired differences by ratio, with the margin of equivalence."""
    frame = differences(records)
    figure, axes = plt.subplots(figsize=(7.4, 4))
    axes.axhspan(-margin, margin, color="lightgrey", alpha=0.5, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    ratios = sorted(frame["ratio"].unique())
    for shift, (rival, group) in enumerate(frame.groupby("rival")):
        x = [ratios.index(ratio) + 0.12 * (shift - 1.5) for ratio in group["ratio"]]
        bars = np.nan_to_num([group["difference"] - group["low"],
                              group["high"] - group["difference"]])
        axes.errorbar(x, group["difference"], yerr=bars, fmt=MARKERS[rival], capsize=3,
                      color=COLOURS[rival], label=f"minus {rival}")
    axes.set(xticks=range(len(ratios)), xticklabels=[f"{ratio:g}" for ratio in ratios],
             xlabel="pruning ratio", ylabel="difference (points)")
    axes.legend()
    return _closed(figure)


def training_curves(records: Sequence[Record]) -> Figure:
    """Accuracy of the dense networks by epoch."""
    rows = [{"epoch": epoch["epoch"], "accuracy (%)": 100 * epoch[split], "split": split,
             "seed": record.spec.seed}
            for record in _of(records, Dense) for epoch in record.result["history"]
            for split in ("validation", "test")]
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    sns.lineplot(pd.DataFrame(rows), x="epoch", y="accuracy (%)", hue="split", style="split",
                 errorbar="se", markers=True, dashes=False, ax=axes)
    return _closed(figure)


def accuracy_by_ratio(records: Sequence[Record]) -> Figure:
    """Test accuracy before and after fine-tuning against the pruning ratio."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"),
                                   ("before fine-tuning", "after fine-tuning"), strict=True):
        _by_method(frame, "ratio", column, axes)
        axes.set(title=title, xlabel="pruning ratio", ylabel="test accuracy (%)")
        axes.axhline(frame["dense test"].mean(), color="grey", linestyle=":", linewidth=1)
    both[0].get_legend().remove()
    return _closed(figure)


def accuracy_by_cost(records: Sequence[Record]) -> Figure:
    """Test accuracy after fine-tuning against what remains of parameters and FLOPs."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
    for axes, column, title in zip(both, ("parameters", "flops"), ("parameters", "FLOPs"),
                                   strict=True):
        frame[f"{column} %"] = 100 * frame[column]
        _by_method(frame, f"{column} %", "test", axes)
        shares = sorted(frame.groupby("ratio")[f"{column} %"].mean())
        axes.set(xscale="log", xlabel=f"remaining {title} (%)", ylabel="test accuracy (%)")
        axes.set_xticks(shares, [f"{share:.2g}" for share in shares])
        axes.minorticks_off()
        axes.axhline(frame["dense test"].mean(), color="grey", linestyle=":", linewidth=1)
    both[0].get_legend().remove()
    return _closed(figure)


def recovery_curves(records: Sequence[Record]) -> Figure:
    """Test accuracy by epoch of fine-tuning, one panel a ratio."""
    frame = recovery_frame(records)
    grid = sns.relplot(frame, x="epoch", y="test accuracy (%)", hue="method", style="method",
                       col="ratio", kind="line", errorbar="se", markers=MARKERS, dashes=False,
                       palette=COLOURS, hue_order=_present(frame), style_order=_present(frame),
                       height=3.2, aspect=0.9, col_wrap=min(4, frame["ratio"].nunique()),
                       facet_kws={"sharey": False})
    grid.set_titles("ratio {col_name:g}")
    return _closed(grid.figure)


def damage_against_recovery(records: Sequence[Record]) -> Figure:
    """Topological distance of a trial (mean over layers, H0 and H1) against its accuracies."""
    frame = trials(records)
    figure, both = plt.subplots(1, 2, figsize=(9.6, 4), sharex=True)
    for axes, column, title in zip(both, ("damaged", "test"),
                                   ("before fine-tuning", "after fine-tuning"), strict=True):
        sns.scatterplot(frame, x="topological distance", y=column, hue="method", style="method",
                        size="ratio", palette=COLOURS, markers=MARKERS, sizes=(30, 120),
                        hue_order=_present(frame), style_order=_present(frame), ax=axes,
                        legend=axes is both[1])
        axes.set(title=title, ylabel="test accuracy (%)")
    sns.move_legend(both[1], "upper left", bbox_to_anchor=(1, 1))
    return _closed(figure)


def convergence(records: Sequence[Record]) -> Figure:
    """Best fitness by generation, relative to the first, one line a layer, mean over seeds."""
    rows = []
    for record in _of(records, Trial):
        for layer, history in record.result["searches"].items():
            start = history[0]["best"] or 1.0
            rows += [{"generation": step["generation"], "layer": layer,
                      "ratio": f"{record.spec.ratio:g}",
                      "best fitness (share of the first)": step["best"] / start}
                     for step in history]
    frame = pd.DataFrame(rows)
    grid = sns.relplot(frame, x="generation", y="best fitness (share of the first)", hue="layer",
                       col="ratio", kind="line", errorbar=None, palette="viridis", height=3.2,
                       aspect=0.9, col_wrap=min(4, frame["ratio"].nunique()))
    grid.set_titles("ratio {col_name}")
    return _closed(grid.figure)


def persistence_diagrams(portrait: Record) -> Figure:
    """Diagrams of the whole layer beside those of what each method keeps, H0 and H1 apart."""
    diagrams = portrait.result["diagrams"]
    methods = [m for m in portrait.spec.methods if m in diagrams]
    figure, panels = plt.subplots(2, len(methods), figsize=(2.4 * len(methods), 5),
                                  sharex="row", sharey="row", squeeze=False)
    for column, method in enumerate(methods):
        for row, dimension in enumerate(("0", "1")):
            axes = panels[row, column]
            _diagram(axes, diagrams["full"][dimension], "whole layer", "lightgrey", 22.0)
            _diagram(axes, diagrams[method][dimension], "kept", COLOURS[NAMES[method]], 9.0)
            axes.set(title=NAMES[method] if row == 0 else "", xlabel=f"birth (H{dimension})",
                     ylabel="death" if column == 0 else "")
    return _closed(figure)


def filters_in_the_plane(portrait: Record) -> Figure:
    """The layer's filters by multidimensional scaling, kept and removed, one panel a method."""
    plane = np.asarray(portrait.result["plane"])
    kept = portrait.result["kept"]
    figure, panels = plt.subplots(1, len(kept), figsize=(2.6 * len(kept), 2.9), sharex=True,
                                  sharey=True, squeeze=False)
    for axes, (method, chosen) in zip(panels[0], kept.items(), strict=True):
        removed = np.setdiff1d(np.arange(len(plane)), chosen)
        axes.scatter(*plane[removed].T, s=14, facecolors="none", edgecolors="grey",
                     label="removed")
        axes.scatter(*plane[chosen].T, s=14, color=COLOURS[NAMES[method]], label="kept")
        axes.set(title=NAMES[method], aspect="equal", xticks=[], yticks=[])
    panels[0, 0].legend(fontsize="small", loc="best")
    return _closed(figure)


def shared_choices(portrait: Record) -> pd.DataFrame:
    """Share of kept filters (%) that two methods have in common in the portrait's layer."""
    kept = {NAMES[m]: set(chosen) for m, chosen in portrait.result["kept"].items()}
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


def best(records: Sequence[Record], ratio: float) -> tuple[str, float]:
    """The method with the highest mean test accuracy at a ratio, and that accuracy in percent."""
    frame = trials(records)
    means = frame[frame["ratio"] == ratio].groupby("method")["test"].mean()
    return means.idxmax(), means.max()


def at(records: Sequence[Record], method: str, ratio: float, column: str) -> float:
    """Mean over seeds of one column of `trials`."""
    frame = trials(records)
    chosen = frame[(frame["method"] == NAMES[method]) & (frame["ratio"] == ratio)]
    return float(chosen[column].mean())


def show(table: pd.DataFrame, caption: str, name: str) -> None:
    """Display a table: MyST (numbered, with a caption) in the book, HTML in a notebook."""
    from IPython.display import display

    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |"
            for row in table.itertuples(index=False)]
    myst = "\n".join([f":::{{table}} {caption}", f":name: {name}", "", header, rule, *rows, ":::"])
    display({"text/markdown": myst, "text/html": table.to_html(index=False)}, raw=True)


def _of(records: Sequence[Record], kind: type) -> list[Record]:
    return [record for record in records if isinstance(record.spec, kind)]


def portrait_of(records: Sequence[Record]) -> Record:
    """The portrait among the records."""
    return _of(records, Portrait)[0]


def _row(record: Record, dense: dict) -> dict:
    result, spec = record.result, record.spec
    last = result["history"][-1] if result["history"] else result["damage"]
    layers = result["damage"]["topological"].values()
    return {
        "method": NAMES[spec.method], "ratio": spec.ratio, "seed": spec.seed,
        "test": 100 * last["test"], "validation": 100 * last["validation"],
        "damaged": 100 * result["damage"]["test"], "dense test": 100 * dense["test"],
        "parameters": result["cost"]["parameters"] / dense["cost"]["parameters"],
        "flops": result["cost"]["flops"] / dense["cost"]["flops"],
        "latency": result["cost"]["latency_ms"] / dense["cost"]["latency_ms"],
        "recovered": result["recovery"]["reached"],
        "recovery epochs": result["recovery"]["epochs"],
        "recovery seconds": result["recovery"]["seconds"],
        "recovery area": 100 * result["recovery"]["area"],
        "selection seconds": result["selection_seconds"],
        "topological distance": float(np.mean([sum(layer.values()) for layer in layers])),
        "least live": min(result["live"]),
    }


def _mean(values: pd.Series, digits: int) -> str:
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.sem():.{digits}f}"


def _by_method(frame: pd.DataFrame, x: str, y: str, axes) -> None:
    sns.lineplot(frame, x=x, y=y, hue="method", style="method", markers=MARKERS, dashes=False,
                 palette=COLOURS, hue_order=_present(frame), style_order=_present(frame),
                 errorbar="se", ax=axes)


def _present(frame: pd.DataFrame) -> list[str]:
    return [name for name in NAMES.values() if name in set(frame["method"])]


def _diagram(axes, pairs: list, label: str, colour, size: float) -> None:
    births, deaths = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    axes.scatter(births, deaths, s=size, color=colour, label=label, linewidths=0)
    if len(births) and births.max() > 0:
        ends = [min(births.min(), deaths.min()), max(births.max(), deaths.max())]
        axes.plot(ends, ends, color="grey", linewidth=0.8)


def _cell(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _closed(figure: Figure) -> Figure:
    """Lay the figure out, and close it for pyplot: a notebook shows it only where it is glued."""
    if not figure.legends:  # seaborn's grids have made room for theirs
        figure.tight_layout()
    plt.close(figure)
    return figure
