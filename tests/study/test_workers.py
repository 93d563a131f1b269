"""One worker or three, a dead worker, a real Dask cluster: the same records."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY

from topoprune import study
from topoprune.__main__ import main
from topoprune.measure.torture import dask_cluster
from topoprune.study import RunError, grid, workers
from topoprune.study.execution import without_times
from topoprune.study.trial import Trial


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Timeless results of the first seed, made in this process on one thread as workers do."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study.PROFILES, "tiny", TINY)
        patch.setenv("TOPOPRUNE_CACHE", str(folder / "cache"))
        patch.setenv("TOPOPRUNE_RESULTS", str(folder / "results"))
        torch.set_num_threads(1)
        made = study.records("tiny", wanted())
        torch.set_num_threads(threads)
    return [without_times(record) for record in made]


def wanted():
    return [*study.dense_specs("tiny", [0]), *study.trial_specs("tiny", [0])]


def kill_when_a_run_has_begun(cache: Path, choose) -> threading.Thread:
    """SIGKILL the process that `choose()` names once a first epoch is on the disk."""

    def wait_and_kill():
        while not (list(cache.glob("runs/*/*.safetensors")) and (process := choose())):
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_three_workers_one_killed_give_the_records_of_one(alone, folders):
    """The dense network is trained by one of them only; the pool is started anew after the kill."""
    import psutil

    def child():
        spawned = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
        return spawned[0].pid

    killer = kill_when_a_run_has_begun(folders / "cache", child)
    made = workers.on_processes(3, "tiny", wanted())
    killer.join(10)
    assert not killer.is_alive()
    assert [without_times(record) for record in made] == alone


def test_a_failing_run_keeps_no_other_from_its_record(folders, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    run = study.run

    def failing(spec, *others):
        if isinstance(spec, Trial) and spec.method == "l1":
            raise MemoryError("too large")
        return run(spec, *others)

    monkeypatch.setattr(grid, "run", failing)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(
            RunError, match="1 of 2 runs failed, the first: l1 at ratio 0.5, seed 0: MemoryError.*the others are stored"
        ),
    ):
        study.records("tiny", wanted(), executor=pool)
    assert len(study.records_store("tiny").load()) == 2


def at_work(cache: Path) -> int | None:
    """The process that carries out a run now."""
    for sign in cache.glob("runs/*/running.json"):
        with contextlib.suppress(OSError, ValueError):
            return json.loads(sign.read_text())["value"]["process"]
    return None


def test_an_error_here_ends_the_processes_and_what_waits_for_them(tmp_path, monkeypatch):
    def full_disk(name, wanted, device, force, pool):
        slow = [pool.submit(subprocess.run, ["sh", "-c", f"sleep 0.5; touch {tmp_path / str(i)}"]) for i in range(8)]
        slow[0].result()
        raise OSError("no space left")

    monkeypatch.setattr(workers, "records", full_disk)
    with pytest.raises(OSError, match="no space left"):
        workers.on_processes(1, "tiny", [])
    time.sleep(2)
    assert len(list(tmp_path.iterdir())) <= 3  # the first, and what had begun


def test_processes_that_always_die_end_a_study_and_progress_renews_the_attempts(folders, monkeypatch):
    from concurrent.futures import BrokenExecutor

    calls = []

    def dying(name, wanted, device, force, pool):
        calls.append(force)
        if len(calls) == 3:
            study.records_store(name).append({"key": "a run that was finished"})
        raise RunError("died") from BrokenExecutor()

    monkeypatch.setattr(workers, "records", dying)
    with pytest.raises(RunError, match="died"):
        workers.on_processes(1, "tiny", [], force=True)
    assert calls == [True] + [False] * (workers.ATTEMPTS + 1)


@pytest.fixture
def cluster(folders):
    with dask_cluster(dict(os.environ)) as made:
        yield made


def test_a_dask_cluster_that_loses_a_worker_gives_the_same_records(alone, folders, cluster):
    from distributed import Client

    address, dask_workers = cluster
    with Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
    with pytest.raises(ValueError, match="no worker of the scheduler at .* offers a GPU"):
        workers.on_cluster(address, "tiny", wanted(), "cuda")
    killer = kill_when_a_run_has_begun(folders / "cache", lambda: at_work(folders / "cache"))
    made = workers.on_cluster(address, "tiny", wanted())
    killer.join(10)
    assert sorted(worker.poll() or 0 for worker in dask_workers) == [-signal.SIGKILL, 0]
    assert [without_times(record) for record in made] == alone


def test_a_mistake_is_one_line(capsys):
    assert main(["run", "--workers", "0"]) == 2
    assert "workers must be at least 1, got 0" in capsys.readouterr().err


def test_a_scheduler_that_is_not_there_is_named(folders, monkeypatch):
    import distributed

    def refuse(address, timeout):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ValueError, match="no Dask scheduler answers at tcp://127.0.0.1:1 "):
        workers.on_cluster("tcp://127.0.0.1:1", "tiny", wanted())
