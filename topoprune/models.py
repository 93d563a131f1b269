"""The network of the study."""

from collections import OrderedDict

from torch import nn


def build(architecture: str, classes: int = 10, width: float = 1.0) -> nn.Module:
    """Build a network with random weights (`torch.manual_seed` repeats them).

    VGG-16 has BatchNorm and takes images of 32 x 32 pixels: one linear layer follows the thirteen convolutions and five
    poolings, as is usual for CIFAR-10 (Simonyan & Zisserman, ICLR 2015).

    Args:
        architecture: "vgg16".
        classes: number of classes.
        width: multiplier of the number of filters of every layer, in (0, 4]; VGG-16 has 64 to 512 at width 1.

    Raises:
        ValueError: unknown architecture, or a width out of range.

    Example:
        >>> model = build("vgg16", classes=10, width=0.25)
        >>> sum(parameter.numel() for parameter in model.parameters())
        924186
    """
    from torchvision.models import vgg  # here: it takes seconds to import

    if architecture != "vgg16":
        raise ValueError(f"unknown architecture {architecture!r}: choose vgg16")
    if not 0 < width <= 4:
        raise ValueError(f"width must lie in (0, 4], got {width}: it multiplies 64 to 512 filters")
    layout = [v if v == "M" else max(1, round(v * width)) for v in vgg.cfgs["D"]]
    features, classifier = vgg.make_layers(layout, batch_norm=True), nn.Linear(layout[-2], classes)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))
