"""Measure training on this machine: `python -m topoprune.measure.training`.

Train VGG-16 by the usual loop and by `topoprune.train`; find what bounds the time of a step, what removing filters
gains, and how time and memory grow. The times are those that `train` records itself. Variants are timed in
alternation, because a machine's speed drifts, and a ratio is the median over the rounds.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from topoprune.measure.loops import LOADERS, batches, loops
from topoprune.measure.machine import Row, describe_machine, run_sections
from topoprune.measure.scaling import growth, processes, removal, trials
from topoprune.measure.steps import convolutions, operations, peaks, precisions
from topoprune.measure.workload import Workload, full_workload, multiply_adds, quick_workload
from topoprune.study.execution import default_device

OUTPUT = Path("_build/bench/training.json")
PACKAGES = ["torch", "torchvision", "torch-pruning", "numpy"]

SECTIONS: dict[str, Callable[[Workload], list[Row]]] = {
    "peaks": peaks,
    "precisions": precisions,
    "loops": loops,
    "batches": batches,
    "convolutions": convolutions,
    "operations": operations,
    "removal": removal,
    "growth": growth,
    "trials": trials,
    "processes": processes,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the sections, print their tables, write the JSON."""
    options = _parser().parse_args(arguments)
    workload = (quick_workload if options.quick else full_workload)(options.device, options.compile)
    if options.rounds is not None:
        workload = replace(workload, rounds=options.rounds)
    heading = {"machine": describe_machine(PACKAGES), "settings": describe_workload(workload, options.quick)}
    run_sections({name: SECTIONS[name] for name in options.sections}, (workload,), heading, options.output)


def describe_workload(workload: Workload, quick: bool) -> Row:
    """The settings that a reader of the tables needs."""
    return {
        "quick": quick,
        "data": {"cifar10": "CIFAR-10"}.get(workload.data.name, "synthetic images of CIFAR-10's shape"),
        "training split": len(workload.data.train),
        "images": workload.images,
        "batch": workload.batch,
        "rounds": workload.rounds,
        "width": workload.width,
        "device": torch.cuda.get_device_name() if workload.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "loader processes": LOADERS,
        "multiply-adds": multiply_adds(workload.network()),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m topoprune.measure.training", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=default_device(), help="default: cuda where there is one"
    )
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too (always on cuda)")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="NAME",
        help=f"measure only these: {', '.join(SECTIONS)}",
    )
    parser.add_argument("--rounds", type=int, help="timings of each compared variant (default 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT})")
    return parser


if __name__ == "__main__":
    main()
