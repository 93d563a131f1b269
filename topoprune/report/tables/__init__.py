"""Tables from records, nothing else."""

from topoprune.report.frames import dense_accuracy, trials
from topoprune.report.tables.beyond import fine_tuned_table, gain_table, mending_table
from topoprune.report.tables.comparison import (
    comparison_table,
    cost_table,
    damage_table,
    distance_by_layer,
    method_table,
    selection_table,
    shared_choices,
)
from topoprune.report.tables.networks import dense_table, mean_accuracy, optimizers_table, recipe_table
from topoprune.report.tables.provenance import commit_numbers, commits_table, coverage, how_it_was_run, versions
from topoprune.report.tables.published import published_table
from topoprune.report.tables.searches import search_by_layer, search_table

__all__ = [
    "commit_numbers",
    "commits_table",
    "comparison_table",
    "cost_table",
    "coverage",
    "damage_table",
    "dense_accuracy",
    "dense_table",
    "distance_by_layer",
    "fine_tuned_table",
    "gain_table",
    "how_it_was_run",
    "mean_accuracy",
    "mending_table",
    "method_table",
    "optimizers_table",
    "published_table",
    "recipe_table",
    "search_by_layer",
    "search_table",
    "selection_table",
    "shared_choices",
    "trials",
    "versions",
]
