"""The fourth question beside the claims beyond the thesis: does the optimiser decide what a filter's norm is worth?"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from topoprune.report.evidence.beyond import FUNCTIONAL, PRIMARY_RATIO, RANDOM, over_rival
from topoprune.report.evidence.beyond_claims import NOT_ON_RECORD, percent, points
from topoprune.report.evidence.beyond_explanation import LOST_MASS
from topoprune.report.evidence.claims import LEAST_SEEDS
from topoprune.report.evidence.explored import answer
from topoprune.report.frames import NAMES, dense_accuracy, removals_by_network, trained_by, trials
from topoprune.study import Record
from topoprune.study.profiles import COMPENSATED

L1 = NAMES["l1"]
AS_REMOVED, FINE_TUNED = "as removed", "fine-tuned"
_COLUMNS = (
    *("optimizer", "width", "measured", "method", "accuracy", "seeds", "difference", "low", "high"),
    *("dense", "removed norm", LOST_MASS),
)


def gaps_by_optimizer(groups: Iterable[Sequence[Record]]) -> pd.DataFrame:
    """Each choice less random removal at `PRIMARY_RATIO`, as removed and fine-tuned without a refit.

    Args:
        groups: of records; the dense networks of a group have one width, and one optimiser trained them.

    Returns:
        A row for each group, measured ("as removed" or "fine-tuned") and method: optimizer, width, measured, method;
        accuracy (mean, in percent); seeds, difference (points) with its 95 % interval low, high (NaN for fewer than
        three networks); dense, mean accuracy of the group's dense networks (%); removed norm, share of a layer's
        squared norm (%, mean over layers); lost mass (%, mean over layers; NaN for "fine-tuned").
    """
    rows = [
        {
            **trained_by(records),
            "measured": measured,
            "method": method,
            "accuracy": cell[column].mean(),
            **over_rival(frame, column, str(method)),
            "dense": dense_accuracy(records),
            "removed norm": 100 * cell["removed norm"].mean(),
            LOST_MASS: 100 * cell[LOST_MASS].mean() if LOST_MASS in cell else np.nan,
        }
        for records in groups
        for measured, column, frame in _measured(records)
        for method, cell in frame.groupby("method", sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*_COLUMNS])
    return table.assign(**{end: table[end].where(table["seeds"] >= LEAST_SEEDS) for end in ("low", "high")})


def optimizer_findings(sgd: Sequence[Record], muon: Sequence[Record]) -> dict[str, int | str]:
    """What the book quotes of the question.

    Args:
        sgd, muon: records of networks that SGD alone trained, and that Muon did.

    Returns:
        For ARM in sgd and muon: ARM_networks, ARM_dense (accuracy of the dense networks). As removed, for
        CHOICE in random, l1 and cover: ARM_CHOICE_left (accuracy) and ARM_CHOICE_mass (lost mass); ARM_removed and
        ARM_cover (L1 and the functional choice, less random removal); ARM_norm (share of a layer's squared norm that
        L1 removes). Fine-tuned: ARM_tuned (L1 less random removal). answer_removed and answer_tuned: "yes" if Muon's
        interval of ARM_removed, or ARM_tuned, lies below zero, "no" if above it, otherwise "open".
    """
    found: dict[str, int | str] = {}
    for arm, records in (("sgd", sgd), ("muon", muon)):
        gaps = gaps_by_optimizer([records]).set_index(["measured", "method"])
        rows = {name: gaps.loc[gaps.index == cell] for name, cell in _QUOTED.items()}
        found[f"{arm}_networks"] = int(rows["removed"]["seeds"].sum())
        found[f"{arm}_dense"] = percent(gaps["dense"].mean())
        found[f"{arm}_norm"] = percent(rows["removed"]["removed norm"].mean())
        for name, own in {"random": rows["random"], "l1": rows["removed"], "cover": rows["cover"]}.items():
            found[f"{arm}_{name}_left"] = percent(own["accuracy"].mean())
            found[f"{arm}_{name}_mass"] = percent(own[LOST_MASS].mean())
        for name in ("removed", "cover", "tuned"):
            found[f"{arm}_{name}"] = points(rows[name].iloc[0]) if len(rows[name]) else NOT_ON_RECORD
    return found | {f"answer_{name}": answer(rows[name], above=False) for name in ("removed", "tuned")}  # of Muon


_QUOTED = {
    "random": (AS_REMOVED, RANDOM),
    "removed": (AS_REMOVED, L1),
    "cover": (AS_REMOVED, FUNCTIONAL),
    "tuned": (FINE_TUNED, L1),
}
"""Name in `optimizer_findings` -> what is measured, and the choice, less random removal."""


def _measured(records: Sequence[Record]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """What is measured, the column that holds it, and the frame at `PRIMARY_RATIO`."""
    tuned = trials(records)
    plain = tuned[~tuned["method"].astype(str).str.endswith(COMPENSATED)]
    for measured, column, frame in ((AS_REMOVED, "none", removals_by_network(records)), (FINE_TUNED, "test", plain)):
        yield measured, column, frame[frame["ratio"] == PRIMARY_RATIO]
