"""Removal against masking, FLOPs against the literature, networks that we did not write."""

import contextlib
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
import torchvision
from foreign import IMAGES, ChangesItsInput, Depthwise, Grouped, Residual, centred
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topoprune
from topoprune.costs import flops, latency_ms
from topoprune.models import build
from topoprune.network import PruningWarning, couplings, structure
from topoprune.passes import batch_size, first_inputs

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


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False), nn.GroupNorm(2, 8)])
def test_flops_without_values_are_those_with_them(norm):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert flops(model.to("meta"), EXAMPLE.to("meta")) == flops(model.to_empty(device="cpu"), EXAMPLE) > 0


def test_a_norm_of_another_size_is_refused_without_values_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)).to("meta")
    with pytest.raises(ValueError, match="does not run"):
        flops(model, EXAMPLE.to("meta"))


def test_flops_agree_with_torch_pruning_on_convolutions():
    """Torch-Pruning counts BatchNorm and ReLU too, so the networks have none."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 32 * 32, 10, bias=False)
    )
    expected, _ = tp.utils.count_ops_and_params(model, EXAMPLE[:1])
    assert topoprune.cost(model, EXAMPLE, seconds=0.01).flops == expected


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.alone, self.answer = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        x = self.body(x)
        return self.answer(self.alone(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("enabled", [True, False])
def test_attention_is_counted_and_its_fused_operations_stay_as_they_were(enabled):
    """Per layer, four 16 x 16 matrices for each of 10 tokens and two products of 10 x 10 x 16."""
    model, tokens, before = Attends(), torch.randn(2, 10, 16), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        expected = 2 * (10 * 4 * 16 * 16 + 2 * 10 * 10 * 16) + 10 * 2 * 16 * 32 + 10 * 16 * 3
        assert flops(model, tokens) == topoprune.cost(model, tokens, seconds=0.001).flops == expected
        assert flops(model.to("meta"), tokens.to("meta")) == expected
        with pytest.raises(ValueError, match="does not run on"):
            flops(Attends(), torch.randn(2, 10, 15))
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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
        pytest.param("vgg16_bn", marks=pytest.mark.slow),
        "resnet18",
        "mobilenet_v2",
        "resnext50_32x4d",
        pytest.param("densenet121", marks=pytest.mark.slow),
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
    shuffled = name.startswith("shufflenet")  # shuffles link all channels of its later stages
    with pytest.warns(PruningWarning, match="only go together") if shuffled else contextlib.nullcontext():
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


MASK = [True, False, True, True]


@pytest.mark.parametrize(
    "chosen, found",
    [
        (MASK, r"bool of shape \(4,\)"),
        (np.array(MASK), r"bool of shape \(4,\)"),
        (torch.tensor(MASK), r"bool of shape \(4,\)"),
        (torch.tensor([0.0, 2.0]), r"float64 of shape \(2,\)"),
        (["0", "2"], r"<U1 of shape \(2,\)"),
        (np.array([[0, 2]]), r"int64 of shape \(1, 2\)"),
        (torch.tensor([[0, 2]]), r"int64 of shape \(1, 2\)"),
    ],
)
def test_a_mask_is_not_read_as_indices(chosen, found):
    coupling = couplings(small_vgg(), EXAMPLE)[0]
    for call in (
        lambda: topoprune.remove(small_vgg(), EXAMPLE, {"features.0": chosen}),
        lambda: coupling.filters("features.0", chosen),
        lambda: coupling.positions({"features.0": chosen}),
    ):
        with pytest.raises(ValueError, match=f"features.0 needs integer indices, got {found}: numpy.flatnonzero"):
            call()


@pytest.mark.parametrize("chosen", [torch.tensor([0, 2]), np.array([0, 2], np.uint8), range(0, 4, 2), (2, 0)])
def test_integers_of_any_kind_name_filters(chosen):
    small = topoprune.remove(small_vgg(), EXAMPLE, {"features.0": chosen})
    assert torch.equal(small.features[0].weight, small_vgg().features[0].weight[[0, 2]])


def test_coupled_layers_must_agree():
    model = torchvision.models.resnet18(num_classes=7).eval()
    with pytest.raises(ValueError, match="share their channels"):
        topoprune.remove(model, torch.randn(2, 3, 64, 64), {"conv1": [0, 1], "layer1.0.conv2": [2, 3]})


def residual(kind=Residual):
    torch.manual_seed(0)
    return centred(kind()).eval()


CALLS = {
    "prune": lambda model, x: topoprune.prune(model, x, "l1", dry_run=True).kept,
    "select": lambda model, x: topoprune.select(model, x, "magnitude"),
    "structure": lambda model, x: structure(model, x).left_whole,
    "remove": lambda model, x: [
        p.double().sum().item() for p in topoprune.remove(model, x, {"one.0": [0, 3]}, compensate=[x] * 60).parameters()
    ],
    "cost": lambda model, x: topoprune.cost(model, x, seconds=0.001).flops,
    "flops": flops,
    "latency": lambda model, x: latency_ms(model, x, seconds=0.001) > 0,
}


class UnderAutocast(nn.Module):
    """Enters autocast in its own `forward`, as PyTorch advises for networks that run in several threads."""

    def __init__(self, inner, dtype):
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, images):
        with torch.autocast("cpu", self.dtype):
            return self.inner(images).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Residual, Grouped, Depthwise])
def test_a_network_that_enters_autocast_itself_is_pruned_as_the_plain_one(kind, dtype):
    images, plain = torch.rand(64, 3, 8, 8), residual(kind)
    model = UnderAutocast(plain, dtype).eval()
    found, expected = structure(model, images), structure(plain, images)
    assert [c.layers for c in found.couplings] == [tuple(f"inner.{x}" for x in c.layers) for c in expected.couplings]
    kept = topoprune.select(model, images, "l1")
    assert kept == {f"inner.{layer}": filters for layer, filters in topoprune.select(plain, images, "l1").items()}
    refitted = topoprune.remove(model, images, kept, compensate=images)
    errors = [
        (small(images) - model(images)).square().mean() for small in (topoprune.remove(model, images, kept), refitted)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_autocast_around_a_call_changes_nothing(call):
    model = residual()
    wanted = call(model, IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(model, IMAGES) == wanted


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_images_that_need_a_gradient_give_what_others_give(call):
    assert call(residual(), IMAGES.clone().requires_grad_()) == call(residual(), IMAGES)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_network_that_changes_its_input_leaves_the_images_alone(call):
    images = IMAGES.clone()
    call(residual(ChangesItsInput), images)
    assert torch.equal(images, IMAGES)


def test_every_timed_pass_of_a_network_that_changes_its_input_begins_with_the_images():
    class Refuses(nn.Conv2d):
        def forward(self, x):
            assert torch.equal(x, IMAGES[: len(x)])
            return super().forward(x.add_(1))

    model = Refuses(3, 4, 3)
    assert topoprune.cost(model, IMAGES, seconds=0.001).images_per_second > 0


def test_timing_takes_about_as_long_as_was_asked_for():
    calls = []

    class Sleeps(nn.Module):
        def forward(self, x):
            calls.append(time.sleep(0.01))
            return x

    assert latency_ms(Sleeps(), IMAGES, seconds=0.1) >= 10
    assert 2 < len(calls) <= 3 + 10  # three to see whether it changes its inputs and to warm up


class Counts(nn.Module):
    """Counts its calls in a buffer and in a number, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = residual(), 0
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.passes += 1
        return self.body(x + 0 * torch.rand_like(x))


