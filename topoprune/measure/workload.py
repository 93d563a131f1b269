"""What the training benchmark trains on, how much of it, and how it is timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from topoprune import models
from topoprune.costs import flops
from topoprune.measure.machine import peak_memory, resident_memory
from topoprune.study import datasets
from topoprune.study.images import Data, Split
from topoprune.training import Recipe, train


@dataclass(frozen=True)
class Workload:
    """The sizes of one benchmark on one device.

    Attributes:
        data: images in main memory; the usual loop and ours train on the same ones.
        device: "cpu" or "cuda".
        width: multiplier of VGG-16's filters.
        widths: multipliers over which growth is measured, the narrowest first.
        ratios: shares of the filters to remove.
        multiples: what the numbers of kept filters are rounded up to; 1 does not round.
        images: number of images in one timing of our loop; an epoch is extrapolated from it.
        batch: images a step.
        batches: images a step, where the usual loop and ours are compared over batch sizes.
        rounds: timings of each compared variant, in alternation.
        seconds: duration of timing one inference.
        product: rows and columns of the matrices by which the peak is measured.
        search: budget of the genetic algorithm in a whole trial.
        compiled: whether to measure `torch.compile` too.
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
    product: int = 2048
    search: dict[str, int] = field(default_factory=lambda: {"population": 64, "generations": 60})
    compiled: bool = False

    @property
    def recipe(self) -> Recipe:
        """One epoch, at a rate so low that every variant converges on few images."""
        return Recipe(epochs=1, batch=self.batch, peak_rate=0.01)

    def network(self) -> nn.Module:
        """VGG-16 of this width on the device, with the same initial weights every time."""
        torch.manual_seed(0)
        return models.build("vgg16", width=self.width).to(self.device)

    def resident_data(self) -> Data:
        """The first images on the device, and one image each for validation and test."""
        return replace(
            self.data,
            train=first_images(self.data.train, self.images),
            validation=first_images(self.data.validation, 1),
            test=first_images(self.data.test, 1),
        ).to(self.device)

    def seconds_of(self, call: Callable[[], Any]) -> float:
        """Seconds until `call` has returned and the device has finished its work."""
        self.synchronize()
        started = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - started

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def full_workload(device: str, compiled: bool = False) -> Workload:
    """Full-width VGG-16 on CIFAR-10, or on synthetic images of its shape where it was not downloaded."""
    downloaded = (datasets.folder() / "cifar-10-batches-py").exists()
    data = datasets.load("cifar10") if downloaded else synthetic_data(45_000)
    if device == "cuda":
        return Workload(data, device, images=20_480, product=8192, compiled=True)
    return Workload(data, device, compiled=compiled)


def quick_workload(device: str, compiled: bool = False) -> Workload:
    """Small sizes on synthetic images, to see that the benchmark runs."""
    return Workload(
        synthetic_data(384),
        device,
        width=1 / 8,
        widths=(1 / 16, 1 / 8),
        ratios=(0.5, 0.9),
        multiples=(1, 8),
        images=128,
        batch=64,
        batches=(64, 128),
        rounds=1,
        seconds=0.02,
        product=512,
        search={"population": 8, "generations": 3},
        compiled=compiled,
    )


def synthetic_data(count: int) -> Data:
    """Random images and labels of CIFAR-10's shape, `count` of them for training.

    >>> data = synthetic_data(8)
    >>> data.train.images.shape
    torch.Size([8, 32, 32, 3])
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    training = Split(images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, flips=True)
    one = first_images(training, 1)
    return Data("synthetic", training, one, one, classes=10)


def first_images(split: Split, count: int) -> Split:
    """The first `count` images of a split."""
    return replace(split, images=split.images[:count], labels=split.labels[:count])


def multiply_adds(model: nn.Module) -> int:
    """Multiply-adds of one forward pass on one 32 x 32 image."""
    image = torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device)
    return flops(model, image)


def seconds_per_image(model: nn.Module, data: Data, recipe: Recipe) -> float:
    """Seconds that `topoprune.train` takes for each training image of one epoch, evaluation left out."""
    (epoch,) = train(model, data.train.augmented(recipe), recipe, fast=True)
    return epoch.seconds / (len(data.train) // recipe.batch * recipe.batch)


def reset_peak_memory(device: str) -> int | None:
    """Memory in use now, from which the peak is measured: bytes on CUDA, KiB on the CPU; None where unknown."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return resident_memory()


def peak_mebibytes(device: str, before: int | None) -> float | None:
    """Largest memory in MiB beyond `before`, which `reset_peak_memory` returned; None where unknown."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() - (before or 0)) / 2**20
    peak = peak_memory()
    return None if before is None or peak is None else (peak - before) / 1024
