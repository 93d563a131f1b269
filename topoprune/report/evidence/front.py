"""Numbers of the front page: what the published records say in three sentences, and what they cost."""

from collections.abc import Sequence

import pandas as pd

from topoprune.report.evidence.beyond import FUNCTIONAL, PRIMARY_RATIO, RANDOM
from topoprune.report.evidence.differences import TOPOLOGICAL, accuracy_equivalence
from topoprune.report.evidence.statistics import paired_difference
from topoprune.report.frames import DISTANCE, NAMES, removals_by_network, trials
from topoprune.study import Record


def front_findings(study: Sequence[Record], beyond: Sequence[Record]) -> dict[str, int | float | str]:
    """What the front page quotes.

    Args:
        study, beyond: records of the published study, and of what lies beyond the thesis.

    Returns:
        networks, beyond_networks: dense networks on record. In points of test accuracy after fine-tuning: over_random,
        topological less random removal, the mean over all ratios of `study`; and at `PRIMARY_RATIO` in `beyond`
        quarter_over_random, the same; cover_over_random, cover_over_l1, the functional choice less these. Each of them
        stands there in words, too: NAME_words, see `in_words`. The rest is of `beyond` at `PRIMARY_RATIO`:
        thesis_distance, random_distance, topological distances of topological and random in weight space; thesis,
        random, their test accuracies (%) before fine-tuning; dense, that of the dense networks;
        removed_over_random_interval and quarter_over_random_interval, the 95 % intervals of topological less random
        before fine-tuning and after it, in words.
    """
    over_random = accuracy_equivalence(study, second=["random"])["difference"].mean()
    fine_tuned, removed = trials(beyond), removals_by_network(beyond)
    after, before = _at_primary_ratio(fine_tuned)["test"], _at_primary_ratio(removed)
    differences = {
        "over_random": over_random,
        "quarter_over_random": after[TOPOLOGICAL] - after[RANDOM],
        "cover_over_random": after[FUNCTIONAL] - after[RANDOM],
        "cover_over_l1": after[FUNCTIONAL] - after[NAMES["l1"]],
    }
    return {
        **differences,
        **{f"{name}_words": in_words(points) for name, points in differences.items()},
        "quarter_over_random_interval": _over_random(fine_tuned, "test"),
        "removed_over_random_interval": _over_random(removed, "none"),
        "networks": trials(study)["seed"].nunique(),
        "beyond_networks": fine_tuned["seed"].nunique(),
        "dense": fine_tuned["dense test"].mean(),
        "thesis_distance": before[DISTANCE][TOPOLOGICAL],
        "random_distance": before[DISTANCE][RANDOM],
        "thesis": before["none"][TOPOLOGICAL],
        "random": before["none"][RANDOM],
    }


def in_words(points: float) -> str:
    """A difference in words: how many points, and on which side.

    >>> in_words(0.52), in_words(-1.04), in_words(-0.01)
    ('0.5 points above', '1.0 points below', 'level with')
    """
    if abs(points) < 0.05:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _over_random(frame: pd.DataFrame, column: str) -> str:
    """The 95 % interval of topological less random removal at `PRIMARY_RATIO`, paired within networks."""
    wide = frame[frame["ratio"] == PRIMARY_RATIO].pivot_table(index="seed", columns="method", values=column)
    found = paired_difference((wide[TOPOLOGICAL] - wide[RANDOM]).dropna())
    return f"95 % interval {found['low']:+z.1f} to {found['high']:+z.1f}"


def hours(records: Sequence[Record]) -> float:
    """Wall-clock hours that making the records took, in all."""
    return sum(record.provenance["seconds"] for record in records) / 3600


def _at_primary_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over networks, by method."""
    return frame[frame["ratio"] == PRIMARY_RATIO].groupby("method").mean(numeric_only=True)