@pytest.mark.parametrize("name", ["prune", "select", "structure", "cost", "flops", "latency"])
def test_the_given_network_and_the_callers_random_numbers_do_not_move(name):
    model, before = Counts(), torch.get_rng_state()
    CALLS[name](model, IMAGES)
    assert model.calls == model.passes == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("inputs", [IMAGES.numpy(), (IMAGES.numpy(),), {"x": IMAGES.numpy()}, [[0.5]], "images", None])
@pytest.mark.parametrize("call", [topoprune.couplings, topoprune.cost, topoprune.prune])
def test_inputs_that_are_no_tensors_are_named_with_their_cure(call, inputs):
    with pytest.raises(
        ValueError, match=r"Residual does not run on inputs of type \w+: pass a tensor, a tuple"
    ) as refused:
        call(residual(), inputs)
    assert "invalid combination" not in str(refused.value)


@pytest.mark.parametrize(
    "shapes, size",
    [
        ([(240, 3, 8, 8)], 240),
        ([(240, 3, 8, 8), ()], 240),
        ([(), (240, 3, 8, 8), (1, 4), (240,)], 240),
        ([(1, 3, 8, 8), (5, 4)], 1),  # one image and its boxes
        ([(8, 3, 8, 8), (5, 4)], 1),
        ([()], 1),
        ([], 1),
    ],
)
def test_the_batch_is_the_first_axis_of_the_first_input_if_the_others_share_it(shapes, size):
    inputs = tuple(torch.zeros(shape) for shape in shapes)
    assert batch_size(inputs) == size
    first = [tuple(x.shape) for x in first_inputs(inputs, 2)]
    assert first == [(2, *shape[1:]) if shape[:1] == (size,) and size > 1 else shape for shape in shapes]


