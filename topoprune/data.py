"""Images and labels in three splits, resident on one device."""

import functools
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

CALIBRATION = 256
"""Training images of CIFAR-10 held out for validation."""


@dataclass(frozen=True)
class Split:
    """Images and labels.

    Attributes:
        images: (n, 32, 32, 3), channels last: the layout that convolutions run fastest in.
        labels: (n,) class indices.
    """

    images: UInt8[Tensor, "n 32 32 3"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """One data set in its three splits, with what is needed to feed a network.

    Attributes:
        name: a key of `DATASETS`.
        mean, std: per channel, in [0, 1], of the training split.
        flips: whether a mirrored image is still the same class.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool

    def to(self, device) -> "Data":
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )

    def normalized(self, images: Tensor) -> Tensor:
        """(b, h, w, 3) uint8 -> (b, 3, h, w) float32 in channels_last layout, zero mean."""
        mean, std = on_device(self.mean, images.device), on_device(self.std, images.device)
        return ((images.float() - mean) / std).permute(0, 3, 1, 2)

    def example(self, size: int = CALIBRATION) -> Tensor:
        """The first `size` training images, normalised: a calibration batch."""
        return self.normalized(self.train.images[:size])


@functools.cache
def on_device(channels: tuple[float, ...], device: torch.device) -> Tensor:
    """Channels in [0, 1] as levels in [0, 255].

    Once for all batches: copying them would make every one of them wait for the device.
    """
    with torch.inference_mode(False):
        return torch.tensor(channels, device=device) * 255
