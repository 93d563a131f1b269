"""Measure choosing by what channels compute, and compensation: `python -m topoprune.measure.compensation`.

Networks have random weights and random images: what is computed, and how long it takes, does not depend on them.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import topoprune
from topoprune.compensation import MODES
from topoprune.measure.machine import Row, describe_machine, peak_memory, resident_memory, run_sections
from topoprune.storage import build_torchvision

OUTPUT = Path("_build/bench/compensation.json")
CHOICES: dict[str, dict[str, Any]] = {
    "functional cover": {"method": "topological", "space": "functional", "search": "cover"},
    "merge tree": {"method": "topological", "space": "functional", "search": "merge"},
    "pivoted QR": {"method": "qr"},
    "optimal brain surgeon": {"method": "obs"},
    "topological": {"method": "topological"},
}
CHOICE_IMAGES, MENDING_IMAGES = 1024, 1536
RATIOS = (0.5, 0.9)
NETWORKS = {"resnet18": (512, 224)}
"""torchvision's network -> number and side of the images."""


def main(arguments: list[str] | None = None) -> None:
    """Run the sections that are asked for, and write their tables."""
    parser = argparse.ArgumentParser(prog="python -m topoprune.measure.compensation", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON (default {OUTPUT})")
    parser.add_argument("--width", type=float, default=1.0, help="of VGG-16 (default 1)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", topoprune.PruningWarning)
    heading = {**describe_machine(["torch", "scipy"]), "threads": torch.get_num_threads()}
    run_sections({name: SECTIONS[name] for name in options.sections}, (options.width,), heading, options.output)


def choices(width: float) -> list[Row]:
    """Seconds of choosing half of the filters of VGG-16 on 1,024 images of 32 x 32 pixels."""
    model, images = _vgg(width, CHOICE_IMAGES)
    rows = []
    for name, options in CHOICES.items():
        selection = topoprune.run_selection(model, images, ratio=0.5, check=False, **options)
        rows.append({"choice": name, "seconds": selection.seconds})
    return rows


def ratios(width: float) -> list[Row]:
    """Seconds and memory (MiB) of refitting VGG-16 on 1,536 images of 32 x 32 pixels, by ratio."""
    model, images = _vgg(width, MENDING_IMAGES)
    return [
        {"ratio": ratio, "compensation": mode, **_refitted(model, images, ratio, mode)}
        for ratio in RATIOS
        for mode in MODES
    ]


def networks(width: float) -> list[Row]:
    """Seconds and memory (MiB) of refitting torchvision's networks at ratio 0.5."""
    rows = []
    for name, (count, side) in NETWORKS.items():
        torch.manual_seed(0)
        model, images = build_torchvision(name).eval(), torch.randn(count, 3, side, side)
        measured = _refitted(model, images, 0.5, "convolution")
        rows.append({"network": name, "images": count, "side": side, **measured})
    return rows


SECTIONS = {"choices": choices, "ratios": ratios, "networks": networks}


def _vgg(width: float, count: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return topoprune.build("vgg16", width=width).eval(), torch.randn(count, 3, 32, 32)


def _refitted(model: nn.Module, images: torch.Tensor, ratio: float, mode: str) -> Row:
    kept = topoprune.select(model, images[:2], "l1", ratio, check=False)
    before = resident_memory()
    started = time.perf_counter()
    topoprune.remove(model, images[:2], kept, check=False, compensate=images, compensation=mode)
    seconds, peak = time.perf_counter() - started, peak_memory()
    memory = None if before is None or peak is None else (peak - before) / 1024
    return {"seconds": seconds, "memory": memory}


if __name__ == "__main__":
    main()
