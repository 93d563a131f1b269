"""Save networks to files, load them, and prune from a file or a torchvision name to a file."""

import inspect
import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from topoprune import files
from topoprune.budget import TARGETS
from topoprune.coupling import Kept, composed, integers
from topoprune.genetic import check_number
from topoprune.models import build
from topoprune.network import remove
from topoprune.passes import copied, first_inputs, one_line
from topoprune.pruning import Pruned, prune
from topoprune.selection import is_functional

BATCH = 32
"""Inputs of the example batch."""

MAX_IMAGES = 1536
"""Most images that are read for a choice by what channels compute, or for compensation."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the colours, by which torchvision's networks expect images to be normalised."""


def save(
    model: nn.Module, path: Path | str, source: dict | None = None, kept: Kept | None = None, example_inputs: Any = None
) -> None:
    """Write the weights of a network with what `load` needs to build it again.

    Args:
        model: the network, pruned or not.
        path: the file, as safetensors.
        source: how to build the network before pruning: {"architecture", "classes", "width"} for `build`, or
            {"torchvision": name}. Without it `load` wants the network itself.
        kept: kept filters of a pruned network, as in `Pruned.kept`.
        example_inputs: with `kept`, the inputs that the network was pruned with; the shapes of two of them are stored,
            and what is not a tensor of floats as it is.

    Raises:
        ValueError: `kept` without example inputs, or inputs that cannot be stored.
        files.FileError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from topoprune import prune
        >>> def network():
        ...     return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> images = torch.randn(2, 3, 8, 8)
        >>> result = prune(network(), images, method="l1", ratio=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(result.model, f"{folder}/small.safetensors", kept=result.kept, example_inputs=images)
        ...     load(f"{folder}/small.safetensors", model=network())[0].out_channels
        4
    """
    if kept is not None and example_inputs is None:
        raise ValueError("save needs example_inputs beside kept: load prunes a fresh network on inputs of their shape")
    about = dict(source or {})
    if kept is not None:
        kept = {layer: integers(layer, chosen) for layer, chosen in kept.items()}
        about |= {"kept": kept, "inputs": _describe_inputs(first_inputs(example_inputs, 2))}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    files.write_tensors(Path(path), tensors, {"source": about})


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The network in a file that `save`, `prune_file` or a dense training of the study wrote, in evaluation mode.

    Args:
        path: the file.
        model: the network before pruning, with any weights, if the file does not say how to build it. It is
            untouched. The answer is of its type; without it, of float32, whatever was saved.

    Raises:
        ValueError: the file does not say how to build its network, or `model` is another one.
        files.FileError: no such file, or a damaged one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = {"architecture": "vgg16", "classes": 10, "width": 0.0625}
        ...     save(build(**source), f"{folder}/dense.safetensors", source)
        ...     load(f"{folder}/dense.safetensors").features[0].out_channels
        4
    """
    return _stored(Path(path), model)[0]


def prune_file(
    model: str,
    output: Path | str,
    method: str = "topological",
    ratio: Any = 0.5,
    seed: int = 0,
    weights: str = "DEFAULT",
    shape: list[int] | None = None,
    classes: int | None = None,
    images: Path | str | None = None,
    device: str = "cpu",
    compensation: str = "",
    **options,
) -> tuple[Pruned, dict]:
    """Prune a stored or a torchvision network, and write the result with a report beside it.

    Args:
        model: a file that `load` reads, or the name of a torchvision network.
        output: the smaller network, a .safetensors file; the report has the suffix .json.
        method, ratio, seed: as for `select`.
        weights: of a torchvision network: "DEFAULT" (torchvision downloads them), "none" (random), or a safetensors
            state dict.
        shape: (channels, height, width) of an input; by default that of the file, else (3, 224, 224).
        classes: number of classes of a torchvision network, if not its usual one.
        images: folder of images, or a safetensors file with one tensor (n, channels, height, width), for methods
            that judge by what the network computes.
        device: where the network runs while it is judged and timed.
        compensation: "channels" or "convolution" refits on the images what the removal damages, see `remove`.
        **options: of `prune`.

    Returns:
        The result, and the report: costs before and after, kept filters of each layer, seconds.

    Raises:
        ValueError, files.FileError: with the cause and the cure.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dense, small = f"{folder}/dense.safetensors", f"{folder}/small.safetensors"
        ...     source = {"architecture": "vgg16", "classes": 10, "width": 0.125}
        ...     save(build(**source), dense, source)
        ...     result, report = prune_file(dense, small, method="l1", ratio=0.5)
        ...     load(small).features[0]  # 8 filters before
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        >>> report["after"]["parameters"] < report["before"]["parameters"]
        True
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise ValueError(f"output must end in .safetensors, got {output}: the report takes the same name with .json")
    if output.resolve() in [Path(given).resolve() for given in (model, weights, images) if given is not None]:
        raise ValueError(f"output would replace its own input {output}: name another file")
    functional = is_functional(method, options)
    computed = functional or method == "taylor" or options.get("space") == "activations"
    if images is None and (computed or compensation):
        what = "this choice depends" if computed else "compensation depends"
        raise ValueError(f"{what} on what the network computes: give images, a folder or a tensor file")
    network, source = _load_network(model, weights, classes)
    shape = list(shape or _input_shape(model, source))
    count = MAX_IMAGES if functional or compensation else BATCH
    noise = {"shape": [BATCH, *shape], "type": "float32"}
    example = _images(images, shape, count) if images else _rebuild_inputs(noise)
    for path in () if options.get("dry_run") else (output, output.with_suffix(".json")):
        files.check_writable(path)
    network, example = network.to(device).eval(), example.to(device)
    if compensation:
        options["compensation"] = compensation
    result = prune(network, example, method, ratio, seed, compensate=example if compensation else None, **options)
    ratio = ratio if all(options.get(name) is None for name in TARGETS) else None
    asked = {"model": model, "method": method, "ratio": ratio, "seed": seed, "shape": shape, **options}
    text = json.dumps(asked | _as_json(result), indent=2, default=lambda value: getattr(value, "__name__", str(value)))
    if result.model is not None:
        kept = composed(source.pop("kept", {}), result.kept)
        save(result.model, output, source, kept, example[:2])
        files.write(output.with_suffix(".json"), text.encode())
    return result, json.loads(text)


