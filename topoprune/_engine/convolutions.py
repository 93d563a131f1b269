"""Convolutions of small images as products of matrices, for processors that compute in bfloat16.

oneDNN feeds their units one row of an image at a time. A row of two pixels leaves most of a unit idle;
the matrix that holds every pixel's neighbourhood fills it (im2col; Chellapilla et al., "High performance
convolutional neural networks for document processing", 2006). `bench_training` measures both.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

LARGEST, MANY = 4, 100_000
"""A product is what has rows of at most so many pixels (`small`) and at least so many weights: at 8
pixels, or with about 100 filters before and after, oneDNN is as fast."""


def small() -> int:
    """Columns of the largest image whose convolution is faster as a product on this processor.

    Units that multiply whole tiles (Intel's AMX) lose more on a short row than those of AVX-512.
    """
    return LARGEST if torch.cpu._is_amx_tile_supported() else 2


class SmallAsProducts(TorchFunctionMode):
    """Within it, convolutions of small images are products of matrices.

    Those with a stride, a dilation, groups, an even kernel or another padding than half the kernel stay
    as they are.

    Args:
        columns: of the largest image that is small.
        weights: that a convolution has at least.
    """

    def __init__(self, columns: int = LARGEST, weights: int = MANY):
        super().__init__()
        self.columns, self.weights = columns, weights

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.conv2d and self._pays(*args, **kwargs):
            return _convolved(*args, **kwargs)
        return func(*args, **kwargs)

    def _pays(self, input: Tensor, weight: Tensor, *args, **kwargs) -> bool:
        return (
            input.shape[-1] <= self.columns
            and weight.numel() >= self.weights
            and _is_plain(input, weight, *args, **kwargs)
        )


def _is_plain(input: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
    kernel = tuple(weight.shape[2:])
    half = tuple(size // 2 for size in kernel)
    return (
        input.ndim == 4
        and all(size % 2 for size in kernel)
        and padding in ("same", half)
        and stride in (1, (1, 1))
        and dilation in (1, (1, 1))
        and groups == 1
    )


def _convolved(input, weight, bias=None, *_, **__) -> Tensor:
    kind = input.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
    return _ConvolutionProduct.apply(*(None if x is None else x.to(dtype) for x in (input, weight, bias)))


class _ConvolutionProduct(torch.autograd.Function):
    """The convolution and its gradients, each one product."""

    @staticmethod
    def forward(
        ctx, images: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c k m"], bias: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "b d h w"]:
        near = _neighbourhoods(images, weight.shape[2:])
        ctx.save_for_backward(near, weight)
        matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
        made = near @ matrix if bias is None else torch.addmm(bias, near, matrix)
        return _images(made, images)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Float[Tensor, "b d h w"]):
        near, weight = ctx.saved_tensors
        of_images = of_weight = of_bias = None
        pixels = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        if ctx.needs_input_grad[0]:  # the convolution with the kernel turned by 180 degrees
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)
            of_images = _images(_neighbourhoods(gradient, weight.shape[2:]) @ turned, gradient)
        if ctx.needs_input_grad[1]:
            d, c, k, m = weight.shape
            of_weight = (pixels.T @ near).view(d, k, m, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = pixels.sum(0)
        return of_images, of_weight, of_bias


def _neighbourhoods(images: Float[Tensor, "b c h w"], kernel: torch.Size) -> Float[Tensor, "bhw kmc"]:
    """Each pixel's neighbourhood as a row, zeros beyond the edges."""
    h, w = images.shape[2:]
    k, m = kernel
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, m // 2, m // 2, k // 2, k // 2))
    shifted = [padded[:, i : i + h, j : j + w] for i in range(k) for j in range(m)]
    return torch.cat(shifted, 3).flatten(0, 2)


def _images(pixels: Float[Tensor, "bhw d"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """In channels_last layout."""
    b, _, h, w = like.shape
    return pixels.view(b, h, w, pixels.shape[1]).permute(0, 3, 1, 2)
