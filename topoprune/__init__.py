"""Topological filter pruning: select, remove, cost, train.

Heavy imports (torch, giotto-tda, NNI) happen when a name is first used.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "select": "pruners.select", "selection": "pruners.selection", "remove": "surgery.remove",
    "cost": "surgery.cost", "couplings": "surgery.couplings", "train": "training.train",
    "accuracy": "training.accuracy", "recalibrate": "training.recalibrate",
    "Recipe": "training.Recipe", "load_data": "data.load", "build": "models.build",
    "prune": "pruning.prune", "save": "pruning.save", "load": "pruning.load",
    "Fitness": "topology.Fitness", "Trial": "trial.Trial", "run": "trial.run",
    "Store": "store.Store",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'topoprune' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(".")
    return getattr(importlib.import_module(f"topoprune.{module}"), attribute)


def __dir__():
    return sorted([*globals(), *__all__])
