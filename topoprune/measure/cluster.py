"""A study on a real Dask cluster that loses a worker, beside the same study on one worker."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from topoprune import files
from topoprune.files import FileError
from topoprune.measure.machine import describe_machine
from topoprune.measure.saved_state import comparable_records, first_difference
from topoprune.measure.tortured_run import TortureError
from topoprune.study.provenance import provenance
from topoprune.study.run_folder import FINE_TUNING, RUNNING


def torture_cluster(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run a study on a Dask cluster of two workers on the loopback, and kill the one that fine-tunes first.

    Args:
        folder: of both runs' caches and records; empty.
        arguments: of `python -m topoprune run`, the profile first.

    Returns:
        machine, commit, date; command: what was run; records: how many; workers; killed: the kind of run that the
        killed worker was at, "" if none was killed; seconds: of the cluster's run; differences: between the records
        of the cluster and those of one worker.

    Raises:
        TortureError: a study ended with an error.
    """
    machine = describe_machine(["torch", "numpy", "deap", "distributed"])
    command = ["run", *arguments, "--device", "cpu"]
    _start_study(folder / "alone", [*command, "--workers", "1"]).wait()
    with dask_cluster(_environment(folder / "cluster")) as (address, workers):
        started, killed = time.perf_counter(), ""
        process = _start_study(folder / "cluster", [*command, "--scheduler", address])
        while process.poll() is None:
            killed = killed or _kill_worker_that_tunes(folder / "cluster" / "cache", workers)
            time.sleep(0.02)
        seconds = time.perf_counter() - started
    alone, together = (comparable_records(folder / name) for name in ("alone", "cluster"))
    if not alone or process.returncode:
        raise TortureError(_stderr(folder / "cluster") or _stderr(folder / "alone"))
    facts = provenance("cpu", 0.0)
    return {
        "machine": machine,
        "commit": facts["commit"],
        "date": facts["date"],
        "command": " ".join(["python -m topoprune", *command, "--scheduler ADDRESS"]),
        "records": len(together),
        "workers": len(workers),
        "killed": killed,
        "seconds": round(seconds),
        "differences": first_difference(alone, together),
    }


def agrees(report: dict[str, Any]) -> bool:
    """Whether the cluster lost a worker and yet gave the records of one worker.

    >>> agrees({"killed": "trial", "differences": []}), agrees({"killed": "", "differences": []})
    (True, False)
    """
    return bool(report["killed"]) and not report["differences"]


@contextlib.contextmanager
def dask_cluster(environment: dict[str, str], count: int = 2) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A real scheduler and workers of one thread on the loopback; yields its address and the workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    scheduler = ["dask_scheduler", "--port", str(port), *local]
    worker = ["dask_worker", address, "--nthreads", "1", "--no-nanny", *local]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, *options in [scheduler, *[worker] * count]:
            command = [sys.executable, "-m", f"distributed.cli.{name}", *options]
            started.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _kill_worker_that_tunes(cache: Path, workers: list[subprocess.Popen[bytes]]) -> str:
    """Kill (SIGKILL) the worker that fine-tunes a trial, if there is one; returns "trial" or ""."""
    for path in cache.glob(f"runs/trial-*/{RUNNING}"):
        with contextlib.suppress(FileError):
            run = files.read_json(path)
            if (path.parent / FINE_TUNING).exists() and run["process"] in [worker.pid for worker in workers]:
                os.kill(run["process"], signal.SIGKILL)
                return "trial"
    return ""


def _start_study(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    with open(folder / "stderr", "w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "topoprune", *command],
            env=_environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )


def _environment(folder: Path) -> dict[str, str]:
    folders = {"TOPOPRUNE_CACHE": str(folder / "cache"), "TOPOPRUNE_RESULTS": str(folder / "results")}
    return {**{name: value for name, value in os.environ.items() if name != "TOPOPRUNE_NO_RUN"}, **folders}


def _stderr(folder: Path) -> str:
    path = folder / "stderr"
    return path.read_text() if path.exists() else ""
