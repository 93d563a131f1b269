"""The tests of the book's claims page, on records: differences, effects, intervals, verdicts.

A dense network (a seed) is the unit of replication, and p-values are corrected by Holm within a claim.
"""

from topoprune.report.evidence.beyond import (
    FUNCTIONAL,
    MARGIN_BEFORE,
    MENDED_METHODS,
    PRIMARY_RATIO,
    lasting_gains,
    mending_gains,
    rivals,
    sooner,
)
from topoprune.report.evidence.beyond_claims import beyond_findings, beyond_verdicts, effect_in_words
from topoprune.report.evidence.beyond_explanation import (
    FUNCTIONAL_PREDICTORS,
    accuracy_verdicts,
    explained,
    explained_by_cell,
    explained_over_networks,
    losses,
)
from topoprune.report.evidence.claims import HIGH_RATIO, LEAST_SEEDS, verdicts
from topoprune.report.evidence.differences import (
    FLOOR,
    FLOPS_WITHIN,
    GLOBAL,
    RIVALS,
    SAME_FITNESS,
    TOPOLOGICAL,
    ablations,
    accuracy_equivalence,
    collapses,
    damage_differences,
    damage_slopes,
    damage_slopes_over_networks,
    flops_mismatches,
)
from topoprune.report.evidence.explanation import (
    PREDICTORS,
    adjusted,
    distance_ranks,
    hazards,
    predictors,
    predictors_over_networks,
    sensitivity,
)
from topoprune.report.evidence.explored import (
    explored_findings,
    fine_tunings,
    gentle_findings,
    gentle_narrow_findings,
    kept_gains,
    recipe_gains,
    untrained_losses,
)
from topoprune.report.evidence.front import front_findings, hours
from topoprune.report.evidence.mass import mass_findings
from topoprune.report.evidence.optimizers import gaps_by_optimizer, optimizer_findings
from topoprune.report.evidence.recovery import restricted_means, survival
from topoprune.report.evidence.statistics import LEVEL, MARGIN
from topoprune.report.evidence.summary import findings
from topoprune.report.evidence.widths import widths_compared

__all__ = [
    "FLOOR",
    "FLOPS_WITHIN",
    "FUNCTIONAL",
    "FUNCTIONAL_PREDICTORS",
    "GLOBAL",
    "HIGH_RATIO",
    "LEAST_SEEDS",
    "LEVEL",
    "MARGIN",
    "MARGIN_BEFORE",
    "MENDED_METHODS",
    "PREDICTORS",
    "PRIMARY_RATIO",
    "RIVALS",
    "SAME_FITNESS",
    "TOPOLOGICAL",
    "ablations",
    "accuracy_equivalence",
    "accuracy_verdicts",
    "adjusted",
    "beyond_findings",
    "beyond_verdicts",
    "collapses",
    "damage_differences",
    "damage_slopes",
    "damage_slopes_over_networks",
    "distance_ranks",
    "effect_in_words",
    "explained",
    "explained_by_cell",
    "explained_over_networks",
    "explored_findings",
    "findings",
    "fine_tunings",
    "flops_mismatches",
    "front_findings",
    "gaps_by_optimizer",
    "gentle_findings",
    "gentle_narrow_findings",
    "hazards",
    "hours",
    "kept_gains",
    "lasting_gains",
    "losses",
    "mass_findings",
    "mending_gains",
    "optimizer_findings",
    "predictors",
    "predictors_over_networks",
    "recipe_gains",
    "restricted_means",
    "rivals",
    "sensitivity",
    "sooner",
    "survival",
    "untrained_losses",
    "verdicts",
    "widths_compared",
]
