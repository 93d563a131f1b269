"""The tests of the book's claims page, on records: effects, intervals, verdicts.

A dense seed is the unit of replication. Where fewer than two seeds stand behind a cell there is no
interval (NaN); a verdict needs three behind every cell that decides it, and a claim is supported only
when every cell that was planned is on record.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from topoprune.study import Profile
from topoprune.tables import NAMES, of_kind, t_interval, trials
from topoprune.trial import Record, Trial

MARGIN = 0.5
"""Points of test accuracy that still count as equal."""
LEVEL = 0.05
LEAST_SEEDS = 3
"""Dense networks behind a cell, below which it decides nothing."""
HIGH_RATIO = 0.7
"""Claim 2 speaks of the ratios from here on."""
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
RIVALS = ("L1", "L2", "FPGM")
GLOBAL = ("global magnitude", "global Taylor")
PREDICTORS = ("topological distance", "removed norm", "lost rank", "damage")
TOPOLOGICAL = NAMES["topological"]


def equivalence(differences: np.ndarray, margin: float = MARGIN) -> dict:
    """Two one-sided t-tests of paired differences against the margin (Schuirmann, 1987).

    Args:
        differences: (seeds,) in the unit of `margin`.

    Returns:
        difference: the mean; low, high: its 90 % interval; p: of equivalence, the larger of the two;
        p_inferior: of the test that the mean lies above -margin.
    """
    low, high = t_interval(differences, 1 - 2 * LEVEL)
    made = {"seeds": len(differences), "difference": float(np.mean(differences)), "low": low,
            "high": high}
    if len(differences) < 2:
        return {**made, "p": np.nan, "p_inferior": np.nan}
    above = _one_sided(differences + margin)
    below = _one_sided(margin - differences)
    return {**made, "p": max(above, below), "p_inferior": above}


def accuracy_equivalence(records: Sequence[Record], first: Sequence[str] = (TOPOLOGICAL,),
                         second: Sequence[str] = RIVALS) -> pd.DataFrame:
    """Test accuracy after fine-tuning: each of `first` less each of `second`, by ratio.

    p-values are corrected by Holm over all rows. A cell is "equivalent", "not inferior" (above the
    margin's lower end), "worse" (the 90 % interval lies wholly below it) or undecided.
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="test")
    rows = []
    for one, other in _pairs(wide, first, second):
        for ratio, pairs in (wide[one] - wide[other]).dropna().groupby(level="ratio"):
            rows.append({"method": one, "rival": other, "ratio": ratio,
                         **equivalence(pairs.to_numpy())})
    columns = ["method", "rival", "ratio", "seeds", "difference", "low", "high", "p", "p_inferior"]
    table = pd.DataFrame(rows, columns=columns)
    table["p"], table["p_inferior"] = holm(table["p"]), holm(table["p_inferior"])
    table["verdict"] = [_cell_verdict(row) for row in table.itertuples()]
    return table.sort_values(["ratio", "method", "rival"], ignore_index=True)


def damage_differences(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """Damage (points of validation accuracy) of each rival less that of `method`, by ratio.

    Positive: the method hurts less. The interval is the 95 % t-interval over dense seeds.
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="damage")
    rows = []
    for rival in (name for name in ("random", *RIVALS) if name in wide and method in wide):
        for ratio, pairs in (wide[rival] - wide[method]).dropna().groupby(level="ratio"):
            low, high = t_interval(pairs.to_numpy())
            rows.append({"rival": rival, "ratio": ratio, "seeds": len(pairs),
                         "difference": pairs.mean(), "low": low, "high": high})
    columns = ["rival", "ratio", "seeds", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns).sort_values(["ratio", "rival"], ignore_index=True)


def damage_slopes(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """How the difference in damage grows with the ratio: points for each 0.1 of it, by rival.

    A linear mixed model with a random intercept for each dense seed; NaN with fewer than two seeds.
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="damage")
    rows = []
    for rival in (name for name in ("random", *RIVALS) if name in wide and method in wide):
        pairs = (wide[rival] - wide[method]).dropna().rename("y").reset_index()
        fit = _mixed("y ~ ratio", pairs) if pairs["ratio"].nunique() > 1 else None
        low, high = (np.nan, np.nan) if fit is None else fit.conf_int().loc["ratio"] / 10
        rows.append({"rival": rival, "seeds": pairs["seed"].nunique(),
                     "slope": np.nan if fit is None else fit.params["ratio"] / 10,
                     "low": low, "high": high})
    return pd.DataFrame(rows)


