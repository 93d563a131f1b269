"""Tables from records, nothing else."""

from topoprune.report.frames import dense_accuracy, trials
from topoprune.report.tables.beyond import fine_tuned_table, gain_table, mending_table, networks_by_ratio, steps_table
from topoprune.report.tables.comparison import (
    by_ratio,
    collapse_table,
    comparison_table,
    cost_table,
    damage_table,
    differences_by_ratio,
    distance_by_layer,
    method_table,
    selection_by_ratio,
    selection_table,
    shared_choices,
)
from topoprune.report.tables.effects import effect_table, effects_by_target
from topoprune.report.tables.explored import (
    fine_tunings_by_ratio_table,
    fine_tunings_table,
    gaps_table,
    mass_table,
    untrained_table,
)
from topoprune.report.tables.networks import dense_summary, dense_table, mean_accuracy, optimizers_table, recipe_table
from topoprune.report.tables.provenance import (
    commit_numbers,
    commits_by_state,
    commits_table,
    coverage,
    coverage_summary,
    how_it_was_run,
    runs_by_device,
    versions,
)
from topoprune.report.tables.published import published_ranges, published_table
from topoprune.report.tables.searches import search_by_layer, search_table
from topoprune.report.tables.verdicts import verdict_cards, verdict_table, verdicts_in_words

__all__ = [
    "by_ratio",
    "collapse_table",
    "commit_numbers",
    "commits_by_state",
    "commits_table",
    "comparison_table",
    "cost_table",
    "coverage",
    "coverage_summary",
    "damage_table",
    "dense_accuracy",
    "dense_summary",
    "dense_table",
    "differences_by_ratio",
    "distance_by_layer",
    "effect_table",
    "effects_by_target",
    "fine_tuned_table",
    "fine_tunings_by_ratio_table",
    "fine_tunings_table",
    "gain_table",
    "gaps_table",
    "how_it_was_run",
    "mass_table",
    "mean_accuracy",
    "mending_table",
    "method_table",
    "networks_by_ratio",
    "optimizers_table",
    "published_ranges",
    "published_table",
    "recipe_table",
    "runs_by_device",
    "search_by_layer",
    "search_table",
    "selection_by_ratio",
    "selection_table",
    "shared_choices",
    "steps_table",
    "trials",
    "untrained_table",
    "verdict_cards",
    "verdict_table",
    "verdicts_in_words",
    "versions",
]
