"""Dense networks: trained once, kept in the cache, shared by all trials that prune them."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from topoprune import files
from topoprune.models import build
from topoprune.study.images import Data
from topoprune.study.run_folder import DENSE, claimed, run_folder
from topoprune.study.store import Store
from topoprune.study.trial import Dense, spec_key
from topoprune.training import train


def trained(dense: Dense, data: Data) -> tuple[nn.Module, list[dict]]:
    """A dense network, from the cache or trained now, and its epochs.

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


def _is_network(model: nn.Module, epochs: list[dict], result: dict) -> bool:
    """Whether the stored result of a dense network is that of `model`."""
    if "network" in result:
        return result["network"] == files.digest(model.state_dict())
    return abs(result["validation"] - epochs[-1]["validation"]) < 1e-9  # older records know no more
