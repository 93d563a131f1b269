"""What a call leaves as it was, inputs of every kind, and what the comparison with the masked network sees."""

import copy
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from foreign import IMAGES
from torch import nn

import topoprune
from topoprune import unlabelled
from topoprune.channels import trace
from topoprune.network import structure
from topoprune.passes import batch_size, copied_inputs, first_inputs, run

KEPT = [0, 1, 2, 3]


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


class Branches(nn.Module):
    """Calls a layer only where there are many channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.extra = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, images):
        hidden = self.one(images)
        answer = self.two(hidden)
        return (self.extra(answer) if hidden.shape[1] >= 8 else answer).mean((2, 3))


def test_a_network_that_calls_other_layers_once_pruned_is_not_approved():
    assert "calls other layers" in structure(Branches(), IMAGES).left_whole["one"]
    with pytest.raises(ValueError, match="calls other layers without some of its filters"):
        topoprune.remove(Branches(), IMAGES, {"one": KEPT})


def test_a_pruned_distributed_network_trains(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(plain())
        small = topoprune.remove(model, IMAGES, {"module.0": KEPT}).train()
        for _ in range(3):
            small(IMAGES).square().mean().backward()
        assert small.module[0].weight.grad.shape == (4, 3, 3, 3)
    finally:
        torch.distributed.destroy_process_group()


class OfObjects(nn.Module):
    """Takes images in an object, and changes them."""

    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, batch):
        return self.inner(batch.images.mul_(2))


def objects(count=8):
    return SimpleNamespace(images=torch.ones(count, 3, 8, 8), names=["a", "b"])


def test_images_in_an_object_are_copied_and_divided():
    batch = objects()
    assert batch_size(batch) == 8
    part, copied = first_inputs(batch, 2), copied_inputs(batch)
    assert part.images.shape == (2, 3, 8, 8) and part.names == ["a", "b"] and batch.images.shape == (8, 3, 8, 8)
    assert copied.images is not batch.images and torch.equal(copied.images, batch.images)


def test_a_network_of_objects_is_counted_pruned_and_refitted_as_one_of_tensors():
    model, batch = OfObjects(), objects()
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert topoprune.flops(model, batch) == topoprune.flops(model.inner, batch.images)
    given = SimpleNamespace(images=images.clone(), names=[])
    small = topoprune.remove(model, batch, {"inner.0": KEPT}, compensate=[given])
    expected = topoprune.remove(model.inner, batch.images, {"0": KEPT}, compensate=2 * images)
    assert torch.equal(batch.images, torch.ones(8, 3, 8, 8)) and torch.equal(given.images, images)
    torch.testing.assert_close(small.inner(2 * images), expected(2 * images), atol=1e-3, rtol=1e-3)


def test_many_images_in_an_object_are_counted_once():
    parts = unlabelled.batches_of([objects(601)], plain())
    assert [len(part.images) for part in parts] == [200, 200, 201]


def test_the_seed_of_a_device_that_is_not_in_use_stays(monkeypatch):
    """`torch.manual_seed` would queue a seed for CUDA, which nothing restores."""
    model, images, seeded = plain(), torch.rand(64, 3, 12, 12), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    topoprune.remove(model, IMAGES, {"0": KEPT}, compensate=images)
    assert seeded == []


@pytest.mark.parametrize("method", ["magnitude", "taylor", "l1"])
def test_the_default_type_of_the_caller_changes_no_choice(method):
    model = nn.Sequential(*plain(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    expected = topoprune.select(model, IMAGES, method, 0.5)
    torch.set_default_dtype(torch.float64)
    try:
        assert topoprune.select(model, IMAGES, method, 0.5) == expected
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("types", [(nn.Conv2d, nn.BatchNorm2d), (nn.Module,), nn.ReLU])
def test_types_that_are_no_layers_are_refused(types):
    with pytest.raises(ValueError, match="types must be types of layers"):
        topoprune.select(plain(), IMAGES, "l1", 0.5, types=types)


def test_a_package_of_the_user_may_be_named_quantized():
    layer = type("Layer", (nn.Conv2d,), {"__module__": "my_quantized_networks"})
    model = nn.Sequential(layer(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert len(topoprune.select(model, IMAGES, "l1", 0.5)["0"]) == 4


def test_a_batch_of_a_loader_is_one_batch_and_not_two():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.rand(64, 3, 8, 8), torch.arange(64)), batch_size=64
    )
    (batch,) = unlabelled.batches_of(next(iter(loader)), plain())
    assert batch.shape == (64, 3, 8, 8)


def test_batches_with_arrays_beside_their_tensors_are_taken():
    batches = [{"images": torch.rand(8, 3, 8, 8), "names": np.array(["a", "b"])} for _ in range(2)]
    assert [batch_size(part) for part in unlabelled.batches_of(batches, plain())] == [8, 8]


@pytest.mark.parametrize("padding", [(1, 2), (0, 1), (2, 0)])
def test_circular_padding_is_followed_without_values(padding):
    """On the "meta" device, whose tensors hold nothing."""
    model = nn.Sequential(nn.CircularPad2d(padding * 2), nn.Conv2d(3, 8, 3), nn.CircularPad2d(1), nn.Conv2d(8, 4, 3))
    expected = structure(model, IMAGES).couplings
    found = structure(copy.deepcopy(model).to("meta"), IMAGES.to("meta")).couplings
    assert [coupling.layers for coupling in found] == [coupling.layers for coupling in expected] == [("1",)]


def test_following_circular_padding_computes_the_same():
    model = nn.Sequential(nn.CircularPad2d((1, 2, 0, 3)), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    answers = []
    trace(model, [lambda network: answers.append(run(network, IMAGES)) or answers[-1]])
    torch.testing.assert_close(answers[0], model(IMAGES))


def test_the_default_device_of_the_caller_changes_nothing():
    """Here "meta", as "cuda" would be: what is made beside the network goes where it belongs."""
    model, images = nn.Sequential(*plain(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(64, 3, 12, 12)
    options = [{"method": name} for name in ("l1", "magnitude", "taylor", "qr", "folding", "topological")]
    options += [{"method": "topological", "space": "functional", "search": "cover"}]

    def pruned():
        kept = [topoprune.select(model, images, ratio=0.5, **each) for each in options]
        small = topoprune.remove(model, images, kept[0], compensate=images)
        return kept, small(images), topoprune.flops(small, images)

    expected = pruned()
    with torch.device("meta"):
        found = pruned()
    assert found[0] == expected[0] and found[2] == expected[2]
    torch.testing.assert_close(found[1], expected[1])


class TellsPrecision(nn.Sequential):
    """Notes how CUDA would convolve and multiply float32."""

    told: ClassVar[list[str]] = []

    def forward(self, x):
        self.told.extend(setting.fp32_precision for setting in CUDA_SETTINGS)
        return super().forward(x)


CUDA_SETTINGS = torch.backends.cudnn.conv, torch.backends.cuda.matmul


@pytest.fixture(params=["tf32", "ieee"])
def precision(request):
    """How CUDA computes, as the caller asked."""
    before = [setting.fp32_precision for setting in CUDA_SETTINGS]
    for setting in CUDA_SETTINGS:
        setting.fp32_precision = request.param
    yield request.param
    for setting, value in zip(CUDA_SETTINGS, before, strict=True):
        setting.fp32_precision = value


def test_removal_is_compared_in_full_float32(precision):
    TellsPrecision.told.clear()
    model = TellsPrecision(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    structure(model, torch.randn(2, 3, 8, 8))
    assert set(TellsPrecision.told) == {"ieee"}
    assert [setting.fp32_precision for setting in CUDA_SETTINGS] == [precision, precision]
    with pytest.raises(ValueError, match="nothing to prune"):
        structure(nn.Sequential(nn.Conv2d(3, 8, 3)), torch.randn(2, 3, 8, 8))
    assert [setting.fp32_precision for setting in CUDA_SETTINGS] == [precision, precision]


def test_the_older_way_to_ask_for_tf32_stays_usable():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    structure(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.randn(2, 3, 8, 8))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
