"""Measures training on the present machine: `python -m topoprune.measure.training`.

One run trains VGG-16 by the loop that one would otherwise write and by `topoprune.training`, says
what bounds the time of a step and what removing filters gains, and how time and memory grow. Times
are those that `training.train` itself records, so that what is measured is the product. Ways that
are compared take turns, because machines are noisy; a ratio is the median over the turns.
"""

import argparse
import contextlib
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from topoprune import models, network, selection, training
from topoprune._engine.convolutions import MANY, SmallAsProducts
from topoprune.data import Data, Split
from topoprune.measure import machine
from topoprune.measure.machine import Rows
from topoprune.study import datasets
from topoprune.training import Recipe

OUTPUT = Path("_build/bench/training.json")
PACKAGES = ["torch", "torchvision", "torch-pruning", "numpy"]
GOALS = {"cpu": 2.5, "cuda": 5.0}
"""How many times the plain loop's images a second are wanted; shown beside what is measured."""
PRECISIONS = (torch.float32, torch.bfloat16)
LOADERS, MORE_LOADERS = 2, 8
"""Worker processes of the plain loop's DataLoader; more of them where a CUDA device waits for images."""
FAMILIES = {  # of an operation, or else of what called it; the first that matches
    "optimiser": r"Optimizer\.",
    "data and augmentation": r"^data$|^aten::(index|reflection_pad2d|rand)",
    "convolution, backward": r"convolution_backward|ConvolutionProductBackward",
    "convolution, forward": r"convolution|ConvolutionProduct",
    "BatchNorm": r"batch_norm|BatchNorm",
    "ReLU": r"relu|threshold_backward",
    "pooling": r"pool",
    "conversions between precisions": r"^aten::(to|_to_copy|copy_)$|ToCopyBackward",
}


@dataclass(frozen=True)
class Bed:
    """What is measured, and how long.

    Attributes:
        data: in main memory; the plain loop and ours train on the same images.
        device: "cpu" or "cuda".
        width: multiplier of the filters of VGG-16.
        widths: those over which the growth is measured, the narrowest first.
        ratios: shares of the filters that are removed.
        multiples: what the numbers of kept filters are rounded up to; 1 rounds nothing.
        images: trained on in one timing of ours; an epoch's time is extrapolated from it.
        batch: images a step.
        batches: images a step over which ours is set beside the usual loop.
        rounds: turns that each of the compared ways is given.
        seconds: how long a product or an inference is timed.
        search: budget of the genetic algorithm in a whole trial.
        compiled: whether `torch.compile` is measured as well.
    """

    data: Data
    device: str
    width: float = 1.0
    widths: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1.0)
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    multiples: tuple[int, ...] = (1, 8, 16, 32)
    images: int = 1024
    batch: int = 256
    batches: tuple[int, ...] = (256, 512, 1024)
    rounds: int = 3
    seconds: float = 0.5
    search: dict[str, int] = field(default_factory=lambda: {"population": 64, "generations": 60})
    compiled: bool = False

    @property
    def recipe(self) -> Recipe:
        """One epoch; at this rate no way of training diverges on so few images."""
        return Recipe(epochs=1, batch=self.batch, peak_rate=0.01)