def survival(records: Sequence[Record]) -> pd.DataFrame:
    """Kaplan-Meier estimate of not having recovered yet, by ratio, method and epoch.

    Columns: ratio, method, epoch, share. Runs that never recover are censored at their last epoch.
    """
    from lifelines import KaplanMeierFitter

    rows = []
    for (ratio, method), group in trials(records).groupby(["ratio", "method"], sort=False):
        curve = KaplanMeierFitter().fit(group["recovery epochs"], group["recovered"])
        budget = group["recovery epochs"].max()
        steps = curve.survival_function_["KM_estimate"]
        rows += [{"ratio": ratio, "method": method, "epoch": epoch, "share": share}
                 for epoch, share in [*steps.items(), (budget, steps.iloc[-1])]]
    return pd.DataFrame(rows)


def restricted_means(records: Sequence[Record], draws: int = 2000) -> pd.DataFrame:
    """Mean recovery time within the budget of epochs, topological less rival, by ratio.

    Every run has the same budget, so the restricted mean (Royston & Parmar, 2013) is the mean of
    the times cut at it. The 95 % interval is a bootstrap over dense seeds, paired; NaN with one.
    "recovered" counts the runs of both that recovered at all: without any, nothing is compared.
    """
    frame = trials(records)
    wide = frame.pivot_table(index=["ratio", "seed"], columns="method", values="recovery epochs")
    reached = frame.astype({"recovered": float}).pivot_table(
        index=["ratio", "seed"], columns="method", values="recovered")
    rows = []
    random = np.random.default_rng(0)
    for one, other in _pairs(wide, (TOPOLOGICAL,), ("random", *RIVALS)):
        for ratio, pairs in (wide[one] - wide[other]).dropna().groupby(level="ratio"):
            values = pairs.to_numpy()
            means = random.choice(values, (draws, len(values))).mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975]) if len(values) > 1 else [np.nan] * 2
            rows.append({"rival": other, "ratio": ratio, "seeds": len(values),
                         "recovered": int(reached.loc[pairs.index, [one, other]].sum().sum()),
                         "difference (epochs)": values.mean(), "low": low, "high": high})
    columns = ["rival", "ratio", "seeds", "recovered", "difference (epochs)", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def predictors(records: Sequence[Record]) -> pd.DataFrame:
    """What a measure of the removal tells beyond ratio and method, of damage and of recovery.

    Columns: target, predictor; partial correlation (given ratio and method as factors, and the
    seed); effect (points of the target for one standard deviation) with its 95 % interval and Holm's
    p from a linear mixed model with a random intercept for each dense seed; error and error without:
    root mean squared error when every dense seed is predicted from the others, in points, with the
    predictor and without it. NaN where seeds are too few.
    """
    frame = trials(records).rename(columns={"recovery area": "area"})
    frame["seeds"] = frame["seed"].nunique()
    rows = [_predictor(frame, target, name)
            for target in ("damage", "area") for name in PREDICTORS if name != target]
    table = pd.DataFrame([row for row in rows if row])
    if len(table):
        table["p"] = holm(table["p"])
    return table


def residuals(records: Sequence[Record], name: str) -> pd.DataFrame:
    """A predictor, damage and recovery area without what ratio, method and seed tell of them."""
    frame = trials(records).dropna(subset=[name])
    parts = {column: _residuals(frame.assign(y=frame[column]), "y")
             for column in (name, "damage", "recovery area")}
    return frame[["method", "ratio", "seed"]].assign(**parts)


def hazards(records: Sequence[Record]) -> pd.DataFrame:
    """Cox's proportional hazards of recovery, stratified by ratio; empty under ten recoveries.

    The hazard ratio is for one standard deviation of the predictor.
    """
    from lifelines import CoxPHFitter

    frame = trials(records)
    rows = []
    for name in PREDICTORS:
        known = frame.dropna(subset=[name])
        if known["recovered"].sum() < 10 or known[name].std() == 0:
            continue
        data = pd.DataFrame({"x": _standard(known[name]), "ratio": known["ratio"],
                             "time": known["recovery epochs"].clip(lower=0.5),
                             "recovered": known["recovered"]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = CoxPHFitter(penalizer=0.01).fit(data, "time", "recovered", strata=["ratio"])
        low, high = np.exp(fit.confidence_intervals_.loc["x"])
        rows.append({"predictor": name, "recovered": int(known["recovered"].sum()),
                     "hazard ratio": float(np.exp(fit.params_["x"])), "low": low, "high": high,
                     "p": fit.summary.loc["x", "p"]})
    columns = ["predictor", "recovered", "hazard ratio", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def ablations(records: Sequence[Record]) -> pd.DataFrame:
    """The default topological method less each variant, paired over seeds.

    Columns: variant, ratio, seeds; accuracy (points of test accuracy after fine-tuning) with its
    95 % interval; damage (points by which the variant hurts more); fitness (relative excess of what
    the variant's search reaches, where both minimise the same fitness).
    """
    frame = trials(records).assign(fitness=[_found(r) for r in of_kind(records, Trial)])
    wide = frame.pivot_table(index=["ratio", "seed"], columns="method",
                             values=["test", "damage", "fitness"], dropna=False)
    rows = []
    for name in (n for n in NAMES.values() if n != TOPOLOGICAL and n in set(frame["method"])):
        for ratio, part in wide.groupby(level="ratio"):
            pairs = (part["test", TOPOLOGICAL] - part["test", name]).dropna()
            if pairs.empty:
                continue
            low, high = t_interval(pairs.to_numpy())
            hurt = (part["damage", name] - part["damage", TOPOLOGICAL]).mean()
            excess = (part["fitness", name] / part["fitness", TOPOLOGICAL] - 1).mean() \
                if name in SAME_FITNESS else np.nan
            rows.append({"variant": name, "ratio": ratio, "seeds": len(pairs),
                         "accuracy": pairs.mean(), "low": low, "high": high, "damage": hurt,
                         "fitness": excess})
    columns = ["variant", "ratio", "seeds", "accuracy", "low", "high", "damage", "fitness"]
    return pd.DataFrame(rows, columns=columns)


SAME_FITNESS = {NAMES[name] for name in ("random search", "greedy", "farthest")}


def collapses(records: Sequence[Record]) -> pd.DataFrame:
    """Runs with a collapsed layer, and at chance after fine-tuning, by ratio and method."""
    frame = trials(records)
    classes = {"cifar10": 10, "digits": 10}
    chance = [100 / classes[r.spec.dense.dataset] for r in of_kind(records, Trial)]
    frame["at chance"] = frame["test"] < np.asarray(chance) + 1
    frame["collapsed"] = frame["collapsed layers"] > 0
    grouped = frame.groupby(["ratio", "method"], sort=True)
    return grouped.agg(runs=("test", "size"), collapsed=("collapsed", "sum"),
                       **{"at chance": ("at chance", "sum")}).reset_index()


def verdicts(records: Sequence[Record], ablated: Sequence[Record], profile: str,
             plan: Profile) -> pd.DataFrame:
    """One row for each claim: what was tested, effect, interval, seeds, verdict, command."""
    run = f"python -m topoprune run --profile {profile}"
    ratios = plan.ratios
    rows = [_competes(records, ratios), _recovers(records, ratios), _damages(records, ratios),
            _layer(records, ratios), _cost(records), _explains(records), _carries(ablated)]
    table = pd.DataFrame(rows)
    commands = [run] * 6 + [f"python -m topoprune run --profile {plan.ablation}"]
    return table.assign(command=[f"`{command}`" for command in commands])


def holm(values: pd.Series) -> np.ndarray:
    """p-values corrected by Holm (1979); NaN stays and counts as no test."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.asarray(values, dtype=float).copy()
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected


def _competes(records, ratios: Sequence[float]) -> dict:
    table = accuracy_equivalence(records)
    worst = table.loc[table["difference"].idxmin()] if len(table) else None
    return _verdict("1", "competes in accuracy: topological less L1, L2, FPGM, equivalence "
                    f"within {MARGIN} points", table, table["verdict"], len(RIVALS) * len(ratios),
                    good={"equivalent", "not inferior"}, bad={"worse"},
                    effect=worst, value="difference", unit="points", at=_at(worst, "rival"))


def _recovers(records, ratios: Sequence[float]) -> dict:
    table = restricted_means(records)
    table = table[table["rival"].isin(RIVALS)]
    cells = np.select([table["recovered"] == 0, table["low"] > 0, table["high"] <= 0],
                      [UNDECIDED, "slower", "not slower"], UNDECIDED)
    worst = table.loc[table["difference (epochs)"].idxmax()] if len(table) else None
    return _verdict("1", "recovers as fast: restricted mean recovery time, topological less rival",
                    table, cells, len(RIVALS) * len(ratios), good={"not slower"}, bad={"slower"},
                    effect=worst,
                    value="difference (epochs)", unit="epochs", at=_at(worst, "rival"))


def _damages(records, ratios: Sequence[float]) -> dict:
    table = damage_differences(records)
    table = table[table["ratio"] >= HIGH_RATIO]
    cells = np.select([table["low"] > 0, table["high"] < 0], ["less", "more"], UNDECIDED)
    worst = table.loc[table["difference"].idxmin()] if len(table) else None
    return _verdict("2", f"damages less from ratio {HIGH_RATIO} on: damage of a rival less that of "
                    "topological", table, cells,
                    (1 + len(RIVALS)) * sum(ratio >= HIGH_RATIO for ratio in ratios),
                    good={"less"}, bad={"more"}, effect=worst, value="difference", unit="points",
                    at=_at(worst, "rival"))


def _layer(records, ratios: Sequence[float]) -> dict:
    layerwise = (TOPOLOGICAL, *RIVALS)
    table = accuracy_equivalence(records, layerwise, GLOBAL)
    worst = table.loc[table["difference"].idxmin()] if len(table) else None
    return _verdict("3", "the layer is enough: layer-wise less global criterion at matched FLOPs, "
                    f"equivalence within {MARGIN} points", table, table["verdict"],
                    len(layerwise) * len(GLOBAL) * len(ratios),
                    good={"equivalent", "not inferior"}, bad={"worse"}, effect=worst,
                    value="difference", unit="points",
                    at="" if worst is None else f"{worst['method']} against {worst['rival']}, "
                    f"ratio {worst['ratio']:g}")


def _cost(records) -> dict:
    frame = trials(records)
    mine = frame.loc[frame["method"] == TOPOLOGICAL, "selection seconds"]
    others = frame.loc[frame["method"].isin(RIVALS), "selection seconds"]
    effect = f"{mine.median():.1f} s against {others.median():.2f} s (medians)" if len(mine) else ""
    return {"claim": "4", "tested": "cost of selection, measured: topological against L1, L2, FPGM",
            "effect": effect, "interval": "", "seeds": frame["seed"].nunique(),
            "verdict": "measured"}


def _explains(records) -> dict:
    table = predictors(records)
    mine = table[table["predictor"] == "topological distance"] if len(table) else table
    helps = [bool(row.p < LEVEL and row.error < row.error_without and _expected(row))
             for row in mine.rename(columns={"error without": "error_without"}).itertuples()]
    seeds = int(trials(records)["seed"].nunique())
    tested = bool(len(mine)) and mine["p"].notna().all() and seeds >= LEAST_SEEDS
    verdict = UNDECIDED if not tested else SUPPORTED if all(helps) else NOT_SUPPORTED
    first = mine.iloc[0] if len(mine) else None
    return {"claim": "5", "tested": "topological distance tells damage and recovery beyond ratio "
            "and method (mixed model, and out of sample)",
            "effect": "" if first is None else f"partial correlation with damage "
            f"{first['partial correlation']:+.2f}; effect {first['effect']:+.2f} points for one SD",
            "interval": _interval(first), "seeds": seeds, "verdict": verdict}


def _expected(row) -> bool:
    return row.effect > 0 if row.target == "damage" else row.effect < 0


def _carries(ablated) -> dict:
    table = ablations(ablated) if of_kind(ablated, Trial) else pd.DataFrame()
    parts = {NAMES["random search"]: "the search", NAMES["h0"]: "dimension 1"}
    table = table[table["variant"].isin(parts)] if len(table) else table
    cells = [] if table.empty else np.select(
        [table["low"] > MARGIN, table["high"] < MARGIN], ["carries", "does not carry"], UNDECIDED)
    first = table.loc[table["accuracy"].idxmax()] if len(table) else None
    return _verdict("6", "genetic algorithm and H1 carry the effect: accuracy with the default less "
                    "with random search, or H0 alone", table, cells, len(parts), good={"carries"},
                    bad={"does not carry"}, effect=first, value="accuracy", unit="points",
                    at=_at(first, "variant"))


def _verdict(claim: str, tested: str, table: pd.DataFrame, cells, planned: int, good: set, bad: set,
             effect, value: str, unit: str, at: str) -> dict:
    """The whole claim from its cells, one for each row of `table`, of which so many are `planned`.

    One that counts against the claim decides, one that is undecided or not on record suspends.
    """
    decided = set()
    if len(table):
        decided = set(np.where(table["seeds"] >= LEAST_SEEDS, cells, UNDECIDED))
    if len(table) < planned:
        decided.add(UNDECIDED)
    verdict = (NOT_SUPPORTED if decided & bad else
               SUPPORTED if decided and decided <= good else UNDECIDED)
    shown = "" if effect is None else f"{effect[value]:+.2f} {unit} ({at})"
    return {"claim": claim, "tested": tested, "effect": shown, "interval": _interval(effect),
            "seeds": 0 if effect is None else int(effect["seeds"]), "verdict": verdict}


def _at(row, what: str) -> str:
    return "" if row is None else f"{row[what]}, ratio {row['ratio']:g}"


def _interval(row) -> str:
    if row is None:
        return "none: not on record"
    if np.isnan(row["low"]):
        return "none: one seed"
    return f"{row['low']:+.2f} to {row['high']:+.2f}"


def _cell_verdict(row) -> str:
    if np.isnan(row.p):
        return UNDECIDED
    if row.p < LEVEL:
        return "equivalent"
    if row.p_inferior < LEVEL:
        return "not inferior"
    return "worse" if row.high < -MARGIN else UNDECIDED


def _pairs(wide: pd.DataFrame, first: Sequence[str], second: Sequence[str]) -> list[tuple]:
    return [(one, other) for one in first if one in wide for other in second if other in wide]


def _one_sided(values: np.ndarray) -> float:
    """p of the test that the mean is above 0; values without spread decide by their sign."""
    if np.ptp(values) == 0:
        return 0.0 if values[0] > 0 else 1.0
    return float(stats.ttest_1samp(values, 0, alternative="greater").pvalue)


def _predictor(frame: pd.DataFrame, target: str, name: str) -> dict:
    known = frame.dropna(subset=[name]).copy()
    if len(known) < 3 or known[name].std() == 0:
        return {}
    known["x"], known["y"] = _standard(known[name]), known[target]
    base, full = "y ~ C(ratio) + C(method)", "y ~ C(ratio) + C(method) + x"
    fit = _mixed(full, known)
    low, high = (np.nan, np.nan) if fit is None else fit.conf_int().loc["x"]
    return {"target": target, "predictor": name, "runs": len(known),
            "seeds": known["seed"].nunique(), "partial correlation": _partial(known),
            "effect": _slope(known) if fit is None else fit.params["x"], "low": low, "high": high,
            "p": np.nan if fit is None else fit.pvalues["x"],
            "error": _left_out(full, known), "error without": _left_out(base, known)}


def _partial(frame: pd.DataFrame) -> float:
    """Correlation of x and y when ratio, method and seed are given as factors."""
    x, y = (_residuals(frame, name) for name in ("x", "y"))
    return float(np.corrcoef(x, y)[0, 1]) if min(x.std(), y.std()) > 1e-9 else np.nan


def _slope(frame: pd.DataFrame) -> float:
    """Points of y for one standard deviation of x, ratio and method given (one seed)."""
    x, y = (_residuals(frame, name) for name in ("x", "y"))
    return float(x @ y / (x @ x)) if x.std() > 1e-9 else np.nan


def _residuals(frame: pd.DataFrame, name: str) -> np.ndarray:
    import statsmodels.formula.api as smf

    return smf.ols(f"{name} ~ C(ratio) + C(method) + C(seed)", frame).fit().resid.to_numpy()


def _mixed(formula: str, frame: pd.DataFrame):
    """A linear mixed model with a random intercept for each seed; None with fewer than two."""
    import statsmodels.formula.api as smf

    if frame["seed"].nunique() < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance between seeds of 0 lies at the boundary
        return smf.mixedlm(formula, frame, groups=frame["seed"]).fit()


def _left_out(formula: str, frame: pd.DataFrame) -> float:
    """Root mean squared error of predicting each seed from the others; NaN with one seed."""
    import statsmodels.formula.api as smf

    if frame["seed"].nunique() < 2:
        return np.nan
    errors = []
    for seed in frame["seed"].unique():
        rest, own = frame[frame["seed"] != seed], frame[frame["seed"] == seed]
        own = own[own["ratio"].isin(rest["ratio"]) & own["method"].isin(rest["method"])]
        errors.append(own["y"] - smf.ols(formula, rest).fit().predict(own))
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _standard(values: pd.Series) -> pd.Series:
    return (values - values.mean()) / values.std()


def _found(record: Record) -> float:
    """Mean over layers of the fitness that the search reached; NaN without a search."""
    last = [steps[-1]["best"] for steps in record.result["searches"].values() if steps]
    return float(np.mean(last)) if last else np.nan