def _as_json(result: Pruned) -> dict[str, Any]:
    """A result as JSON values, without its network."""
    return {
        "selection_seconds": result.seconds,
        "before": asdict(result.before),
        "after": asdict(result.after),
        "kept": result.kept,
        "left_whole": result.left_whole,
    }


def _load_network(model: str, weights: str, classes: int | None) -> tuple[nn.Module, dict]:
    """The network of a file or of a torchvision name, and how it is built."""
    if Path(model).suffix != ".safetensors":
        return _torchvision(model, weights, classes)
    if classes is None and weights in ("DEFAULT", "none"):  # neither downloads anything for a file
        return _stored(Path(model))
    raise ValueError(f"classes and weights are of torchvision networks: leave them out, {model} has its own")


def _input_shape(model: str, source: dict) -> list[int]:
    """(channels, height, width) of an input, without the batch."""
    inputs = tree_leaves(_rebuild_inputs(source["inputs"])) if "inputs" in source else None
    if inputs is None:
        return [3, 32, 32] if "architecture" in source else [3, 224, 224]
    if len(inputs) > 1:
        raise ValueError(f"{model} takes {len(inputs)} inputs: prune it in Python, with topoprune.prune")
    return list(inputs[0].shape[1:])


def _stored(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, dict]:
    """The network of a file, and how it is built."""
    tensors, metadata = files.read_tensors(path)
    source = dict(metadata.get("source") or {})
    if model is not None:
        network = copied(model)
    elif "torchvision" in source:
        network = build_torchvision(source["torchvision"], source.get("classes"), **source.get("options", {}))
    elif "architecture" in source:
        network = build(source["architecture"], source["classes"], source["width"])
    else:
        raise ValueError(f"{path} does not say which network it holds: save it with source, or load it with model")
    if "kept" in source:
        network = remove(network, _rebuild_inputs(source["inputs"]), source["kept"], check=False)
    weights = {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} holds another network than {type(network).__name__}: {one_line(error)}; pass the saved one"
        ) from error
    return network.eval(), source


def _torchvision(name: str, weights: str, classes: int | None) -> tuple[nn.Module, dict]:
    from torchvision.models import list_models

    if classes is not None:
        check_number("classes", classes, 1)
    if name not in list_models():
        raise ValueError(
            f"{name!r} is neither a .safetensors file nor a torchvision model: see torchvision.models.list_models()"
        )
    try:
        if weights == "none":
            model = build_torchvision(name, classes)
        elif Path(weights).suffix == ".safetensors":
            model = build_torchvision(name, classes)
            model.load_state_dict(load_file(weights))
        else:
            # torchvision checks the hash of new downloads alone: no file may run code
            with mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
                model = build_torchvision(name, classes, weights=weights)
    except (OSError, pickle.UnpicklingError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"could not load the weights {weights} of {name} ({error!r}): download them where there is a network, "
            "pass a .safetensors state dict with --weights, or --weights none"
        ) from error
    # What the constructor sets by itself where it is given weights.
    options = {key: getattr(model, key) for key in ("transform_input", "aux_logits") if hasattr(model, key)}
    source = {"torchvision": name, "options": options} | ({"classes": classes} if classes else {})
    return model, source


