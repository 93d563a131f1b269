"""Compensation: equal to textbook least squares, exact where it can be, never worse, and without side effects."""

import copy
import logging
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import NETWORKS, Flattened, Grouped, Residual, Rows, call, centred, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_map_only

import topoprune
from topoprune import compensation, consumers, pruning, unfolding, unlabelled
from topoprune.network import structure
from topoprune.regression import RIDGES, Moments, ridge_regression

MODES = ["channels", "convolution"]
KEPT = [0, 2, 3, 5]


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    monkeypatch.setattr(pruning, "cost", partial(topoprune.cost, seconds=0.0))


def images(count, *shape, seed=1):
    return torch.randn(count, *(shape or (3, 8, 8)), generator=torch.Generator().manual_seed(seed))


def many(inputs, count=96, seed=1):
    """Random inputs of the same structure."""
    return tree_map_only(torch.Tensor, lambda x: images(count, *x.shape[1:], seed=seed), inputs)


def chain(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, **options))


def error(network, dense, inputs):
    with torch.no_grad():
        pairs = zip(tensors(call(network, inputs)), tensors(call(dense, inputs)), strict=True)
        return sum((answer - wanted).square().mean().item() for answer, wanted in pairs)


def state(model):
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return values, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def same(before, after):
    return before[1:] == after[1:] and all(torch.equal(before[0][name], after[0][name]) for name in before[0])


def ridge_by_hand(rows, targets, held_out, metric):
    """The best of `RIDGES` on the held-out rows, then coefficients of all rows with it."""

    def solve(rows, targets, ridge):
        p, y = rows - rows.mean(0), targets - targets.mean(0)
        level = ridge * (p**2).mean(0).mean()
        return np.linalg.lstsq(
            np.vstack([p / np.sqrt(len(p)), np.sqrt(level) * np.eye(p.shape[1])]),
            np.vstack([y / np.sqrt(len(y)), np.zeros((p.shape[1], y.shape[1]))]),
            rcond=None,
        )[0].T

    def held_out_error(ridge):
        found = solve(rows[~held_out], targets[~held_out], ridge)
        p, y = rows[held_out] - rows[~held_out].mean(0), targets[held_out] - targets[~held_out].mean(0)
        return np.einsum("nt,tu,nu->", p @ found.T - y, metric, p @ found.T - y)

    ridge = min(RIDGES, key=held_out_error)
    return ridge, solve(rows, targets, ridge)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (2, 1), "dilation": (2, 1)},
        {"kernel_size": 3, "padding": "same", "padding_mode": "replicate"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_a_convolution_is_the_least_squares_of_its_patches(options, caplog):
    model, inputs = chain(**options), images(80)
    with caplog.at_level(logging.INFO, "topoprune"):
        small = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)
    with torch.no_grad():
        outputs, hidden = model(inputs), F.relu(small[0](inputs))
    padding = model[2]._reversed_padding_repeated_twice
    mode = "constant" if model[2].padding_mode == "zeros" else model[2].padding_mode
    patches = F.unfold(
        F.pad(hidden, padding, mode), model[2].kernel_size, stride=model[2].stride, dilation=model[2].dilation
    )
    rows = patches.transpose(1, 2).flatten(0, 1).double().numpy()
    targets = outputs.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    held_out = np.repeat(np.arange(80) % 4 == 3, patches.shape[2])
    ridge, wanted = ridge_by_hand(rows, targets, held_out, np.eye(5))
    np.testing.assert_allclose(small[2].weight.detach().flatten(1), wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(small[2].bias.detach(), targets.mean(0) - wanted @ rows.mean(0), rtol=1e-3, atol=1e-5)
    assert f"2: ridge [{ridge}]" in caplog.text


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), dims=st.integers(1, 3), mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    same=st.booleans(),
)  # fmt: skip
def test_patches_times_the_weight_are_the_outputs(data, dims, mode, same):
    def sizes(low, high):
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))

    padding = "same" if same else sizes(0, 2)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    stride = 1 if same else sizes(1, 3)
    layer = kind(2, 3, sizes(1, 3), stride, padding, sizes(1, 2), bias=False, padding_mode=mode)
    maps = torch.randn(2, 2, *sizes(5, 7))
    patches = unfolding.patches(layer, maps).flatten(2 + dims).movedim(1, -2).flatten(-2)
    with torch.no_grad():
        outputs = layer(maps).movedim(1, -1)
        torch.testing.assert_close(patches @ layer.weight.flatten(1).T, outputs, rtol=1e-4, atol=1e-5)


