"""Removal against masking, FLOPs against the literature, networks that we did not write."""

import pytest
import torch
import torch_pruning as tp
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topoprune
from topoprune.models import build
from topoprune.network import couplings

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small_vgg(width=1 / 16):
    torch.manual_seed(0)
    return build("vgg16", width=width).eval()


def test_vgg16_costs_what_the_literature_says():
    model = build("vgg16")
    cost = topoprune.cost(model, EXAMPLE, seconds=0.01)
    assert cost.parameters == pytest.approx(14.7e6, rel=0.003)
    assert 313e6 <= cost.flops <= 314.1e6
    assert cost.latency_ms > 0 and cost.images_per_second > 0


def test_flops_agree_with_torch_pruning_on_convolutions():
    """Torch-Pruning counts BatchNorm and ReLU too, so the networks have none."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 32 * 32, 10, bias=False)
    )
    expected, _ = tp.utils.count_ops_and_params(model, EXAMPLE[:1])
    assert topoprune.cost(model, EXAMPLE, seconds=0.01).flops == expected


def test_cost_leaves_the_training_mode_alone():
    model = small_vgg().train()
    topoprune.cost(model, EXAMPLE, seconds=0.01)
    assert model.training


@settings(max_examples=8, deadline=None)
@given(ratio=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_removal_equals_masking_where_beta_is_zero(ratio, seed):
    """A masked filter gives zero after BatchNorm only if beta is zero; then both agree."""
    model = small_vgg()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
        elif isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    kept = topoprune.select(model, EXAMPLE, "random", ratio, seed)
    small = topoprune.remove(model, EXAMPLE, kept)
    modules = dict(model.named_modules())
    for layer, chosen in kept.items():
        mask = torch.zeros(modules[layer].out_channels, 1, 1, 1)
        mask[chosen] = 1
        modules[layer].weight.data *= mask
    with torch.no_grad():
        torch.testing.assert_close(small(EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_removal_leaves_the_given_model_untouched(training):
    model = small_vgg().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = topoprune.remove(model, EXAMPLE, topoprune.select(model, EXAMPLE, "l1", 0.5))
    after = model.state_dict()
    assert all(module.training is training for module in model.modules())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert small.features[0].out_channels == model.features[0].out_channels // 2


def test_removal_keeps_the_chosen_filters_in_order():
    model = small_vgg()
    small = topoprune.remove(model, EXAMPLE, {"features.0": [3, 1]})
    assert torch.equal(small.features[0].weight, model.features[0].weight[[1, 3]])
    assert torch.equal(small.features[3].weight, model.features[3].weight[:, [1, 3]])


@pytest.mark.parametrize(
    "name",
    [
        "vgg16_bn",
        "resnet18",
        "mobilenet_v2",
        "resnext50_32x4d",
        "densenet121",
        "squeezenet1_1",
        "efficientnet_b0",
        "regnet_y_400mf",
        "shufflenet_v2_x0_5",
        "mobilenet_v3_small",
    ],
)
def test_networks_that_we_did_not_write(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    example = torch.randn(2, 3, 64, 64)
    kept = topoprune.select(model, example, "l1", 0.5)
    small = topoprune.remove(model, example, kept).eval()
    with torch.no_grad():
        assert small(example).shape == (2, 7)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert after < 0.75 * before
    modules = dict(small.named_modules())
    for layer, chosen in kept.items():
        produced = getattr(modules[layer], "out_channels", None) or modules[layer].out_features
        assert produced == len(chosen)


def test_layers_joined_by_an_addition_share_one_choice():
    model = torchvision.models.resnet18(num_classes=7).eval()
    example = torch.randn(2, 3, 64, 64)
    groups = {group.layers[0]: group.layers for group in couplings(model, example)}
    assert groups["conv1"] == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    assert groups["layer1.0.conv1"] == ("layer1.0.conv1",)
    kept = topoprune.select(model, example, "fpgm", 0.5)
    assert kept["conv1"] == kept["layer1.0.conv2"] == kept["layer1.1.conv2"]


def test_grouped_convolutions_keep_the_same_positions_in_every_group():
    model = torchvision.models.resnext50_32x4d(num_classes=7).eval()
    example = torch.randn(2, 3, 64, 64)
    kept = topoprune.select(model, example, "l2", 0.5)["layer1.0.conv2"]
    positions = torch.tensor(kept).reshape(32, -1) % 4
    assert (positions == positions[0]).all()


def test_the_class_scores_are_never_pruned():
    model = torchvision.models.squeezenet1_1(num_classes=7).eval()
    groups = couplings(model, torch.randn(2, 3, 64, 64))
    assert all("classifier.1" not in group.layers for group in groups)


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="nothing to prune: Sequential has no Conv2d layer"):
        couplings(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), EXAMPLE)


def test_inputs_that_the_model_refuses_are_named():
    with pytest.raises(ValueError, match=r"Sequential does not run on example inputs of shape \(2, 5, 8"):
        couplings(small_vgg(), torch.zeros(2, 5, 8, 8))


@pytest.mark.parametrize(
    "kept, message",
    [
        ({"features.1": [0]}, "unknown layer 'features.1'"),
        ({"features.0": []}, "features.0 would keep no filter"),
        ({"features.0": [0, 4]}, r"features.0 has filters 0 to 3, got \[4\]"),
    ],
)
def test_a_wrong_choice_is_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        topoprune.remove(small_vgg(), EXAMPLE, kept)


def test_coupled_layers_must_agree():
    model = torchvision.models.resnet18(num_classes=7).eval()
    with pytest.raises(ValueError, match="share their channels"):
        topoprune.remove(model, torch.randn(2, 3, 64, 64), {"conv1": [0, 1], "layer1.0.conv2": [2, 3]})
