"""Labelled images, resident on one device as bytes, and the batches that training and evaluation read from them."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from topoprune.training import Recipe

CALIBRATION = 256
"""Training images of a calibration batch."""

EVALUATION = 1000
"""Images of an evaluation batch."""


@dataclass(frozen=True)
class Split:
    """Labelled images of one size, on one device.

    Attributes:
        images: (n, h, w, c), channels last: the layout in which convolutions run fastest.
        labels: (n,) class indices.
        mean, std: of each channel of the training images, in [0, 1].
        flips: whether a mirrored image belongs to the same class.
    """

    images: UInt8[Tensor, "n h w c"]
    labels: Int64[Tensor, " n"]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flips: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def normalized(self, images: UInt8[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
        """Scale each channel to mean 0 and standard deviation 1. The result is in channels_last layout."""
        mean, std = _levels(self.mean, images.device), _levels(self.std, images.device)
        return ((images.float() - mean) / std).permute(0, 3, 1, 2)

    def batches(self, size: int = EVALUATION) -> "Batches":
        """All images in their order, for evaluation."""
        return Batches(self, size)

    def augmented(self, recipe: Recipe, seed: int = 0) -> "Augmented":
        """Shuffled, shifted, mirrored and cut-out images, for training."""
        return Augmented(self, recipe.batch, recipe.shift, recipe.cutout, seed)


@dataclass(frozen=True)
class Batches:
    """Normalised images and labels of a split, `size` at a time."""

    split: Split
    size: int

    def __len__(self) -> int:
        return -(-len(self.split) // self.size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        for images, labels in zip(self.split.images.split(self.size), self.split.labels.split(self.size), strict=True):
            yield self.split.normalized(images), labels


@dataclass
class Augmented:
    """Augmented batches of a split, made on its device. An incomplete last batch is dropped.

    All randomness follows from (seed, epoch) and is drawn on the CPU: every device sees the same batches.

    Attributes:
        split: the images.
        batch: images of a batch.
        shift: largest shift of an image either way, in pixels; its edges are reflected.
        cutout: side of the square that is painted over in each image, in pixels; 0 for none.
        seed: of the order and the augmentation.
        epoch: 0 for the first.

    Raises:
        ValueError: settings that do not suit the number or the size of the images.
    """

    split: Split
    batch: int
    shift: int = 0
    cutout: int = 0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self):
        height, width = self.split.images.shape[1:3]
        largest = {"batch": len(self.split), "shift": min(height, width) - 1, "cutout": min(height, width) - 1}
        for name, most in largest.items():
            if getattr(self, name) > most:
                raise ValueError(
                    f"{name} must be at most {most}, got {getattr(self, name)}: "
                    f"there are {len(self.split)} images of {height} x {width} pixels"
                )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.split) // self.batch

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        images, labels = self.split.images, self.split.labels
        n = len(self) * self.batch
        random = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(len(images), generator=random)[:n].to(images.device)
        shifts = (torch.randint(0, 2 * self.shift + 1, (n, 2), generator=random) - self.shift).to(images.device)
        # Drawn last, so that cutout changes neither the order nor the shifts.
        corners = self._corners(n, random).to(images.device) if self.cutout else None
        mirrored = self._mirrored().to(images.device)
        for start in range(0, n, self.batch):
            rows = slice(start, start + self.batch)
            chosen = order[rows]
            made = shifted(images, chosen, shifts[rows], mirrored[chosen])
            if corners is not None:
                made = painted(made, corners[rows], self.cutout, self.split.mean)
            yield self.split.normalized(made), labels[chosen]

    def _corners(self, n: int, random: torch.Generator) -> Int64[Tensor, "n 2"]:
        """Upper left corners of the squares, uniform over all places inside the image."""
        places = torch.tensor([side - self.cutout + 1 for side in self.split.images.shape[1:3]])
        return torch.randint(0, math.lcm(*places.tolist()), (n, 2), generator=random) % places

    def _mirrored(self) -> Bool[Tensor, " n"]:
        """Mark the images that this epoch mirrors: a random half, then the other half, in turn.

        Two epochs show every image both ways (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024).
        """
        first = torch.rand(len(self.split), generator=torch.Generator().manual_seed(self.seed)) < 0.5
        return (first ^ bool(self.epoch % 2)) & self.split.flips


@dataclass(frozen=True)
class Data:
    """A data set in three splits.

    Attributes:
        name: of the data set.
        classes: number of classes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    def to(self, device) -> "Data":
        return replace(self, **{name: getattr(self, name).to(device) for name in ("train", "validation", "test")})

    def example(self, size: int = CALIBRATION) -> Float[Tensor, "b c h w"]:
        """The first `size` training images, normalised: a calibration batch."""
        return self.train.normalized(self.train.images[:size])


def shifted(
    images: UInt8[Tensor, "n h w c"],
    chosen: Int64[Tensor, " b"],
    shifts: Int64[Tensor, "b 2"],
    mirrored: Bool[Tensor, " b"],
) -> UInt8[Tensor, "b h w c"]:
    """Move the chosen images by (down, across) pixels, mirror some of them, all in one gather.

    Pixels from beyond an edge are reflected at it, without the outermost row or column.
    """
    height, width = images.shape[1:3]
    down, across = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    across = torch.where(mirrored[:, None], width - 1 - across, across)
    rows, columns = _reflected(down + shifts[:, :1], height), _reflected(across + shifts[:, 1:], width)
    return images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def painted(
    images: UInt8[Tensor, "b h w c"], corners: Int64[Tensor, "b 2"], size: int, colour: tuple[float, ...]
) -> UInt8[Tensor, "b h w c"]:
    """Paint a square of each image, from its upper left corner on, in one colour (channels in [0, 1])."""
    away = [torch.arange(side, device=images.device) - corners[:, i, None] for i, side in enumerate(images.shape[1:3])]
    rows, columns = ((distance >= 0) & (distance < size) for distance in away)
    paint = (_levels(colour, images.device) + 0.5).to(torch.uint8)
    return torch.where((rows[:, :, None] & columns[:, None, :])[..., None], paint, images)


def _reflected(positions: Tensor, side: int) -> Tensor:
    return side - 1 - (side - 1 - positions.abs()).abs()


@functools.cache
def _levels(channels: tuple[float, ...], device: torch.device) -> Float[Tensor, " c"]:
    """Convert channels from [0, 1] to [0, 255], once: a copy to the device in every batch would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(channels, device=device) * 255