def test_channels_are_the_least_squares_of_channels():
    model, inputs = chain(kernel_size=3, padding=1), images(80)
    plain = topoprune.remove(model, inputs[:2], {"0": KEPT})
    small = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs, compensation="channels")
    with torch.no_grad():
        h = F.relu(model[0](inputs)).flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    weight = model[2].weight.detach().double().flatten(2).numpy()
    metric = np.einsum("oik,ojk->ij", weight, weight)
    held_out = np.repeat(np.arange(80) % 4 == 3, 64)
    _, mix = ridge_by_hand(h[:, KEPT], h, held_out, metric)
    wanted = np.einsum("oik,ij->ojk", weight, mix).reshape(5, 4, 3, 3)
    np.testing.assert_allclose(small[2].weight.detach(), wanted, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        means = model(inputs).mean((0, 2, 3)) - F.conv2d(
            plain[:2](inputs), torch.tensor(wanted).float(), padding=1
        ).mean((0, 2, 3))
    np.testing.assert_allclose(small[2].bias.detach(), means, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "last, size",
    [
        (nn.ConvTranspose2d(6, 4, 2, stride=2), 8),
        (nn.ConvTranspose2d(6, 4, 4, stride=4), 8),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), 8),
        (nn.Conv2d(6, 4, 3, padding=1), 1),
        (nn.Conv2d(6, 4, 7, padding=3), 2),
        (nn.Conv2d(6, 4, 7, padding=3), 4),
        (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3)), 4),
        (nn.Sequential(nn.ConstantPad2d(2, 1.0), nn.Conv2d(6, 4, 1, stride=2)), 8),
        (nn.Conv2d(6, 4, 3), 4),
    ],
)  # fmt: skip
def test_outputs_that_read_a_part_of_the_kernel_keep_their_means(last, size):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), last).eval(), images(240, 3, size, size)
    with torch.no_grad():
        model[0].bias[[1, 4]] = 1.0  # channels that are nearly constant
        model[0].weight[[1, 4]] *= 0.01
    kept = {"0": KEPT}
    plain = topoprune.remove(model, inputs[:2], kept)
    small = topoprune.remove(model, inputs[:2], kept, compensate=inputs, compensation="channels")
    with torch.no_grad():
        torch.testing.assert_close(small(inputs).mean((0, 2, 3)), model(inputs).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    unseen = images(200, 3, size, size, seed=2)
    assert error(small, model, unseen) < error(plain, model, unseen)


@pytest.mark.parametrize("mode", MODES)
def test_zeros_that_a_layer_reads_or_adds_are_compensated_alike(mode):
    inside, inputs = chain(kernel_size=3, padding=1), images(240)
    before = nn.Sequential(*chain(kernel_size=3)[:2], nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(6, 5, 3)))
    before[2][1].load_state_dict(inside[2].state_dict())
    found = [
        topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs, compensation=mode)
        for model in (inside, before)
    ]
    plain, unseen = topoprune.remove(inside, inputs[:2], {"0": KEPT}), images(200, seed=2)
    if mode == "convolution":
        torch.testing.assert_close(found[1][2][1].weight, found[0][2].weight)
        torch.testing.assert_close(found[1][2][1].bias, found[0][2].bias)
    errors = [error(small, inside, unseen) for small in found]
    assert errors[1] == pytest.approx(errors[0], rel=0.02) and errors[1] < 0.9 * error(plain, inside, unseen)