def main(arguments: list[str] | None = None) -> None:
    """Run all sections, print their tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m topoprune.measure.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument(
        "--device", choices=list(GOALS), default=training.default_device(), help="default: cuda where there is one"
    )
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too (always on cuda)")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="NAME",
        help=f"measure these alone, of {', '.join(SECTIONS)}",
    )
    parser.add_argument("--rounds", type=int, help="turns of the compared ways (default 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON (default {OUTPUT})")
    options = parser.parse_args(arguments)
    bed = prepare(options.device, options.quick, options.compile)
    if options.rounds is not None:
        bed = replace(bed, rounds=options.rounds)
    found = {"machine": machine.machine(PACKAGES), "settings": describe(bed, options.quick)}
    machine.run({name: SECTIONS[name] for name in options.sections}, (bed,), found, options.output)


def prepare(device: str, quick: bool = False, compiled: bool = False) -> Bed:
    """The sizes for a device; with `quick` small ones, on synthetic images."""
    if quick:
        return Bed(
            synthetic(512),
            device,
            width=1 / 8,
            widths=(1 / 16, 1 / 8),
            ratios=(0.5, 0.9),
            multiples=(1, 8),
            images=128,
            batch=64,
            batches=(64, 128),
            rounds=2,
            seconds=0.02,
            search={"population": 8, "generations": 3},
            compiled=compiled,
        )
    there = (datasets.folder() / "cifar-10-batches-py").exists()
    data = datasets.load("cifar10") if there else synthetic(45_000)
    if device == "cuda":
        return Bed(data, device, images=20_480, compiled=True)
    return Bed(data, device, compiled=compiled)


def synthetic(count: int) -> Data:
    """Random images and labels of CIFAR-10's shape, `count` of them to train on."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=random)
    train = Split(images, torch.randint(0, 10, (count,), generator=random))
    return Data(
        "synthetic", train, _first(train, 1), _first(train, 1), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, flips=True
    )


def describe(bed: Bed, quick: bool) -> dict[str, Any]:
    """What is measured, for the reader of the rows."""
    return {
        "quick": quick,
        "data": {"cifar10": "CIFAR-10"}.get(bed.data.name, "synthetic images of CIFAR-10's shape"),
        "training split": len(bed.data.train),
        "images": bed.images,
        "batch": bed.batch,
        "rounds": bed.rounds,
        "width": bed.width,
        "device": torch.cuda.get_device_name() if bed.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "loader processes": LOADERS,
        "multiply-adds": _multiply_adds(_network(bed)),
        "goal": GOALS[bed.device],
    }


def peaks(bed: Bed) -> Rows:
    """The peak: the rate of a large matrix product, the best of many, in the precisions that are used."""
    rows = []
    size = 8192 if bed.device == "cuda" else 2048
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # on CUDA TF32, which float32 convolutions use by default
    for precision in dict.fromkeys((torch.float32, training.precision(bed.device))):
        a, b = (torch.randn(size, size, device=bed.device).to(precision) for _ in range(2))
        best = min(_seconds(lambda: a @ b, bed.device) for _ in range(30 * bed.rounds))  # noqa: B023
        rows.append({"precision": _name(precision), "size": size, "TFLOP/s": 2 * size**3 / best / 1e12})
    torch.set_float32_matmul_precision(usual)
    return rows


