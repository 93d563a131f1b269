"""Dense networks: trained once, kept in the cache, shared by all trials that prune them."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from topoprune import files
from topoprune.models import build
from topoprune.study.images import Data
from topoprune.study.provenance import must_be_made_again, provenance
from topoprune.study.run_folder import DENSE, TRAINING, claimed, epochs_in, run_folder, start_over
from topoprune.study.store import Store
from topoprune.study.trial import Dense, spec_key
from topoprune.training import train


def trained(dense: Dense, data: Data, records: tuple[Path, ...] = ()) -> tuple[nn.Module, list[dict]]:
    """A dense network, from the cache or trained now, and its epochs.

    Args:
        records: files of `Store`s that its record is for; a network that they would refuse is trained again.

    Raises:
        files.FileError: the cache cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dense.seed)
        model = build(dense.architecture, data.classes, dense.width)
    device = data.train.labels.device
    model.to(device)
    checkpoint = run_folder(dense) / DENSE
    with claimed(checkpoint.parent, str(device)):  # other trials of this network wait
        _set_aside_refused(dense, records)
        with _training_noted(dense, str(device)):
            epochs = train(
                model,
                data.train.augmented(dense.recipe, dense.seed),
                dense.recipe,
                data.validation.batches(),
                data.test.batches(),
                seed=dense.seed,
                checkpoint=checkpoint,
                identity=spec_key(dense),
                source={"architecture": dense.architecture, "classes": data.classes, "width": dense.width},
                fast=True,
            )
    return model, [asdict(epoch) for epoch in epochs]


def training_provenance(dense: Dense, epochs: list[dict]) -> dict | None:
    """Where and with what a dense network of these epochs was trained, see `provenance`; None in an older cache.

    The seconds are those of all sittings, the rest is that of the last one.
    """
    try:
        return files.read_json(run_folder(dense) / TRAINING, files.key(epochs))
    except files.FileError:
        return None


def trained_on_record(dense: Dense, data: Data, records: tuple[Path, ...]) -> tuple[nn.Module, list[dict]]:
    """As `trained`, but refuse another network than the one that `records` hold: its trials would have no pair.

    Args:
        records: files of `Store`s.

    Raises:
        files.FileError: it is another network.
    """
    model, epochs = trained(dense, data)
    lines = (Store(path).load().get(spec_key(dense)) for path in records)
    for line in filter(None, lines):
        if not _is_network(model, epochs, line["result"]):
            raise files.FileError(
                f"the dense network of seed {dense.seed} in {run_folder(dense)} is not the one on record "
                f"(validation accuracy {epochs[-1]['validation']:.4f}, on record {line['result']['validation']:.4f}), "
                f"which was trained on {line['provenance']['device']}: the cache lost that one, and other threads or "
                "another device train another; run it and all its trials again with --force, or train it there"
            )
    return model, epochs


def _set_aside_refused(dense: Dense, records: tuple[Path, ...]) -> None:
    """Set a network aside that changed code trained, if its record is for published ones."""
    folder = run_folder(dense)
    made = training_provenance(dense, epochs_in(folder / DENSE))
    if made and must_be_made_again(made["commit"], records):
        start_over(folder, DENSE, f"{folder / DENSE} is of changed code ({made['commit']}) and may not be published")


@contextlib.contextmanager
def _training_noted(dense: Dense, device: str) -> Iterator[None]:
    """Keep what `training_provenance` reads, whatever ends the training."""
    folder, started = run_folder(dense), time.perf_counter()
    before = epochs_in(folder / DENSE)
    noted = training_provenance(dense, before) or {"seconds": sum(epoch["seconds"] for epoch in before)}
    try:
        yield
    finally:
        epochs = epochs_in(folder / DENSE)
        if epochs != before:
            earlier = noted["seconds"] if epochs[: len(before)] == before else 0.0
            seconds = earlier + time.perf_counter() - started
            with contextlib.suppress(files.FileError):  # the disk may be what failed
                files.write_json(folder / TRAINING, files.key(epochs), provenance(device, seconds))


def _is_network(model: nn.Module, epochs: list[dict], result: dict) -> bool:
    """Whether the stored result of a dense network is that of `model`."""
    if "network" in result:
        return result["network"] == files.digest(model.state_dict())
    return abs(result["validation"] - epochs[-1]["validation"]) < 1e-9  # older records know no more