def test_without_a_bias_the_means_stay_in_the_regression():
    model, inputs = chain(kernel_size=1, bias=False), images(80)
    small = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)
    with torch.no_grad():
        rows, targets = (
            x.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
            for x in (F.relu(small[0](inputs)), model(inputs))
        )
    gram = rows.T @ rows / len(rows)
    candidates = [
        np.linalg.solve(gram + ridge * gram.trace() / 4 * np.eye(4), rows.T @ targets / len(rows)).T for ridge in RIDGES
    ]
    found = small[2].weight.detach().double().flatten(1).numpy()
    assert min(np.abs(found - candidate).max() for candidate in candidates) < 1e-5
    assert small[2].bias is None


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.answer = nn.Conv3d(2, 6, 2), nn.Conv3d(6, 4, 2, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.answer(F.relu(self.two(F.relu(self.one(x)))).mean((2, 3, 4)))


class Upwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.answer = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.answer(F.relu(self.up(F.relu(self.enter(x)))))


MORE = {
    "upwards": (Upwards, images(2)),
    "rows": (Rows, images(2, 3, 12)),
    "volumes": (Volumes, images(2, 2, 5, 5, 5)),
}


def with_copies(kind, inputs):
    """A network in which the second half of the channels of every coupling copies the first, and what to keep."""
    torch.manual_seed(0)
    model = centred(kind()).eval()
    kept = {}
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for coupling in structure(model, many(inputs, 2), (nn.Conv1d, nn.Conv2d, nn.Conv3d)).couplings:
        half = coupling.choices // 2
        for axis in coupling.slices.keys() - coupling.readers:
            choices, indices = coupling.slices[axis]
            value = own[axis.name].data.movedim(axis.dim, 0)
            order = indices[np.argsort(choices, kind="stable")].reshape(coupling.choices, -1)
            for i in range(half, 2 * half):
                value[order[i]] = value[order[i - half]].clone()
        for layer in coupling.layers:
            kept.setdefault(layer, set(range(coupling.sizes[layer])))
            kept[layer] -= set(coupling.filters(layer, range(half, 2 * half)))
    return model, {layer: sorted(chosen) for layer, chosen in kept.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*NETWORKS, *MORE])
def test_copies_of_channels_are_not_missed(name, mode):
    kind, example = (NETWORKS | MORE)[name]
    model, kept = with_copies(kind, example)
    inputs = many(example)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        topoprune.recalibrate(model, [(inputs, torch.zeros(96))])
    small = topoprune.remove(model, example, kept, compensate=inputs, compensation=mode)
    plain = topoprune.remove(model, example, kept)
    assert error(small, model, inputs) < 2e-3 * error(plain, model, inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_foreign_networks_are_never_worse(name):
    kind, example = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = centred(kind()).eval(), many(example, 64)
    kept = topoprune.select(model, example, "random", 0.5, 3)
    before = state(model)
    try:
        small = topoprune.remove(model, example, kept, compensate=inputs)
    except ValueError as refused:
        assert "pass more images" in str(refused)
        inputs = many(example, 120)
        small = topoprune.remove(model, example, kept, compensate=inputs)
    assert same(before, state(model))
    held_out = tree_map_only(torch.Tensor, lambda x: x[3::4], inputs)
    assert error(small, model, held_out) < error(topoprune.remove(model, example, kept), model, held_out)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999), groups=st.integers(1, 3), inputs=st.integers(1, 5), extra=st.integers(0, 3),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]), offset=st.sampled_from([0.0, 100.0]), centred=st.booleans(),
)  # fmt: skip
def test_a_regression_is_never_worse_than_plain_coefficients(seed, groups, inputs, extra, scale, offset, centred):
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((60, groups, inputs + 2)) @ rng.standard_normal((inputs + 2, inputs + 2))
    columns[:, :, 0] *= scale
    rows = torch.as_tensor(columns + offset, dtype=torch.float32)
    held_out = torch.arange(60) % 4 == 3
    moments, plain = Moments(centred), torch.as_tensor(rng.standard_normal((groups, 2, inputs)))
    for part in torch.arange(60).tensor_split(extra + 1):
        moments.add(rows[part], held_out[part])
    found, intercept, _, share = ridge_regression(moments, plain)
    assert found.isfinite().all() and intercept.isfinite().all() and share <= 1
    centre = rows.double().mean(0) * centred
    every = [x.flatten(1) for x in (found, plain)]
    assert every[0].shape == every[1].shape
    torch.testing.assert_close(
        intercept, centre[:, inputs:] - (found @ centre[:, :inputs, None])[:, :, 0], rtol=1e-3, atol=1e-3 + scale / 1e4
    )


def test_a_group_without_signal_keeps_its_weights():
    model, inputs = chain(kernel_size=3), images(80)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    plain = topoprune.remove(model, inputs[:2], {"0": KEPT})
    small = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)
    assert torch.equal(plain[2].weight, small[2].weight)
    torch.testing.assert_close(small(inputs), model(inputs))


