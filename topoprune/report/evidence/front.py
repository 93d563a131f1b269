"""Numbers of the front page: what the published records say in three sentences, and what they cost."""

from collections.abc import Sequence

import pandas as pd

from topoprune.report.evidence.beyond import FUNCTIONAL, PRIMARY_MENDING, PRIMARY_RATIO, QR, RANDOM, over_rival
from topoprune.report.evidence.differences import TOPOLOGICAL, accuracy_equivalence
from topoprune.report.frames import DISTANCE, NAMES, removals_by_network, trials
from topoprune.study import Record

L1 = NAMES["l1"]


def front_findings(study: Sequence[Record], beyond: Sequence[Record]) -> dict[str, int | float | str]:
    """What the front page quotes.

    Args:
        study, beyond: records of the published study, and of what lies beyond the thesis.

    Returns:
        networks, beyond_networks: dense networks on record. In points of test accuracy after fine-tuning, means over
        all ratios of `study`: over_random, topological less random removal; l1_over_random, L1 less that. At
        `PRIMARY_RATIO` in `study`: half_over_random, topological less random removal. At `PRIMARY_RATIO` in `beyond`:
        quarter_over_random, quarter_l1_over_random, cover_over_random, cover_over_l1 and cover_over_qr, where cover
        is the functional choice. Each of them stands there in words, too: NAME_words, see `in_words`. The rest is of
        `PRIMARY_RATIO`: thesis_distance, random_distance, topological distances of topological and random in weight
        space in `beyond`; thesis, random and wide_thesis, wide_random, their test accuracies (%) before fine-tuning in
        `beyond` and in `study`; random_refitted, that of refitted random removal; dense, that of the dense networks
        of `beyond`; removed_interval, quarter_interval and cover_interval, in words, the 95 % intervals of topological
        less random before fine-tuning and after it, and of cover_over_random.
    """
    mean = accuracy_equivalence(study, second=[RANDOM, L1]).groupby("rival")["difference"].mean()
    wide = _at_primary_ratio(trials(study))
    fine_tuned, removed = trials(beyond), removals_by_network(beyond)
    after, before = _at_primary_ratio(fine_tuned)["test"], _at_primary_ratio(removed)
    differences = {
        "over_random": mean[RANDOM],
        "l1_over_random": mean[RANDOM] - mean[L1],
        "half_over_random": wide["test"][TOPOLOGICAL] - wide["test"][RANDOM],
        "quarter_over_random": after[TOPOLOGICAL] - after[RANDOM],
        "quarter_l1_over_random": after[L1] - after[RANDOM],
        "cover_over_random": after[FUNCTIONAL] - after[RANDOM],
        "cover_over_l1": after[FUNCTIONAL] - after[L1],
        "cover_over_qr": after[FUNCTIONAL] - after[QR],
    }
    return {
        **differences,
        **{f"{name}_words": in_words(points) for name, points in differences.items()},
        "removed_interval": _over_random(removed, "none", TOPOLOGICAL),
        "quarter_interval": _over_random(fine_tuned, "test", TOPOLOGICAL),
        "cover_interval": _over_random(fine_tuned, "test", FUNCTIONAL),
        "networks": trials(study)["seed"].nunique(),
        "beyond_networks": fine_tuned["seed"].nunique(),
        "dense": fine_tuned["dense test"].mean(),
        "thesis_distance": before[DISTANCE][TOPOLOGICAL],
        "random_distance": before[DISTANCE][RANDOM],
        "thesis": before["none"][TOPOLOGICAL],
        "random": before["none"][RANDOM],
        "random_refitted": before[PRIMARY_MENDING][RANDOM],
        "wide_thesis": wide["damaged"][TOPOLOGICAL],
        "wide_random": wide["damaged"][RANDOM],
    }


def in_words(points: float) -> str:
    """A difference in words: how many points, and on which side.

    >>> in_words(0.52), in_words(-1.04), in_words(-0.01)
    ('0.5 points above', '1.0 points below', 'level with')
    """
    if abs(points) < 0.05:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _over_random(frame: pd.DataFrame, column: str, method: str) -> str:
    """The 95 % interval of a method less random removal, paired within networks."""
    found = over_rival(frame, column, method)
    return f"95 % interval {found['low']:+z.1f} to {found['high']:+z.1f}"


def hours(records: Sequence[Record]) -> float:
    """Wall-clock hours that making the records took, in all."""
    return sum(record.provenance["seconds"] for record in records) / 3600


def _at_primary_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over networks, by method."""
    return frame[frame["ratio"] == PRIMARY_RATIO].groupby("method").mean(numeric_only=True)
