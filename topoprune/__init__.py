"""Topological filter pruning: choose filters, remove them, train what is left.

A name is imported when it is first used, so `import topoprune` is fast.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topoprune.costs import Cost, cost, flops
    from topoprune.coupling import Coupling
    from topoprune.cover import MergeTree, covering_radius, merge_tree
    from topoprune.fitness import Fitness, diagram_distance, diagrams, distance_matrix
    from topoprune.functional import Responses, responses
    from topoprune.genetic import Search
    from topoprune.models import build
    from topoprune.network import PruningWarning, couplings, remove, structure
    from topoprune.pruning import Pruned, prune
    from topoprune.selection import Selection, run_selection, select
    from topoprune.storage import load, prune_file, save
    from topoprune.training import Epoch, Recipe, accuracy, recalibrate, train

__version__ = "0.1.0"
__all__ = [
    "Cost",
    "Coupling",
    "Epoch",
    "Fitness",
    "MergeTree",
    "Pruned",
    "PruningWarning",
    "Recipe",
    "Responses",
    "Search",
    "Selection",
    "accuracy",
    "build",
    "cost",
    "couplings",
    "covering_radius",
    "diagram_distance",
    "diagrams",
    "distance_matrix",
    "flops",
    "load",
    "merge_tree",
    "prune",
    "prune_file",
    "recalibrate",
    "remove",
    "responses",
    "run_selection",
    "save",
    "select",
    "structure",
    "train",
]
_MODULES = {
    "costs": ("Cost", "cost", "flops"),
    "coupling": ("Coupling",),
    "cover": ("MergeTree", "covering_radius", "merge_tree"),
    "fitness": ("Fitness", "diagram_distance", "diagrams", "distance_matrix"),
    "functional": ("Responses", "responses"),
    "genetic": ("Search",),
    "models": ("build",),
    "network": ("PruningWarning", "couplings", "remove", "structure"),
    "pruning": ("Pruned", "prune"),
    "selection": ("Selection", "run_selection", "select"),
    "storage": ("load", "prune_file", "save"),
    "training": ("Epoch", "Recipe", "accuracy", "recalibrate", "train"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'topoprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"topoprune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
