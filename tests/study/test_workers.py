"""One worker or three, a dead worker, a real Dask cluster: the same records."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
from tiny import TINY

from topoprune import study
from topoprune.study import RunError, workers
from topoprune.study.execution import without_times


def wanted():
    """The first dense network and its trials."""
    return [*study.dense_specs("tiny", [0]), *study.trial_specs("tiny", [0])]


def expected(tiny_study) -> list[dict]:
    by_key = {record.key: without_times(record) for record in tiny_study.records}
    return [by_key[study.spec_key(spec)] for spec in wanted()]


def test_a_worker_gives_the_records_of_this_process(tiny_study, trained, monkeypatch):
    monkeypatch.setitem(study.PROFILES, "tiny-ablation", TINY)
    dense, _, trial = wanted()
    found = workers.profiles_on_processes(1, {"tiny": [trial], "tiny-ablation": [dense, trial]})
    assert list(map(without_times, found["tiny-ablation"])) == expected(tiny_study)[::2]
    assert found["tiny"] == found["tiny-ablation"][1:]
    assert multiprocessing.active_children() == []


def test_any_number_of_workers_can_start(monkeypatch):
    """A pipe would hold a number for some thousands of them."""
    monkeypatch.setattr(workers, "records_of_profiles", lambda *_, **__: {"tiny": []})
    assert workers.on_processes(20_000, "tiny", []) == []


def test_a_worker_notes_the_commit_of_its_code_when_it_starts(monkeypatch):
    asked = []
    monkeypatch.setattr(workers, "commit", lambda: asked.append("commit"))
    workers.begin_work()
    assert asked == ["commit"]


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_started_it():
    started = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=120, check=False)
    assert started.returncode == -signal.SIGKILL
    worker, deadline = int(started.stdout), time.monotonic() + 60
    while Path(f"/proc/{worker}/cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}/cmdline").exists()


KILLED = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from topoprune.study import workers

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, workers._start_worker, (spawn.Value("i", 0),))
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_when_a_run_has_begun(cache: Path, choose) -> threading.Thread:
    """SIGKILL the process that `choose()` names once a first epoch is on the disk."""

    def wait_and_kill():
        while not (list(cache.glob("runs/*/*.safetensors")) and (process := choose())):
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_three_workers_one_killed_give_the_records_of_one(tiny_study, folders):
    """One of them trains the dense network; the pool is started anew after the kill."""
    killer = kill_when_a_run_has_begun(folders / "cache", lambda: at_work(folders / "cache"))
    found = workers.on_processes(3, "tiny", wanted())
    killer.join(10)
    assert not killer.is_alive()
    assert list(map(without_times, found)) == expected(tiny_study)


def at_work(cache: Path) -> int | None:
    """The process that works on a run now."""
    for note in cache.glob("runs/*/running.json"):
        with contextlib.suppress(OSError, ValueError):
            return json.loads(note.read_text())["value"]["process"]
    return None


@pytest.mark.slow
def test_an_error_here_ends_the_processes_and_what_waits_for_them(monkeypatch):
    def full_disk(wanted, device, force, pool, at_once):
        pool.submit(os.getpid).result()
        for _ in range(8):
            pool.submit(time.sleep, 600)
        raise OSError("no space left")

    monkeypatch.setattr(workers, "records_of_profiles", full_disk)
    with pytest.raises(OSError, match="no space left"):
        workers.on_processes(2, "tiny", [])
    assert multiprocessing.active_children() == []


def test_processes_that_always_die_end_a_study_and_progress_renews_the_attempts(folders, monkeypatch):
    calls = []

    def dying(wanted, device, force, pool, at_once):
        calls.append(force)
        if len(calls) == 3:
            study.records_store("tiny").append({"key": "a run that was finished"})
        raise RunError("died") from BrokenExecutor()

    monkeypatch.setattr(workers, "records_of_profiles", dying)
    with pytest.raises(RunError, match="died"):
        workers.on_processes(1, "tiny", [], force=True)
    assert calls == [True] + [False] * (workers.ATTEMPTS + 1)


def test_a_run_that_fails_starts_no_new_processes(folders, monkeypatch):
    calls = []

    def failing(wanted, device, force, pool, at_once):
        calls.append(force)
        raise RunError("failed") from ValueError()

    monkeypatch.setattr(workers, "records_of_profiles", failing)
    with pytest.raises(RunError, match="failed"):
        workers.on_processes(1, "tiny", [])
    assert calls == [False]


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_gives_the_same_records(tiny_study, folders):
    from distributed import Client

    from topoprune.measure.cluster import dask_cluster

    with dask_cluster(dict(os.environ)) as (address, dask_workers):
        with Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        with pytest.raises(ValueError, match="no worker of the scheduler at .* offers a GPU"):
            workers.on_cluster(address, "tiny", wanted(), "cuda")
        killer = kill_when_a_run_has_begun(folders / "cache", lambda: at_work(folders / "cache"))
        found = workers.on_cluster(address, "tiny", wanted())
        killer.join(10)
        assert sorted(worker.poll() or 0 for worker in dask_workers) == [-signal.SIGKILL, 0]
    assert list(map(without_times, found)) == expected(tiny_study)


def test_there_is_at_least_one_worker():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        workers.on_processes(0, "tiny", None)


def test_workers_share_no_named_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match="each worker takes a CUDA device of its own, got device cuda:1: pass 'cuda'"):
        workers.on_processes(2, "tiny", None, device="cuda:1")


def test_a_scheduler_that_is_not_there_is_named(folders, monkeypatch):
    import distributed

    def refuse(address, timeout):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ValueError, match="no Dask scheduler answers at tcp://127.0.0.1:1 "):
        workers.on_cluster("tcp://127.0.0.1:1", "tiny", wanted())