def test_batchnorms_are_recalibrated_on_all_images_and_the_network_is_untouched():
    torch.manual_seed(0)
    model = centred(Residual()).train()
    model.one[1].eval()
    model.requires_grad_(False)
    inputs = images(300)
    kept = topoprune.select(model, inputs[:2], "l1", 0.5)
    before, seed = state(model), torch.random.get_rng_state()
    small = topoprune.remove(model, inputs[:2], kept, compensate=inputs)
    assert same(before, state(model)) and torch.equal(seed, torch.random.get_rng_state())
    assert small.training and not small.one[1].training and not any(p.requires_grad for p in small.parameters())
    assert {int(m.num_batches_tracked) for m in small.modules() if isinstance(m, nn.BatchNorm2d)} == {2}
    again = topoprune.recalibrate(copy.deepcopy(small), [(part, torch.zeros(len(part))) for part in inputs.split(150)])
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[name], rtol=2e-2, atol=2e-3)
    assert not any(m._forward_hooks for m in [*model.modules(), *small.modules()])


def test_batches_of_every_kind_give_the_same_network():
    model, inputs = chain(kernel_size=3), images(80)
    labels = torch.arange(80)
    data = torch.utils.data.TensorDataset(inputs, labels)
    wanted = state(topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs))
    for given_ in (
        (inputs,), {"input": inputs}, [inputs], [(inputs, labels)], (inputs, labels), [[inputs]],
        torch.utils.data.DataLoader(data, 80), [(inputs.double(), 79 - labels)],
        [*inputs.split(20)], torch.utils.data.DataLoader(data, 79), torch.utils.data.DataLoader(inputs),
    ):  # fmt: skip
        assert same(wanted, state(topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=given_)))


@pytest.mark.parametrize("batch", [1, 60, 599])
def test_the_size_of_batches_does_not_count_for_batchnorm(batch):
    torch.manual_seed(0)
    model = centred(Residual()).eval()
    inputs = images(600) * torch.rand(600, 1, 1, 1)
    kept = topoprune.select(model, inputs[:2], "l1", 0.5)
    wanted = topoprune.remove(model, inputs[:2], kept, compensate=inputs)
    small = topoprune.remove(model, inputs[:2], kept, compensate=torch.utils.data.DataLoader(inputs, batch))
    assert same(state(wanted), state(small))


def test_images_in_order_are_dealt_to_all_batches():
    """Batches of one brightness each would mislead BatchNorm, whose batches see one brightness then."""
    torch.manual_seed(0)
    inputs = images(600)
    bright = torch.linspace(0.1, 3, 600).view(-1, 1, 1, 1)
    parts = unlabelled.batches_of(inputs * bright, nn.Conv2d(3, 2, 1))
    assert [len(part) for part in parts] == [200] * 3
    spread = [part.std().item() for part in parts]
    assert max(spread) < 1.02 * min(spread)
    assert sorted(torch.cat(parts)[:, 0, 0, 0].tolist()) == sorted((inputs * bright)[:, 0, 0, 0].tolist())


def test_inputs_that_are_not_by_images_go_with_every_part():
    batches = [{"x": images(300), "scale": torch.tensor(2.0)}, {"x": images(1), "scale": torch.tensor(2.0)}]
    found = unlabelled.batches_of(batches, nn.Conv2d(3, 2, 1))
    assert [len(part["x"]) for part in found] == [150, 150, 1] and all(part["scale"] == 2 for part in found)
    different = unlabelled.batches_of([images(5, 3, 8, 8), images(6, 3, 9, 9), images(7, 3, 9, 9)], nn.Conv2d(3, 2, 1))
    assert [tuple(part.shape) for part in different] == [(5, 3, 8, 8), (13, 3, 9, 9)]


class PerImage(nn.Sequential):
    def forward(self, x):
        return torch.stack([super(PerImage, self).forward(image) for image in x])


class InChunks(nn.Sequential):
    """Calls its layers as often as there are chunks of 30 images."""

    def forward(self, x):
        for layer in self:
            x = torch.cat([layer(chunk) for chunk in x.split(30)])
        return x


