"""The tests of the book's claims page, on records: effects, intervals, verdicts.

A dense seed is the unit of replication. Where fewer than two seeds stand behind a cell there is no
interval (NaN); a verdict needs three behind every cell that decides it, and a claim is supported only
when every cell that was planned is on record. Within a claim p-values are corrected by Holm.
"""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from topoprune import study
from topoprune.report.tables import NAMES, name_of, of_kind, t_interval, trials
from topoprune.study.profiles import LAYERWISE, Profile
from topoprune.study.trial import Record, Trial

MARGIN = 0.5
"""Points of test accuracy that still count as equal."""
LEVEL = 0.05
LEAST_SEEDS = 3
"""Dense networks behind a cell, below which it decides nothing."""
HIGH_RATIO = 0.7
"""Claim 2 speaks of the ratios from here on."""
FLOOR = 5.0
"""Points above chance below which a network has lost everything: damage cannot tell methods apart."""
FLOPS_WITHIN = 1.0
"""Percent by which the FLOPs of two methods may differ where they are compared as equal."""
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
RIVALS = ("L1", "L2", "FPGM")
GLOBAL = ("global magnitude", "global Taylor")
TOPOLOGICAL = NAMES["topological"]
DISTANCE = "topological distance"
PREDICTORS = (DISTANCE, "removed norm", "lost rank", "damage")
OTHER_DISTANCES = (f"{DISTANCE}, H0 alone", f"{DISTANCE}, median layer")
TARGETS = {"damage": 1, "area": -1}
"""What is predicted -> the sign of the effect that a larger distance should have."""


def equivalence(differences: np.ndarray, margin: float = MARGIN) -> dict:
    """Two one-sided t-tests of paired differences against the margin (Schuirmann, 1987).

    Args:
        differences: (seeds,) in the unit of `margin`.

    Returns:
        difference: the mean; low, high: its 90 % interval; p equivalent: the larger of the two;
        p not inferior, p worse: of the tests that the mean lies above, and below, -margin.
    """
    low, high = t_interval(differences, 1 - 2 * LEVEL)
    made = {"seeds": len(differences), "difference": float(np.mean(differences)), "low": low, "high": high}
    above = _one_sided(differences + margin)
    below = _one_sided(margin - differences)
    worse = _one_sided(-margin - differences)
    return {**made, **dict(zip(_P, (max(above, below), above, worse), strict=True))}


_P = ("p equivalent", "p not inferior", "p worse")


def accuracy_equivalence(
    records: Sequence[Record], first: Sequence[str] = (TOPOLOGICAL,), second: Sequence[str] = RIVALS
) -> pd.DataFrame:
    """Test accuracy after fine-tuning: each of `first` less each of `second`, by ratio.

    p-values are corrected by Holm over all rows. A cell is "equivalent", "not inferior" (above the
    margin's lower end), "worse" (below it) or undecided, as are two methods whose FLOPs differ: those
    of the second are given in percent of the first's.
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values=["test", "flops"])
    rows = []
    for one, other in _pairs(wide.get("test", ()), first, second):
        shares = 100 * wide["flops", other] / wide["flops", one]
        for ratio, pairs in (wide["test", one] - wide["test", other]).dropna().groupby(level="ratio"):
            rows.append(
                {
                    "method": one,
                    "rival": other,
                    "ratio": ratio,
                    **equivalence(pairs.to_numpy()),
                    "FLOPs (%)": shares[pairs.index].mean(),
                }
            )
    columns = ["method", "rival", "ratio", "seeds", "difference", "low", "high", *_P, "FLOPs (%)"]
    table = pd.DataFrame(rows, columns=columns)
    for name in _P:
        table[name] = holm(table[name])
    table.insert(4, "verdict", [_cell_verdict(row) for row in table.to_dict("records")])
    return table.sort_values(["ratio", "method", "rival"], ignore_index=True)


def damage_differences(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """Damage (points of validation accuracy) of each rival less that of `method`, by ratio.

    Positive: the method hurts less. The interval is the 95 % t-interval over dense seeds, p two-sided,
    corrected by Holm over all rows. "at chance": after removal neither has `FLOOR` points of test
    accuracy above chance, so that all is lost either way.
    """
    floor = _chance(records) + FLOOR
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values=["damage", "damaged"])
    rows = []
    for other, one in _pairs(wide.get("damage", ()), ("random", *RIVALS), (method,)):
        for ratio, pairs in (wide["damage", other] - wide["damage", one]).dropna().groupby(level="ratio"):
            left = wide["damaged"].loc[pairs.index, [one, other]].mean()
            rows.append(
                {
                    "rival": other,
                    "ratio": ratio,
                    **_difference(pairs.to_numpy()),
                    "at chance": "yes" if left.max() < floor else "no",
                }
            )
    columns = ["rival", "ratio", "seeds", "difference", "low", "high", "p", "at chance"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["ratio", "rival"], ignore_index=True)
    return table.assign(p=holm(table["p"]))


def damage_slopes(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """How the difference in damage grows with the ratio: points for each 0.1 of it, by rival.

    A linear mixed model with a random intercept for each dense seed, see `_effect`.
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="damage")
    rows = []
    for other, one in _pairs(wide, ("random", *RIVALS), (method,)):
        pairs = (wide[other] - wide[one]).dropna().rename("y").reset_index()
        pairs["tenths"] = 10 * pairs["ratio"]
        if pairs["ratio"].nunique() > 1:
            fit = _effect("y ~ tenths", pairs, "tenths")
            rows.append({"rival": other, "seeds": pairs["seed"].nunique(), "slope": fit.pop("effect"), **fit})
    return pd.DataFrame(rows, columns=["rival", "seeds", "slope", "low", "high", "p", "model"])


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
        rows += [
            {"ratio": ratio, "method": method, "epoch": epoch, "share": share}
            for epoch, share in [*steps.items(), (budget, steps.iloc[-1])]
        ]
    return pd.DataFrame(rows)


