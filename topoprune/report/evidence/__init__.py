"""The tests of the book's claims page, on records: differences, effects, intervals, verdicts.

A dense network (a seed) is the unit of replication, and p-values are corrected by Holm within a claim.
"""

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
    hazards,
    predictors,
    predictors_over_networks,
    sensitivity,
)
from topoprune.report.evidence.recovery import restricted_means, survival
from topoprune.report.evidence.statistics import LEVEL, MARGIN
from topoprune.report.evidence.summary import findings

__all__ = [
    "FLOOR",
    "FLOPS_WITHIN",
    "GLOBAL",
    "HIGH_RATIO",
    "LEAST_SEEDS",
    "LEVEL",
    "MARGIN",
    "PREDICTORS",
    "RIVALS",
    "SAME_FITNESS",
    "TOPOLOGICAL",
    "ablations",
    "accuracy_equivalence",
    "adjusted",
    "collapses",
    "damage_differences",
    "damage_slopes",
    "damage_slopes_over_networks",
    "findings",
    "flops_mismatches",
    "hazards",
    "predictors",
    "predictors_over_networks",
    "restricted_means",
    "sensitivity",
    "survival",
    "verdicts",
]