class TwoViews(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.answer = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.answer(torch.stack([F.relu(self.enter(x)), F.relu(self.enter(x.flip(1)))])).sum(0)


@pytest.mark.parametrize("kind", [PerImage, InChunks])
@pytest.mark.parametrize("mode", MODES)
def test_calls_that_depend_on_the_number_of_images_all_count(kind, mode):
    plain, inputs = chain(kernel_size=3), images(100)
    wanted = topoprune.remove(plain, inputs[:2], {"0": KEPT}, compensate=inputs, compensation=mode)
    small = topoprune.remove(kind(*plain), inputs[:2], {"0": KEPT}, compensate=inputs, compensation=mode)
    tolerance = {"rtol": 0.1, "atol": 0.02}  # other positions of each image are drawn
    torch.testing.assert_close(small[2].weight, wanted[2].weight, **tolerance)
    torch.testing.assert_close(small[2].bias, wanted[2].bias, **tolerance)


@pytest.mark.parametrize("count", [240, 30])
def test_rows_are_held_out_whatever_their_first_axis_is(count, caplog):
    torch.manual_seed(0)
    model = TwoViews().eval()
    with caplog.at_level(logging.INFO, "topoprune"):
        topoprune.remove(model, images(2, 12), {"enter": [0, 2, 3, 5, 6]}, compensate=[*images(240, 12).split(count)])
    assert "nan" not in caplog.text and "ridge [" in caplog.text


class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.two.bias = self.one.bias

    def forward(self, x):
        x = F.relu(self.enter(x))
        return self.one(x), self.two(x)


def test_a_bias_of_two_layers_is_left_alone(caplog):
    model = TiedBias().eval()
    with caplog.at_level(logging.INFO, "topoprune"):
        small = topoprune.remove(model, images(2), {"enter": KEPT}, compensate=images(80))
    assert "one is not compensated: one, two share a bias but not a weight" in caplog.text
    assert small.one.bias is small.two.bias and torch.equal(small.one.bias, model.one.bias)


def test_a_shuffling_loader_is_read_once():
    model, inputs = chain(kernel_size=3), images(80)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), 40, shuffle=True)
    small = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=loader)
    wanted = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)
    torch.testing.assert_close(small[2].weight, wanted[2].weight, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    "given_, mode, message",
    [
        (images(80), "both", "compensation must be 'channels' or 'convolution', got 'both'"),
        (iter([images(80)]), "channels", "compensate is an iterator, empty after one pass: pass a list"),
        (7, "channels", "compensate must be images or batches of images, got int"),
        ([], "channels", "compensate has no images"),
        (images(80)[:0], "channels", "compensate has no images"),
        (images(3), "channels", "2 is refitted on 4 inputs and needs at least 4 images, got 3: pass more images$"),
        (
            images(1, 3, 4, 4),
            "convolution",
            "inputs and needs at least 9 images, got 1: pass more images, or 4 and compens",
        ),
        (images(80) / 0, "channels", "batch 0 of compensate has values that are not finite"),
        (images(80, 5, 8, 8), "channels", r"does not run on example inputs of shape \(80, 5, 8, 8\)"),
        ("photos/", "channels", "compensate must be tensors, got str"),
        (images(80).numpy(), "channels", "compensate must be tensors, got ndarray: torch.as_tensor makes"),
        ([images(80).numpy()], "channels", "batch 0 of compensate has no tensor, but ndarray: pass tensors"),
    ],
)
def test_what_cannot_compensate_is_refused_in_one_line(given_, mode, message):
    for attempt in (
        lambda: topoprune.remove(chain(kernel_size=3), images(2), {"0": KEPT}, compensate=given_, compensation=mode),
        lambda: topoprune.prune(
            chain(kernel_size=3), images(2), "l1", {"0": 0.4}, compensate=given_, compensation=mode
        ),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            attempt()
        assert "\n" not in str(refused.value)


def test_channels_are_the_cure_only_where_they_have_fewer_inputs():
    flattened, pooled = (
        Flattened(),
        nn.Sequential(nn.Conv2d(3, 60, 1), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(60, 2)),
    )
    for model, kept, cure in (
        (flattened, {"two": KEPT}, ', or .* and compensation="channels"'),
        (pooled, {"0": [*range(40)]}, ""),
    ):
        with pytest.raises(ValueError, match=f"needs at least .. images, got 20: pass more images{cure}$"):
            topoprune.remove(model, images(2, 3, 16, 16), kept, compensate=images(20, 3, 16, 16))


def test_weights_that_are_not_finite_and_weights_without_values():
    model = chain(kernel_size=3)
    model[2].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="2 reads or writes values that are not finite"):
        topoprune.remove(model, images(2), {"0": KEPT}, check=False, compensate=images(80))
    with pytest.raises(ValueError, match="meta device has no weights"):
        topoprune.remove(model.to("meta"), images(2).to("meta"), {"0": KEPT}, compensate=images(80))


