"""Tables of the fitness benchmark: what `python -m topoprune.measure.fitness` wrote."""

import pandas as pd


def bench_evaluations(measured: dict) -> pd.DataFrame:
    """One evaluation of the fitness: giotto-tda as the reference, and the fast engine."""
    table = pd.DataFrame(measured["evaluations"]).rename(columns={"ms": "ms an evaluation"})
    difference = "largest relative difference"
    return table.assign(**{difference: table[difference].map("{:.1e}".format)})


def bench_engines(measured: dict) -> pd.DataFrame:
    """Engines that were tried for dimension 1."""
    return pd.DataFrame(measured["engines"])


def bench_network(measured: dict) -> pd.DataFrame:
    """The search in each layer of a network, in dimension 0 and in both dimensions."""
    rows = pd.DataFrame(measured["network"])
    rows["layer"] = rows["layer"].map(lambda layer: layer if layer == "all" else str(layer + 1))
    columns = ["first best", "best", "evaluations", "seconds"]
    wide = rows.pivot(index=["layer", "n"], columns="fitness", values=columns)
    wide = wide.astype({column: int for column in wide.columns if column[0] == "evaluations"})
    wide.columns = [f"{field}, {fitness}" for field, fitness in wide.columns]
    order = rows["layer"].drop_duplicates()
    return wide.reset_index().set_index("layer").loc[order].reset_index()


def bench_wide(measured: dict) -> pd.DataFrame:
    """The search in a layer of many neurons."""
    return pd.DataFrame(measured["wide"])[["fitness", "what", "n", "evaluations", "seconds"]]


def bench_numbers(measured: dict) -> dict:
    """Numbers that the page on the fitness quotes."""
    fast = {row["fitness"]: row for row in measured["evaluations"] if row["way"] == "fast"}
    tight = [row for row in measured["evaluations"] if row["way"].endswith("1e-6")]
    total = {row["fitness"]: row for row in measured["network"] if row["layer"] == "all"}
    return {
        "ratio_h0": fast["H0"]["times giotto-tda"],
        "ratio_h1": fast["H0 + H1"]["times giotto-tda"],
        "difference": f"{max(row['largest relative difference'] for row in tight):.0e}".replace("0e+00", "zero"),
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


def search_growth(measured: dict) -> pd.DataFrame:
    """Time and memory of one evaluation of the fitness by the filters of a layer, half of them kept."""
    rows = pd.DataFrame(measured["growth"])
    rows = rows[rows["varied"] == "n"].rename(columns={"n": "filters", "ms": "ms an evaluation"})
    wide = rows.pivot(index="filters", columns="fitness", values=["ms an evaluation", "peak MiB"])
    wide.columns = [f"{field}, {name}" for field, name in wide.columns]
    return wide.astype(float).reset_index()