def restricted_means(records: Sequence[Record]) -> pd.DataFrame:
    """Mean recovery time within the budget of epochs, topological less rival, by ratio.

    Every run has the same budget, so the restricted mean (Royston & Parmar, 2013) is the mean of
    the times cut at it. The interval is the 95 % t-interval over dense seeds, paired; p two-sided,
    corrected by Holm over all rows. "recovered" counts the runs of both that recovered at all:
    without any, nothing is compared.
    """
    columns = ["rival", "ratio", "seeds", "recovered", "difference", "low", "high", "p"]
    if not of_kind(records, Trial):
        return pd.DataFrame(columns=columns)
    frame = trials(records)
    wide = frame.pivot_table(index=["ratio", "seed"], columns="method", values="recovery epochs")
    reached = frame.astype({"recovered": float}).pivot_table(
        index=["ratio", "seed"], columns="method", values="recovered"
    )
    rows = []
    for one, other in _pairs(wide, (TOPOLOGICAL,), ("random", *RIVALS)):
        for ratio, pairs in (wide[one] - wide[other]).dropna().groupby(level="ratio"):
            recovered = reached.loc[pairs.index, [one, other]].sum().sum()
            rows.append({"rival": other, "ratio": ratio, "recovered": int(recovered), **_difference(pairs.to_numpy())})
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p=holm(table["p"]))


def predictors(records: Sequence[Record]) -> pd.DataFrame:
    """What a measure of the removal tells beyond ratio and method, of damage and of recovery.

    Columns: target, predictor; partial correlation (given ratio and method as factors, and the
    seed); effect (points of the target for one standard deviation) with its 95 % interval and Holm's
    p from a linear mixed model with a random intercept for each dense seed, see `_effect`; error and
    error without: root mean squared error when every dense seed is predicted from the others, in
    points, with the predictor and without it. NaN where seeds are too few.
    """
    frame = _targets(records)
    rows = [_predictor(frame, target, name) for target in TARGETS for name in PREDICTORS if name != target]
    table = pd.DataFrame([row for row in rows if row])
    return table.assign(p=holm(table["p"])) if len(table) else table


def sensitivity(records: Sequence[Record]) -> pd.DataFrame:
    """`predictors` by other choices than those fixed beforehand: a description, p uncorrected.

    Every pair of ratio and method is a level of one factor, so that what a method does at one ratio
    explains nothing; the distance is also taken of H0 alone and as the median over layers, which no
    single layer decides; and a third target is the accuracy that is lost after fine-tuning, which
    contains no damage as the area does.
    """
    frame = _targets(records)
    rows = [
        _predictor(frame, target, name, "C(cell)")
        for target in (*TARGETS, "lost accuracy")
        for name in (DISTANCE, *OTHER_DISTANCES, *PREDICTORS[1:])
        if name != target
    ]
    return pd.DataFrame([row for row in rows if row])


