"""The folder of a run in the cache: its checkpoints, which process works on it, and how it ended.

The process that works on a run holds the lock of its folder. `running.json` says which one that is,
`failed.json` keeps the error of a run that failed. A run whose `running.json` stands beside a free lock is dead:
the system releases the lock when the process ends. So anyone who shares the cache sees how a run fares.
"""

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors

from topoprune import files
from topoprune.files import FileError
from topoprune.study import datasets
from topoprune.study.locks import is_locked, locked
from topoprune.study.trial import Dense, Spec, spec_key

DENSE = "dense.safetensors"
TRAINING = "training.json"
SELECTION = "selection.json"
FINE_TUNING = "fine-tuning.safetensors"
RECORD = "record.json"
RUNNING = "running.json"
FAILED = "failed.json"


def run_folder(spec: Spec, cache: Path | None = None) -> Path:
    """Folder of a run in `cache` (by default `datasets.cache()`)."""
    cache = cache or datasets.cache()
    return cache / "runs" / f"{type(spec).__name__.lower()}-{spec_key(spec)}"


def discard_run(spec: Spec) -> None:
    """Delete the folder of a run, once no process works on it."""
    folder = run_folder(spec).resolve()
    if folder.exists():
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def claimed(folder: Path, device: str) -> Iterator[None]:
    """Hold the lock of a run's folder, and say so in `running.json`.

    Raises:
        files.FileError: the folder cannot be written.
    """
    with locked(folder):
        files.write_json(folder / RUNNING, folder.name, _this_process(device))
        try:
            yield
        finally:
            (folder / RUNNING).unlink(missing_ok=True)


def start_over(folder: Path, name: str, reason: str) -> None:
    """Set a file of a claimed run aside, with a warning, and its checkpoints with it; nothing is deleted."""
    files.set_aside(folder / name, reason)
    for path in folder.iterdir():
        if path.name != RUNNING and path.suffix != ".refused":
            path.replace(f"{path}.refused")


@contextlib.contextmanager
def failure_noted(folder: Path, device: str) -> Iterator[None]:
    """Keep the line of an error in `failed.json` until the run is started again."""
    process = _this_process(device)
    with contextlib.suppress(OSError):
        (folder / FAILED).unlink()
    try:
        yield
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(FileError):  # the disk may be what failed
            files.write_json(folder / FAILED, folder.name, {**process, "error": line})
        raise


def run_state(folder: Path) -> dict:
    """How a run fares.

    Returns:
        state: "running", "failed", "dead" (its process ended without a word) or "waiting" (not begun, or interrupted).
        host, process, device, since (seconds since 1970): of its process, unless it waits.
        error: if it failed.
    """
    if process := _read(folder, RUNNING):
        if is_locked(folder):
            return {"state": "running", **process}
        process = _read(folder, RUNNING)  # the run may have ended since
        if process:
            return {"state": "dead", **process}
    if failure := _read(folder, FAILED):
        return {"state": "failed", **failure}
    return {"state": "waiting"}


def finished_steps(spec: Spec, cache: Path | None = None) -> dict[str, int]:
    """How far a run is, as its checkpoints show.

    Returns:
        dense: finished epochs of the dense network.
        layers: whose search has begun.
        generations: finished, of all layers.
        selected: 1 if the filters are chosen.
        tuned: finished epochs of fine-tuning.
    """
    folder = run_folder(spec, cache)
    dense = spec if isinstance(spec, Dense) else spec.dense
    searches = list(folder.glob("search-*.json"))
    return {
        "dense": finished_epochs(run_folder(dense, cache) / DENSE),
        "layers": len(searches),
        "generations": sum(map(finished_generations, searches)),
        "selected": int((folder / SELECTION).exists()),
        "tuned": finished_epochs(folder / FINE_TUNING),
    }


def finished_epochs(checkpoint: Path) -> int:
    """Number of finished epochs in a checkpoint of `training.train`, see `epochs_in`."""
    return len(epochs_in(checkpoint))


def epochs_in(checkpoint: Path) -> list[dict]:
    """The finished epochs in a checkpoint of `training.train`; none if there is none that can be read."""
    try:
        with safetensors.safe_open(checkpoint, framework="pt") as file:
            return list(json.loads(file.metadata()["metadata"])["history"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return []


def finished_generations(checkpoint: Path) -> int:
    """Finished generations in a checkpoint of `genetic.evolve`; 0 if there is none that can be read."""
    try:
        return len(files.read_json(checkpoint)["history"])
    except (FileError, KeyError, TypeError):
        return 0


def _read(folder: Path, name: str) -> dict | None:
    try:
        return files.read_json(folder / name, folder.name)
    except FileError:  # there is none, or no longer
        return None


def _this_process(device: str) -> dict:
    return {"host": platform.node(), "process": os.getpid(), "device": device, "since": time.time()}
