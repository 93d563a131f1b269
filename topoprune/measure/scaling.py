"""What removing filters gains, and how time and memory grow with width, images and processes."""

import math
import statistics
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from topoprune import training
from topoprune.costs import Cost, cost
from topoprune.coupling import Kept
from topoprune.measure.loops import our_loop
from topoprune.measure.machine import Row
from topoprune.measure.processes import new_processes, wait_for_the_others
from topoprune.measure.workload import (
    Workload,
    multiply_adds,
    peak_mebibytes,
    reset_peak_memory,
    seconds_per_image,
    synthetic_data,
)
from topoprune.network import couplings, remove
from topoprune.selection import run_selection

TRIAL_EPOCHS, TRIAL_IMAGES, EVALUATED_IMAGES = 5, 45_000, 15_000
"""What the time of a trial is extrapolated to: epochs of fine-tuning, CIFAR-10's training images, and its validation
and test images, which are evaluated before fine-tuning and after each epoch."""


def removal(workload: Workload) -> list[Row]:
    """What removing filters gains, in training and in inference (float32)."""
    data, dense = workload.resident_data(), workload.network()
    images = data.example(workload.batch)
    cases = [(0.0, 1), *((ratio, multiple) for ratio in workload.ratios for multiple in workload.multiples)]
    networks = {case: remove(dense, images, first_filters(dense, images, *case)) for case in cases}
    for pruned in networks.values():
        our_loop(pruned, data, replace(workload, images=workload.batch))  # warms up
    rounds = [
        {
            case: (our_loop(pruned, data, workload), cost(pruned, images, workload.seconds))
            for case, pruned in networks.items()
        }
        for _ in range(workload.rounds)
    ]
    rows = [_removal_row(*case, [timings[case] for timings in rounds], len(workload.data.train)) for case in cases]
    return [_compared_with(rows[0], row) for row in rows]


def first_filters(model: nn.Module, images: Tensor, ratio: float, multiple: int) -> Kept:
    """Keep the first filters of each layer. Which ones are kept does not change the cost.

    Args:
        model: the dense network.
        images: an input batch.
        ratio: share of the filters to remove; `int(n * ratio)` of n go.
        multiple: the number of kept filters is rounded up to a multiple of this.
    """
    kept: Kept = {}
    for coupling in couplings(model, images):
        n = coupling.choices
        count = min(n, math.ceil((n - int(n * ratio)) / multiple) * multiple)
        kept |= {layer: list(range(count)) for layer in coupling.layers}
    return kept


def _removal_row(ratio: float, multiple: int, timings: list[tuple[float, Cost]], epoch_images: int) -> Row:
    seconds = statistics.median(training_seconds for training_seconds, _ in timings)
    counted = timings[0][1]
    return {
        "ratio": ratio,
        "multiple": multiple,
        "parameters (M)": counted.parameters / 1e6,
        "multiply-adds (M)": counted.flops / 1e6,
        "s an epoch": seconds * epoch_images,
        "training images/s": 1 / seconds,
        "latency (ms)": statistics.median(cost.latency_ms for _, cost in timings),
        "inference images/s": statistics.median(cost.images_per_second for _, cost in timings),
    }


def _compared_with(dense: Row, row: Row) -> Row:
    share = 100 * row["multiply-adds (M)"] / dense["multiply-adds (M)"]
    times_faster = row["training images/s"] / dense["training images/s"]
    return {
        **row,
        "times faster, training": times_faster,
        "times faster, inference": row["inference images/s"] / dense["inference images/s"],
        "FLOPs (%)": share,
        "efficiency (%)": share * times_faster,
    }


