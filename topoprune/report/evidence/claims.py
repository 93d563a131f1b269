"""A verdict for each claim of the book's claims page.

A claim is made of cells, such as one rival at one ratio. A cell decides nothing with fewer than three dense networks.
One cell that speaks against the claim refutes it; the claim is supported when all its planned cells are on record and
speak for it.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.differences import (
    GLOBAL,
    RIVALS,
    TOPOLOGICAL,
    UNDECIDED,
    ablations,
    accuracy_equivalence,
    damage_differences,
)
from topoprune.report.evidence.explanation import TARGETS, predictors, predictors_over_networks
from topoprune.report.evidence.recovery import restricted_means
from topoprune.report.evidence.statistics import LEVEL, MARGIN, t_interval
from topoprune.report.frames import DISTANCE, NAMES, name_of, of_kind, trials
from topoprune.study import Profile, Record, Trial, profile

LEAST_SEEDS = 3
"""Dense networks behind a cell, below which it decides nothing."""

HIGH_RATIO = 0.7
"""Smallest ratio of which claim 2 speaks."""

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"


def verdicts(
    records: Sequence[Record],
    name: str,
    plan: Profile,
    ablated: Sequence[Record] = (),
    longer: Sequence[Record] = (),
) -> pd.DataFrame:
    """Rows of `claim_verdict` for each claim, one for each of its tests, with the command that repeats it.

    Args:
        records: of the profile `name`, whose plan is `plan`.
        ablated, longer: of the profiles `plan.ablation` and `plan.longer`; a claim whose profile has no name is
            left out.
    """
    rows = [
        (name, competes(records, plan)),
        (name, recovers(records, plan)),
        *([(plan.longer, recovers_given_time(longer, plan))] if plan.longer else []),
        (name, damages_less(records, plan)),
        (name, damages_less(records, plan, at_chance="counted")),
        (name, layer_is_enough(records, plan)),
        (name, cost_of_selection(records)),
        *((name, row) for row in explains(records, plan)),
        *([(plan.ablation, parts_carry(ablated))] if plan.ablation else []),
    ]
    return pd.DataFrame([{**row, "command": f"`python -m topoprune run --profile {source}`"} for source, row in rows])


def competes(records: Sequence[Record], plan: Profile) -> dict:
    """Claim 1, accuracy: after fine-tuning, topological is equivalent to L1, L2 and FPGM, or better."""
    table = accuracy_equivalence(records)
    return claim_verdict(
        "1",
        "It competes in accuracy",
        f"competes in accuracy: topological less L1, L2, FPGM, equivalence within {MARGIN} points",
        table,
        table["verdict"],
        planned=len(RIVALS) * len(plan.ratios),
        good={"equivalent", "not inferior"},
        bad={"worse"},
        unit="points",
        bound=-MARGIN,
    )


def recovers(records: Sequence[Record], plan: Profile, where: str = "") -> dict:
    """Claim 1, time: topological recovers no later than L1, L2 and FPGM."""
    table = restricted_means(records)
    table = table[table["rival"].isin(RIVALS)]
    tells = (table["p"] < LEVEL) & (table["recovered"] > 0)
    cells = np.select([tells & (table["low"] > 0), tells & (table["high"] <= 0)], ["slower", "not slower"], UNDECIDED)
    row = claim_verdict(
        "1",
        f"It recovers as fast{where}",
        f"recovers as fast{where}: restricted mean recovery time, topological less rival",
        table,
        cells,
        planned=len(RIVALS) * len(plan.ratios),
        good={"not slower"},
        bad={"slower"},
        unit="epochs",
        largest=True,
    )
    return said_if_none_recovered(row, table)


def said_if_none_recovered(row: dict, table: pd.DataFrame) -> dict:
    """The row of a claim about recovery times; where no run recovered, its effect says so, not that they are equal."""
    if len(table) and not table["recovered"].any():
        return {**row, "effect": "no run recovered within its fine-tuning"}
    return row


def recovers_given_time(longer: Sequence[Record], plan: Profile) -> dict:
    """Claim 1, time, where fine-tuning is long enough for networks to recover."""
    long = profile(plan.longer)
    return recovers(longer, long, f", width {long.width:g} and {long.recovery.epochs} epochs")


def damages_less(records: Sequence[Record], plan: Profile, at_chance: str = "left out") -> dict:
    """Claim 2: from `HIGH_RATIO` on, topological damages less than random, L1, L2 and FPGM.

    Args:
        at_chance: "left out" or "counted": whether a cell where neither method leaves the network above chance
            decides anything.
    """
    table = damage_differences(records)
    table = table[(table["ratio"] >= HIGH_RATIO) & ((table["at chance"] == "no") | (at_chance == "counted"))]
    tells = table["p"] < LEVEL
    cells = np.select([tells & (table["low"] > 0), tells & (table["high"] < 0)], ["less", "more"], UNDECIDED)
    return claim_verdict(
        "2",
        "It damages less" + (", cells at chance counted" if at_chance == "counted" else ""),
        f"damages less from ratio {HIGH_RATIO} on (cells at chance {at_chance}): "
        "damage of a rival less that of topological",
        table,
        cells,
        planned=(1 + len(RIVALS)) * sum(ratio >= HIGH_RATIO for ratio in plan.ratios),
        good={"less"},
        bad={"more"},
        unit="points",
    )


def layer_is_enough(records: Sequence[Record], plan: Profile) -> dict:
    """Claim 3: at equal FLOPs no criterion over the whole architecture ends above a layer-wise one."""
    layerwise = (TOPOLOGICAL, *RIVALS)
    table = accuracy_equivalence(records, layerwise, GLOBAL)
    return claim_verdict(
        "3",
        "Pruning layer by layer is enough",
        f"the layer is enough: layer-wise less global criterion at matched FLOPs, equivalence within {MARGIN} points",
        table,
        table["verdict"],
        planned=len(layerwise) * len(GLOBAL) * len(plan.ratios),
        good={"equivalent", "not inferior"},
        bad={"worse"},
        unit="points",
        bound=-MARGIN,
    )


def cost_of_selection(records: Sequence[Record]) -> dict:
    """Claim 4, measured and not tested: seconds of selection, topological less the mean of L1, L2 and FPGM."""
    wide = trials(records).pivot_table(index=["seed", "ratio"], columns="method", values="selection seconds")
    shared = wide.reindex(columns=[TOPOLOGICAL, *RIVALS]).dropna()
    extra = (shared[TOPOLOGICAL] - shared[list(RIVALS)].mean(axis=1)).groupby("seed").mean()
    low, high = t_interval(extra)
    medians = ", ".join(f"{name} {seconds:.1f}" for name, seconds in shared.median().items())
    return {
        "claim": "4",
        "name": "Cost of selection",
        "tested": "cost of selection, measured: topological less the mean of L1, L2, FPGM",
        "effect": f"{extra.mean():+z.1f} s (medians: {medians})" if len(extra) else "",
        "interval": _interval(len(extra), low, high),
        "seeds": len(extra),
        "verdict": "measured",
        **in_numbers({"difference": extra.mean(), "low": low, "high": high}, "seconds"),
    }


def explains(records: Sequence[Record], plan: Profile) -> list[dict]:
    """Claim 5: the topological distance tells damage and recovery beyond ratio and method.

    Returns:
        Two rows: the registered mixed model, and slopes of single dense networks tested over the networks.
    """
    replicated = _replicated(records)
    cells = {(name_of(record.spec), record.spec.ratio) for record in of_kind(replicated, Trial)}
    decides, complete = bool(cells), len(cells) >= len(plan.methods) * len(plan.ratios)
    decisive = replicated if decides else records
    mixed, slopes = predictors(decisive), predictors_over_networks(decisive)
    single = mixed.drop(columns=["seeds", "effect", "low", "high", "p", "model"]).merge(
        slopes, on=["target", "predictor"]
    )
    return [
        _explanation("The distance explains damage and recovery", "mixed model", mixed, decides, complete),
        _explanation(
            "The distance explains, network by network", "slopes of single networks", single, decides, complete
        ),
    ]


_FITS = {"mixed": "mixed model", "seeds as a factor": "networks as a factor, since the mixed model fails"}
"""Model of `statistics.mixed_effect` -> its name in a verdict."""


def _explanation(name: str, test: str, table: pd.DataFrame, decides: bool, complete: bool) -> dict:
    verdict, row = explanation_verdict(table, decides, complete)
    effect, below = "", False
    if row is not None:
        below = TARGETS[row["target"]] < 0
        test = _FITS.get(row.get("model"), test)
        correlation = f"partial correlation {row['partial correlation']:+z.2f}"
        effect = f"{row['effect']:+z.2f} points of {row['target']} for one SD ({correlation})"
    return {
        "claim": "5",
        "name": name,
        "tested": f"{DISTANCE} tells damage and recovery beyond ratio and method: "
        f"{test}, out of sample, and against simpler measures",
        "effect": effect,
        "interval": interval_of(row),
        "seeds": 0 if row is None else int(row["seeds"]),
        "verdict": verdict,
        **in_numbers(row, "points per SD", below, effect="effect"),
    }


def parts_carry(ablated: Sequence[Record]) -> dict:
    """Claim 6: random search in place of the genetic algorithm, or H0 alone, costs more than the margin.

    A 95 % interval on one side of the margin is a test at 2.5 %: Bonferroni's correction of two parts.
    """
    parts = {NAMES["random search"]: "the search", NAMES["h0"]: "dimension 1"}
    table = ablations(ablated)
    table = table[table["variant"].isin(parts)].rename(columns={"accuracy": "difference", "variant": "rival"})
    cells = np.select([table["low"] > MARGIN, table["high"] < MARGIN], ["carries", "does not carry"], UNDECIDED)
    return claim_verdict(
        "6",
        "Search and loops carry the effect",
        "genetic algorithm and H1 carry the effect: accuracy with the default less with random search, or H0 alone",
        table,
        cells,
        planned=len(parts),
        good={"carries"},
        bad={"does not carry"},
        unit="points",
        bound=MARGIN,
    )


def claim_verdict(
    claim: str,
    name: str,
    tested: str,
    table: pd.DataFrame,
    cells: Sequence[str] | np.ndarray | pd.Series,
    planned: int,
    good: Collection[str],
    bad: Collection[str],
    unit: str,
    bound: float = 0.0,
    largest: bool = False,
) -> dict:
    """The row of a claim from its cells.

    Args:
        claim, name: number and short name.
        table: one row for each cell: rival, ratio, seeds, difference, low, high.
        cells: what each row of `table` says, such as "equivalent".
        planned: number of cells of the whole grid.
        good, bad: what speaks for the claim, and against it.
        bound: a difference above it speaks for the claim. Where `table` has the column "margin", less that of the cell.
        largest: whether a difference below `bound` does, so that the largest is the one most against the claim.

    Returns:
        claim, name, tested, effect, interval, seeds, tally (how many cells say what), verdict, in words. The effect is
        that of the cell most against the claim, by the worse end of its interval: of the cells that refute it if there
        are any, else of those with the most networks. The same in numbers: difference, low, high, unit; bound and side
        (1: a difference above `bound` speaks for the claim; -1: one below; 0: neither); others: (difference, low, high)
        of each cell with enough networks and the same margin.
    """
    cells = np.where(table["seeds"] >= LEAST_SEEDS, cells, UNDECIDED)
    refuting = np.isin(cells, list(bad))
    complete = len(table) >= planned and np.isin(cells, list(good)).all()
    shown = table[refuting if refuting.any() else table["seeds"] == max(1, table["seeds"].max())]
    row = shown.loc[_room(shown, largest).idxmin()] if len(shown) else None
    others = table[table["seeds"] >= LEAST_SEEDS]
    if row is not None and "margin" in row:
        others, bound = others[others["margin"] == row["margin"]], -row["margin"]
    return {
        "claim": claim,
        "name": name,
        "tested": tested,
        "effect": "" if row is None else f"{row['difference']:+z.2f} {unit} ({_cell_name(row)})",
        "interval": interval_of(row),
        "seeds": 0 if row is None else int(row["seeds"]),
        "tally": f"{np.isin(cells, list(good)).sum()} of {planned} cells speak for it, {refuting.sum()} against",
        "verdict": NOT_SUPPORTED if refuting.any() else SUPPORTED if complete and len(table) else UNDECIDED,
        **in_numbers(row, unit, largest, bound),
        "others": tuple(others[["difference", "low", "high"]].itertuples(index=False, name=None)),
    }


def _room(cells: pd.DataFrame, largest: bool) -> pd.Series:
    """How far the worse end of each interval lies on the claim's side of zero, or of its margin."""
    ends = (-cells["high"] if largest else cells["low"]).fillna(cells["difference"] * (-1 if largest else 1))
    return ends + cells["margin"] if "margin" in cells else ends


