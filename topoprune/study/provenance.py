"""Where and with what a record was made, and whether it may be published."""

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from topoprune._engine.precision import precision
from topoprune.files import FileError

CHECKOUT = Path(__file__).resolve().parents[2]
PUBLISHED = CHECKOUT / "book" / "results"
UNKNOWN = "not a git checkout"
PACKAGES = (
    "topoprune",
    "torch",
    "torchvision",
    "giotto-tda",
    "giotto-ph",
    "deap",
    "nni",
    "torch-pruning",
    "numpy",
    "scikit-learn",
)


def provenance(device: str, seconds: float) -> dict:
    """Commit, versions, device and date, beside the seconds that the work took.

    Example:
        >>> sorted(provenance("cpu", 1.234))
        ['commit', 'date', 'device', 'python', 'seconds', 'versions']
    """
    return {
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": _device_name(device),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


@cache
def commit() -> str:
    """Commit of the checkout that the package runs from, as it was when this process asked first."""
    return commit_of(CHECKOUT)


def commit_of(checkout: Path) -> str:
    """Commit of a checkout of this project.

    It ends in "-dirty" if a file of the package differs from it or is new; pages and records do not count.
    The folder of an installed package is `UNKNOWN`, and so is a checkout that git cannot read.
    """
    if _git(checkout, "rev-parse", "--show-prefix") != "":  # outside of git, or in a folder of another project
        return UNKNOWN
    described = _git(checkout, "describe", "--always", "--abbrev=12")
    changed = _git(checkout, "status", "--porcelain", "--", "topoprune")
    return f"{described}{'-dirty' if changed else ''}" if described else UNKNOWN


def require_clean(records: Path, revision: str) -> None:
    """Refuse a dirty commit for the published records, which a reader must be able to repeat.

    Other records note the commit and no more. TOPOPRUNE_ALLOW_DIRTY lets published ones do so, too.

    Args:
        records: file that a record is to be stored in.
        revision: `commit()` of the process that made the record.

    Raises:
        files.FileError: the file is published and the revision is dirty, or unknown although there is a repository.
    """
    if may_be_stored(records, revision):
        return
    if revision == UNKNOWN:
        raise FileError(
            f"{records} holds published records, and git cannot tell whether topoprune/ was changed: install git, or "
            f"let it read {CHECKOUT} (git config --global --add safe.directory {CHECKOUT}), name another folder in "
            "TOPOPRUNE_RESULTS, or set TOPOPRUNE_ALLOW_DIRTY=1"
        )
    raise FileError(
        f"{records} holds published records, and topoprune/ differs from commit {revision.removesuffix('-dirty')}: "
        "commit the changes, name another folder in TOPOPRUNE_RESULTS, or set TOPOPRUNE_ALLOW_DIRTY=1"
    )


def may_be_stored(records: Path, revision: str) -> bool:
    """Whether a record of a revision may be stored in a file, see `require_clean`."""
    published = records.resolve().is_relative_to(PUBLISHED)
    clean = not revision.endswith("-dirty") and not (revision == UNKNOWN and (CHECKOUT / ".git").exists())
    return clean or not published or bool(os.environ.get("TOPOPRUNE_ALLOW_DIRTY"))


def must_be_made_again(revision: str, records: Iterable[Path]) -> bool:
    """Whether one of these files refuses a record of a revision, and will take one of this process."""
    return any(not may_be_stored(path, revision) and may_be_stored(path, commit()) for path in records)


def _git(checkout: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _versions() -> dict:
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device_name(device: str) -> str:
    computed = str(precision(device.split(":")[0])).removeprefix("torch.")
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {computed}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {computed}"
