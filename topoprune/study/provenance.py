"""Where and with what a record was made."""

import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from topoprune._engine.precision import precision


def provenance(device: str, seconds: float) -> dict:
    """Where and with what a result was made."""
    return {
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": _device_name(device),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


@cache
def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "not a git checkout"


@cache
def _versions() -> dict:
    names = (
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
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _device_name(device: str) -> str:
    computed = str(precision(device.split(":")[0])).removeprefix("torch.")
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {computed}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {computed}"
