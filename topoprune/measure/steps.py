"""What bounds the time of one training step: arithmetic, precision, convolutions, families of operations."""

import contextlib
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from topoprune._engine.convolutions import MANY, SmallAsProducts
from topoprune._engine.memory import keep_memory
from topoprune._engine.precision import precision, product_columns
from topoprune.measure.loops import dtype_name, uses_bfloat16, without_graph
from topoprune.measure.machine import Row
from topoprune.measure.workload import Workload, first_images, multiply_adds
from topoprune.study.images import Split
from topoprune.training import train

PRECISIONS = (torch.float32, torch.bfloat16)
FAMILIES = {
    "optimiser": r"Optimizer\.",
    "data and augmentation": r"^data$|^aten::(index|reflection_pad2d|rand)",
    "convolution, backward": r"convolution_backward|ConvolutionProductBackward",
    "convolution, forward": r"convolution|ConvolutionProduct",
    "BatchNorm": r"batch_norm|BatchNorm",
    "ReLU": r"relu|threshold_backward",
    "pooling": r"pool",
    "conversions between precisions": r"^aten::(to|_to_copy|copy_)$|ToCopyBackward",
}
"""Family -> pattern in the name of an operation, or else of what called it. The first that matches counts."""


def peaks(workload: Workload) -> list[Row]:
    """The peak: the rate of a large matrix product, the best of many, in the precisions that are used."""
    size = workload.product
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # on CUDA TF32, which float32 convolutions use by default
    rows = []
    for dtype in dict.fromkeys((torch.float32, precision(workload.device))):
        a, b = (torch.randn(size, size, device=workload.device).to(dtype) for _ in range(2))
        best = min(workload.seconds_of(partial(torch.matmul, a, b)) for _ in range(30 * workload.rounds))
        rows.append({"precision": dtype_name(dtype), "size": size, "TFLOP/s": 2 * size**3 / best / 1e12})
    torch.set_float32_matmul_precision(before)
    return rows


