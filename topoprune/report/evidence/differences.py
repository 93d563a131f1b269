"""Methods compared in pairs that pruned the same dense networks: accuracy, damage, collapse, ablations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.statistics import (
    EQUIVALENCE_TESTS,
    LEVEL,
    equivalence,
    holm,
    mixed_effect,
    paired_difference,
    slope_over_networks,
    t_interval,
)
from topoprune.report.frames import NAMES, methods_in, of_kind, trials
from topoprune.study import Record, Trial
from topoprune.study.datasets import CLASSES

TOPOLOGICAL = NAMES["topological"]
RIVALS = ("L1", "L2", "FPGM")
GLOBAL = ("global magnitude", "global Taylor")
"""Criteria over the whole architecture."""

SAME_FITNESS = {NAMES[name] for name in ("random search", "greedy", "farthest")}
"""Variants that minimise the same fitness as the default, so that what they reach can be compared."""

FLOPS_WITHIN = 1.0
"""Percent by which the FLOPs of two networks may differ where they are compared as equal."""

FLOOR = 5.0
"""Points above chance below which a network has lost everything, so that damage cannot tell methods apart."""

UNDECIDED = "undecided"


def accuracy_equivalence(
    records: Sequence[Record], first: Sequence[str] = (TOPOLOGICAL,), second: Sequence[str] = RIVALS
) -> pd.DataFrame:
    """Test accuracy after fine-tuning: each method of `first` less each of `second`, by ratio.

    Two networks whose FLOPs differ by more than `FLOPS_WITHIN` are no pair (see `flops_mismatches`). p-values are
    corrected by Holm over all rows.

    Returns:
        A row for each pair of methods and ratio: method, rival, ratio, seeds (pairs of networks); verdict
        ("equivalent", "not inferior", "worse" or "undecided"); difference (points), low, high and p-values of
        `equivalence`; FLOPs (%) of the rival, in percent of the method's, mean over the pairs.
    """
    pairs = _accuracy_pairs(records, first, second)
    rows = []
    for (method, rival, ratio), cell in pairs.groupby(["method", "rival", "ratio"]):
        matched = cell[cell["matched"]]
        tested = equivalence(matched["difference"].to_numpy())
        rows.append(
            {"method": method, "rival": rival, "ratio": ratio, **tested, "FLOPs (%)": matched["FLOPs (%)"].mean()}
        )
    columns = ["method", "rival", "ratio", "seeds", "difference", "low", "high", *EQUIVALENCE_TESTS, "FLOPs (%)"]
    table = pd.DataFrame(rows, columns=columns)
    for name in EQUIVALENCE_TESTS:
        table[name] = holm(table[name])
    table.insert(4, "verdict", [_cell_verdict(row) for row in table.to_dict("records")])
    return table.sort_values(["ratio", "method", "rival"], ignore_index=True)


def flops_mismatches(
    records: Sequence[Record], first: Sequence[str] = (TOPOLOGICAL,), second: Sequence[str] = GLOBAL
) -> pd.DataFrame:
    """Networks whose FLOPs differ too much from their partners' to be compared at equal FLOPs.

    Returns:
        A row for each such pair: method, rival, ratio, seed, FLOPs (%) of the rival in percent of the method's.
    """
    pairs = _accuracy_pairs(records, first, second)
    columns = ["method", "rival", "ratio", "seed", "FLOPs (%)"]
    return pairs.loc[~pairs["matched"], columns].sort_values(["ratio", "rival", "seed"], ignore_index=True)


def damage_differences(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """Damage (points of validation accuracy) of each rival less that of `method`, by ratio.

    Positive: the method hurts less. The 95 % interval is Student's over dense networks; p is two-sided and corrected
    by Holm over all rows. "at chance": after removal neither method leaves `FLOOR` points of test accuracy above
    chance, so that all is lost either way.
    """
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values=["damage", "damaged"])
    floor = chance_level(records) + FLOOR
    rows = []
    for rival, _ in _on_record(wide.get("damage", ()), ("random", *RIVALS), (method,)):
        for ratio, pairs in (wide["damage", rival] - wide["damage", method]).dropna().groupby(level="ratio"):
            left = wide["damaged"].loc[pairs.index, [rival, method]].mean()
            at_chance = "yes" if left.max() < floor else "no"
            rows.append({"rival": rival, "ratio": ratio, **paired_difference(pairs.to_numpy()), "at chance": at_chance})
    columns = ["rival", "ratio", "seeds", "difference", "low", "high", "p", "at chance"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["ratio", "rival"], ignore_index=True)
    return table.assign(p=holm(table["p"]))


def damage_slopes(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """How the difference in damage grows with the ratio: points for each 0.1 of it, by rival.

    From a linear mixed model with a random intercept for each dense network, see `mixed_effect`.
    """
    rows = []
    for rival, pairs in _damage_by_ratio(records, method):
        fit = mixed_effect("y ~ x", pairs, "x")
        rows.append({"rival": rival, "seeds": pairs["seed"].nunique(), "slope": fit.pop("effect"), **fit})
    return pd.DataFrame(rows, columns=["rival", "seeds", "slope", "low", "high", "p", "model"])


def damage_slopes_over_networks(records: Sequence[Record], method: str = TOPOLOGICAL) -> pd.DataFrame:
    """The slopes of `damage_slopes`, one for each dense network and tested over the networks."""
    rows = []
    for rival, pairs in _damage_by_ratio(records, method):
        fit = slope_over_networks(pairs)
        rows.append({"rival": rival, "slope": fit.pop("effect"), **fit})
    return pd.DataFrame(rows, columns=["rival", "seeds", "slope", "low", "high", "p"])


def collapses(records: Sequence[Record]) -> pd.DataFrame:
    """Runs with a collapsed layer, and runs at chance after fine-tuning, by ratio and method."""
    frame = trials(records)
    frame["at chance"] = frame["test"] < chance_level(records) + 1
    frame["collapsed"] = frame["collapsed layers"] > 0
    grouped = frame.groupby(["ratio", "method"], sort=True)
    return grouped.agg(
        runs=("test", "size"), collapsed=("collapsed", "sum"), **{"at chance": ("at chance", "sum")}
    ).reset_index()


def ablations(records: Sequence[Record]) -> pd.DataFrame:
    """The default topological method less each variant, paired over dense networks.

    Returns:
        A row for each variant and ratio: seeds; accuracy (points of test accuracy after fine-tuning) with its 95 %
        interval; damage (points by which the variant hurts more); fitness (relative excess of the fitness that the
        variant's search reaches, where both minimise the same); evaluations (subsets that the variant's search
        judged, over all layers).
    """
    pruned = of_kind(records, Trial)
    frame = trials(records).assign(
        fitness=np.array([_fitness_reached(record) for record in pruned], dtype=float),
        evaluations=np.array([_evaluations(record) for record in pruned], dtype=int),
    )
    values = ["test", "damage", "fitness", "evaluations"]
    wide = frame.pivot_table(index=["ratio", "seed"], columns="method", values=values, dropna=False)
    present = methods_in(frame)
    rows = [
        _ablation(name, ratio, cell)
        for name in present
        if name != TOPOLOGICAL and TOPOLOGICAL in present
        for ratio, cell in wide.groupby(level="ratio")
    ]
    columns = ["variant", "ratio", "seeds", "accuracy", "low", "high", "damage", "fitness", "evaluations"]
    return pd.DataFrame([row for row in rows if row["seeds"]], columns=columns)


def chance_level(records: Sequence[Record]) -> float:
    """Test accuracy (%) of guessing; 0 without trials."""
    return max((100 / CLASSES[record.spec.dense.dataset] for record in of_kind(records, Trial)), default=0.0)


def _accuracy_pairs(records: Sequence[Record], first: Sequence[str], second: Sequence[str]) -> pd.DataFrame:
    """One row for each pair of networks: method, rival, ratio, seed, difference, FLOPs (%), matched."""
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values=["test", "flops"])
    columns = ["method", "rival", "ratio", "seed", "difference", "FLOPs (%)", "matched"]
    parts = [pd.DataFrame(columns=columns).astype({"difference": float, "FLOPs (%)": float, "matched": bool})]
    for method, rival in _on_record(wide.get("test", ()), first, second):
        shares = 100 * wide["flops", rival] / wide["flops", method]
        pairs = pd.DataFrame({"difference": wide["test", method] - wide["test", rival], "FLOPs (%)": shares}).dropna()
        pairs["matched"] = (pairs["FLOPs (%)"] - 100).abs() <= FLOPS_WITHIN
        parts.append(pairs.reset_index().assign(method=method, rival=rival)[columns])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _on_record(wide, first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    return [(one, other) for one in first if one in wide for other in second if other in wide]


def _cell_verdict(row: dict) -> str:
    verdicts = dict(zip(EQUIVALENCE_TESTS, ("equivalent", "not inferior", "worse"), strict=True))
    return next((verdict for p, verdict in verdicts.items() if row[p] < LEVEL), UNDECIDED)


def _damage_by_ratio(records: Sequence[Record], method: str) -> list[tuple[str, pd.DataFrame]]:
    """Rival and its differences in damage y, by x = ten times the ratio and seed, if there are two ratios."""
    wide = trials(records).pivot_table(index=["ratio", "seed"], columns="method", values="damage")
    found = []
    for rival, _ in _on_record(wide, ("random", *RIVALS), (method,)):
        pairs = (wide[rival] - wide[method]).dropna().rename("y").reset_index()
        if pairs["ratio"].nunique() > 1:
            found.append((rival, pairs.assign(x=10 * pairs["ratio"])))
    return found


def _ablation(variant: str, ratio: float, cell: pd.DataFrame) -> dict:
    pairs = (cell["test", TOPOLOGICAL] - cell["test", variant]).dropna()
    low, high = t_interval(pairs.to_numpy())
    excess = cell["fitness", variant] / cell["fitness", TOPOLOGICAL] - 1
    judged = cell["evaluations", variant].mean()
    return {
        "variant": variant,
        "ratio": ratio,
        "seeds": len(pairs),
        "accuracy": pairs.mean(),
        "low": low,
        "high": high,
        "damage": (cell["damage", variant] - cell["damage", TOPOLOGICAL]).mean(),
        "fitness": excess.mean() if variant in SAME_FITNESS else np.nan,
        "evaluations": 0 if np.isnan(judged) else round(judged),
    }


def _fitness_reached(record: Record) -> float:
    """Mean over layers of the fitness that the search reached; NaN without a search."""
    reached = [steps["best"][-1] for steps in record.result["searches"].values() if steps]
    return float(np.mean(reached)) if reached else np.nan


def _evaluations(record: Record) -> int:
    return sum(steps["evaluations"][-1] for steps in record.result["searches"].values() if steps)