def precisions(bed: Bed) -> Rows:
    """Forward and backward in each precision, on a CPU of few images; ours takes the chosen one."""
    training.keep_memory()
    model = _network(bed).to(memory_format=torch.channels_last).train()
    part = _first(_cut(bed).train, bed.batch if bed.device == "cuda" else bed.batch // 8)
    images = bed.data.normalized(part.images)

    def step(precision: torch.dtype) -> float:
        return _seconds(lambda: _gradients(model, images, part.labels, precision), bed.device)

    for precision in PRECISIONS:
        step(precision)  # warms up
    rounds = [{precision: step(precision) for precision in PRECISIONS} for _ in range(bed.rounds)]
    return [
        {
            "precision": _name(precision),
            "chosen": precision is training.precision(bed.device),
            "images/s": len(part) / statistics.median(found[precision] for found in rounds),
            "times float32": statistics.median(found[PRECISIONS[0]] / found[precision] for found in rounds),
        }
        for precision in PRECISIONS
    ]


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype) -> Tensor:
    """The loss, after the gradients of the weights."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    model.zero_grad()
    loss.backward()
    return loss


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def loops(bed: Bed) -> Rows:
    """Training, images a second: the loop that one would otherwise write, in steps to ours."""
    training.keep_memory()  # of this process; the usual ways have one without
    ours, steps = _ways(bed), _usual(bed)
    exact = {way for way, options in steps.items() if not options.get("half")}
    with _fresh(1) as pool:
        usual = {way: partial(_elsewhere, pool, bed, options) for way, options in steps.items()}
        ways = {**usual, **ours}
        first = {way: _seconds(train, bed.device) for way, train in ways.items()}  # warms up, compiles
        rounds = [{way: train() for way, train in ways.items()} for _ in range(bed.rounds)]
    plain = next(iter(ways))
    flops = 6 * _multiply_adds(_network(bed))  # forward, and twice as much backward
    rows = []
    for way in ways:
        rates = [1 / found[way] for found in rounds]
        rows.append(
            {
                "way": way,
                "images/s": statistics.median(rates),
                "lowest": min(rates),
                "highest": max(rates),
                "first call (s)": first[way],
                "times plain": statistics.median(found[plain] / found[way] for found in rounds),
                "TFLOP/s": statistics.median(rates) * flops / 1e12,
                "precision": _name(torch.float32 if way in exact else training.precision(bed.device)),
            }
        )
    return rows


def batches(bed: Bed) -> Rows:
    """Training by the usual loop and by ours, images a second, by the images of a step."""
    training.keep_memory()
    rows = []
    for batch in bed.batches:
        sized = replace(bed, batch=batch, images=max(bed.images, 2 * max(bed.batches)))
        resident = _cut(sized)
        _ours(_network(sized), resident, sized)  # warms up; the usual loop leaves its first step out
        with _fresh(1) as pool:
            rounds = [
                (pool.submit(_plain, sized).result(), _ours(_network(sized), resident, sized))
                for _ in range(bed.rounds)
            ]
        rows.append(
            {
                "batch": batch,
                "usual images/s": statistics.median(1 / plain for plain, _ in rounds),
                "ours images/s": statistics.median(1 / ours for _, ours in rounds),
                "times usual": statistics.median(plain / ours for plain, ours in rounds),
            }
        )
    return rows


def _usual(bed: Bed) -> dict[str, dict[str, int]]:
    """The loop that one would otherwise write, and the steps from there that it can take itself."""
    steps = {f"+ {MORE_LOADERS} loader processes": {"loaders": MORE_LOADERS}} if bed.device == "cuda" else {}
    steps |= {"+ bfloat16": {"half": True}} if _half(bed) else {}
    ways, options = {"DataLoader, float32": {}}, {}
    for way, option in {**steps, "+ channels last": {"last": True}}.items():
        options = {**options, **option}
        ways[way] = options
    return ways


def _half(bed: Bed) -> bool:
    return training.precision(bed.device) is torch.bfloat16


def _elsewhere(pool: ProcessPoolExecutor, bed: Bed, options: dict[str, int]) -> float:
    return pool.submit(_plain, bed, **options).result()


def _ways(bed: Bed) -> dict[str, Callable[[], float]]:
    """Way -> a call that trains in this process for a while and returns the seconds an image."""
    resident = _cut(bed)
    ways = {}
    if bed.device == "cpu":
        ways["+ memory kept"] = lambda: _plain(bed, half=_half(bed), last=True)
    last = "resident data"
    if training.products(bed.device):
        ways["+ resident data"] = lambda: _without_products(resident, bed)
        last = "small convolutions as products"
    if bed.device == "cuda":
        ways["+ resident data"] = lambda: _launched(lambda: _ours(_network(bed), resident, bed))
        last = "CUDA graph"
    ways[f"+ {last} (ours)"] = lambda: _ours(_network(bed), resident, bed)
    if bed.compiled:
        network = torch.compile(_network(bed))
        ways["ours, torch.compile"] = lambda: _ours(network, resident, bed)
    return ways


class Images(Dataset):
    """The training split as torchvision's CIFAR10 hands it out, transforms as its users write them."""

    def __init__(self, data: Data):
        self.images, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def _plain(bed: Bed, half: bool = False, last: bool = False, loaders: int = LOADERS) -> float:
    """Seconds an image of the loop that one would otherwise write.

    The first step is left out: by its end the loader's processes have started and are ahead, as
    they are throughout an epoch.
    """
    layout = {"memory_format": torch.channels_last} if last else {}
    model = _network(bed).to(**layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    usual = multiprocessing.get_all_start_methods()[0]  # which a process of `_fresh` has forgotten
    loader = DataLoader(
        Images(bed.data),
        bed.batch,
        shuffle=True,
        num_workers=loaders,
        drop_last=True,
        pin_memory=bed.device == "cuda",
        multiprocessing_context=usual,
    )
    steps = min(len(loader) - 1, bed.images // bed.batch)
    for step, (images, labels) in enumerate(islice(loader, 1 + steps)):
        images = images.to(bed.device, non_blocking=True, **layout)
        with torch.autocast(bed.device, dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(images), labels.to(bed.device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            _synchronize(bed.device)
            started = time.perf_counter()
    _synchronize(bed.device)
    return (time.perf_counter() - started) / (steps * bed.batch)


def _ours(model: nn.Module, resident: Data, bed: Bed) -> float:
    """Seconds an image of `training.train`, which leaves its evaluation out."""
    _synchronize(bed.device)
    return _tuned(model, resident, bed.recipe)


def _without_products(resident: Data, bed: Bed) -> float:
    with mock.patch.object(training, "products", return_value=0):
        return _ours(_network(bed), resident, bed)


def _launched(call: Callable[[], Any]) -> Any:
    """What `call` returns, where training launches each operation by itself and captures no graph."""
    with mock.patch.object(training, "captured", lambda step, *_: step):
        return call()


def convolutions(bed: Bed) -> Rows:
    """Convolutions by the size of their images, as the library does them and as products of matrices."""
    training.keep_memory()
    return [_convolution(bed, layer, shape) for layer, shape in _last_of_each_size(bed)]


def _last_of_each_size(bed: Bed) -> list[tuple[nn.Module, torch.Size]]:
    """Convolutions, each with the shape of the batch that it is given."""
    found: dict[int, tuple[nn.Module, torch.Size]] = {}
    model = _network(bed).to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, given, _: found.update({given[0].shape[3]: (layer, given[0].shape)})
            )
    model(bed.data.example(bed.batch).to(bed.device))
    return list(found.values())


def _convolution(bed: Bed, layer: nn.Module, shape: torch.Size) -> dict[str, Any]:
    """Forward and backward, both ways in turns, in the precision of training."""
    images = torch.randn(shape, device=bed.device).to(memory_format=torch.channels_last).requires_grad_()
    pays = shape[3] <= training.products(bed.device) and layer.weight.numel() >= MANY
    ways = {"library": contextlib.nullcontext, "product": partial(SmallAsProducts, shape[3], 0)}

    def step(way: Callable) -> float:
        return _seconds(lambda: _convolve(layer, images, way, bed), bed.device)

    for way in ways.values():
        step(way)  # warms up
    rounds = [{name: step(way) for name, way in ways.items()} for _ in range(max(bed.rounds, 5))]
    return {
        "image": f"{shape[2]}x{shape[3]}",
        "filters": layer.out_channels,
        **{f"{name} (ms)": 1e3 * statistics.median(found[name] for found in rounds) for name in ways},
        "times faster": statistics.median(found["library"] / found["product"] for found in rounds),
        "chosen": "product" if pays else "library",
    }


def _convolve(layer: nn.Module, images: Tensor, way: Callable, bed: Bed) -> None:
    with torch.autocast(bed.device, torch.bfloat16, enabled=_half(bed)), way():
        made = layer(images)
    layer.zero_grad()
    made.backward(made.detach())


def operations(bed: Bed) -> Rows:
    """What bounds a step of ours: its time by family of operations (on CUDA launched one by one)."""
    bed = replace(bed, images=min(bed.images, 16 * bed.batch))  # a profile is thousands of events a step
    model, resident = _network(bed), _cut(bed)
    marked = _Marked(**vars(resident))
    _launched(lambda: training.train(model, marked, bed.recipe))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bed.device == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as profiled:  # keeps what it has recorded
        (epoch,) = _launched(lambda: training.train(model, marked, bed.recipe))
    spent = _by_family(profiled.events(), bed.device)
    spent["between operations"] = max(0.0, epoch.seconds - sum(spent.values()))
    total, steps = sum(spent.values()), bed.images // bed.batch
    forward = 2 * steps * bed.batch * _multiply_adds(model) / 1e12
    work = {"convolution, forward": forward, "convolution, backward": 2 * forward}
    return [
        {
            "family": family,
            "ms a step": 1e3 * seconds / steps,
            "share (%)": 100 * seconds / total,
            "TFLOP/s": work[family] / seconds if family in work else None,
        }
        for family, seconds in sorted(spent.items(), key=lambda item: -item[1])
    ]


class _Marked(Data):
    """Data whose normalisation, which is all elementwise, the profile can tell from the network."""

    def normalized(self, images: Tensor) -> Tensor:
        with record_function("data"):
            return super().normalized(images)


def _by_family(events, device: str) -> dict[str, float]:
    """Seconds of the operations themselves, those they call left out, by family."""
    spent = dict.fromkeys([*FAMILIES, "other"], 0.0)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            spent[_family(event)] += own / 1e6
    return spent


def _family(event) -> str:
    names = list(_callers(event))
    if any("Optimizer." in name for name in names):  # it calls what others call too
        return "optimiser"
    return next((family for name in names for family, pattern in FAMILIES.items() if re.search(pattern, name)), "other")


def _callers(event) -> Iterator[str]:
    """The name of an operation, of what called it, and so on."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def removal(bed: Bed) -> Rows:
    """What removing filters gains, in training and in inference (float32)."""
    resident = _cut(bed)
    dense, example = _network(bed), resident.example(bed.batch)
    cases = [(0.0, 1), *((ratio, multiple) for ratio in bed.ratios for multiple in bed.multiples)]
    networks = {case: network.remove(dense, example, _kept(dense, example, *case)) for case in cases}
    for network in networks.values():
        _ours(network, resident, replace(bed, images=bed.batch))  # warms up
    rounds = [
        {
            case: (_ours(network, resident, bed), network.cost(network, example, bed.seconds))
            for case, network in networks.items()
        }
        for _ in range(bed.rounds)
    ]
    rows = [_removed(case, [found[case] for found in rounds], len(bed.data.train)) for case in cases]
    whole = rows[0]
    for row in rows:
        for gain, rate in (("training", "training images/s"), ("inference", "inference images/s")):
            row[f"times faster, {gain}"] = row[rate] / whole[rate]
        row["FLOPs (%)"] = 100 * row["multiply-adds (M)"] / whole["multiply-adds (M)"]
        row["efficiency (%)"] = row["FLOPs (%)"] * row["times faster, training"]
    return rows


def _kept(model: nn.Module, example: Tensor, ratio: float, multiple: int) -> network.Kept:
    """The first filters of each layer, `int(n * ratio)` removed; which ones does not change the cost."""
    kept = {}
    for coupling in network.couplings(model, example):
        n = coupling.filters
        count = min(n, math.ceil((n - int(n * ratio)) / multiple) * multiple)
        kept |= {layer: list(range(count)) for layer in coupling.layers}
    return kept


def _removed(case: tuple[float, int], measured: list, images: int) -> dict[str, Any]:
    seconds = statistics.median(own for own, _ in measured)
    cost = measured[0][1]
    return {
        "ratio": case[0],
        "multiple": case[1],
        "parameters (M)": cost.parameters / 1e6,
        "multiply-adds (M)": cost.flops / 1e6,
        "s an epoch": seconds * images,
        "training images/s": 1 / seconds,
        "latency (ms)": statistics.median(cost.latency_ms for _, cost in measured),
        "inference images/s": statistics.median(cost.images_per_second for _, cost in measured),
    }


def growth(bed: Bed) -> Rows:
    """How the time of a step and the memory grow with the width and with the images held."""
    whole = len(bed.data.train)
    cases = [("width", width, bed.images) for width in bed.widths]
    cases += [("images", bed.widths[0], count) for count in (whole // 4, whole) if count > bed.images]
    rows = []
    for varied, width, images in cases:
        with _fresh(1) as pool:
            found = pool.submit(_step, bed.device, width, images, bed.batch).result()
        rows.append({"varied": varied, "width": width, "images": images, **found})
    return rows


def _step(device: str, width: float, images: int, batch: int) -> dict[str, Any]:
    """In a fresh process: the time of a step, and the memory that network and training add."""
    bed = Bed(synthetic(images), device, width=width, images=images, batch=batch)
    resident = _cut(bed)
    before = _held(device)
    network = _network(bed)
    seconds = batch * statistics.median(_ours(network, resident, bed) for _ in range(4))  # the first: slower
    return {
        "parameters (M)": sum(p.numel() for p in network.parameters()) / 1e6,
        "multiply-adds (M)": _multiply_adds(network) / 1e6,
        "ms a step": 1e3 * seconds,
        "peak MiB": _peak(device, before),
    }


TRIAL_EPOCHS, TRAINED, EVALUATED = 5, 45_000, 15_000
"""What the time of a trial is extrapolated to: epochs of fine-tuning, and CIFAR-10's images of training
and of validation and test, which are evaluated after each epoch and once before."""


def trials(bed: Bed) -> Rows:
    """A whole trial at ratio 0.5 by the width of the network, and of several workers side by side."""
    threads = torch.get_num_threads()
    most = min(threads, 4)
    shared = dict.fromkeys([(1, threads), (most, threads // most)])
    cases = [(*case, width) for case in shared for width in bed.widths]
    rows = []
    for workers, each, width in cases:
        with _fresh(workers) as pool:
            jobs = [
                pool.submit(_trial, each, bed.device, width, bed.images, bed.batch, bed.search) for _ in range(workers)
            ]
            found = [job.result() for job in jobs]
        row = {
            name: None if values[0] is None else statistics.median(values)
            for name in found[0]
            for values in [[part[name] for part in found]]
        }
        row["s a trial"] = (
            row["selection (s)"]
            + row["removal (s)"]
            + TRIAL_EPOCHS * row["s an epoch"]
            + (TRIAL_EPOCHS + 1) * row["evaluation (s)"]
        )
        rows.append(
            {
                "workers": workers,
                "threads each": each,
                "width": width,
                **row,
                "trials an hour": 3600 * workers / row["s a trial"],
            }
        )
    return rows


def _trial(threads: int, device: str, width: float, images: int, batch: int, search: dict) -> dict[str, Any]:
    """In one of several processes: the parts of a trial of the topological pruner, and their memory."""
    torch.set_num_threads(threads)
    bed = Bed(synthetic(images), device, width=width, images=images, batch=batch)
    resident, dense = _cut(bed), _network(bed)
    example = resident.example()
    selection.selection(dense, example, "topological", 0.9, generations=1, population=2)  # imports, compiles
    _together.wait()
    before = _held(device)
    chosen = selection.selection(dense, example, "topological", 0.5, **search)
    small = network.remove(dense, example, chosen.kept)
    removing = _seconds(lambda: training.recalibrate(small, resident, images // batch, batch), device)
    recipe = replace(bed.recipe, muon_rate=0.01)  # as the study's fine-tuning
    tuning = min(_tuned(small, resident, recipe) for _ in range(3))  # the first is slower
    evaluating = _seconds(lambda: training.accuracy(small, resident, resident.train), device)
    filters = [group.filters for group in network.couplings(dense, example)]
    return {
        "filters": sum(filters),
        "widest layer": max(filters),
        "selection (s)": chosen.seconds,
        "removal (s)": removing,
        "s an epoch": tuning * TRAINED,
        "evaluation (s)": evaluating / images * EVALUATED,
        "peak MiB": _peak(device, before),
    }


def _tuned(model: nn.Module, resident: Data, recipe: Recipe) -> float:
    """Seconds an image of an epoch."""
    (epoch,) = training.train(model, resident, recipe)
    return epoch.seconds / (len(resident.train) // recipe.batch * recipe.batch)


def _held(device: str) -> int | None:
    """Memory of this process now (bytes on CUDA, KiB elsewhere); its peak starts again from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return machine.memory("VmRSS", reset=True)


def _peak(device: str, before: int | None) -> float | None:
    """MiB that this process took above `before` at most (bytes on CUDA, KiB elsewhere)."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return None if before is None else (machine.memory("VmHWM") - before) / 1024


def processes(bed: Bed) -> Rows:
    """Training of narrow networks side by side: images a second in sum."""
    threads = torch.get_num_threads()
    doublings = [2**i for i in range(threads.bit_length())]
    cases = dict.fromkeys([(1, threads), *((count, 1) for count in doublings)])
    rates = {case: _side_by_side(*case, bed) for case in cases}
    return [
        {
            "processes": count,
            "threads each": each,
            "width": bed.widths[0],
            "images/s": rate,
            "times one": rate / rates[1, 1],
        }
        for (count, each), rate in rates.items()
    ]


def _side_by_side(count: int, threads: int, bed: Bed) -> float:
    """Images a second of `count` processes in sum, which begin each round together."""
    with _fresh(count) as pool:
        jobs = [
            pool.submit(_worker, threads, bed.device, bed.widths[0], 4 * bed.images, bed.batch, bed.rounds)
            for _ in range(count)
        ]
        return statistics.median(map(sum, zip(*(job.result() for job in jobs), strict=True)))


def _worker(threads: int, device: str, width: float, images: int, batch: int, rounds: int) -> list[float]:
    """In one of several processes: images a second, round by round."""
    torch.set_num_threads(threads)
    bed = Bed(synthetic(images), device, width=width, images=images, batch=batch)
    network, resident = _network(bed), _cut(bed)
    _ours(network, resident, bed)
    rates = []
    for _ in range(rounds):
        _together.wait()
        rates.append(1 / _ours(network, resident, bed))
    return rates


def _fresh(count: int) -> ProcessPoolExecutor:
    """`count` new processes, whose jobs can wait for each other at a barrier."""
    spawn = multiprocessing.get_context("spawn")  # CUDA and OpenMP do not survive a fork
    return ProcessPoolExecutor(count, spawn, _meet, (spawn.Barrier(count),))


def _meet(barrier) -> None:
    global _together
    _together = barrier


SECTIONS: dict[str, Callable[[Bed], Rows]] = {
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


def _network(bed: Bed) -> nn.Module:
    torch.manual_seed(0)
    return models.build("vgg16", width=bed.width).to(bed.device)


def _cut(bed: Bed) -> Data:
    """The first images on the device, with next to nothing to evaluate."""
    parts = {"train": bed.images, "validation": 1, "test": 1}
    return replace(bed.data, **{name: _first(getattr(bed.data, name), n) for name, n in parts.items()}).to(bed.device)


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def _multiply_adds(model: nn.Module) -> int:
    example = torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device)
    return network.cost(model, example, seconds=0.001).flops


def _seconds(call: Callable[[], Any], device: str) -> float:
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
