"""Topological filter pruning: choose filters, remove them, train what is left.

A name is imported when it is first used, so `import topoprune` is fast.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topoprune.fitness import Fitness
    from topoprune.models import build
    from topoprune.network import cost, couplings, remove
    from topoprune.pruning import load, prune, save
    from topoprune.selection import run_selection, select
    from topoprune.training import Recipe, accuracy, recalibrate, train

__version__ = "0.1.0"
__all__ = [
    "Fitness",
    "Recipe",
    "accuracy",
    "build",
    "cost",
    "couplings",
    "load",
    "prune",
    "recalibrate",
    "remove",
    "run_selection",
    "save",
    "select",
    "train",
]
_MODULES = {
    "fitness": ("Fitness",),
    "models": ("build",),
    "network": ("cost", "couplings", "remove"),
    "pruning": ("load", "prune", "save"),
    "selection": ("run_selection", "select"),
    "training": ("Recipe", "accuracy", "recalibrate", "train"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'topoprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"topoprune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
