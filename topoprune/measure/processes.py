"""New processes whose jobs can start a measurement together."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

_barrier: Barrier


def new_processes(count: int) -> ProcessPoolExecutor:
    """Spawn `count` processes; CUDA and OpenMP do not survive a fork."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, spawn, _keep_barrier, (spawn.Barrier(count),))


def wait_for_the_others() -> None:
    """In a job: wait until each of the `new_processes` has come to this point."""
    _barrier.wait()


def _keep_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
