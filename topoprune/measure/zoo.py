"""Prune every torchvision classifier and segmentation network: `python -m topoprune.measure.zoo`.

Each network has random weights. Half of the filters of its convolutions and of its hidden linear layers go, and the
result is compared with masking, as `topoprune.remove` always does. The rows are written after each network, and a
second call goes on from there.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from tqdm import tqdm

import topoprune
from topoprune import files
from topoprune.measure.machine import describe_machine
from topoprune.storage import build_torchvision

OUTPUT = Path("_build/bench/zoo.json")
TYPES = (nn.Conv2d, nn.Linear)
SIDES = (96, 224)
"""Sides of the square images: the first that a network takes."""
LARGEST = 400e6
"""Parameters of the largest network that is tried; several copies must fit into memory."""


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not in the output yet, print a summary."""
    parser = argparse.ArgumentParser(prog="python -m topoprune.measure.zoo", description=__doc__)
    parser.add_argument(
        "--networks", nargs="+", metavar="NAME", help="default: all classifiers and segmentation networks"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON (default {OUTPUT})")
    options = parser.parse_args(arguments)
    found = json.loads(options.output.read_text()) if options.output.exists() else {"networks": []}
    found["machine"] = describe_machine(["torch", "torchvision"])
    done = {row["network"] for row in found["networks"]}
    for name in tqdm(options.networks or networks(), unit="network", disable=None):
        if name not in done:
            found["networks"].append(pruned_row(name))
            files.write(options.output, (json.dumps(found, indent=1) + "\n").encode())
    rows = found["networks"]
    works = [row for row in rows if row["outcome"] == "pruned"]
    whole, layers = (sum(row[key] for row in works) for key in ("left whole", "layers"))
    print(f"{len(works)} of {len(rows)} networks are pruned and run; {whole} of their {layers} layers stay whole")


def networks() -> list[str]:
    """Names of torchvision's classifiers and segmentation networks."""
    return [*models.list_models(models), *models.list_models(models.segmentation)]


def pruned_row(name: str, ratio: float = 0.5) -> dict[str, Any]:
    """Prune one network of random weights.

    Returns:
        network; outcome: "pruned", "too large", or the error; layers: convolutions and linear layers; left whole: those
        of them that keep all filters although they are no output; parameters left (%); side of the images; seconds
        of analysis and removal.
    """
    torch.manual_seed(0)
    size = _parameters(name)
    row: dict[str, Any] = {"network": name, "parameters (M)": size / 1e6}
    if size > LARGEST:
        return row | {"outcome": "too large"}
    model = build_torchvision(name).eval()
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", topoprune.PruningWarning)
            images = _images(model)
            selection = topoprune.run_selection(model, images, "l1", ratio, types=TYPES)
            small = topoprune.remove(model, images, selection.kept)
    except (ValueError, RuntimeError) as error:
        return row | {"outcome": " ".join(str(error).split())[:200]}
    outputs = [layer for layer, reason in selection.left_whole.items() if "an output of the network" in reason]
    return row | {
        "outcome": "pruned",
        "layers": sum(isinstance(module, TYPES) for module in model.modules()),
        "left whole": len(selection.left_whole) - len(outputs),
        "parameters left (%)": 100 * sum(p.numel() for p in small.parameters()) / size,
        "side": images.shape[-1],
        "seconds": round(time.perf_counter() - started, 1),
    }


def _parameters(name: str) -> int:
    """Number of parameters, counted without memory where the network can be built so."""
    try:
        with torch.device("meta"):
            model = build_torchvision(name)
    except NotImplementedError:  # its constructor computes with values
        model = build_torchvision(name)
    return sum(parameter.numel() for parameter in model.parameters())


def _images(model: nn.Module) -> torch.Tensor:
    """Two images of the smallest size that the network takes."""
    for side in SIDES:
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                model(images)
            return images
        except Exception as error:  # whatever the network's own forward raises
            refused = error
    raise ValueError(f"no side of {SIDES} fits: {refused}")


if __name__ == "__main__":
    main()
