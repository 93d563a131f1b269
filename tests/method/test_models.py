"""The network of the study is the one that the literature prunes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topoprune import build
from topoprune.costs import flops


def test_vgg16_has_the_size_that_the_literature_names():
    with torch.device("meta"):
        model = build("vgg16")
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(14.7e6, rel=0.01)
        assert flops(model, torch.empty(1, 3, 32, 32)) == pytest.approx(313e6, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(width=st.floats(0.001, 1.0), classes=st.integers(1, 20))
def test_the_width_multiplies_the_filters_of_every_layer_and_leaves_at_least_one(width, classes):
    with torch.device("meta"):
        full, narrow = build("vgg16", classes), build("vgg16", classes, width)
        for whole, layer in zip(full.features, narrow.features, strict=True):
            if isinstance(whole, nn.Conv2d):
                assert layer.out_channels == max(1, round(width * whole.out_channels))
        assert narrow(torch.empty(2, 3, 32, 32)).shape == (2, classes)


def test_one_seed_builds_one_network():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build("vgg16", width=1 / 16).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["features.0.weight"], states[2]["features.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", 10, 1.0), "unknown architecture 'resnet': choose vgg16"),
        (("vgg16", 10, 0.0), r"width must lie in \(0, 4\], got 0.0: it multiplies 64 to 512 filters"),
        (("vgg16", 10, 4.5), r"width must lie in \(0, 4\], got 4.5"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)
