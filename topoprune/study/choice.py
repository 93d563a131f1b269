"""The choice of filters in a trial: made once, timed without imports and compilation."""

import numpy as np
from torch import Tensor, nn

from topoprune import files, fitness
from topoprune.selection import NNI_PRUNERS, Selection, is_functional, run_selection
from topoprune.study.images import CALIBRATION, Data
from topoprune.study.run_folder import SELECTION, run_folder
from topoprune.study.trial import Removal, Trial

FUNCTIONAL_IMAGES = 1024
"""Training images on which it is judged what channels compute."""


def chosen_once(trial: Trial, identity: str, dense: nn.Module, data: Data) -> dict:
    """Choose the filters of a trial, or read the choice that an earlier, interrupted run of it made.

    Args:
        identity: of the trial and of the weights of its dense network; any other choice is set aside.

    Returns:
        kept: layer -> indices of the kept filters.
        selection_seconds: that choosing took.
        searches: layer -> one dict a generation.
    """
    path = run_folder(trial) / SELECTION
    if (stored := files.resume(files.read_json, path, identity)) is not None:
        return stored
    selection = choose(trial, dense, data, **_surroundings(trial, data.train.labels[:CALIBRATION]))
    choice = {"kept": selection.kept, "selection_seconds": selection.seconds, "searches": selection.searches}
    files.write_json(path, identity, choice)
    return choice


def choose(spec: Trial | Removal, dense: nn.Module, data: Data, **surroundings) -> Selection:
    """Choose the filters of a trial or a removal; `surroundings` are options that are no part of its identity."""
    import_and_compile(spec.method)
    options = baseline_options(spec.method) | surroundings | spec.options
    example = data.example(FUNCTIONAL_IMAGES if is_functional(spec.method, spec.options) else CALIBRATION)
    return run_selection(dense, example, spec.method, spec.ratio, spec.seed, **options)


def baseline_options(method: str) -> dict:
    """Options of the study's baselines: L1, L2 and FPGM are NNI's own pruners."""
    return {"engine": "nni"} if method in NNI_PRUNERS else {}


def import_and_compile(method: str) -> None:
    """Do what only the first choice of a process would wait for, so that times compare methods."""
    if method in NNI_PRUNERS:
        import nni.compression.pruning  # noqa: F401
    elif method == "topological":
        corners = fitness.distance_matrix(np.eye(6, dtype=np.float32))
        fitness.Fitness(corners)(np.array([[0, 1, 2, 3]]))


def _surroundings(trial: Trial, labels: Tensor) -> dict:
    """Options that say where and on what a trial runs; they are no part of its identity."""
    if trial.method == "topological":
        return {"checkpoints": run_folder(trial)}
    return {"labels": labels} if trial.method == "taylor" else {}
