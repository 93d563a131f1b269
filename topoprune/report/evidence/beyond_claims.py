"""A verdict for each of the claims B1 to B5, and the numbers that the prose of their chapter quotes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.beyond import (
    ABOVE,
    ALL_FOUR,
    BEFORE,
    BELOW,
    BETTER,
    EQUIVALENT,
    FUNCTIONAL,
    LASTING_PAIRS,
    LATER,
    MARGIN_BEFORE,
    MENDED_METHODS,
    OBS,
    PRIMARY_MENDING,
    PRIMARY_RATIO,
    QR,
    RANDOM,
    RECOVERY_RATIO,
    SOONER,
    WORSE,
    lasting_gains,
    mending_gains,
    rivals,
    sooner,
)
from topoprune.report.evidence.beyond_explanation import (
    ACCURACIES,
    LOST_MASS,
    accuracy_verdicts,
    explained,
    rank_correlations,
    replicated_cells,
)
from topoprune.report.evidence.claims import (
    LEAST_SEEDS,
    NOT_SUPPORTED,
    SUPPORTED,
    claim_verdict,
    in_numbers,
    interval_of,
    said_if_none_recovered,
)
from topoprune.report.evidence.differences import TOPOLOGICAL, UNDECIDED
from topoprune.report.evidence.statistics import MARGIN, paired_difference
from topoprune.report.frames import DISTANCE, NAMES, cloud_frame, of_kind, recovery_frame, removals_by_network, trials
from topoprune.study import Dense, Profile, Record, Removal, Trial
from topoprune.study.profiles import CHOICES, COMPENSATED

NOT_ON_RECORD = "(not on record)"


def beyond_verdicts(records: Sequence[Record], plan: Profile) -> pd.DataFrame:
    """The row of `claims.claim_verdict` for each claim, with cells: how many primary ones are on record.

    A claim is supported when all its primary cells are on record with at least three networks and speak for it. Cells
    that `plan` does not have keep it undecided.
    """
    rows = [
        mends(records),
        lasts(records),
        equals_rivals(records),
        recovers_sooner(records),
        explains(records, plan),
    ]
    return pd.DataFrame(rows)


def mends(records: Sequence[Record]) -> dict:
    """B1: refitting the next layers reduces damage, whatever the choice."""
    table = mending_gains(records)
    primary = table[table["primary"].astype(bool)].drop(columns="method").assign(rival=table["method"])
    return _row(
        "B1",
        "Refitting reduces damage",
        f"refitting reduces damage: {PRIMARY_MENDING} less none, before fine-tuning",
        primary,
        planned=len(CHOICES),
        good={ABOVE},
        bad={BELOW},
    )


def lasts(records: Sequence[Record]) -> dict:
    """B2: choosing by what channels compute lasts through fine-tuning."""
    table = lasting_gains(records)
    return _row(
        "B2",
        "The cover ends above its rivals",
        f"the functional choice lasts: {FUNCTIONAL} less rivals, after fine-tuning",
        table[table["primary"].astype(bool)],
        planned=len(LASTING_PAIRS),
        good={ABOVE},
        bad={BELOW},
    )


def equals_rivals(records: Sequence[Record]) -> dict:
    """B3: the functional choice is as good as its strongest rivals."""
    table = rivals(records)
    primary = table[table["primary"].astype(bool)]
    before = np.where(primary["measured"] == BEFORE, f", {BEFORE}", "")
    return _row(
        "B3",
        "The cover is close to its strongest rivals",
        f"as good as its strongest rivals: within {MARGIN:g} points after fine-tuning, {MARGIN_BEFORE:g} before",
        primary.assign(rival=primary["rival"] + before),
        planned=4,
        good={EQUIVALENT, BETTER},
        bad={WORSE},
        bound=-MARGIN,
    )


def recovers_sooner(records: Sequence[Record]) -> dict:
    """B4: compensated networks recover sooner than plain ones."""
    table = sooner(records)
    primary = table[table["primary"].astype(bool)].drop(columns="method").assign(rival=ALL_FOUR)
    row = _row(
        "B4",
        "Refitted networks recover sooner",
        "compensated networks recover sooner: their restricted mean time less that of plain ones",
        primary,
        planned=1,
        good={SOONER},
        bad={LATER},
        unit="epochs",
        largest=True,
    )
    return said_if_none_recovered(row, primary)


def explains(records: Sequence[Record], plan: Profile) -> dict:
    """B5: the lost mass explains damage and recovery."""
    table = explained(records)
    plain = [name for name in plan.methods if not name.endswith(COMPENSATED)]
    planned = 2 * len(plan.removals) * len(plan.removal_ratios) + len(plain) * len(plan.ratios)
    on_record = replicated_cells(records)
    targets = accuracy_verdicts(records, table)
    said = list(targets.values())
    if NOT_SUPPORTED in said:
        verdict = NOT_SUPPORTED
    else:
        verdict = SUPPORTED if on_record >= planned and set(said) == {SUPPORTED} else UNDECIDED
    target = next((target for target, one in targets.items() if one == verdict), ACCURACIES[0])
    rows = table[(table["predictor"] == LOST_MASS) & (table["target"] == target)]
    row = rows.iloc[0] if len(rows) else None
    return {
        "claim": "B5",
        "name": "The lost mass explains accuracy",
        "tested": "the lost mass explains accuracy beyond ratio and method, better than norm, rank and weights do",
        "effect": "" if row is None else f"{row['effect']:+z.2f} points for one SD ({_TARGET_NAMES[target]})",
        "interval": interval_of(row),
        "seeds": 0 if row is None else int(row["seeds"]),
        "tally": f"{said.count(SUPPORTED)} of {len(said)} targets speak for it, {said.count(NOT_SUPPORTED)} against: "
        "there a simpler loss does as well, or the sign is wrong",
        "verdict": verdict,
        **in_numbers(row, "points per SD", below=True, effect="effect"),
        "cells": _of_planned(on_record, planned),
    }


def effect_in_words(table: pd.DataFrame, target: str, predictor: str) -> str:
    """An effect of `explained` as prose quotes it: points for one standard deviation, with its interval."""
    rows = table[(table["target"] == target) & (table["predictor"] == predictor)]
    return points(rows.rename(columns={"effect": "difference"}).iloc[0]) if len(rows) else NOT_ON_RECORD


def beyond_findings(records: Sequence[Record]) -> dict[str, str | int]:
    """What the prose quotes, as text; "(not on record)" where nothing is.

    Returns:
        choice: the functional choice; networks, removals, trials: how many are on record; dense: test accuracy (%);
        NAME_none, NAME_convolution: mean test accuracy before fine-tuning at `PRIMARY_RATIO`, plain and refitted, and
        NAME_plain, NAME_mended: after fine-tuning, of the choices `_QUOTED`; plain_low, plain_high: the worst and the
        best choice after fine-tuning, plain; ends_low, ends_high: the same at `RECOVERY_RATIO`; mended_ends_low,
        mended_ends_high: of the refitted choices there; functional_first: the refitted functional choice after its
        first epoch there; functional_refitted, random_refitted: before fine-tuning there; over_thesis, over_random:
        points of the functional choice over these after fine-tuning, plain, with the interval; over_obs: over OBS
        before it, refitted; thesis_refitted: the thesis's choice over random removal there; plain_recovered,
        mended_recovered: runs of `MENDED_METHODS` that recovered at `RECOVERY_RATIO`, of how many;
        plain_recovered_all: the same of all choices, plain; functional_lost, random_lost, l1_lost: points below the
        dense network at that ratio, refitted, before fine-tuning; thesis_distance, random_distance: topological
        distances at `PRIMARY_RATIO`; ratio, recovery_ratio: these two ratios; spread_SPACE, radius_SPACE: means of
        `frames.cloud_frame` over layers and networks; mass_rank_MENDING, distance_rank_MENDING: `rank_correlations`
        of the lost mass and the topological distance with the accuracy before fine-tuning.
    """
    before, frame = removals_by_network(records), trials(records)
    ranks = rank_correlations(before, PRIMARY_RATIO)
    little, before = (before[before["ratio"] == ratio] for ratio in (RECOVERY_RATIO, PRIMARY_RATIO))
    refitted = before.pivot_table(index="seed", columns="method", values=PRIMARY_MENDING)
    ends = frame[frame["ratio"] == PRIMARY_RATIO].pivot_table(index="seed", columns="method", values="test")
    before, after = before.groupby("method").mean(), ends.mean()
    dense = [100 * record.result["test"] for record in of_kind(records, Dense)]
    found: dict[str, str | int] = {
        "choice": FUNCTIONAL,
        "networks": len({record.spec.dense for record in of_kind(records, Removal) + of_kind(records, Trial)}),
        "removals": len(of_kind(records, Removal)),
        "trials": len(frame),
        "dense": percent(float(np.mean(dense)) if dense else np.nan),
        "ratio": f"{PRIMARY_RATIO:g}",
        "recovery_ratio": f"{RECOVERY_RATIO:g}",
        **_recovered(frame),
        **_clouds(records),
    }
    for key, name in _QUOTED.items():
        for mending in ("none", PRIMARY_MENDING):
            found[f"{key}_{mending}"] = percent(before[mending].get(name, np.nan))
        found[f"{key}_plain"] = percent(after.get(name, np.nan))
        found[f"{key}_mended"] = percent(after.get(name + COMPENSATED, np.nan))
    for key, predictor in {"mass": LOST_MASS, "distance": DISTANCE}.items():
        for mending in ACCURACIES[:2]:
            rank = ranks.loc[mending, predictor]
            found[f"{key}_rank_{mending}"] = NOT_ON_RECORD if np.isnan(rank) else f"{rank:+z.2f}"
    plain, _ = _ends(frame, PRIMARY_RATIO)
    plain_of_little, mended_of_little = _ends(frame, RECOVERY_RATIO)
    refitted_of_little = little.groupby("method")[PRIMARY_MENDING].mean()
    return found | {
        "functional_lost": _lost(little, FUNCTIONAL),
        "random_lost": _lost(little, RANDOM),
        "l1_lost": _lost(little, NAMES["l1"]),
        "thesis_distance": _distance(before, TOPOLOGICAL),
        "random_distance": _distance(before, RANDOM),
        "plain_low": percent(plain.min()),
        "plain_high": percent(plain.max()),
        "ends_low": percent(plain_of_little.min()),
        "ends_high": percent(plain_of_little.max()),
        "mended_ends_low": percent(mended_of_little.min()),
        "mended_ends_high": percent(mended_of_little.max()),
        "functional_refitted": percent(refitted_of_little.get(FUNCTIONAL, np.nan)),
        "functional_first": percent(_after_first_epoch(records, FUNCTIONAL + COMPENSATED)),
        "random_refitted": percent(refitted_of_little.get(RANDOM, np.nan)),
        "over_thesis": _difference(ends, FUNCTIONAL, TOPOLOGICAL),
        "over_random": _difference(ends, FUNCTIONAL, RANDOM),
        "over_obs": _difference(refitted, FUNCTIONAL, OBS),
        "thesis_refitted": _difference(refitted, TOPOLOGICAL, RANDOM),
    }


_QUOTED = {
    "random": NAMES["random"],
    "l1": NAMES["l1"],
    "thesis": TOPOLOGICAL,
    "genetic": NAMES["functional"],
    "farthest": NAMES["functional farthest"],
    "farthest_weights": NAMES["farthest"],
    "functional": FUNCTIONAL,
    "qr": QR,
}
"""Key of `beyond_findings` -> the choice that it quotes."""


def _row(claim: str, name: str, tested: str, table: pd.DataFrame, planned: int, good: set, bad: set, **options) -> dict:
    options = {"unit": "points", **options}
    row = claim_verdict(claim, name, tested, table, table["verdict"], planned, good, bad, **options)
    return {**row, "cells": _of_planned(int((table["seeds"] >= LEAST_SEEDS).sum()), planned)}


_TARGET_NAMES = dict(zip(ACCURACIES, ("after removal", "after refitting", "after fine-tuning"), strict=True))


def _of_planned(on_record: int, planned: int) -> str:
    return f"{on_record} of {planned}"


def _distance(means: pd.DataFrame, method: str) -> str:
    distance = means[DISTANCE].get(method, np.nan)
    return NOT_ON_RECORD if np.isnan(distance) else f"{distance:.2f}"


def _after_first_epoch(records: Sequence[Record], method: str) -> float:
    """Mean test accuracy (%) after one epoch of fine-tuning at `RECOVERY_RATIO`."""
    curves = recovery_frame(records)
    first = curves[(curves["method"] == method) & (curves["ratio"] == RECOVERY_RATIO) & (curves["epoch"] == 1)]
    return float(first["test accuracy (%)"].mean())


def _ends(frame: pd.DataFrame, ratio: float) -> tuple[pd.Series, pd.Series]:
    """Mean test accuracy after fine-tuning by choice: of those that were not refitted, and of those that were."""
    ends = frame[frame["ratio"] == ratio].groupby("method")["test"].mean()
    mended = np.array([name.endswith(COMPENSATED) for name in ends.index], dtype=bool)
    return ends[~mended], ends[mended]


def _recovered(frame: pd.DataFrame) -> dict[str, str]:
    at_ratio = frame[frame["ratio"] == RECOVERY_RATIO]
    arms = {
        "plain_recovered": MENDED_METHODS,
        "mended_recovered": [name + COMPENSATED for name in MENDED_METHODS],
        "plain_recovered_all": [name for name in at_ratio["method"].unique() if not name.endswith(COMPENSATED)],
    }
    found = {}
    for key, names in arms.items():
        reached = at_ratio.loc[at_ratio["method"].isin(names), "recovered"]
        found[key] = f"{int(reached.sum())} of {len(reached)}" if len(reached) else NOT_ON_RECORD
    return found


def _clouds(records: Sequence[Record]) -> dict[str, str]:
    means = cloud_frame(records).groupby("space")[["spread", "radius"]].mean()
    means = 100 * means.reindex(["weights", "functional"])
    return {f"{column}_{space}": percent(means.loc[space, column]) for column in means for space in means.index}


def _difference(wide: pd.DataFrame, method: str, rival: str) -> str:
    """Difference of two columns, paired in each network (a row), as prose quotes it."""
    both = wide.reindex(columns=[method, rival]).dropna()
    return points(pd.Series(paired_difference(both[method] - both[rival]))) if len(both) else NOT_ON_RECORD


def _lost(frame: pd.DataFrame, method: str) -> str:
    """Points of test accuracy below the dense network, refitted, mean over networks."""
    own = frame[frame["method"] == method]
    return f"{(own['dense test'] - own[PRIMARY_MENDING]).mean():.1f} points" if len(own) else NOT_ON_RECORD


def percent(value: float) -> str:
    """An accuracy (%) as prose quotes it."""
    return NOT_ON_RECORD if np.isnan(value) else f"{value:.1f} %"


def points(row: pd.Series) -> str:
    """A difference with its interval, where it has one, as prose quotes it.

    >>> points(pd.Series({"difference": -0.04, "low": np.nan, "high": np.nan}))
    '+0.0 points'
    >>> points(pd.Series({"difference": -0.8, "low": -1.54, "high": -0.02}))
    '-0.8 points (95 % interval -1.5 to -0.02)'
    """
    interval = "" if np.isnan(row["low"]) else f" (95 % interval {_end(row['low'])} to {_end(row['high'])})"
    return f"{row['difference']:+z.1f} points{interval}"


def _end(value: float) -> str:
    """An end of an interval, with a second decimal where one would hide its sign."""
    return f"{value:+.2f}" if 0.005 <= abs(value) < 0.05 else f"{value:+z.1f}"
