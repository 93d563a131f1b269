"""Small networks of the kinds that users bring, and what pruning them right means.

Rebuilt from public bug reports of pruning tools, which each name says in brief.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn


def tensors(output) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None:
        return []
    return [t for part in (output.values() if isinstance(output, dict) else output) for t in tensors(part)]


def call(model, inputs):
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def silenced(model: nn.Module, kept: dict[str, list[int]]) -> nn.Module:
    """The dense network whose removed filters give zero: weights and biases are zeroed, not cut.

    It equals the pruned network where nothing between a filter and its readers turns zero into something else.
    """
    dense = copy.deepcopy(model)
    for name, chosen in kept.items():
        layer = dense.get_submodule(name)
        transposed = getattr(layer, "transposed", False)
        filters = layer.weight.shape[1] if transposed else len(layer.weight)
        gone = sorted(set(range(filters)) - set(chosen))
        with torch.no_grad():
            (layer.weight.transpose(0, 1) if transposed else layer.weight)[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0
    return dense


def centred(model: nn.Module) -> nn.Module:
    """Give the BatchNorms scales and variances of their own, and let them map 0 to 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
    return model


def block(inputs, outputs, kernel=3, **options):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.one, self.two = block(3, 12), block(12, 10), block(10, 12)
        self.short, self.wide = block(12, 16, 1), block(12, 16)
        self.answer = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.enter(x))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        return self.answer(F.relu(self.short(x) + self.wide(x)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.grouped, self.leave = block(3, 16), block(16, 24, groups=4), block(24, 8, 1)
        self.answer = nn.Linear(8, 4)

    def forward(self, x):
        return self.answer(F.relu(self.leave(F.relu(self.grouped(F.relu(self.enter(x)))))).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self, multiplier=1):
        super().__init__()
        self.enter, self.deep = block(3, 12), block(12, 12 * multiplier, groups=12)
        self.leave, self.answer = block(12 * multiplier, 10, 1), nn.Linear(10, 4)

    def forward(self, x):
        return self.answer(F.relu(self.leave(F.relu(self.deep(F.relu(self.enter(x)))))).mean((2, 3)))


class Concatenated(nn.Module):
    """Two layers concatenated and added to a third, as wide as both; one of them is concatenated with itself."""

    def __init__(self, first=4):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, first, 3, padding=1), nn.Conv2d(3, 16 - first, 1), nn.Conv2d(3, 16, 1)
        self.d, self.e = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.answer = nn.Linear(6, 4)

    def forward(self, x):
        joined = F.relu(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))
        deep = F.relu(self.d(joined))
        return self.answer(F.relu(self.e(torch.cat([deep, deep], 1))).mean((2, 3)))


class Shared(nn.Module):
    """One layer called twice, the second time on its own output."""

    def __init__(self):
        super().__init__()
        self.enter, self.again, self.leave = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(12, 8, 1),
        )
        self.answer = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.again(F.relu(self.again(F.relu(self.enter(x))))))
        return self.answer(F.relu(self.leave(x)).mean((2, 3)))


class Squeezed(nn.Module):
    """Squeeze and excitation by linear layers, and a spatial gate of one channel."""

    def __init__(self):
        super().__init__()
        self.enter, self.down, self.back = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 6), nn.Linear(6, 16)
        self.where = nn.Conv2d(16, 1, 1)
        self.after, self.answer = nn.Conv2d(16, 10, 3, padding=1), nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.enter(x))
        x = x * self.back(F.relu(self.down(x.mean((2, 3))))).sigmoid()[..., None, None]
        x = x * self.where(x).sigmoid()
        return self.answer(F.relu(self.after(x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.merge = nn.ConvTranspose2d(16, 10, 2, stride=2), nn.Conv2d(18, 12, 3, padding=1)
        self.answer = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        skip = F.relu(self.enter(x))
        deep = F.relu(self.deep(F.max_pool2d(skip, 2)))
        return {"mask": self.answer(F.relu(self.merge(torch.cat([F.relu(self.up(deep)), skip], 1)))), "skip": None}


class Halves(nn.Module):
    """A layer cut in two halves, one refined with a shortcut, all concatenated (C2f of YOLOv8)."""

    def __init__(self):
        super().__init__()
        self.enter, self.cut = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.join, self.answer = nn.Conv2d(24, 10, 1), nn.Linear(10, 4)

    def forward(self, x):
        left, right = F.silu(self.cut(F.silu(self.enter(x)))).chunk(2, 1)
        more = right + F.silu(self.two(F.silu(self.one(right))))
        return self.answer(F.silu(self.join(torch.cat([left, right, more], 1))).mean((2, 3)))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.answer = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 10, 3, padding=1),
            nn.Linear(10, 4),
        )

    def forward(self, x):
        x = F.relu(self.one(x))
        b, c, h, w = x.shape
        x = x.view(b, 3, c // 3, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        return self.answer(F.relu(self.two(x)).mean((2, 3)))


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 16, 3)
        self.three, self.answer = nn.Linear(16 * 9, 20), nn.Linear(20, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.two(F.relu(self.one(x)))), 4)
        return self.answer(F.relu(self.three(x.flatten(1))))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3, padding=1), nn.ReLU())
        self.answer = nn.Linear(20, 4)

    def forward(self, left, right):
        return self.answer(torch.cat([self.body(left).mean((2, 3)), self.body(right).mean((2, 3))], 1))


class Unflattened(nn.Module):
    """A linear layer makes the channels of an image, which are added to those of a convolution."""

    def __init__(self):
        super().__init__()
        self.seed, self.mix, self.last = nn.Linear(16, 8 * 16), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, z):
        x = F.relu(self.seed(z)).unflatten(1, (-1, 4, 4))
        return self.last(F.relu(x + self.mix(x)))


