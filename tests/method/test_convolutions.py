"""Convolutions as products of matrices give what PyTorch's own give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from topoprune._engine import convolutions

KERNELS = st.sampled_from([1, 3, 5])
SMALL_SIDES = st.integers(1, convolutions.LARGEST)


def layer_of(*arguments, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*arguments, **options)


def values(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output_and_gradients(layer, images, gradient) -> list[torch.Tensor]:
    images = images.detach().requires_grad_()
    output = layer(images)
    return [output.detach(), *torch.autograd.grad(output, [images, *layer.parameters()], gradient.to(output.dtype))]


@given(
    st.integers(0, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    SMALL_SIDES,
    st.tuples(KERNELS, KERNELS),
    st.booleans(),
)
def test_values_and_gradients_are_those_of_the_convolution(b, c, d, h, w, kernel, bias):
    layer = layer_of(c, d, kernel, padding="same", bias=bias).double()
    images, gradient = values(b, c, h, w).double(), values(b, d, h, w, seed=2).double()
    expected = output_and_gradients(layer, images, gradient)
    with convolutions.SmallAsProducts(weights=0):
        found = output_and_gradients(layer, images, gradient)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast_values_are_of_its_precision_and_gradients_of_the_weights():
    layer = layer_of(64, 32, 3, padding=1)
    images, gradient = values(8, 64, 4, 4), values(8, 32, 4, 4, seed=2)
    exact = output_and_gradients(layer, images, gradient)
    with torch.autocast("cpu", torch.bfloat16), convolutions.SmallAsProducts(weights=0):
        found = output_and_gradients(layer, images, gradient)
    assert [x.dtype for x in found] == [torch.bfloat16, *[torch.float32] * 3]
    for one, other in zip(found, exact, strict=True):
        assert (one.float() - other).norm() < 2**-7 * other.norm()


@pytest.mark.parametrize("types", [(torch.float64, torch.float64), (torch.float32, torch.float64)])
def test_autocast_leaves_float64_alone(types):
    images, layer = values(2, 64, 2, 2).to(types[0]), layer_of(64, 32, 3, padding=1).to(types[1])

    def convolve():
        try:
            return layer(images)
        except RuntimeError as error:  # of types that cannot be mixed
            return type(error)

    with torch.autocast("cpu", torch.bfloat16):
        expected = convolve()
        with convolutions.SmallAsProducts(weights=0):
            found = convolve()
    assert torch.equal(found, expected) if types[0] is types[1] else found is expected is RuntimeError


def is_product(layer, side) -> bool:
    with (
        profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled,
        torch.autocast("cpu", torch.bfloat16),
        convolutions.SmallAsProducts(weights=0),
    ):
        layer(values(2, 4, side, side))
    names = {event.name for event in profiled.events()}
    assert ("aten::addmm" in names or "aten::mm" in names) != ("aten::convolution" in names)
    return "aten::convolution" not in names


@pytest.mark.parametrize(
    ("side", "settings", "expected"),
    [
        (4, {"padding": 1}, True),
        (4, {"padding": "same"}, True),
        (2, {"padding": 1, "bias": False}, True),
        (convolutions.LARGEST + 1, {"padding": 1}, False),
        (4, {"padding": 0}, False),
        (4, {"padding": 1, "stride": 2}, False),
        (4, {"padding": 1, "kernel_size": 2}, False),
        (4, {"padding": 2, "dilation": 2}, False),
        (4, {"padding": 1, "groups": 4}, False),
    ],
)
def test_only_small_images_and_plain_convolutions_are_products(side, settings, expected):
    assert is_product(nn.Conv2d(4, 4, **{"kernel_size": 3, **settings}), side) == expected


def test_the_layout_is_channels_last():
    with torch.autocast("cpu", torch.bfloat16), convolutions.SmallAsProducts(weights=0):
        output = nn.Conv2d(4, 6, 3, padding=1)(values(2, 4, 4, 4))
    assert output.is_contiguous(memory_format=torch.channels_last)
