"""One trial: dense model -> select -> remove -> measure damage -> fine-tune -> record."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from topoprune import files, fitness
from topoprune._engine.precision import default_device
from topoprune.data import Data
from topoprune.models import build
from topoprune.network import cost, couplings, remove
from topoprune.selection import run_selection
from topoprune.study import datasets, signs
from topoprune.study.damage import live_share, plain_damage, recovery, topological_damage
from topoprune.study.provenance import provenance
from topoprune.study.store import Store, locked
from topoprune.study.trial import Dense, Portrait, Record, Trial, plain, searches_by_column, spec_key
from topoprune.topological import points
from topoprune.training import accuracy, recalibrate, train

WITHIN = 0.005
"""Recovered: validation accuracy within this of the dense model's."""


DENSE, SELECTION, TUNED, MADE = ("dense.safetensors", "selection.json", "fine-tuning.safetensors", "record.json")
"""What a run keeps in its folder until its record is stored."""


TIMES = {"seconds", "selection_seconds", "latency_ms", "images_per_second"}
"""Fields of a result that were timed: two runs of one trial agree in all others."""


def run(spec: Dense | Trial | Portrait, device: str | None = None, records: Path | None = None) -> Record:
    """Carry out `spec`; an interrupted run continues from its last finished epoch.

    On CUDA it does so bit for bit in deterministic mode alone, see `training.repeatable`. Threads of
    one process take turns: they share PyTorch's random numbers. The record of a trial stays in the
    cache, and is returned from there, until `forget`.

    Args:
        spec: what to measure.
        device: "cpu", "cuda", "cuda:1"; by default CUDA where there is one.
        records: file of a `Store`; a record that another process put there while this one waited
            for it is returned as it is, and no dense network is pruned but the one that it knows.

    Raises:
        ValueError, data.DataError, files.FileError: with the cause and the cure.
    """
    device = device or default_device()
    with _one_at_a_time, signs.errors_noted(run_folder(spec), device), repeatable():
        if isinstance(spec, Dense):
            return _recorded(spec, device, _run_dense)
        with signs.signed(run_folder(spec), device):  # no other writes the same checkpoints
            if (made := _made(spec, records)) is not None:
                return made
            carry_out = _run_trial if isinstance(spec, Trial) else _run_portrait
            record = _recorded(spec, device, partial(carry_out, records=records))
            files.write_json(run_folder(spec) / MADE, spec_key(spec), record.to_json())
            return record


_one_at_a_time = threading.Lock()


def _recorded(spec, device: str, carry_out: Callable) -> Record:
    started = time.perf_counter()
    result = carry_out(spec, datasets.load(_dense_of(spec).dataset, device))
    return Record(spec, result, provenance(device, time.perf_counter() - started))


def _made(spec: Trial | Portrait, records: Path | None) -> Record | None:
    """The record that another process made of `spec`: stored, or finished and not stored yet."""
    line = Store(records).load().get(spec_key(spec)) if records else None
    line = line or files.resume_json(run_folder(spec) / MADE, spec_key(spec))
    return Record.from_json(line) if line else None


def run_folder(spec: Dense | Trial | Portrait, cache: Path | None = None) -> Path:
    """Where a run keeps its checkpoints, in `cache` (by default `data.cache()`)."""
    cache = cache or datasets.cache()
    return cache / "runs" / f"{type(spec).__name__.lower()}-{spec_key(spec)}"


def reached(spec: Dense | Trial | Portrait, cache: Path | None = None) -> dict[str, int]:
    """How far a run came, as its folders show.

    Returns:
        dense: finished epochs of the dense network; layers: whose search has begun; generations: of
        all these, finished; selected: 1 once the filters are chosen; tuned: finished epochs of
        fine-tuning.
    """
    folder = run_folder(spec, cache)
    searches = list(folder.glob("search-*.json"))
    return {
        "dense": signs.epochs(run_folder(_dense_of(spec), cache) / DENSE),
        "layers": len(searches),
        "generations": sum(map(signs.generations, searches)),
        "selected": int((folder / SELECTION).exists()),
        "tuned": signs.epochs(folder / TUNED),
    }


def timeless(record: Record) -> dict:
    """Spec and result without what differs from run to run of one trial: times."""
    return {"spec": plain(record.spec), "result": _without(TIMES, record.result)}


def forget(spec: Dense | Trial | Portrait) -> None:
    """Delete what earlier sittings of `spec` left in the cache, as soon as no process is at it."""
    if run_folder(spec).exists():
        with locked(run_folder(spec)):
            shutil.rmtree(run_folder(spec), ignore_errors=True)


def _run_dense(dense: Dense, data: Data) -> dict:
    model, history = _trained(dense, data)
    return {
        "cost": _cost(model, data),
        "history": history,
        "validation": history[-1]["validation"],
        "test": history[-1]["test"],
    }


