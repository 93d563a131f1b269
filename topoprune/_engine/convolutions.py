"""Convolutions of small images as products of matrices, for processors that compute in bfloat16.

oneDNN feeds the units of such a processor one row of an image at a time. A row of two pixels leaves most of a unit
idle; the matrix of the neighbourhoods of all pixels fills it (im2col; Chellapilla et al., "High performance
convolutional neural networks for document processing", 2006). `measure.training` times both.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

LARGEST, MANY = 4, 100_000
"""Columns and weights for which a product is faster. oneDNN is as fast at 8 columns, or with about 100 filters."""


class SmallAsProducts(TorchFunctionMode):
    """Within it, convolutions of images of at most `columns` columns with at least `weights` weights are products.

    A convolution with a stride, a dilation, groups, an even kernel or a padding other than half the kernel is not, nor
    one in float64 under autocast, which leaves float64 alone.
    """

    def __init__(self, columns: int = LARGEST, weights: int = MANY):
        super().__init__()
        self.columns, self.weights = columns, weights

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and self.pays(*args, **(kwargs or {})):
            return _product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def pays(self, input: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
        """Tell whether the convolution of these arguments becomes a product."""
        kernel = tuple(weight.shape[2:])
        return (
            input.ndim == 4
            and input.shape[-1] <= self.columns
            and weight.numel() >= self.weights
            and all(size % 2 for size in kernel)
            and padding in ("same", tuple(size // 2 for size in kernel))
            and stride in (1, (1, 1))
            and dilation in (1, (1, 1))
            and groups == 1
            and not (torch.float64 in (input.dtype, weight.dtype) and torch.is_autocast_enabled(input.device.type))
        )


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None, *_, **__) -> Tensor:
    device = input.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    return _ConvolutionProduct.apply(*(None if x is None else x.to(dtype) for x in (input, weight, bias)))


class _ConvolutionProduct(torch.autograd.Function):
    """A convolution and its gradients, one product each."""

    @staticmethod
    def forward(
        ctx, images: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c k m"], bias: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "b d h w"]:
        near = _neighbourhoods(images, weight.shape[2:])
        ctx.save_for_backward(near, weight)
        matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
        pixels = near @ matrix if bias is None else torch.addmm(bias, near, matrix)
        return _images(pixels, images)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Float[Tensor, "b d h w"]):
        near, weight = ctx.saved_tensors
        of_images = of_weight = of_bias = None
        pixels = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        if ctx.needs_input_grad[0]:  # a convolution with the kernel turned by 180 degrees
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)
            of_images = _images(_neighbourhoods(gradient, weight.shape[2:]) @ turned, gradient)
        if ctx.needs_input_grad[1]:
            d, c, k, m = weight.shape
            of_weight = (pixels.T @ near).view(d, k, m, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = pixels.sum(0)
        return of_images, of_weight, of_bias


def _neighbourhoods(images: Float[Tensor, "b c h w"], kernel: torch.Size) -> Float[Tensor, "bhw kmc"]:
    """The neighbourhood of each pixel as a row, zero beyond the edges."""
    (h, w), (k, m) = images.shape[2:], kernel
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, m // 2, m // 2, k // 2, k // 2))
    return torch.cat([padded[:, i : i + h, j : j + w] for i in range(k) for j in range(m)], 3).flatten(0, 2)


def _images(pixels: Float[Tensor, "bhw d"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """Images of the size of `like`, in channels_last layout."""
    b, _, h, w = like.shape
    return pixels.view(b, h, w, pixels.shape[1]).permute(0, 3, 1, 2)
