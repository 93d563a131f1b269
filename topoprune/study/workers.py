"""The runs of a study on several processes of this machine, or on a Dask cluster.

A worker is sent a spec and returns its record; checkpoints go through the shared cache folder, so
a worker that dies costs the current epoch of its run, and on one machine that of the others too. What a
run gives does not depend on how many workers there are: each computes on one thread, or on one CUDA device.
"""

import multiprocessing
import os
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

from topoprune.study.grid import RunError, records, records_store
from topoprune.study.trial import Record

ATTEMPTS = 5
"""Pools of processes in a row that may break before any run is finished, until a study ends."""


def on_processes(count: int, name: str, wanted: list, device: str | None = None, force: bool = False) -> list[Record]:
    """`study.records` on `count` processes of this machine.

    Each has one thread; where there are several CUDA devices, each has one. If a process dies all are
    replaced, and every run continues from its last finished epoch. An error here, or the keyboard, ends
    the processes: their runs continue likewise.

    Raises:
        ValueError: fewer than one process.
        RunError: a run failed, or processes die again and again.
    """
    if count < 1:
        raise ValueError(f"workers must be at least 1, got {count}")
    spawn = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork
    attempts, stored = 0, 0
    while True:
        numbers = spawn.SimpleQueue()
        for number in range(count):
            numbers.put(number)
        others = multiprocessing.active_children()
        pool = ProcessPoolExecutor(count, spawn, _begin, (numbers,))
        try:
            return records(name, wanted, device, force, pool)
        except RunError as error:
            done = len(records_store(name).load())
            attempts = 1 if done > stored else attempts + 1
            stored = done
            if attempts >= ATTEMPTS or not isinstance(error.__cause__, BrokenExecutor):
                raise
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        force = False  # the old records are gone, what was made by now is not made again


def on_cluster(address: str, name: str, wanted: list, device: str | None = None, force: bool = False) -> list[Record]:
    """`study.records` on the Dask cluster whose scheduler listens at `address`.

    The workers need this package and the same TOPOPRUNE_CACHE and TOPOPRUNE_DATA; one thread each
    (`dask worker --nthreads 1`). With a CUDA device asked for, runs go to workers started with
    `--resources "GPU=1"`. Dask starts the run of a dead worker on another.

    Raises:
        ValueError: `distributed` is not installed, or nothing answers at `address`.
        RunError: runs failed; the others are stored.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("a Dask cluster needs the package distributed: pip install 'topoprune[cluster]'") from error
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler --host 127.0.0.1`"
        ) from error
    wants = {"resources": {"GPU": 1}} if (device or "").startswith("cuda") else {}
    with client:
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError as error:
            raise ValueError(
                f"the scheduler at {address} has no worker: start one with `dask worker {address} --nthreads 1`"
            ) from error
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if wants and not any(worker["resources"].get("GPU") for worker in workers):
            raise ValueError(
                f'no worker of the scheduler at {address} offers a GPU: start them with `--resources "GPU=1"`'
            )
        client.register_worker_callbacks(single_thread)  # of those that come later too
        return records(name, wanted, device, force, client.get_executor(**wants))


def _begin(numbers) -> None:
    """First act of a process: its own device, one thread."""
    number = numbers.get()
    devices = _visible_devices()
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    single_thread()


def _visible_devices() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device for device in given.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def single_thread() -> None:
    """Compute on one thread from now on: the same sums in every process."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"  # `persistence.in_threads` heeds it
    torch.set_num_threads(1)
    threadpool_limits(1)