def growth(workload: Workload) -> list[Row]:
    """How the time of a step and the memory grow with the width and with the images held."""
    all_images = len(workload.data.train)
    cases = [("width", width, workload.images) for width in workload.widths]
    cases += [
        ("images", workload.widths[0], count) for count in (all_images // 4, all_images) if count > workload.images
    ]
    rows = []
    for varied, width, images in cases:
        with new_processes(1) as pool:
            timing = pool.submit(_step_in_new_process, workload.device, width, images, workload.batch).result()
        rows.append({"varied": varied, "width": width, "images": images, **timing})
    return rows


def _step_in_new_process(device: str, width: float, images: int, batch: int) -> Row:
    """Time one step, and the memory that network and training add to a fresh process."""
    workload = Workload(synthetic_data(images), device, width=width, images=images, batch=batch)
    data = workload.resident_data()
    before = reset_peak_memory(device)
    model = workload.network()
    seconds = batch * statistics.median(our_loop(model, data, workload) for _ in range(4))  # the first is slower
    return {
        "parameters (M)": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "multiply-adds (M)": multiply_adds(model) / 1e6,
        "ms a step": 1e3 * seconds,
        "peak MiB": peak_mebibytes(device, before),
    }


class Share(NamedTuple):
    """What one of several processes computes with."""

    threads: int
    device: str
    width: float
    images: int
    batch: int

    def workload(self) -> Workload:
        """Limit this process to its threads, and make its workload of synthetic images."""
        torch.set_num_threads(self.threads)
        data = synthetic_data(self.images)
        return Workload(data, self.device, width=self.width, images=self.images, batch=self.batch)


def trials(workload: Workload) -> list[Row]:
    """A whole trial at ratio 0.5 by the width of the network, and of several workers side by side."""
    threads = torch.get_num_threads()
    most = min(threads, 4)
    workers_and_threads = dict.fromkeys([(1, threads), (most, threads // most)])
    return [
        _trials_side_by_side(workers, Share(each, workload.device, width, workload.images, workload.batch), workload)
        for workers, each in workers_and_threads
        for width in workload.widths
    ]


def _trials_side_by_side(workers: int, share: Share, workload: Workload) -> Row:
    with new_processes(workers) as pool:
        jobs = [pool.submit(_trial, share, workload.search) for _ in range(workers)]
        parts = [job.result() for job in jobs]
    row = {name: _median([part[name] for part in parts]) for name in parts[0]}
    row["s a trial"] = (
        row["selection (s)"]
        + row["removal (s)"]
        + TRIAL_EPOCHS * row["s an epoch"]
        + (TRIAL_EPOCHS + 1) * row["evaluation (s)"]
    )
    return {
        "workers": workers,
        "threads each": share.threads,
        "width": share.width,
        **row,
        "trials an hour": 3600 * workers / row["s a trial"],
    }


def _median(values: list[Any]) -> Any:
    return None if values[0] is None else statistics.median(values)


def _trial(share: Share, search: dict[str, Any]) -> Row:
    """In one of several processes: time the parts of a topological trial, and their memory."""
    workload = share.workload()
    data, dense = workload.resident_data(), workload.network()
    images = data.example()
    run_selection(dense, images, "topological", 0.9, generations=1, population=2)  # imports, compiles
    wait_for_the_others()
    before = reset_peak_memory(share.device)
    selection = run_selection(dense, images, "topological", 0.5, **search)
    pruned = remove(dense, images, selection.kept)
    recalibrating = workload.seconds_of(
        lambda: training.recalibrate(pruned, data.train.batches(share.batch), share.images // share.batch)
    )
    recipe = replace(workload.recipe, muon_rate=0.01)  # Muon, as in the study's fine-tuning
    tuning = min(seconds_per_image(pruned, data, recipe) for _ in range(3))  # the first is slower
    evaluating = workload.seconds_of(lambda: training.accuracy(pruned, data.train.batches()))
    filters = [coupling.choices for coupling in couplings(dense, images)]
    return {
        "filters": sum(filters),
        "widest layer": max(filters),
        "selection (s)": selection.seconds,
        "removal (s)": recalibrating,
        "s an epoch": tuning * TRIAL_IMAGES,
        "evaluation (s)": evaluating / share.images * EVALUATED_IMAGES,
        "peak MiB": peak_mebibytes(share.device, before),
    }


def processes(workload: Workload) -> list[Row]:
    """Training of narrow networks side by side: images a second in sum."""
    threads = torch.get_num_threads()
    powers_of_two = [2**i for i in range(threads.bit_length())]
    cases = dict.fromkeys([(1, threads), *((count, 1) for count in powers_of_two)])
    width = workload.widths[0]
    rates = {
        (count, each): _images_per_second(
            count, Share(each, workload.device, width, 4 * workload.images, workload.batch), workload.rounds
        )
        for count, each in cases
    }
    return [
        {
            "processes": count,
            "threads each": each,
            "width": width,
            "images/s": rate,
            "times one": rate / rates[1, 1],
        }
        for (count, each), rate in rates.items()
    ]


def _images_per_second(count: int, share: Share, rounds: int) -> float:
    """Images a second of `count` processes in sum; they start each round together."""
    with new_processes(count) as pool:
        jobs = [pool.submit(_training_rates, share, rounds) for _ in range(count)]
        return statistics.median(map(sum, zip(*(job.result() for job in jobs), strict=True)))


def _training_rates(share: Share, rounds: int) -> list[float]:
    """In one of several processes: images a second, round by round."""
    workload = share.workload()
    model, data = workload.network(), workload.resident_data()
    our_loop(model, data, workload)  # warms up
    rates = []
    for _ in range(rounds):
        wait_for_the_others()
        rates.append(1 / our_loop(model, data, workload))
    return rates
