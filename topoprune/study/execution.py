"""Run one spec: train a dense network, or prune it, measure the damage and fine-tune, or draw its portrait."""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from topoprune import files, fitness
from topoprune._engine.precision import default_device
from topoprune.models import build
from topoprune.network import cost, couplings, remove
from topoprune.selection import NNI_PRUNERS, run_selection
from topoprune.study import datasets
from topoprune.study.damage import damage_by_layer, live_share, recovery
from topoprune.study.images import CALIBRATION, Data
from topoprune.study.provenance import provenance
from topoprune.study.run_folder import (
    DENSE,
    FINE_TUNING,
    RECORD,
    SELECTION,
    claimed,
    failure_noted,
    run_folder,
)
from topoprune.study.store import Store
from topoprune.study.trial import Dense, Portrait, Record, Spec, Trial, searches_by_column, spec_fields, spec_key
from topoprune.topological import points
from topoprune.training import accuracy, recalibrate, train

RECOVERY_MARGIN = 0.005
"""A network has recovered if its validation accuracy is within this of the dense network's."""

TIMES = {"seconds", "selection_seconds", "latency_ms", "images_per_second"}
"""Fields of a result that differ from run to run of one spec."""


def run(spec: Spec, device: str | None = None, *records: Path) -> Record:
    """Run `spec`; an interrupted run continues from its last finished epoch.

    It does so bit for bit on the CPU, and on CUDA with TOPOPRUNE_DETERMINISTIC=1 in the environment. Threads of one
    process take turns, because they share PyTorch's random numbers.

    Args:
        spec: what to run.
        device: "cpu", "cuda" or "cuda:1"; by default CUDA if there is a device.
        records: files of `Store`s that the record is for. If one of them holds it by now, that one is returned:
            another process was faster. No dense network is pruned but the one that they know.

    Returns:
        The record. That of a trial or portrait also stays in the cache, until `discard_run`.

    Raises:
        ValueError, datasets.DataError, files.FileError: with the cause and the cure.
    """
    device = device or default_device()
    folder = run_folder(spec)
    with _one_run_at_a_time, failure_noted(folder, device), deterministic_if_asked():
        if isinstance(spec, Dense):  # its training claims the folder
            return _measured(spec, device, records)
        with claimed(folder, device):
            record = _finished_by_another(spec, records)
            if record is None:
                record = _measured(spec, device, records)
                files.write_json(folder / RECORD, record.key, record.to_json())
            return record


_one_run_at_a_time = threading.Lock()


def without_times(record: Record) -> dict:
    """Spec and result of a record without times: what two runs of one spec have in common."""
    return {"spec": spec_fields(record.spec), "result": _without(TIMES, record.result)}


@contextlib.contextmanager
def deterministic_if_asked() -> Iterator[None]:
    """With TOPOPRUNE_DETERMINISTIC=1 in the environment, make CUDA repeat itself bit for bit, as the CPU always does.

    An operation that cannot is named in a warning. Enter before CUDA is first used.
    """
    if not os.environ.get("TOPOPRUNE_DETERMINISTIC"):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _measured(spec: Spec, device: str, records: tuple[Path, ...]) -> Record:
    started = time.perf_counter()
    data = _load(spec.dataset if isinstance(spec, Dense) else spec.dense.dataset, device, datasets.folder())
    if isinstance(spec, Dense):
        result = _run_dense(spec, data)
    elif isinstance(spec, Trial):
        result = _run_trial(spec, data, records)
    else:
        result = _run_portrait(spec, data, records)
    return Record(spec, result, provenance(device, time.perf_counter() - started))


@functools.lru_cache(maxsize=1)
def _load(dataset: str, device: str, folder: Path) -> Data:
    """Load a data set once for all runs of a process."""
    return datasets.load(dataset, device)


def _finished_by_another(spec: Trial | Portrait, records: tuple[Path, ...]) -> Record | None:
    """The record that another process stored, or finished and did not store yet."""
    for line in _stored(spec, records):
        return Record.from_json(line)
    line = files.resume(files.read_json, run_folder(spec) / RECORD, spec_key(spec))
    return Record.from_json(line) if line else None


def _stored(spec: Spec, records: tuple[Path, ...]) -> list[dict]:
    """The lines of a spec in these files."""
    lines = (Store(path).load().get(spec_key(spec)) for path in records)
    return [line for line in lines if line]


def _run_dense(dense: Dense, data: Data) -> dict:
    model, history = _trained(dense, data)
    return {
        "network": files.digest(model.state_dict()),
        "cost": asdict(cost(model, data.example())),
        "history": history,
        "validation": history[-1]["validation"],
        "test": history[-1]["test"],
    }