def explanation_verdict(table: pd.DataFrame, decides: bool, complete: bool) -> tuple[str, pd.Series | None]:
    """The verdict of claim 5 and the row that shows it.

    Args:
        table: as of `predictors`.
        decides: whether any cell has enough dense networks.
        complete: whether all planned cells have.
    """
    explained = {target: target_verdict(table, target) if decides else UNDECIDED for target in TARGETS}
    if NOT_SUPPORTED in explained.values():
        verdict = NOT_SUPPORTED
    else:
        verdict = SUPPORTED if complete and set(explained.values()) == {SUPPORTED} else UNDECIDED
    target = next((target for target, one in explained.items() if one == verdict), "damage")
    return verdict, _distance_row(table, target)


def target_verdict(table: pd.DataFrame, target: str) -> str:
    """Whether the topological distance explains one target.

    It does not if its effect, as far as the interval reaches, is smaller than the margin or of the wrong sign, or if
    a simpler measure passes the same test with as small an error out of sample.
    """
    row = _distance_row(table, target)
    if row is None or np.isnan(row["p"]):
        return UNDECIDED
    rows = table[table["target"] == target]
    sign = TARGETS[target]
    passing = rows[(rows["p"] < LEVEL) & (sign * rows["effect"] > 0) & (rows["error"] < rows["error without"])]
    simpler = passing[passing["predictor"] != DISTANCE]
    if max(sign * row["low"], sign * row["high"]) < MARGIN or (simpler["error"] <= row["error"]).any():
        return NOT_SUPPORTED
    return SUPPORTED if DISTANCE in set(passing["predictor"]) else UNDECIDED