@pytest.mark.parametrize("mode", MODES)
def test_small_memory_and_sampled_positions_change_nothing(mode, monkeypatch):
    torch.manual_seed(0)
    model, inputs = centred(Grouped()).eval(), images(48, 3, 16, 16)
    kept = topoprune.select(model, inputs[:2], "l1", 0.5)
    passes = []
    dense_rows = compensation._dense_rows
    monkeypatch.setattr(compensation, "_dense_rows", lambda *args: passes.append(1) or dense_rows(*args))
    networks = []
    for limit in (compensation.CACHE_BYTES, 1):
        monkeypatch.setattr(compensation, "CACHE_BYTES", limit)
        networks.append(topoprune.remove(model, inputs[:2], kept, compensate=inputs, compensation=mode))
    assert len(passes) == 1 + 3
    assert same(state(networks[0]), state(networks[1]))


def test_too_wide_regressions_are_by_channels_or_not_at_all(monkeypatch, caplog):
    torch.manual_seed(0)
    model, inputs = Flattened().eval(), images(96, 3, 16, 16)
    kept = topoprune.select(model, inputs[:2], "l1", 0.5)
    with caplog.at_level(logging.INFO, "topoprune"):
        monkeypatch.setattr(consumers, "MAX_INPUTS", 50)
        by_channels = topoprune.remove(model, inputs[:2], kept, compensate=inputs)
        monkeypatch.setattr(consumers, "MAX_INPUTS", 7)
        topoprune.remove(model, inputs[:2], kept, compensate=inputs)
    assert "three is compensated by channels: no regression on 72 inputs" in caplog.text
    assert "three is not compensated: a regression on 8 inputs is too large" in caplog.text
    assert error(by_channels, model, inputs) < error(topoprune.remove(model, inputs[:2], kept), model, inputs)


class Same(nn.Conv2d):
    """Pads in `forward`, much as ports from TensorFlow do."""

    def forward(self, x):
        return self._conv_forward(F.pad(x, (0, 1, 0, 1), "reflect"), self.weight, self.bias)


class Tied(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.enter, self.one, self.two = nn.Conv2d(3, 6, 3), Same(6, 4, 2, bias=bias), Same(6, 4, 2, bias=bias)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = F.relu(self.enter(x))
        return self.one(x) + self.two(x=x.flip(2))


def test_layers_that_share_a_weight_or_pad_in_forward(caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "topoprune"):
        for bias in (False, True):
            model = Tied(bias).eval()
            plain = topoprune.remove(model, images(2), {"enter": KEPT})
            small = topoprune.remove(model, images(2), {"enter": KEPT}, compensate=images(64))
            assert torch.equal(small.one.weight, small.two.weight)
            assert torch.equal(plain.one.weight, small.one.weight) == bias
            assert bias or error(small, model, images(64)) < error(plain, model, images(64))
    assert "one is compensated by channels" in caplog.text
    assert "one is not compensated: one, two share a weight but not a bias" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype):
    model, inputs = chain(kernel_size=3).to(dtype), images(80).to(dtype)
    small = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)
    plain = topoprune.remove(model, inputs[:2], {"0": KEPT})
    assert {p.dtype for p in small.parameters()} == {dtype}
    single = inputs.float()
    assert error(small.float(), model.float(), single) < error(plain.float(), model, single)


def test_wrappers_and_inference_mode_give_the_same_network():
    model, inputs = chain(kernel_size=3), images(80)
    wanted = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)
    assert same(state(wanted), state(topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=inputs)))
    with torch.inference_mode():
        inside = topoprune.remove(model, inputs[:2], {"0": KEPT}, compensate=images(80))
    parallel = topoprune.remove(nn.DataParallel(model), inputs[:2], {"module.0": KEPT}, compensate=inputs)
    compiled = torch.compile(model, backend="eager")
    compiled = topoprune.remove(compiled, inputs[:2], {"_orig_mod.0": KEPT}, compensate=inputs)
    for other in (inside, parallel.module, compiled._orig_mod):
        assert same(state(wanted), state(other))


