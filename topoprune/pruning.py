"""Files in, files out: prune a stored or a torchvision network, and read the result back."""

import contextlib
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from topoprune import files
from topoprune.models import build
from topoprune.network import cost, remove
from topoprune.selection import run_selection

BATCH = 32
"""Images of the example batch."""


def prune(
    model: str,
    method: str,
    ratio: float,
    seed: int,
    output: Path,
    weights: str = "DEFAULT",
    shape: list[int] | None = None,
    device: str = "cpu",
    round_to: int = 1,
) -> dict:
    """Prune a network and write it, with a report beside it.

    Args:
        model: file of a dense network (made by a study or by `save`), or a torchvision model.
        method, ratio, seed, round_to: as for `selection.select`.
        output: the smaller network, as safetensors; the report has the suffix .json.
        weights: of a torchvision model: "DEFAULT" (torchvision downloads them), "none" (random),
            or a safetensors state dict.
        shape: (channels, height, width) of an input; by default (3, 32, 32) for a network of the study,
            else (3, 224, 224).
        device: where the network runs while it is judged and timed.

    Returns:
        What the report holds, cost before and after, kept filters of each layer, seconds.

    Raises:
        ValueError, files.FileError: with the cause and the cure.
    """
    if Path(model).suffix == ".safetensors":
        network, source = _stored(Path(model))
    else:
        network, source = _torchvision(model, weights)
    shape = list(shape or ([3, 32, 32] if "architecture" in source else [3, 224, 224]))
    network = network.to(device).eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(BATCH, *shape, generator=generator).to(device)
    made = run_selection(network, example, method, ratio, seed, round_to)
    small = remove(network, example, made.kept)
    report = {
        "model": model,
        "method": method,
        "ratio": ratio,
        "round_to": round_to,
        "seed": seed,
        "shape": shape,
        "selection_seconds": made.seconds,
        "before": asdict(cost(network, example)),
        "after": asdict(cost(small, example)),
        "kept": made.kept,
    }
    save(small, output, {**source, "shape": shape, "kept": made.kept})
    files.write(output.with_suffix(".json"), json.dumps(report, indent=2).encode())
    return report


def save(model: nn.Module, path: Path, source: dict) -> None:
    """Write a network with what `load` needs to build it again.

    Args:
        source: {"architecture", "classes", "width"} or {"torchvision": name, "classes"}, and for a
            pruned network its "kept" filters and input "shape".
    """
    files.write_tensors(path, {f"model.{k}": v for k, v in model.state_dict().items()}, {"source": source})


def load(path: Path | str) -> nn.Module:
    """The network in a file written by `save`, `prune` or a study's dense training.

    Raises:
        files.FileError: no such file, or a damaged one.
    """
    return _stored(Path(path))[0]


def _stored(path: Path) -> tuple[nn.Module, dict]:
    tensors, metadata = files.read_tensors(path)
    source = metadata.get("source")
    if source is None:
        raise files.FileError(
            f"{path} does not say which network it holds: name a file that `topoprune prune` or a dense training wrote"
        )
    if "torchvision" in source:
        from torchvision.models import get_model

        model = get_model(source["torchvision"], weights=None, num_classes=source["classes"])
    else:
        model = build(source["architecture"], source["classes"], source["width"])
    if "kept" in source:
        model = remove(model.eval(), torch.zeros(2, *source["shape"]), source["kept"])
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    return model, source


@contextlib.contextmanager
def _no_pickle() -> Iterator[None]:
    """torchvision lets torch.load run what a file of weights says, and checks the hash of new downloads
    alone."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _torchvision(name: str, weights: str) -> tuple[nn.Module, dict]:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ValueError(
            f"{name!r} is neither a .safetensors file nor a torchvision model: see torchvision.models.list_models()"
        )
    try:
        if weights == "none":
            model = get_model(name, weights=None)
        elif Path(weights).suffix == ".safetensors":
            model = get_model(name, weights=None)
            model.load_state_dict(load_file(weights))
        else:
            with _no_pickle():
                model = get_model(name, weights=weights)
    except (OSError, pickle.UnpicklingError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the weights {weights} of {name} are not to be had ({error!r}): download "
            "them where there is a network, pass a .safetensors state dict with "
            "--weights, or --weights none"
        ) from error
    classes = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return model, {"torchvision": name, "classes": classes[-1].out_features if classes else 1000}