def interval_of(row: pd.Series | None) -> str:
    """The interval of a cell in words; None is a cell that is not on record."""
    return _interval(0, np.nan, np.nan) if row is None else _interval(int(row["seeds"]), row["low"], row["high"])


def in_numbers(row, unit: str, below: bool | None = None, bound: float = 0.0, effect: str = "difference") -> dict:
    """The columns of `claim_verdict` that a forest plot draws.

    Args:
        row: a mapping with `effect`, "low" and "high"; None is a cell that is not on record.
        below: whether an effect below `bound` speaks for the claim; None where neither side does.
    """
    names = {"difference": effect, "low": "low", "high": "high"}
    ends = {name: np.nan if row is None else float(row[column]) for name, column in names.items()}
    return {**ends, "unit": unit, "bound": bound, "side": {None: 0, True: -1, False: 1}[below], "others": ()}


def _replicated(records: Sequence[Record]) -> list[Record]:
    """All but the trials of cells that have too few dense networks to decide anything."""
    networks = Counter((name_of(record.spec), record.spec.ratio) for record in of_kind(records, Trial))
    return [
        record
        for record in records
        if not isinstance(record.spec, Trial) or networks[name_of(record.spec), record.spec.ratio] >= LEAST_SEEDS
    ]


def _distance_row(table: pd.DataFrame, target: str) -> pd.Series | None:
    rows = table[(table["target"] == target) & (table["predictor"] == DISTANCE)]
    return rows.iloc[0] if len(rows) else None


def _cell_name(row: pd.Series) -> str:
    method = f"{row['method']} against " if row.get("method", TOPOLOGICAL) != TOPOLOGICAL else ""
    return f"{method}{row['rival']}, ratio {row['ratio']:g}"


def _interval(seeds: int, low: float, high: float) -> str:
    if seeds == 0:
        return "none: not on record"
    if np.isnan(low):
        return "none: one seed" if seeds == 1 else "none: no spread"
    return f"{low:+z.2f} to {high:+z.2f}"