def test_prune_compensates_in_every_step():
    torch.manual_seed(0)
    model, inputs = centred(Residual()).eval(), images(96)
    options = {"method": "l1", "ratio": 0.5, "compensation": "channels"}
    once = topoprune.prune(model, inputs[:2], compensate=inputs, **options)
    assert same(state(once.model), state(topoprune.remove(model, inputs[:2], once.kept, True, inputs, "channels")))
    twice = topoprune.prune(model, inputs[:2], compensate=inputs, steps=2, **options).model
    plain = topoprune.prune(model, inputs[:2], **options).model
    assert max(error(small, model, inputs) for small in (once.model, twice)) < error(plain, model, inputs)
    assert topoprune.prune(model, inputs[:2], compensate=inputs, dry_run=True, **options).kept == once.kept


def test_images_that_are_all_alike_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    with pytest.raises(ValueError, match="1 sees the same value everywhere on these images: pass images that differ"):
        topoprune.remove(model, images(2), {"0": KEPT}, compensate=torch.ones(80, 3, 8, 8))


class UsedAgain(nn.Module):
    """A decoder that uses the weight of the encoder, turned round."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)

    def forward(self, x):
        return F.relu(F.conv_transpose2d(F.relu(self.two(F.relu(self.one(x)))), self.two.weight))


@pytest.mark.parametrize("mode", ["channels", "convolution"])
def test_a_weight_that_is_used_again_turned_round_is_left_alone(mode, caplog):
    caplog.set_level("INFO", "topoprune")
    model, given = UsedAgain().eval(), images(200, 3, 8, 8)
    small = topoprune.prune(model, given, "l1", {"two": 0.5}, compensate=given, compensation=mode).model
    assert torch.equal(small.two.weight, model.two.weight[topoprune.select(model, given, "l1", {"two": 0.5})["two"]])
    assert "two is not compensated: its weight is used again, turned round" in caplog.text


class Conditioned(nn.Module):
    """Reads a number beside each image, as the networks of diffusion do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x, step):
        return self.two(F.relu(self.one(x) * (1 + step[:, None, None, None])))


@pytest.mark.parametrize("form", [tuple, list, lambda pair: [(tuple(pair), torch.zeros(200, dtype=torch.int64))]])
def test_a_pair_of_inputs_is_no_pair_of_inputs_and_labels(form):
    model, pair = Conditioned().eval(), (images(200, 3, 8, 8), torch.arange(200) % 10)
    kept = topoprune.select(model, pair, "l1", 0.5)
    plain, refitted = (topoprune.remove(model, pair, kept, compensate=given) for given in (None, form(pair)))
    with torch.no_grad():
        expected = model(*pair)
        assert (refitted(*pair) - expected).square().mean() < (plain(*pair) - expected).square().mean()


def test_single_images_are_no_batches():
    model, given = chain(kernel_size=3), images(40, 3, 8, 8)
    kept = topoprune.select(model, given, "l1", 0.5)
    with pytest.raises(ValueError, match=r"batch 0 of compensate is a single image of shape \(3, 8, 8\): torch.stack"):
        topoprune.remove(model, given, kept, compensate=list(given))


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
def test_the_phases_of_a_strided_transposed_convolution_keep_their_means(kernel, norm):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 4, kernel, stride=2), norm(4), nn.Conv2d(4, 2, 1)
    given = images(300, 3, 8, 8)
    model, kept = topoprune.recalibrate(nn.Sequential(*layers), given).eval(), {"0": [0, 2, 5, 7, 8, 11]}
    plain = topoprune.recalibrate(topoprune.remove(model, given, kept), given)
    refitted = topoprune.remove(model, given, kept, compensate=given)

    def largest_shift(network):
        with torch.no_grad():
            away = (network(given) - model(given)).mean((0, 1))
        return max(away[i::2, j::2].mean().abs() for i in range(2) for j in range(2))

    assert error(refitted, model, given) < 0.9 * error(plain, model, given)
    assert largest_shift(refitted) < largest_shift(plain)
