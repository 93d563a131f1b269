"""The networks of the study."""

from collections import OrderedDict

from torch import nn
from torchvision.models import vgg


def vgg16(classes: int = 10, width: float = 1.0) -> nn.Module:
    """VGG-16 with BatchNorm for 32x32 images (Simonyan & Zisserman, 2015; 14.7 M parameters).

    The thirteen convolutions are torchvision's; after five poolings one linear layer answers, as
    is usual for CIFAR-10.

    Args:
        classes: number of classes.
        width: multiplier of every layer's number of filters (1.0: 64 to 512).

    Raises:
        ValueError: a width that leaves no filter.
    """
    if not 0 < width <= 4:
        raise ValueError(f"width must lie in (0, 4], got {width}: it multiplies 64 to 512 filters")
    layout = [v if v == "M" else max(1, round(v * width)) for v in vgg.cfgs["D"]]
    model = nn.Sequential(
        OrderedDict(
            features=vgg.make_layers(layout, batch_norm=True),
            flatten=nn.Flatten(),
            classifier=nn.Linear(layout[-2], classes),
        )
    )
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


ARCHITECTURES = {"vgg16": vgg16}


def build(architecture: str, classes: int = 10, width: float = 1.0) -> nn.Module:
    """A new network with random weights (seed torch first).

    Raises:
        ValueError: unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: choose from {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](classes=classes, width=width)
