"""Numbers of the front page: what the published records say in three sentences, and what they cost."""

from collections.abc import Sequence

import pandas as pd

from topoprune.report.evidence.beyond import FUNCTIONAL, OBS, PRIMARY_MENDING, PRIMARY_RATIO, RANDOM
from topoprune.report.evidence.differences import RIVALS, TOPOLOGICAL, accuracy_equivalence
from topoprune.report.evidence.statistics import paired_difference
from topoprune.report.frames import DISTANCE, NAMES, removals_by_network, trials
from topoprune.study import Record
from topoprune.study.profiles import COMPENSATED


def front_findings(study: Sequence[Record], beyond: Sequence[Record]) -> dict[str, int | float | str]:
    """What the front page quotes.

    Args:
        study, beyond: records of the published study, and of what lies beyond the thesis.

    Returns:
        networks, beyond_networks: dense networks on record. In points of test accuracy after fine-tuning:
        over_random, over_norms: topological less random removal, and less L1, L2 and FPGM, means over all ratios of
        the study; random_over_l1: random removal less L1 there; quarter_over_random, quarter_over_l1: topological
        less these at `PRIMARY_RATIO` in `beyond`; cover_over_random, cover_over_thesis, cover_over_l1: the functional
        choice there. thesis_distance, random_distance: topological distances there, in weight space. In percent of
        test accuracy before fine-tuning, at that ratio: dense; thesis, thesis_refitted, random_refitted: topological
        and random; removed_low, removed_high, mended_low, mended_high: the worst and the best choice as removed, and
        refitted; search, farthest, cover: the thesis's search in the functional cloud, farthest points there, and its
        cover by mass; farthest_weights: farthest points in weight space; random; obs_refitted, cover_refitted,
        l1_refitted. In percent after fine-tuning: random_plain, random_mended, cover_plain, cover_mended.
        Each difference NAME stands there in words, too: NAME_words, see `in_words`. quarter_over_random_interval,
        quarter_over_l1_interval: the 95 % intervals of these differences, in words; removed_over_random_interval,
        refitted_over_random_interval: of topological less random removal before fine-tuning. wide_thesis,
        wide_random: topological and random removal before fine-tuning in `study`, at `PRIMARY_RATIO`.
    """
    table = accuracy_equivalence(study, second=["random", *RIVALS]).groupby("rival")["difference"].mean()
    frame = trials(beyond)
    after = _at_primary_ratio(frame)["test"]
    by_network = removals_by_network(beyond)
    before = _at_primary_ratio(by_network)
    removed, mended = before["none"], before[PRIMARY_MENDING]
    wide = _at_primary_ratio(trials(study))["damaged"]
    differences = {
        "over_random": table[RANDOM],
        "over_norms": table[list(RIVALS)].mean(),
        "random_over_l1": table[NAMES["l1"]] - table[RANDOM],
        "quarter_over_random": after[TOPOLOGICAL] - after[RANDOM],
        "quarter_over_l1": after[TOPOLOGICAL] - after[NAMES["l1"]],
        "cover_over_random": after[FUNCTIONAL] - after[RANDOM],
        "cover_over_thesis": after[FUNCTIONAL] - after[TOPOLOGICAL],
        "cover_over_l1": after[FUNCTIONAL] - after[NAMES["l1"]],
    }
    return {
        **differences,
        **{f"{name}_words": in_words(points) for name, points in differences.items()},
        "quarter_over_random_interval": _interval(frame, "test", RANDOM),
        "quarter_over_l1_interval": _interval(frame, "test", NAMES["l1"]),
        "removed_over_random_interval": _interval(by_network, "none", RANDOM),
        "refitted_over_random_interval": _interval(by_network, PRIMARY_MENDING, RANDOM),
        "networks": trials(study)["seed"].nunique(),
        "beyond_networks": frame["seed"].nunique(),
        "dense": frame["dense test"].mean(),
        "removed_low": removed.min(),
        "removed_high": removed.max(),
        "mended_low": mended.min(),
        "mended_high": mended.max(),
        "thesis_distance": before[DISTANCE][TOPOLOGICAL],
        "random_distance": before[DISTANCE][RANDOM],
        "thesis": removed[TOPOLOGICAL],
        "thesis_refitted": mended[TOPOLOGICAL],
        "random_refitted": mended[RANDOM],
        "wide_thesis": wide[TOPOLOGICAL],
        "wide_random": wide[RANDOM],
        "random": removed[RANDOM],
        "search": removed[NAMES["functional"]],
        "farthest": removed[NAMES["functional farthest"]],
        "farthest_weights": removed[NAMES["farthest"]],
        "cover": removed[FUNCTIONAL],
        "obs_refitted": mended[OBS],
        "cover_refitted": mended[FUNCTIONAL],
        "l1_refitted": mended[NAMES["l1"]],
        "random_plain": after[RANDOM],
        "random_mended": after[RANDOM + COMPENSATED],
        "cover_plain": after[FUNCTIONAL],
        "cover_mended": after[FUNCTIONAL + COMPENSATED],
    }


def in_words(points: float) -> str:
    """A difference in words: how many points, and on which side.

    >>> in_words(0.52), in_words(-1.04), in_words(-0.01)
    ('0.5 points above', '1.0 points below', 'level with')
    """
    if abs(points) < 0.05:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _interval(frame: pd.DataFrame, column: str, rival: str) -> str:
    """The 95 % interval of topological less a rival at `PRIMARY_RATIO`, paired within networks."""
    wide = frame[frame["ratio"] == PRIMARY_RATIO].pivot_table(index="seed", columns="method", values=column)
    found = paired_difference((wide[TOPOLOGICAL] - wide[rival]).dropna())
    return f"95 % interval {found['low']:+z.1f} to {found['high']:+z.1f}"


def hours(records: Sequence[Record]) -> float:
    """Wall-clock hours that making the records took, in all."""
    return sum(record.provenance["seconds"] for record in records) / 3600


def _at_primary_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over networks, by method."""
    return frame[frame["ratio"] == PRIMARY_RATIO].groupby("method").mean(numeric_only=True)