def precisions(workload: Workload) -> list[Row]:
    """Forward and backward in each precision, on a CPU of few images; ours takes the chosen one."""
    keep_memory()
    model = workload.network().to(memory_format=torch.channels_last).train()
    data = workload.resident_data()
    batch = first_images(data.train, workload.batch if workload.device == "cuda" else workload.batch // 8)
    images = batch.normalized(batch.images)

    def seconds(dtype: torch.dtype) -> float:
        return workload.seconds_of(lambda: _forward_and_backward(model, images, batch.labels, dtype))

    rounds = _in_alternation({dtype: partial(seconds, dtype) for dtype in PRECISIONS}, workload.rounds)
    return [
        {
            "precision": dtype_name(dtype),
            "chosen": dtype is precision(workload.device),
            "images/s": len(batch) / statistics.median(times[dtype] for times in rounds),
            "times float32": statistics.median(times[torch.float32] / times[dtype] for times in rounds),
        }
        for dtype in PRECISIONS
    ]


def _forward_and_backward(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    model.zero_grad()
    loss.backward()


def convolutions(workload: Workload) -> list[Row]:
    """Convolutions by the size of their images, as the library does them and as products of matrices."""
    keep_memory()
    return [_convolution(workload, layer, shape) for layer, shape in _last_of_each_size(workload)]


def _last_of_each_size(workload: Workload) -> list[tuple[nn.Conv2d, torch.Size]]:
    """For each image size, the last convolution of the network, and the shape of its input batch."""
    last: dict[int, tuple[nn.Conv2d, torch.Size]] = {}

    def note(layer: nn.Conv2d, inputs: tuple[Tensor], _: Tensor) -> None:
        last[inputs[0].shape[3]] = (layer, inputs[0].shape)

    model = workload.network().to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    model(workload.data.example(workload.batch).to(workload.device))
    return list(last.values())


def _convolution(workload: Workload, layer: nn.Conv2d, shape: torch.Size) -> Row:
    """Forward and backward, in the precision of training."""
    images = torch.randn(shape, device=workload.device).to(memory_format=torch.channels_last).requires_grad_()
    variants: dict[str, Callable[[], Any]] = {
        "library": contextlib.nullcontext,
        "product": partial(SmallAsProducts, shape[3], 0),
    }

    def seconds(variant: Callable[[], Any]) -> float:
        return workload.seconds_of(lambda: _convolve(layer, images, variant, workload.device))

    calls = {name: partial(seconds, variant) for name, variant in variants.items()}
    rounds = _in_alternation(calls, max(workload.rounds, 5))
    as_product = shape[3] <= product_columns(workload.device) and layer.weight.numel() >= MANY
    return {
        "image": f"{shape[2]}x{shape[3]}",
        "filters": layer.out_channels,
        **{f"{name} (ms)": 1e3 * statistics.median(times[name] for times in rounds) for name in variants},
        "times faster": statistics.median(times["library"] / times["product"] for times in rounds),
        "chosen": "product" if as_product else "library",
    }


def _convolve(layer: nn.Conv2d, images: Tensor, variant: Callable[[], Any], device: str) -> None:
    with torch.autocast(device, torch.bfloat16, enabled=uses_bfloat16(device)), variant():
        outputs = layer(images)
    layer.zero_grad()
    outputs.backward(outputs.detach())


def _in_alternation(calls: Mapping[Any, Callable[[], float]], rounds: int) -> list[dict[Any, float]]:
    """Call each in turn, round after round, since a machine's speed drifts. A first round warms up."""
    for call in calls.values():
        call()
    return [{name: call() for name, call in calls.items()} for _ in range(rounds)]


def operations(workload: Workload) -> list[Row]:
    """What bounds a step of ours: its time by family of operations (on CUDA launched one by one)."""
    count = min(workload.images, 16 * workload.batch)  # a profile has thousands of events a step
    workload = replace(workload, images=count)
    model, images = workload.network(), _RecordedImages(**vars(workload.resident_data().train))
    data = images.augmented(workload.recipe)
    without_graph(lambda: train(model, data, workload.recipe, fast=True))  # warms up
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if workload.device == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiled:  # keeps all events
        (epoch,) = without_graph(lambda: train(model, data, workload.recipe, fast=True))
    seconds = seconds_by_family(profiled.events() or [], workload.device)
    seconds["between operations"] = max(0.0, epoch.seconds - sum(seconds.values()))
    total, steps = sum(seconds.values()), count // workload.batch
    forward = 2 * steps * workload.batch * multiply_adds(model) / 1e12
    teraflops = {"convolution, forward": forward, "convolution, backward": 2 * forward}
    return [
        {
            "family": family,
            "ms a step": 1e3 * seconds[family] / steps,
            "share (%)": 100 * seconds[family] / total,
            "TFLOP/s": teraflops[family] / seconds[family] if family in teraflops else None,
        }
        for family in sorted(seconds, key=lambda family: -seconds[family])
    ]


class _RecordedImages(Split):
    """Images whose normalisation the profiler can tell from the network's own elementwise operations."""

    def normalized(self, images: Tensor) -> Tensor:
        with record_function("data"):
            return super().normalized(images)


def seconds_by_family(events: Iterable[FunctionEvent], device: str) -> dict[str, float]:
    """Add up the own time of each operation by its family in `FAMILIES`, or else in "other"."""
    seconds = dict.fromkeys([*FAMILIES, "other"], 0.0)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            seconds[_family(event)] += own / 1e6
    return seconds


def _family(event: FunctionEvent) -> str:
    names = list(_names_up_the_stack(event))
    if any("Optimizer." in name for name in names):  # it calls operations that others call too
        return "optimiser"
    for name in names:
        for family, pattern in FAMILIES.items():
            if re.search(pattern, name):
                return family
    return "other"


def _names_up_the_stack(event: FunctionEvent | None) -> Iterator[str]:
    """The name of an operation, of its caller, and so on."""
    while event is not None:
        yield event.name
        event = event.cpu_parent