class Rows(nn.Module):
    """Convolutions of one dimension."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.answer = nn.Conv1d(3, 12, 3), nn.Conv1d(12, 10, 3), nn.Linear(10, 4)

    def forward(self, x):
        return self.answer(F.relu(self.two(F.relu(self.one(x)))).mean(2))


class TwoAnswers(nn.Module):
    """Logits and features are both answers, in training an auxiliary classifier too."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Conv2d(10, 8, 3))
        self.aux, self.answer = nn.Conv2d(12, 4, 1), nn.Linear(8, 4)

    def forward(self, x):
        first = F.relu(self.one(x))
        second = F.relu(self.two(first))
        logits = self.answer(F.relu(self.three(second)).mean((2, 3)))
        if self.training:
            return logits, second, self.aux(first).mean((2, 3))
        return logits, second


class ChannelsLast(nn.Module):
    """Linear layers read what was permuted, without a copy."""

    def __init__(self):
        super().__init__()
        self.enter, self.wide, self.narrow = nn.Conv2d(3, 12, 3), nn.Linear(12, 20), nn.Linear(20, 12, bias=False)
        self.leave, self.answer = nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.enter(x))
        x = x + self.narrow(F.relu(self.wide(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.answer(F.relu(self.leave(x)).flatten(2).transpose(1, 2)).mean(1)


class Circular(nn.Module):
    def __init__(self):
        super().__init__()
        around = {"padding": (1, 2), "padding_mode": "circular"}
        self.one, self.two = nn.Conv2d(3, 12, 3, **around), nn.Conv2d(12, 10, 3, **around)
        self.three, self.answer = nn.Conv2d(10, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = F.pad(F.relu(self.two(F.relu(self.one(x)))), (2, 0, 1, 3), mode="circular")
        return self.answer(F.relu(self.three(x)).mean((2, 3)))


class Padded(nn.Module):
    """Pads with zeros before its layers, an even kernel in the layer, and crops."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3, stride=2)
        self.pad, self.three = nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(10, 8, (2, 4), padding="same")
        self.four, self.answer = nn.Linear(8 * 4, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.three(F.relu(self.two(self.pad(F.relu(self.one(x)))))))
        return self.answer(F.relu(self.four(F.max_pool2d(F.pad(x, (-1, 0, 0, -1)), 3).flatten(1))))


class SelectiveKernels(nn.Module):
    """Two branches, stacked, and weighted channel by channel: SKNet, CVPR 2019."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 5, padding=2)
        self.squeeze, self.gates = nn.Linear(12, 6), nn.ModuleList([nn.Linear(6, 12), nn.Linear(6, 12)])
        self.answer = nn.Linear(12, 5)

    def forward(self, x):
        branches = torch.stack([F.relu(self.small(x)), F.relu(self.large(x))], 1)
        context = F.relu(self.squeeze(branches.sum(1).mean((2, 3))))
        weights = torch.stack([gate(context) for gate in self.gates], 1).softmax(1)
        return self.answer((branches * weights[..., None, None]).sum(1).mean((2, 3)))


class Experts(nn.Module):
    """A gate for each of two convolutions; the halves of their channels compete, or gate one another."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.one, self.two = nn.Conv2d(8, 24, 3), nn.Conv2d(8, 24, 3)
        self.competing, self.gated = nn.Conv2d(12, 16, 3), nn.Conv2d(12, 16, 3)
        self.answer = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        weights = self.gate(x.mean((2, 3))).softmax(1)
        x = (torch.stack([self.one(x), self.two(x)], 1) * weights[:, :, None, None, None]).sum(1)
        strongest = x.unflatten(1, (2, -1)).amax(1)
        return self.answer(F.glu(torch.cat([self.competing(strongest), self.gated(strongest)], 1), 1))


class Blurred(nn.Module):
    """A blur with a fixed kernel for each channel (Zhang, ICML 2019), a shuffle, the largest values of each channel."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)
        self.shuffle, self.answer = nn.ChannelShuffle(2), nn.Linear(8, 5)
        self.register_buffer("kernel", torch.rand(12, 1, 3, 3))

    def forward(self, x):
        x = F.conv2d(F.relu(self.one(x)), self.kernel, stride=2, groups=len(self.kernel))
        x = F.relu(self.two(self.shuffle(x))).flatten(2)
        return self.answer(x.topk(3)[0].mean(2) + x.median(2)[0])


class ChangesItsInput(Residual):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "residual": (Residual, IMAGES),
    "grouped": (Grouped, IMAGES),
    "depthwise": (Depthwise, IMAGES),
    "depthwise, two filters a channel": (lambda: Depthwise(2), IMAGES),
    "concatenated": (Concatenated, IMAGES),
    "shared": (Shared, IMAGES),
    "squeezed": (Squeezed, IMAGES),
    "U-Net": (UNet, IMAGES),
    "halves": (Halves, IMAGES),
    "shuffled": (Shuffled, IMAGES),
    "flattened": (Flattened, IMAGES),
    "siamese": (Siamese, (IMAGES, IMAGES.flip(0))),
    "siamese by name": (Siamese, {"left": IMAGES, "right": IMAGES.flip(0)}),
    "unflattened": (Unflattened, torch.randn(2, 16, generator=torch.Generator().manual_seed(0))),
    "two answers": (TwoAnswers, IMAGES),
    "channels last": (ChannelsLast, IMAGES),
    "circular": (Circular, IMAGES),
    "padded": (Padded, IMAGES),
    "selective kernels": (SelectiveKernels, IMAGES),
    "experts": (Experts, IMAGES),
    "blurred": (Blurred, IMAGES),
}
"""Name -> the network's class and example inputs."""
