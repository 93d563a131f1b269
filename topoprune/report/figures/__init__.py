"""seaborn figures from records, nothing else.

Every function returns a matplotlib figure whose attribute `data` is the frame that it draws; `show` puts both into a
chapter. A shade or bar is the 95 % t-interval over dense networks unless the function says otherwise; with one
network there is none.
"""

from topoprune.report.figures.accuracy import (
    ablation_plot,
    accuracy_by_cost,
    accuracy_by_ratio,
    difference_plot,
    recovery_curves,
    selection_cost,
    survival_curves,
    training_curves,
)
from topoprune.report.figures.beyond import (
    choices_compared,
    clouds_by_layer,
    damage_by_choice,
    difference_forest,
    functional_barcode,
    lost_mass_plot,
    mended_curves,
    mended_survival,
)
from topoprune.report.figures.drawing import style
from topoprune.report.figures.explored import gaps_over_random, ways_of_fine_tuning
from topoprune.report.figures.interactive import explorer
from topoprune.report.figures.layers import damage_against_recovery, layer_map, partial_effect
from topoprune.report.figures.measurements import bench_growth, engine_growth, engine_operations, engine_removal
from topoprune.report.figures.opening import main_figure
from topoprune.report.figures.portrait import barcodes, filters_in_the_plane, persistence_diagrams
from topoprune.report.figures.search import convergence, search_courses, searches
from topoprune.report.figures.verdicts import verdict_forest
from topoprune.report.notebook import show_figure as show

__all__ = [
    "ablation_plot",
    "accuracy_by_cost",
    "accuracy_by_ratio",
    "barcodes",
    "bench_growth",
    "choices_compared",
    "clouds_by_layer",
    "convergence",
    "damage_against_recovery",
    "damage_by_choice",
    "difference_forest",
    "difference_plot",
    "engine_growth",
    "engine_operations",
    "engine_removal",
    "explorer",
    "filters_in_the_plane",
    "functional_barcode",
    "gaps_over_random",
    "layer_map",
    "lost_mass_plot",
    "main_figure",
    "mended_curves",
    "mended_survival",
    "partial_effect",
    "persistence_diagrams",
    "recovery_curves",
    "search_courses",
    "searches",
    "selection_cost",
    "show",
    "style",
    "survival_curves",
    "training_curves",
    "verdict_forest",
    "ways_of_fine_tuning",
]
