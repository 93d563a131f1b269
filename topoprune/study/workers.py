"""Run a study side by side: on processes of this machine, or on a Dask cluster.

A worker receives a spec and returns its record. Checkpoints go through the shared cache folder, so a worker that dies
costs one epoch of its run (on one machine, of the other runs too). Each worker computes on one thread, or on one CUDA
device: so a record does not depend on the number of workers.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

from topoprune.study.grid import RunError, records, records_of_profiles, records_store
from topoprune.study.provenance import commit
from topoprune.study.trial import Record, Spec

ATTEMPTS = 5
"""Pools of processes that may break one after another without a finished run, before a study ends."""


def on_processes(
    count: int, name: str, wanted: Iterable[Spec] | None, device: str | None = None, force: bool = False
) -> list[Record]:
    """As `study.records`, on `count` processes of this machine, see `profiles_on_processes`."""
    return profiles_on_processes(count, {name: wanted}, device, force)[name]


def profiles_on_processes(
    count: int, wanted: Mapping[str, Iterable[Spec] | None], device: str | None = None, force: bool = False
) -> dict[str, list[Record]]:
    """As `study.records_of_profiles`, on `count` processes of this machine.

    A process has one thread, and one CUDA device if there are several. If a process dies, all are replaced, and
    every run continues from its last finished epoch. An error in this process, or Ctrl-C, ends the others.

    Args:
        count: number of processes, at least 1.
        wanted: profile -> its specs, or None for all of them, see `study.with_companions`.
        device, force: see `study.records`.

    Raises:
        ValueError: fewer than one process, or one CUDA device named for all of them.
        RunError: some runs failed, or processes die again and again.
    """
    if count < 1:
        raise ValueError(f"workers must be at least 1, got {count}")
    if (device or "").startswith("cuda:") and len(_visible_devices()) > 1:
        raise ValueError(f"each worker takes a CUDA device of its own, got device {device}: pass 'cuda'")
    spawn = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork
    wanted = {name: some if some is None else list(some) for name, some in wanted.items()}
    attempts, stored = 0, 0
    while True:
        number = spawn.Value("i", 0)
        not_ours = multiprocessing.active_children()
        pool = ProcessPoolExecutor(count, spawn, _start_worker, (number,))
        try:
            return records_of_profiles(wanted, device, force, pool, at_once=2 * count)
        except RunError as error:
            stored_now = sum(len(records_store(name).load()) for name in wanted)
            attempts = 1 if stored_now > stored else attempts + 1
            stored = stored_now
            if attempts >= ATTEMPTS or not isinstance(error.__cause__, BrokenExecutor):
                raise
        except BaseException:
            for process in multiprocessing.active_children():
                if process not in not_ours:
                    process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        force = False  # the old records are gone; keep those of the first attempt


def on_cluster(
    address: str, name: str, wanted: Iterable[Spec] | None, device: str | None = None, force: bool = False
) -> list[Record]:
    """As `study.records`, on the Dask cluster whose scheduler listens at `address`.

    The workers need this package, the same TOPOPRUNE_CACHE and TOPOPRUNE_DATA, and one thread each
    (`dask worker --nthreads 1`). If `device` is a CUDA device, only workers started with `--resources "GPU=1"` are
    used. Dask starts the run of a dead worker on another one.

    Args:
        address: as "tcp://host:8786".
        name, wanted, device, force: see `study.records`.

    Raises:
        ValueError: `distributed` is not installed, nothing answers at `address`, or no worker fits.
        RunError: some runs failed.
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
    options = {"resources": {"GPU": 1}} if (device or "").startswith("cuda") else {}
    with client:
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError as error:
            raise ValueError(
                f"the scheduler at {address} has no worker: start one with `dask worker {address} --nthreads 1`"
            ) from error
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if options and not any(worker["resources"].get("GPU") for worker in workers):
            raise ValueError(
                f'no worker of the scheduler at {address} offers a GPU: start them with `--resources "GPU=1"`'
            )
        client.register_worker_callbacks(begin_work)  # also on workers that come later
        return records(name, wanted, device, force, client.get_executor(**options))


def begin_work() -> None:
    """Compute on one thread from now on, so that sums are the same in every process; note the commit of the code."""
    import torch
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"  # for `persistence.in_threads`
    torch.set_num_threads(1)
    threadpool_limits(1)
    commit()  # now, not at the first record: by then the checkout may be at another


def _start_worker(number) -> None:
    """Take the next number, and with it a CUDA device if there are several; compute on one thread."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with number.get_lock():
        own = number.value
        number.value += 1
    devices = _visible_devices()
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[own % len(devices)]
    begin_work()


def _end_with_parent() -> None:
    """Wait until the process that started this one ends, however it ends, and end with it."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _visible_devices() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device for device in given.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
