"""Run one spec: train a dense network, prune it and fine-tune, prune and mend it, or draw its portrait."""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from topoprune import files
from topoprune.costs import cost
from topoprune.network import remove
from topoprune.study import datasets
from topoprune.study.choice import chosen_once
from topoprune.study.clouds import describe_clouds
from topoprune.study.damage import damage_by_layer, live_share, recovery
from topoprune.study.images import CALIBRATION, Data
from topoprune.study.networks import trained, trained_on_record, training_provenance
from topoprune.study.portraits import portray
from topoprune.study.provenance import must_be_made_again, provenance
from topoprune.study.removals import MENDING_IMAGES, run_removal
from topoprune.study.run_folder import FINE_TUNING, RECORD, claimed, failure_noted, run_folder, start_over
from topoprune.study.store import Store
from topoprune.study.trial import (
    Clouds,
    Dense,
    Record,
    Removal,
    Spec,
    Trial,
    searches_by_column,
    spec_fields,
    spec_key,
)
from topoprune.training import accuracy, recalibrate, train

RECOVERY_MARGIN = 0.005
"""A network has recovered if its validation accuracy is within this of the dense network's."""

TIMES = {"seconds", "selection_seconds", "latency_ms", "images_per_second"}
"""Fields of a result that differ from run to run of one spec."""


def default_device() -> str:
    """Return "cuda" if a CUDA device is available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(spec: Spec, device: str | None = None, *records: Path) -> Record:
    """Run `spec`; an interrupted run continues from its last finished epoch.

    It does so bit for bit on the CPU, and on CUDA with TOPOPRUNE_DETERMINISTIC=1 in the environment. Threads of one
    process take turns, because they share PyTorch's random numbers.

    Args:
        spec: what to run.
        device: "cpu", "cuda" or "cuda:1"; by default CUDA if there is a device.
        records: files of each `Store` that the record is for. If one of them holds it by now, that one is returned:
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
        result = run_dense(spec, data, records)
    elif isinstance(spec, Trial):
        result = run_trial(spec, data, records)
    elif isinstance(spec, Removal):
        result = run_removal(spec, data, records)
    elif isinstance(spec, Clouds):
        result = describe_clouds(spec, data, records)
    else:
        result = portray(spec, data, records)
    return Record(spec, result, _provenance(spec, result, device, time.perf_counter() - started))


def _provenance(spec: Spec, result: dict, device: str, seconds: float) -> dict:
    """The provenance of a result; that of a dense network, which the cache may have had, is that of its training."""
    if not isinstance(spec, Dense):
        return provenance(device, seconds)
    least = sum(epoch["seconds"] for epoch in result["history"])
    return training_provenance(spec, result["history"]) or provenance(device, max(seconds, least))


@functools.lru_cache(maxsize=1)
def _load(dataset: str, device: str, folder: Path) -> Data:
    """Load a data set once for all runs of a process."""
    return datasets.load(dataset, device)


def _finished_by_another(spec: Spec, records: tuple[Path, ...]) -> Record | None:
    """The record that another process stored, or finished and did not store yet."""
    key, folder = spec_key(spec), run_folder(spec)
    lines = [line for path in records if (line := Store(path).load().get(key))]
    line = lines[0] if lines else files.resume(files.read_json, folder / RECORD, key)
    if not line:
        return None
    record = Record.from_json(line)
    revision = record.provenance.get("commit", "")
    if lines or not must_be_made_again(revision, records):
        return record
    start_over(folder, RECORD, f"{folder / RECORD} is of changed code ({revision}) and may not be published")
    return None


def run_dense(dense: Dense, data: Data, records: tuple[Path, ...] = ()) -> dict:
    """Train a dense network.

    Args:
        records: see `networks.trained`.

    Returns:
        network: digest of its weights.
        cost: see `costs.Cost`.
        history: one dict an epoch, see `training.Epoch`.
        validation, test: accuracies in [0, 1] after the last epoch.
    """
    model, history = trained(dense, data, records)
    return {
        "network": files.digest(model.state_dict()),
        "cost": asdict(cost(model, data.example())),
        "history": history,
        "validation": history[-1]["validation"],
        "test": history[-1]["test"],
    }


def run_trial(trial: Trial, data: Data, records: tuple[Path, ...]) -> dict:
    """Prune a dense network, measure the damage, fine-tune, and measure the recovery.

    Args:
        records: files of `Store`s that may hold the dense network, see `networks.trained_on_record`.

    Returns:
        network: digest of the weights of the dense network.
        cost: of the small network, see `costs.Cost`.
        damage: before fine-tuning: accuracies, live channels, and what `damage.damage_by_layer` returns.
        history: one dict an epoch of fine-tuning, see `training.Epoch`.
        live: share of the live channels of each ReLU at the end, see `damage.live_share`.
        recovery: see `damage.recovery`.
        kept, selection_seconds, searches: see `choice.chosen_once`.
    """
    dense, dense_history = trained_on_record(trial.dense, data, records)
    example = data.example()
    network = files.digest(dense.state_dict())
    identity = f"{spec_key(trial)} of network {network}"
    choice = chosen_once(trial, identity, dense, data)
    kept = choice["kept"]
    if trial.compensation:
        images = data.example(MENDING_IMAGES)
        small = remove(dense, example, kept, compensate=images, compensation=trial.compensation)
    else:
        small = remove(dense, example, kept)
    recalibrate(small, data.train.batches(CALIBRATION))
    damage = {
        "validation": accuracy(small, data.validation.batches()),
        "test": accuracy(small, data.test.batches()),
        **damage_by_layer(dense, example, kept),
        "live": live_share(small, data),
    }
    epochs = train(
        small,
        data.train.augmented(trial.recovery, trial.seed),
        trial.recovery,
        data.validation.batches(),
        data.test.batches(),
        teacher=dense if trial.recovery.distillation else None,
        seed=trial.seed,
        checkpoint=run_folder(trial) / FINE_TUNING,
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
        **searches_by_column(choice),
    }


def _without(names: set[str], value):
    """A JSON value without the fields of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(names, inner) for key, inner in value.items() if key not in names}
    return [_without(names, inner) for inner in value] if isinstance(value, list) else value