def _run_trial(trial: Trial, data: Data, records: Path | None) -> dict:
    dense, dense_history = _on_record(trial.dense, data, records)
    example = data.example()
    goal = dense_history[-1]["validation"] - WITHIN
    source = f"{spec_key(trial)} of network {files.digest(dense.state_dict())}"
    chosen = _select_once(trial, source, dense, example, data.train.labels[: len(example)])
    small = recalibrate(remove(dense, example, chosen["kept"]), data)
    damage = {
        "validation": accuracy(small, data, data.validation),
        "test": accuracy(small, data, data.test),
        "topological": topological_damage(dense, example, chosen["kept"]),
        "plain": plain_damage(dense, example, chosen["kept"]),
        "live": live_share(small, data),
    }
    epochs = train(
        small, data, trial.recovery, trial.seed, run_folder(trial) / TUNED, f"{source} kept {files.key(chosen['kept'])}"
    )
    history = [asdict(epoch) for epoch in epochs]
    return {
        "cost": _cost(small, data),
        "damage": damage,
        "history": history,
        "live": live_share(small, data),
        "recovery": recovery(history, damage, goal),
        **searches_by_column(chosen),
    }


def _run_portrait(portrait: Portrait, data: Data, records: Path | None) -> dict:
    """Diagrams of one layer and of what each method keeps of it, and the layer in the plane."""
    from sklearn.manifold import MDS

    model, example = _on_record(portrait.dense, data, records)[0], data.example()
    groups = [g for g in couplings(model, example) if portrait.layer in g.layers]
    if not groups:
        raise ValueError(
            f"unknown layer {portrait.layer!r}: the prunable layers are "
            f"{', '.join(g.layers[0] for g in couplings(model, example))}"
        )
    delta = fitness.distance_matrix(points(model, example, groups)[0])
    plane = MDS(dissimilarity="precomputed", random_state=0, normalized_stress=False)
    kept, diagrams = {}, {"full": fitness.diagrams(delta)}
    for method in portrait.methods:
        options = portrait.options if method == "topological" else {}
        kept[method] = run_selection(
            model, example, method, portrait.ratio, portrait.dense.seed, layers=(portrait.layer,), **options
        ).kept[portrait.layer]
        diagrams[method] = fitness.diagrams(delta[kept[method]][:, kept[method]])
    return {
        "plane": plane.fit_transform(delta.astype("float64")).round(4).tolist(),
        "kept": kept,
        "diagrams": {
            name: {str(d): pairs.round(6).tolist() for d, pairs in made.items()} for name, made in diagrams.items()
        },
    }


def _on_record(dense: Dense, data: Data, records: Path | None) -> tuple[nn.Module, list[dict]]:
    """The dense network, refused if `records` know another: what prunes it would compare with nothing."""
    model, history = _trained(dense, data)
    line = Store(records).load().get(spec_key(dense)) if records else None
    if line and abs(line["result"]["validation"] - history[-1]["validation"]) > 1e-9:
        made = Record.from_json(line).provenance
        raise files.FileError(
            f"the dense network of seed {dense.seed} in {run_folder(dense)} is not the one on record "
            f"(validation accuracy {history[-1]['validation']:.4f}, not {line['result']['validation']:.4f}; "
            f"that one was made on {made['device']}): the cache lost it, and other threads or another device "
            "train another. Train it there, or run it and all its trials again with force"
        )
    return model, history


def _trained(dense: Dense, data: Data) -> tuple[nn.Module, list[dict]]:
    """The dense network, trained now or continued or read from the cache, and its epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dense.seed)
        model = build(dense.architecture, data.classes, dense.width)
    device = data.train.labels.device
    model.to(device)
    source = {"architecture": dense.architecture, "classes": data.classes, "width": dense.width}
    checkpoint = run_folder(dense) / DENSE
    with signs.signed(checkpoint.parent, str(device)):  # of several that need it, one trains
        history = train(model, data, dense.recipe, dense.seed, checkpoint, spec_key(dense), source)
    return model, [asdict(epoch) for epoch in history]


def _select_once(trial: Trial, source: str, dense: nn.Module, example: torch.Tensor, labels: torch.Tensor) -> dict:
    """The selection of `trial`, kept in the cache so that an interrupted trial does not repeat it.

    `source` names the trial and the network's weights: no selection of another is taken for it.
    """
    path = run_folder(trial) / SELECTION
    if (found := files.resume_json(path, source)) is not None:
        return found
    extra = {"topological": {"checkpoints": path.parent}, "taylor": {"labels": labels}}
    made = run_selection(
        dense, example, trial.method, trial.ratio, trial.seed, **trial.options, **extra.get(trial.method, {})
    )
    result = {"kept": made.kept, "selection_seconds": made.seconds, "searches": made.searches}
    files.write_json(path, source, result)
    return result


def _without(names: set[str], value):
    """JSON `value` without the fields of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(names, x) for key, x in value.items() if key not in names}
    return [_without(names, x) for x in value] if isinstance(value, list) else value


def _cost(model: nn.Module, data: Data) -> dict:
    return asdict(cost(model, data.example()))


def _dense_of(spec: Dense | Trial | Portrait) -> Dense:
    return spec if isinstance(spec, Dense) else spec.dense


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """With TOPOPRUNE_DETERMINISTIC=1 in the environment, CUDA repeats itself bit for bit, as the CPU
    does anyway: sums in one order. Otherwise nothing changes.

    An operation that has no such order is named in a warning. Enter before CUDA is first used.
    """
    if not os.environ.get("TOPOPRUNE_DETERMINISTIC"):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it as it starts
    usual = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(usual, warn_only=warned)