def _targets(records: Sequence[Record]) -> pd.DataFrame:
    frame = trials(records).rename(columns={"recovery area": "area"})
    return frame.assign(
        cell=frame["method"] + frame["ratio"].astype(str), **{"lost accuracy": frame["dense test"] - frame["test"]}
    )


def residuals(records: Sequence[Record], name: str) -> pd.DataFrame:
    """A predictor, damage and recovery area without what ratio, method and seed tell of them."""
    frame = trials(records).dropna(subset=[name])
    parts = {column: _residuals(frame.assign(y=frame[column]), "y") for column in (name, "damage", "recovery area")}
    return frame[["method", "ratio", "seed"]].assign(**parts)


def hazards(records: Sequence[Record]) -> pd.DataFrame:
    """Cox's proportional hazards of recovery, stratified by ratio and method; empty under ten recoveries.

    The hazard ratio is for one standard deviation of the predictor; p is corrected by Holm. Runs that
    share a dense network count as independent: it describes, and enters no verdict.
    """
    from lifelines import CoxPHFitter

    frame = trials(records)
    rows = []
    for name in PREDICTORS:
        known = frame.dropna(subset=[name])
        if known["recovered"].sum() < 10 or known[name].std() == 0:
            continue
        data = pd.DataFrame(
            {
                "x": _standard(known[name]),
                "ratio": known["ratio"],
                "method": known["method"],
                "time": known["recovery epochs"].clip(lower=0.5),
                "recovered": known["recovered"],
            }
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = CoxPHFitter(penalizer=0.01).fit(data, "time", "recovered", strata=["ratio", "method"])
        low, high = np.exp(fit.confidence_intervals_.loc["x"])
        rows.append(
            {
                "predictor": name,
                "recovered": int(known["recovered"].sum()),
                "hazard ratio": float(np.exp(fit.params_["x"])),
                "low": low,
                "high": high,
                "p": fit.summary.loc["x", "p"],
            }
        )
    columns = ["predictor", "recovered", "hazard ratio", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p=holm(table["p"]))


def ablations(records: Sequence[Record]) -> pd.DataFrame:
    """The default topological method less each variant, paired over seeds.

    Columns: variant, ratio, seeds; accuracy (points of test accuracy after fine-tuning) with its
    95 % interval; damage (points by which the variant hurts more); fitness (relative excess of what
    the variant's search reaches, where both minimise the same fitness); evaluations (subsets that the
    variant's search judged, of all layers).
    """
    frame = trials(records).assign(
        fitness=[_found(r) for r in of_kind(records, Trial)],
        evaluations=[_evaluations(r) for r in of_kind(records, Trial)],
    )
    wide = frame.pivot_table(
        index=["ratio", "seed"], columns="method", values=["test", "damage", "fitness", "evaluations"], dropna=False
    )
    rows = []
    for name in (n for n in NAMES.values() if n != TOPOLOGICAL and n in set(frame["method"])):
        for ratio, part in wide.groupby(level="ratio"):
            pairs = (part["test", TOPOLOGICAL] - part["test", name]).dropna()
            if pairs.empty:
                continue
            low, high = t_interval(pairs.to_numpy())
            hurt = (part["damage", name] - part["damage", TOPOLOGICAL]).mean()
            excess = (
                (part["fitness", name] / part["fitness", TOPOLOGICAL] - 1).mean() if name in SAME_FITNESS else np.nan
            )
            rows.append(
                {
                    "variant": name,
                    "ratio": ratio,
                    "seeds": len(pairs),
                    "accuracy": pairs.mean(),
                    "low": low,
                    "high": high,
                    "damage": hurt,
                    "fitness": excess,
                    "evaluations": round(part["evaluations", name].mean()),
                }
            )
    columns = ["variant", "ratio", "seeds", "accuracy", "low", "high", "damage", "fitness", "evaluations"]
    return pd.DataFrame(rows, columns=columns)


SAME_FITNESS = {NAMES[name] for name in ("random search", "greedy", "farthest")}


def collapses(records: Sequence[Record]) -> pd.DataFrame:
    """Runs with a collapsed layer, and at chance after fine-tuning, by ratio and method."""
    frame = trials(records)
    frame["at chance"] = frame["test"] < _chance(records) + 1
    frame["collapsed"] = frame["collapsed layers"] > 0
    grouped = frame.groupby(["ratio", "method"], sort=True)
    return grouped.agg(
        runs=("test", "size"), collapsed=("collapsed", "sum"), **{"at chance": ("at chance", "sum")}
    ).reset_index()


def verdicts(
    records: Sequence[Record],
    profile: str,
    plan: Profile,
    ablated: Sequence[Record] = (),
    longer: Sequence[Record] = (),
) -> pd.DataFrame:
    """One row for each claim: what was tested, effect, interval, seeds, verdict, command.

    Args:
        records: of the profile of that name, which is `plan`.
        ablated, longer: of the profiles that it names so.
    """
    rows = [
        (profile, _competes(records, plan)),
        (profile, _recovers(records, plan)),
        (plan.longer, _recovers_given_time(longer, plan)),
        (profile, _damages(records, plan)),
        (profile, _damages(records, plan, lost="counted")),
        (profile, _layer(records, plan)),
        (profile, _cost(records)),
        (profile, _explains(records, plan)),
        (plan.ablation, _carries(ablated)),
    ]
    return pd.DataFrame(
        [{**row, "command": f"`python -m topoprune run --profile {name}`"} for name, row in rows if name]
    )


def findings(records: Sequence[Record]) -> dict[str, float]:
    """What the summary quotes, at the smallest and the largest ratio at which a network has all layer-wise
    methods; means over those networks, NaN where there is none.

    Returns:
        for `low_` and `high_`: ratio; seeds; topological, random, rivals (percent of test accuracy before
        fine-tuning, the last of L1, L2 and FPGM); after (the topological pruner's after it); spread (points
        between the best and the worst method after it); gain (points of topological over random after it);
        epochs (of fine-tuning that the topological selection takes as long as).
    """
    values, methods = ["test", "damaged", "selection seconds", "epoch seconds"], [NAMES[m] for m in LAYERWISE]
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values=values)
    wide = wide.reindex(columns=pd.MultiIndex.from_product([values, methods])).dropna()
    ratios, random = wide.index.get_level_values("ratio"), NAMES["random"]
    found = {}
    for end, pick in (("low", min), ("high", max)):
        ratio = pick(ratios, default=np.nan)
        part = wide[ratios == ratio]
        before, after = part["damaged"].mean(), part["test"].mean()
        seconds = part["selection seconds"][TOPOLOGICAL] / part["epoch seconds"][TOPOLOGICAL]
        numbers = {
            "ratio": ratio,
            "seeds": len(part),
            "topological": before[TOPOLOGICAL],
            "random": before[random],
            "rivals": before[list(RIVALS)].mean(),
            "after": after[TOPOLOGICAL],
            "spread": after.max() - after.min(),
            "gain": after[TOPOLOGICAL] - after[random],
            "epochs": seconds.mean(),
        }
        found |= {f"{end}_{name}": value for name, value in numbers.items()}
    return found


