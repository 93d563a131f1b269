"""The sixth question beside the claims beyond the thesis: what is the mass of a channel worth without the distances?"""

from collections.abc import Sequence

import pandas as pd

from topoprune.report.evidence.beyond import FUNCTIONAL, PRIMARY_MENDING, PRIMARY_RATIO, RANDOM, over_rival
from topoprune.report.evidence.beyond_claims import percent
from topoprune.report.evidence.explored import answer, quoted
from topoprune.report.frames import NAMES, removals_by_network, trials
from topoprune.study import Record

MASS = NAMES["mass"]


def mass_findings(records: Sequence[Record]) -> dict[str, str | int]:
    """What the book quotes of the question, at `PRIMARY_RATIO`; "(not on record)" where nothing is.

    Returns:
        networks: how many are on record; and for STEP in removed, refitted and tuned: random_STEP, mass_STEP and
        cover_STEP, mean test accuracies; mass_gain_STEP, mass alone less random removal; cover_gain_STEP, the cover
        less mass alone, with its interval; answer_STEP: "yes" if that interval lies above zero, "no" if below,
        otherwise "open".
    """
    removed, tuned = removals_by_network(records), trials(records)
    found: dict[str, str | int] = {"networks": len({*removed["seed"], *tuned["seed"]})}
    for step, frame, column in (
        ("removed", removed, "none"),
        ("refitted", removed, PRIMARY_MENDING),
        ("tuned", tuned, "test"),
    ):
        own = frame[frame["ratio"] == PRIMARY_RATIO].astype({column: float})
        for name, method in {"random": RANDOM, "mass": MASS, "cover": FUNCTIONAL}.items():
            found[f"{name}_{step}"] = percent(own.loc[own["method"] == method, column].mean())
        for name, method, rival in (("mass_gain", MASS, RANDOM), ("cover_gain", FUNCTIONAL, MASS)):
            row = pd.DataFrame([over_rival(own, column, method, rival)]).query("seeds > 0")
            found[f"{name}_{step}"] = quoted(row)
        found[f"answer_{step}"] = answer(row, above=True)  # of the cover
    return found
