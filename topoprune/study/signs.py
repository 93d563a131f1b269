"""Signs that a run leaves in its folder, so that anyone who shares the cache sees how it fares.

`running.json` stands while the run goes on, `failed.json` once it ended with an error. That a sign's
process died is told by the run's lock, which the system lets go of, not by a process id: so it is
seen from another machine too.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors

from topoprune import files
from topoprune.files import FileError
from topoprune.study.store import is_locked, locked

RUNNING, FAILED = "running.json", "failed.json"


@contextlib.contextmanager
def signed(folder: Path, device: str) -> Iterator[None]:
    """Hold the lock of a run's folder, with a sign in it as long as the run goes on.

    Raises:
        FileError: the folder cannot be written.
    """
    with locked(folder):
        files.write_json(folder / RUNNING, folder.name, _sign(device))
        try:
            yield
        finally:
            (folder / RUNNING).unlink(missing_ok=True)


@contextlib.contextmanager
def errors_noted(folder: Path, device: str) -> Iterator[None]:
    """An error leaves its line in a run's folder, until the run is begun again."""
    sign = _sign(device)
    with contextlib.suppress(OSError):
        (folder / FAILED).unlink()
    try:
        yield
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(FileError):  # the disk may be what failed
            files.write_json(folder / FAILED, folder.name, {**sign, "error": line})
        raise


def state(folder: Path) -> dict:
    """What the signs in a run's folder say.

    Returns:
        state: "running"; "failed"; "dead", if its process ended without a word; "waiting", if there
            is no sign.
        host, process, device, since (seconds since 1970), error: of the sign, where there is one.
    """
    if sign := _read(folder, RUNNING):
        if is_locked(folder):
            return {"state": "running", **sign}
        sign = _read(folder, RUNNING)  # it may have ended since
        if sign:
            return {"state": "dead", **sign}
    if sign := _read(folder, FAILED):
        return {"state": "failed", **sign}
    return {"state": "waiting"}


def epochs(checkpoint: Path) -> int:
    """Finished epochs that a checkpoint of `training.train` holds; 0 for none that can be read."""
    try:
        with safetensors.safe_open(checkpoint, framework="pt") as file:
            return len(json.loads(file.metadata()["metadata"])["history"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return 0


def generations(checkpoint: Path) -> int:
    """Finished generations that a checkpoint of `genetic.evolve` holds; 0 for none that can be read."""
    try:
        return len(files.check_json(checkpoint)[1]["history"])
    except (FileError, KeyError, TypeError):
        return 0


def _read(folder: Path, name: str) -> dict | None:
    try:
        return files.read_json(folder / name, folder.name)
    except FileError:  # none, or just gone
        return None


def _sign(device: str) -> dict:
    return {"host": platform.node(), "process": os.getpid(), "device": device, "since": time.time()}
