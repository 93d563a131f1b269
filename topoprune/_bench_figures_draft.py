"""Draft of what `book/fitness.ipynb` needs of `topoprune.figures`: tables and plot of a benchmark."""

import json
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

BENCHMARK = Path(__file__).parent.parent / "book" / "results" / "bench-fitness.json"


def benchmark(path: Path = BENCHMARK) -> dict:
    """A measurement that `python -m topoprune.bench` wrote; by default the committed one."""
    return json.loads(path.read_text())


def bench_evaluations(measured: dict) -> pd.DataFrame:
    """The reference beside the fast ways."""
    return pd.DataFrame(measured["evaluations"]).rename(columns={"ms": "ms an evaluation"})


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
    memory = next(row for row in measured["growth"] if row["varied"] == "memory")
    return {
        "ratio_h0": fast["H0"]["times giotto-tda"],
        "ratio_h1": fast["H0 + H1"]["times giotto-tda"],
        "difference": max(row["largest relative difference"] for row in tight),
        "filters": total["H0"]["n"],
        "seconds_h0": total["H0"]["seconds"],
        "seconds_h1": total["H0 + H1"]["seconds"],
        "memory": memory["peak MiB"],
        "processor": measured["machine"]["processor"],
        "cores": measured["machine"]["cores"],
        "load": measured["machine"]["load before"],
        "network": measured["filters"]["network"],
        "epochs": measured["filters"]["epochs"],
    }


def bench_growth(measured: dict) -> Figure:
    """Milliseconds an evaluation against n, k and the population."""
    rows = pd.DataFrame(measured["growth"])
    rows = rows[rows["varied"] != "memory"]
    rows["size"] = [row[row["varied"]] for _, row in rows.iterrows()]
    names = {"n": "filters", "k": "kept filters", "population": "population"}
    rows["varied"] = rows["varied"].map(names)
    grid = sns.relplot(rows, x="size", y="ms", hue="fitness", style="fitness", col="varied",
                       kind="line", markers=True, dashes=False, height=3, aspect=1,
                       facet_kws={"sharex": False})
    grid.set(xscale="log", yscale="log").set_titles("{col_name}")
    grid.set_axis_labels("", "ms an evaluation")
    return grid.figure