def _run_trial(trial: Trial, data: Data, records: tuple[Path, ...]) -> dict:
    dense, dense_history = _on_record(trial.dense, data, records)
    example = data.example()
    network = files.digest(dense.state_dict())
    identity = f"{spec_key(trial)} of network {network}"
    selection = _select_once(trial, identity, dense, data)
    kept = selection["kept"]
    small = recalibrate(remove(dense, example, kept), data.train.batches(CALIBRATION))
    damage = {
        "validation": accuracy(small, data.validation.batches()),
        "test": accuracy(small, data.test.batches()),
        **damage_by_layer(dense, example, kept),
        "live": live_share(small, data),
    }
    checkpoint = run_folder(trial) / FINE_TUNING
    epochs = train(
        small,
        data.train.augmented(trial.recovery, trial.seed),
        trial.recovery,
        data.validation.batches(),
        data.test.batches(),
        seed=trial.seed,
        checkpoint=checkpoint,
        identity=f"{identity} kept {files.key(kept)}",
        fast=True,
    )
    history = [asdict(epoch) for epoch in epochs]
    return {
        "network": network,
        "cost": asdict(cost(small, example)),
        "damage": damage,
        "history": history,
        "live": live_share(small, data),
        "recovery": recovery(history, damage, goal=dense_history[-1]["validation"] - RECOVERY_MARGIN),
        **searches_by_column(selection),
    }


def _run_portrait(portrait: Portrait, data: Data, records: tuple[Path, ...]) -> dict:
    """Diagrams of one layer and of the filters that each method keeps, and the layer in the plane."""
    from sklearn.manifold import MDS

    model, _ = _on_record(portrait.dense, data, records)
    example, layer = data.example(), portrait.layer
    prunable = couplings(model, example)
    groups = [group for group in prunable if layer in group.layers]
    if not groups:
        known = ", ".join(group.layers[0] for group in prunable)
        raise ValueError(f"unknown layer {layer!r}: the prunable layers are {known}")
    distances = fitness.distance_matrix(points(model, example, groups)[0])
    kept, diagrams = {}, {"full": fitness.diagrams(distances)}
    for method in portrait.methods:
        options = portrait.options if method == "topological" else {}
        selection = run_selection(
            model, example, method, portrait.ratio, portrait.dense.seed, layers=(layer,), **options
        )
        kept[method] = selection.kept[layer]
        diagrams[method] = fitness.diagrams(distances[kept[method]][:, kept[method]])
    plane = MDS(dissimilarity="precomputed", random_state=0, normalized_stress=False)
    return {
        "network": files.digest(model.state_dict()),
        "plane": plane.fit_transform(distances.astype("float64")).round(4).tolist(),
        "kept": kept,
        "diagrams": {
            name: {str(dimension): pairs.round(6).tolist() for dimension, pairs in by_dimension.items()}
            for name, by_dimension in diagrams.items()
        },
    }


def _on_record(dense: Dense, data: Data, records: tuple[Path, ...]) -> tuple[nn.Module, list[dict]]:
    """The dense network and its epochs, if it is the one that `records` know: a trial of another has no pair."""
    model, history = _trained(dense, data)
    for line in _stored(dense, records):
        if not _is_network(model, history, line["result"]):
            raise files.FileError(
                f"the dense network of seed {dense.seed} in {run_folder(dense)} is not the one on record "
                f"(validation accuracy {history[-1]['validation']:.4f}, on record {line['result']['validation']:.4f}), "
                f"which was trained on {line['provenance']['device']}: the cache lost that one, and other threads or "
                "another device train another; run it and all its trials again with --force, or train it there"
            )
    return model, history


def _is_network(model: nn.Module, history: list[dict], result: dict) -> bool:
    """Whether the result of a dense network is that of `model`."""
    if "network" in result:
        return result["network"] == files.digest(model.state_dict())
    return abs(result["validation"] - history[-1]["validation"]) < 1e-9  # old records know no more


def _trained(dense: Dense, data: Data) -> tuple[nn.Module, list[dict]]:
    """The dense network, from the cache if it is there, and its epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dense.seed)
        model = build(dense.architecture, data.classes, dense.width)
    device = data.train.labels.device
    model.to(device)
    source = {"architecture": dense.architecture, "classes": data.classes, "width": dense.width}
    checkpoint = run_folder(dense) / DENSE
    with claimed(checkpoint.parent, str(device)):  # other trials of this network wait
        history = train(
            model,
            data.train.augmented(dense.recipe, dense.seed),
            dense.recipe,
            data.validation.batches(),
            data.test.batches(),
            seed=dense.seed,
            checkpoint=checkpoint,
            identity=spec_key(dense),
            source=source,
            fast=True,
        )
    return model, [asdict(epoch) for epoch in history]


def _select_once(trial: Trial, identity: str, dense: nn.Module, data: Data) -> dict:
    """The selection of a trial, from the cache if it is there and belongs to this trial and network."""
    path = run_folder(trial) / SELECTION
    if (stored := files.resume(files.read_json, path, identity)) is not None:
        return stored
    example = data.example()
    options = {**_surroundings(trial, data.train.labels[: len(example)]), **trial.options}
    selection = run_selection(dense, example, trial.method, trial.ratio, trial.seed, **options)
    result = {"kept": selection.kept, "selection_seconds": selection.seconds, "searches": selection.searches}
    files.write_json(path, identity, result)
    return result


def _surroundings(trial: Trial, labels: Tensor) -> dict:
    """Options of a method that are no part of a trial's identity."""
    if trial.method == "topological":
        return {"checkpoints": run_folder(trial)}
    if trial.method in NNI_PRUNERS:
        return {"engine": "nni"}  # the study's baselines are NNI's own pruners
    return {"labels": labels} if trial.method == "taylor" else {}


def _without(names: set[str], value):
    """A JSON value without the fields of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(names, inner) for key, inner in value.items() if key not in names}
    return [_without(names, inner) for inner in value] if isinstance(value, list) else value
