"""Batches of shuffled, shifted, mirrored and cut-out images, made on the device."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from topoprune.data import Data, on_device

SIDE = 32
"""Pixels of an image, either way."""


def mirrored_images(data: Data, seed: int, epoch: int) -> Bool[Tensor, " n"]:
    """Which training images this epoch mirrors: a random half, then the other half, in turn.

    Two epochs so show every image both ways (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024).
    """
    first = torch.rand(len(data.train), generator=torch.Generator().manual_seed(seed)) < 0.5
    return (first ^ bool(epoch % 2)) & data.flips


def augmented(
    data: Data, batch: int, shift: int, cutout: int, random: torch.Generator, mirrored: Bool[Tensor, " n"]
) -> Iterator:
    """Shuffled batches of shifted and mirrored images, a square of each cut out, on the device."""
    device = data.train.labels.device
    n = len(data.train) // batch * batch
    order = torch.randperm(len(data.train), generator=random)[:n].to(device)
    shifts = torch.randint(0, 2 * shift + 1, (n, 2), generator=random).to(device)
    if cutout:  # drawn last: without it the numbers are those of older records
        corners = torch.randint(0, SIDE - cutout + 1, (n, 2), generator=random).to(device)
    padded = _padded(data.train.images, shift)
    for part in range(0, n, batch):
        rows = slice(part, part + batch)
        images = _crop(padded, order[rows], shifts[rows], mirrored[order[rows]])
        if cutout:
            images = _painted(images, corners[rows], cutout, data.mean)
        yield images, data.train.labels[order[rows]]


def _padded(images: UInt8[Tensor, "n h w c"], shift: int) -> UInt8[Tensor, "n H W c"]:
    """Edges mirrored, without repeating the outermost row and column."""
    side = images.shape[1]
    rows = (torch.arange(-shift, side + shift, device=images.device).abs() - (side - 1)).abs()
    rows = side - 1 - rows
    return images[:, rows[:, None], rows]


def _crop(
    padded: UInt8[Tensor, "n H W c"], chosen: Int64[Tensor, " b"], shifts: Int64[Tensor, "b 2"], mirrored
) -> UInt8[Tensor, "b h w c"]:
    """Each chosen image at its own shift, some mirrored, in one gather."""
    side = torch.arange(SIDE, device=padded.device)
    columns = torch.where(mirrored[:, None], SIDE - 1 - side, side) + shifts[:, 1:]
    rows = side + shifts[:, :1]
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def _painted(
    images: UInt8[Tensor, "b h w c"], corners: Int64[Tensor, "b 2"], size: int, colour: tuple[float, ...]
) -> UInt8[Tensor, "b h w c"]:
    """A square of each image, from its upper left corner on, in one colour (channels in [0, 1])."""
    away = torch.arange(SIDE, device=images.device) - corners[:, :, None]
    rows, columns = ((away >= 0) & (away < size)).unbind(1)
    paint = (on_device(colour, images.device) + 0.5).to(torch.uint8)
    return torch.where((rows[:, :, None] & columns[:, None, :])[..., None], paint, images)