def build_torchvision(name: str, classes: int | None = None, weights: str | None = None, **options) -> nn.Module:
    """A torchvision network; nothing is downloaded unless weights are named."""
    from torchvision.models import get_model, get_model_builder

    takes = inspect.signature(inspect.unwrap(get_model_builder(name))).parameters
    if "weights_backbone" in takes and weights is None:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3") and weights is None:
        options["init_weights"] = False  # slow, and warns
    return get_model(name, weights=weights, **options, **({"num_classes": classes} if classes else {}))


def _images(source: Path | str, shape: list[int], count: int) -> Tensor:
    """(n, channels, height, width) normalised images of a folder, or the tensor of a file; n is at most `count`."""
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source} does not exist: name a folder of image files, or a .safetensors tensor")
    if source.suffix == ".safetensors":
        try:
            tensors = [*load_file(source).values()]
        except (OSError, SafetensorError) as error:
            raise ValueError(f"could not read {source} ({one_line(error)}): store the images again") from error
        if len(tensors) != 1 or list(tensors[0].shape[1:]) != shape:
            found = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
            raise ValueError(f"{source} must hold one tensor of shape (n, {', '.join(map(str, shape))}), got {found}")
        if not tensors[0].is_floating_point():
            raise ValueError(
                f"{source} holds {tensors[0].dtype}: store the images as float32, normalised as in training"
            )
        return tensors[0][:count].float()
    from PIL import Image
    from torchvision.transforms.v2 import functional as transforms

    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in readable and path.is_file())
    paths = paths[:: -(-len(paths) // count) or 1]  # of all subfolders
    if not paths:
        raise ValueError(f"{source} holds no images: name a folder of image files, or a .safetensors tensor")
    mode = "L" if shape[0] == 1 else "RGB"
    sized = [_cropped(_opened(path, mode), shape[1:]) for path in paths]
    batch = torch.stack(sized).float() / 255
    return transforms.normalize(batch, *IMAGENET) if shape[0] == 3 else batch


def _opened(path: Path, mode: str) -> Tensor:
    """(channels, height, width) of 8 bits. Pillow would clip what has more, and make white of it."""
    from PIL import Image
    from torchvision.transforms.v2 import functional as transforms

    try:
        with Image.open(path) as image:
            deep, pixels = image.mode.startswith(("I", "F")), transforms.pil_to_tensor(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"could not read {path} ({one_line(error)}): store it again, or leave it out") from error
    if deep:
        raise ValueError(f"{path} has more than 8 bits a channel: convert it, or store all images as one tensor file")
    return pixels


def _cropped(image: Tensor, size: list[int]) -> Tensor:
    """The middle of an image, (channels, *size), after the smallest scaling that covers it."""
    from torchvision.transforms.v2 import functional as transforms

    scale = max(wanted / had for wanted, had in zip(size, image.shape[1:], strict=True))
    covering = [max(wanted, int(had * scale)) for wanted, had in zip(size, image.shape[1:], strict=True)]
    return transforms.center_crop(transforms.resize(image, covering, antialias=True), size)


def _describe_inputs(inputs: Any) -> Any:
    """Inputs as JSON values: tensors of floats by shape and type alone, all else by value."""
    if isinstance(inputs, Tensor):
        shape = {"shape": list(inputs.shape), "type": str(inputs.dtype).removeprefix("torch.")}
        return shape if inputs.is_floating_point() or inputs.is_complex() else {**shape, "values": inputs.tolist()}
    if isinstance(inputs, dict):
        return {"named": {name: _describe_inputs(value) for name, value in inputs.items()}}
    if isinstance(inputs, tuple | list):
        return [_describe_inputs(value) for value in inputs]
    if inputs is None or isinstance(inputs, bool | int | float | str):
        return {"value": inputs}
    raise ValueError(
        f"example_inputs hold a {type(inputs).__name__}, which no file can describe: save without kept, or "
        "pass tensors, numbers, texts and None in tuples and dicts"
    )


def _rebuild_inputs(described: Any) -> Any:
    """Inputs as `_describe_inputs` describes them; floats are random."""
    if isinstance(described, list):
        return tuple(_rebuild_inputs(value) for value in described)
    if "value" in described:
        return described["value"]
    if "named" in described:
        return {name: _rebuild_inputs(value) for name, value in described["named"].items()}
    dtype = getattr(torch, described["type"])
    if dtype.is_floating_point:
        return torch.randn(described["shape"], generator=torch.Generator().manual_seed(0), device="cpu").to(dtype)
    if "values" in described:
        return torch.tensor(described["values"], dtype=dtype, device="cpu").reshape(described["shape"])
    return torch.zeros(described["shape"], dtype=dtype, device="cpu")