def holm(values: pd.Series) -> np.ndarray:
    """p-values corrected by Holm (1979); NaN stays and counts as no test."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.asarray(values, dtype=float).copy()
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected


def _competes(records, plan: Profile) -> dict:
    table = accuracy_equivalence(records)
    return _verdict(
        "1",
        f"competes in accuracy: topological less L1, L2, FPGM, equivalence within {MARGIN} points",
        table,
        table["verdict"],
        len(RIVALS) * len(plan.ratios),
        good={"equivalent", "not inferior"},
        bad={"worse"},
        unit="points",
    )


def _recovers_given_time(longer, plan: Profile) -> dict:
    """The same where fine-tuning is so long that networks can recover; empty without such a profile."""
    if not plan.longer:
        return {}
    plan = study.profile(plan.longer)
    return _recovers(longer, plan, f", width {plan.width:g} and {plan.recovery.epochs} epochs")


def _recovers(records, plan: Profile, where: str = "") -> dict:
    table = restricted_means(records)
    table = table[table["rival"].isin(RIVALS)]
    slower = (table["low"] > 0) & (table["p"] < LEVEL)
    cells = np.select(
        [table["recovered"] == 0, slower, table["high"] <= 0], [UNDECIDED, "slower", "not slower"], UNDECIDED
    )
    return _verdict(
        "1",
        f"recovers as fast{where}: restricted mean recovery time, topological less rival",
        table,
        cells,
        len(RIVALS) * len(plan.ratios),
        good={"not slower"},
        bad={"slower"},
        unit="epochs",
        most_against="largest",
    )


def _damages(records, plan: Profile, lost: str = "left out") -> dict:
    table = damage_differences(records)
    table = table[table["ratio"] >= HIGH_RATIO]
    tells = (table["p"] < LEVEL) & ((table["at chance"] == "no") | (lost == "counted"))
    cells = np.select([tells & (table["low"] > 0), tells & (table["high"] < 0)], ["less", "more"], UNDECIDED)
    return _verdict(
        "2",
        f"damages less from ratio {HIGH_RATIO} on (cells at chance {lost}): damage of a rival less that of topological",
        table,
        cells,
        (1 + len(RIVALS)) * sum(ratio >= HIGH_RATIO for ratio in plan.ratios),
        good={"less"},
        bad={"more"},
        unit="points",
    )


def _layer(records, plan: Profile) -> dict:
    layerwise = (TOPOLOGICAL, *RIVALS)
    table = accuracy_equivalence(records, layerwise, GLOBAL)
    return _verdict(
        "3",
        f"the layer is enough: layer-wise less global criterion at matched FLOPs, equivalence within {MARGIN} points",
        table,
        table["verdict"],
        len(layerwise) * len(GLOBAL) * len(plan.ratios),
        good={"equivalent", "not inferior"},
        bad={"worse"},
        unit="points",
    )


def _cost(records) -> dict:
    wide = trials(records).pivot_table(index=["seed", "ratio"], columns="method", values="selection seconds")
    shared = wide.reindex(columns=[TOPOLOGICAL, *RIVALS]).dropna()
    extra = (shared[TOPOLOGICAL] - shared[list(RIVALS)].mean(axis=1)).groupby("seed").mean()
    low, high = t_interval(extra)
    mine, others = shared[TOPOLOGICAL].median(), shared[list(RIVALS)].stack().median()
    effect = f"{extra.mean():+.1f} s (medians: {mine:.1f} against {others:.2f})" if len(extra) else ""
    return {
        "claim": "4",
        "tested": "cost of selection, measured: topological less the mean of L1, L2, FPGM",
        "effect": effect,
        "interval": _interval({"low": low, "high": high} if effect else None),
        "seeds": len(extra),
        "verdict": "measured",
    }


def _explains(records, plan: Profile) -> dict:
    replicated = _replicated(records)
    cells = {(name_of(r.spec), r.spec.ratio) for r in of_kind(replicated, Trial)}
    table = predictors(replicated if cells else records)
    found = {target: _explained(table, target) if cells else UNDECIDED for target in TARGETS}
    whole = len(cells) >= len(plan.methods) * len(plan.ratios)
    verdict = (
        NOT_SUPPORTED
        if NOT_SUPPORTED in found.values()
        else SUPPORTED
        if whole and set(found.values()) == {SUPPORTED}
        else UNDECIDED
    )
    target = next((name for name, one in found.items() if one == verdict), "damage")
    row = _mine(table, target)
    return {
        "claim": "5",
        "tested": f"{DISTANCE} tells damage and recovery beyond ratio and method: "
        "mixed model, out of sample, and against simpler measures",
        "effect": ""
        if row is None
        else f"{row['effect']:+.2f} points of {target} for one SD "
        f"(partial correlation {row['partial correlation']:+.2f})",
        "interval": _interval(row),
        "seeds": 0 if row is None else int(row["seeds"]),
        "verdict": verdict,
    }


def _replicated(records: Sequence[Record]) -> list[Record]:
    """The dense networks, and the trials of the cells that have enough of them to decide anything."""
    of_cell = Counter((name_of(r.spec), r.spec.ratio) for r in of_kind(records, Trial))
    return [
        r for r in records if not isinstance(r.spec, Trial) or of_cell[name_of(r.spec), r.spec.ratio] >= LEAST_SEEDS
    ]


def _explained(table: pd.DataFrame, target: str) -> str:
    """Whether the topological distance explains one target.

    Not if its effect, as far as its interval reaches, is smaller than the margin or of the wrong sign,
    or if a simpler measure passes the same test with as small an error out of sample.
    """
    mine = _mine(table, target)
    if mine is None or np.isnan(mine["p"]):
        return UNDECIDED
    rows = table[table["target"] == target]
    sign = TARGETS[target]
    passing = rows[(rows["p"] < LEVEL) & (sign * rows["effect"] > 0) & (rows["error"] < rows["error without"])]
    rivals = passing[passing["predictor"] != DISTANCE]
    if max(sign * mine["low"], sign * mine["high"]) < MARGIN or (rivals["error"] <= mine["error"]).any():
        return NOT_SUPPORTED
    return SUPPORTED if DISTANCE in set(passing["predictor"]) else UNDECIDED


def _mine(table: pd.DataFrame, target: str) -> pd.Series | None:
    """The row of the topological distance."""
    if table.empty:
        return None
    rows = table[(table["target"] == target) & (table["predictor"] == DISTANCE)]
    return rows.iloc[0] if len(rows) else None


def _carries(ablated) -> dict:
    # A 95 % interval on one side of the margin is a test at 2.5 %: Bonferroni's correction of two parts.
    table = ablations(ablated) if of_kind(ablated, Trial) else pd.DataFrame()
    parts = {NAMES["random search"]: "the search", NAMES["h0"]: "dimension 1"}
    table = table[table["variant"].isin(parts)] if len(table) else table
    cells = (
        []
        if table.empty
        else np.select([table["low"] > MARGIN, table["high"] < MARGIN], ["carries", "does not carry"], UNDECIDED)
    )
    table = table.rename(columns={"accuracy": "difference", "variant": "rival"})
    return _verdict(
        "6",
        "genetic algorithm and H1 carry the effect: accuracy with the default less with random search, or H0 alone",
        table,
        cells,
        len(parts),
        good={"carries"},
        bad={"does not carry"},
        unit="points",
    )


def _verdict(
    claim: str,
    tested: str,
    table: pd.DataFrame,
    cells,
    planned: int,
    good: set,
    bad: set,
    unit: str,
    most_against: str = "smallest",
) -> dict:
    """The whole claim from its cells, one for each row of `table`, of which so many are `planned`.

    One that counts against the claim decides, one that is undecided or not on record suspends. The
    effect shown is the one most against the claim: of the cells that refute it where some do, else of
    those with the most networks.
    """
    row, verdict = None, UNDECIDED
    if len(table):
        decided = np.where(table["seeds"] >= LEAST_SEEDS, cells, UNDECIDED)
        refuting = np.isin(decided, list(bad))
        supporting = np.isin(decided, list(good)).all() and len(table) >= planned
        verdict = NOT_SUPPORTED if refuting.any() else SUPPORTED if supporting else UNDECIDED
        shown = table[refuting if refuting.any() else table["seeds"] == table["seeds"].max()]
        ends = shown["difference"]
        row = shown.loc[ends.idxmax() if most_against == "largest" else ends.idxmin()]
    effect = "" if row is None else f"{row['difference']:+.2f} {unit} ({_at(row)})"
    return {
        "claim": claim,
        "tested": tested,
        "effect": effect,
        "interval": _interval(row),
        "seeds": 0 if row is None else int(row["seeds"]),
        "verdict": verdict,
    }


def _at(row) -> str:
    method = f"{row['method']} against " if row.get("method", TOPOLOGICAL) != TOPOLOGICAL else ""
    return f"{method}{row['rival']}, ratio {row['ratio']:g}"


def _interval(row) -> str:
    if row is None:
        return "none: not on record"
    if np.isnan(row["low"]):
        return "none: one seed"
    return f"{row['low']:+.2f} to {row['high']:+.2f}"


def _cell_verdict(row: dict) -> str:
    if np.isnan(row["p worse"]) or abs(row["FLOPs (%)"] - 100) > FLOPS_WITHIN:
        return UNDECIDED
    decided = {"p equivalent": "equivalent", "p not inferior": "not inferior", "p worse": "worse"}
    return next((cell for p, cell in decided.items() if row[p] < LEVEL), UNDECIDED)


def _chance(records: Sequence[Record]) -> float:
    """Test accuracy (%) of guessing."""
    classes = {"cifar10": 10, "digits": 10}
    return max((100 / classes[r.spec.dense.dataset] for r in of_kind(records, Trial)), default=0.0)


def _difference(values: np.ndarray) -> dict:
    """Mean of paired differences, its 95 % t-interval and two-sided p; NaN with fewer than two."""
    low, high = t_interval(values)
    return {
        "seeds": len(values),
        "difference": values.mean(),
        "low": low,
        "high": high,
        "p": np.minimum(1.0, 2 * np.minimum(_one_sided(values), _one_sided(-values))),
    }


def _pairs(wide, first: Sequence[str], second: Sequence[str]) -> list[tuple]:
    return [(one, other) for one in first if one in wide for other in second if other in wide]


def _one_sided(values: np.ndarray) -> float:
    """p of the test that the mean is above 0; values without spread decide by their sign."""
    if len(values) < 2:
        return np.nan
    if np.ptp(values) < 1e-9:
        return 0.0 if values[0] > 0 else 1.0
    return float(stats.ttest_1samp(values, 0, alternative="greater").pvalue)


def _predictor(frame: pd.DataFrame, target: str, name: str, factors: str = "C(ratio) + C(method)") -> dict:
    known = frame.dropna(subset=[name]).copy()
    if len(known) < 3 or known[name].std() == 0:
        return {}
    known["x"], known["y"] = _standard(known[name]), known[target]
    x, y = (_residuals(known, column, factors) for column in ("x", "y"))
    tells = min(x.std(), y.std()) > 1e-9
    base, full = f"y ~ {factors}", f"y ~ {factors} + x"
    return {
        "target": target,
        "predictor": name,
        "runs": len(known),
        "seeds": known["seed"].nunique(),
        "partial correlation": float(np.corrcoef(x, y)[0, 1]) if tells else np.nan,
        **_effect(full, known, "x"),
        "error": _left_out(full, known),
        "error without": _left_out(base, known),
    }


def _residuals(frame: pd.DataFrame, name: str, factors: str = "C(ratio) + C(method)") -> np.ndarray:
    import statsmodels.formula.api as smf

    return smf.ols(f"{name} ~ {factors} + C(seed)", frame).fit().resid.to_numpy()


def _effect(formula: str, frame: pd.DataFrame, name: str) -> dict:
    """Effect of `name` with its 95 % interval and p, by Student's t; NaN but for the effect with one seed.

    A linear mixed model with a random intercept for each seed. With few seeds its fit often fails to
    converge: then the seeds are a factor, which gives nearly the same where the grid is balanced.
    """
    import statsmodels.formula.api as smf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance between seeds of 0 lies at the boundary
        fixed = smf.ols(f"{formula} + C(seed)", frame).fit()
        if frame["seed"].nunique() < 2 or fixed.df_resid < 1:
            return {"effect": float(fixed.params[name]), "low": np.nan, "high": np.nan, "p": np.nan, "model": ""}
        mixed = _mixed(formula, frame, name)
        fit = fixed if mixed is None else mixed
        effect, error = float(fit.params[name]), float(fit.bse[name])
        half = stats.t.ppf(1 - LEVEL / 2, fixed.df_resid) * error
        p = 2 * stats.t.sf(abs(effect) / error, fixed.df_resid) if error else float(effect == 0)
    return {
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "p": float(p),
        "model": "seeds as a factor" if mixed is None else "mixed",
    }


def _mixed(formula: str, frame: pd.DataFrame, name: str):
    """The fit of the mixed model; None where there is none."""
    import statsmodels.formula.api as smf

    try:
        fit = smf.mixedlm(formula, frame, groups=frame["seed"]).fit()
    except np.linalg.LinAlgError:
        return None
    return fit if fit.converged and np.isfinite(fit.bse[name]) else None


def _left_out(formula: str, frame: pd.DataFrame) -> float:
    """Root mean squared error of predicting each seed from the others; NaN where these are too few."""
    import statsmodels.formula.api as smf

    if frame["seed"].nunique() < 2:
        return np.nan
    errors = []
    for seed in frame["seed"].unique():
        rest, own = frame[frame["seed"] != seed], frame[frame["seed"] == seed]
        own = own[
            own["ratio"].isin(rest["ratio"])
            & own["method"].isin(rest["method"])
            & (own["cell"].isin(rest["cell"]) | ("cell" not in formula))
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that the others do not tell apart
            fit = smf.ols(formula, rest).fit()
        if fit.df_resid < 1:
            return np.nan
        errors.append(own["y"] - fit.predict(own))
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _standard(values: pd.Series) -> pd.Series:
    return (values - values.mean()) / values.std()


def _found(record: Record) -> float:
    """Mean over layers of the fitness that the search reached; NaN without a search."""
    last = [steps["best"][-1] for steps in record.result["searches"].values() if steps]
    return float(np.mean(last)) if last else np.nan


def _evaluations(record: Record) -> int:
    return sum(steps["evaluations"][-1] for steps in record.result["searches"].values() if steps)