class Scaled(Residual):
    def forward(self, x, scale, shift):
        return super().forward(x * scale + shift.sum())


def test_scalars_and_constants_beside_images_are_no_part_of_the_batch():
    inputs = (IMAGES.repeat(4, 1, 1, 1), torch.tensor(2.0), torch.zeros(1, 3))
    result = topoprune.prune(residual(Scaled), inputs, "l1")
    assert result.kept == topoprune.select(residual(), IMAGES, "l1")
    assert result.after.flops == topoprune.prune(residual(), IMAGES, "l1").after.flops


class Reads(nn.Module):
    """A layer without a bias, its norm, and what else reads the output of the layer."""

    def __init__(self, combine, norm=None):
        super().__init__()
        self.enter, self.layer, self.other = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1, bias=False), nn.Conv2d(6, 5, 1)
        self.norm, self.leave = norm or nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)
        self.combine = combine

    def forward(self, x):
        h = F.relu(self.enter(x))
        return self.combine(self, h, self.layer(h))


@pytest.mark.parametrize(
    "combine, norm, follows",
    [
        (lambda m, h, y: m.leave(F.relu(m.norm(y))), None, True),
        (lambda m, h, y: m.leave(F.relu(m.norm(y)) + m.other(h)), None, True),
        (lambda m, h, y: m.leave(F.relu(m.norm(y))), nn.BatchNorm2d(5, affine=False, track_running_stats=False), True),
        (lambda m, h, y: m.leave(F.relu(m.norm(y))), nn.InstanceNorm2d(5, track_running_stats=True), False),
        (lambda m, h, y: m.leave(F.relu(m.norm(y))), nn.InstanceNorm2d(5), False),
        (lambda m, h, y: m.leave(y + F.relu(m.norm(y))), None, False),
        (lambda m, h, y: m.leave(y[:, :, 1:] + F.relu(m.norm(y)[:, :, 1:])), None, False),
        (lambda m, h, y: m.leave(F.relu(m.norm(y))) + y.flatten(2).mean(2)[:, :1, None, None], None, False),
        (lambda m, h, y: (m.leave(F.relu(m.norm(y))), y), None, False),
        (lambda m, h, y: m.leave(m.norm(y.relu_())), None, False),
        (lambda m, h, y: m.leave(m.norm(y) + m.norm(m.other(h))), None, False),
        (lambda m, h, y: m.leave(F.relu(m.norm(y) + F.batch_norm(y, None, None, training=True))), None, False),
    ],
)
def test_a_batch_norm_follows_a_layer_that_nothing_else_reads(combine, norm, follows):
    found = structure(Reads(combine, norm).eval(), IMAGES).norms
    assert found == ({"layer": "norm"} if follows else {})


def test_a_shortcut_around_a_batch_norm_is_compensated_with_its_means():
    torch.manual_seed(0)
    model = Reads(lambda m, h, y: m.leave(y + 0.1 * F.relu(m.norm(y)))).eval()
    model.enter.bias.data += 3
    images, test = torch.randn(2, 240, 3, 8, 8)
    topoprune.recalibrate(model, [(images, torch.zeros(240))])
    small = [topoprune.remove(model, images, {"enter": [0, 2, 3, 5]}, compensate=c).eval() for c in (None, images)]
    with torch.no_grad():
        before, after = ((network(test) - model(test)).square().mean() for network in small)
    assert after < 0.5 * before


def test_a_network_with_a_compiled_part_is_pruned_as_the_plain_one():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU())
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), inner, nn.Conv2d(6, 4, 1)).eval()
    partly = nn.Sequential(*plain[:2], torch.compile(inner, backend="eager"), plain[3]).eval()
    images = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        partly(images[:2])
        partly(images)
    wanted, found = topoprune.prune(plain, images, "l1", 0.5), topoprune.prune(partly, images, "l1", 0.5)
    assert [*wanted.kept.values()] == [*found.kept.values()]
    assert (wanted.after.flops, wanted.after.parameters) == (found.after.flops, found.after.parameters)
    with torch.no_grad():
        torch.testing.assert_close(wanted.model(images), found.model(images))
