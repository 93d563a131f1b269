"""What only some inputs reach, or training alone, is followed and verified too; what nothing reaches is said."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import centred, silenced
from torch import nn

import topoprune
from topoprune.cutting import some_choices
from topoprune.network import PruningWarning, couplings, structure


class Chosen(nn.Module):
    """Each image chooses one of two layers after a convolution."""

    def __init__(self, make):
        super().__init__()
        self.first, self.experts = nn.Conv2d(3, 12, 3), nn.ModuleList([make(), make()])

    def forward(self, x):
        features = F.relu(self.first(x))
        return torch.cat(
            [self.experts[int(image.mean() > 0)](own[None]) for image, own in zip(x, features, strict=True)]
        )


def bright_and_dark():
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).abs()
    images[9:] *= -1
    return images


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(12, 4, 3), lambda: nn.Sequential(nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3))]
)
def test_layers_that_later_inputs_choose_are_cut_too(make):
    model, images = Chosen(make).eval(), bright_and_dark()
    result = topoprune.prune(model, images, "l1", 0.5)
    assert result.model.first.out_channels == 6 and result.left_whole.keys().isdisjoint({"first"})
    dense = silenced(centred(model), result.kept)
    torch.testing.assert_close(topoprune.remove(dense, images, result.kept)(images), dense(images))


def test_layers_that_no_input_chooses_are_said():
    model = Chosen(lambda: nn.Sequential(nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3))).eval()
    with pytest.warns(PruningWarning) as told:
        kept = topoprune.select(model, bright_and_dark()[:8], "l1", 0.5)
    assert len(kept["first"]) == 6
    assert [str(warning.message).split(":")[0] for warning in told] == [
        "left whole",
        "modules that did not run on the example inputs keep their shape, and fail where they read removed channels",
    ]
    assert "experts.0.0" in str(told[1].message) and "experts.0.1 because it did not run" in str(told[0].message)


class OnlyInTraining(nn.Module):
    """An auxiliary head whose width is written out, or a mask of fixed size, while it trains."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.one, self.two = kind, nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3)
        self.answer, self.aux = nn.Linear(8, 4), nn.Linear(48, 4) if kind == "head" else None

    def forward(self, x):
        x = F.relu(self.one(x))
        if self.training and self.kind == "mask":
            x = x * torch.full((1, 12, 1, 1), 0.5)
        answer = self.answer(F.relu(self.two(x)).mean((2, 3)))
        if self.kind == "head" and self.training:
            return answer, self.aux(F.adaptive_avg_pool2d(x, 2).view(-1, 48))
        return answer


@pytest.mark.parametrize("kind", ["head", "mask"])
def test_what_would_not_train_any_more_stays_whole(kind):
    model, images = OnlyInTraining(kind), torch.randn(4, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruningWarning)
        result = topoprune.prune(model, images, "l1", 0.5)
    assert result.left_whole["one"].startswith("in training mode the network no longer runs without")
    assert result.model.two.out_channels == 4
    result.model.train()(images)


class Sliced(nn.Module):
    """Two halves of the channels, by slices: a random sample can take as many from both."""

    def __init__(self, filters):
        super().__init__()
        half = filters // 2
        self.one, self.part = nn.Conv2d(3, filters, 3), nn.Conv2d(half, half, 1)
        self.two, self.answer = nn.Conv2d(filters, 6, 3), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = F.relu(self.one(x))
        half = x.shape[1] // 2
        return self.answer(F.relu(self.two(torch.cat([self.part(x[:, :half]), x[:, half:]], 1))))


@pytest.mark.parametrize("filters", [8, 12, 16, 32])
def test_no_lucky_sample_passes_for_sound(filters):
    images = torch.randn(2, 3, 8, 8)
    with pytest.warns(PruningWarning, match="one because the network no longer runs"):
        result = topoprune.prune(Sliced(filters).eval(), images, "l1", 0.5)
    assert len(result.kept["one"]) == filters and result.model.two.out_channels == 3


def test_answers_without_a_finite_value_verify_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    with pytest.raises(ValueError, match="answers with NaN or infinity alone"):
        topoprune.select(model, torch.full((2, 3, 8, 8), torch.inf), "l1", 0.5)


def test_a_reason_is_that_of_the_channels_which_a_layer_writes():
    norm = nn.GroupNorm(2, 8)  # fixes the channels that the last layer reads
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3), norm, nn.ConvTranspose2d(8, 4, 2)).eval()
    left = structure(model, torch.randn(2, 3, 8, 8), (nn.Conv2d, nn.ConvTranspose2d)).left_whole
    assert left == {
        "1": "native_group_norm in 2 mixes its channels",
        "3": "its channels are an output of the network",
    }


@pytest.mark.parametrize("model", [None, "resnet18", F.relu])
def test_what_is_no_network_is_refused(model):
    for ask in (topoprune.prune, topoprune.select, topoprune.couplings, topoprune.cost):
        with pytest.raises(ValueError, match="model must be an nn.Module, got"):
            ask(model, torch.randn(2, 3, 8, 8))


def test_a_single_layer_has_nothing_to_prune():
    with pytest.raises(ValueError, match="nothing to prune: every layer must stay whole"):
        topoprune.select(nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8), "l1")


@pytest.mark.parametrize("filters", range(2, 70))
def test_a_sample_is_a_third_and_uneven(filters):
    model = nn.Sequential(nn.Conv2d(3, filters, 1), nn.Conv2d(filters, filters, 1), nn.Conv2d(filters, 2, 1))
    found = couplings(model, torch.randn(1, 3, 2, 2), check=False)
    for gone in some_choices(found).values():
        assert len(set(gone.tolist())) == max(1, filters // 3)
        for parts in (parts for parts in range(2, filters // 2 + 1) if filters % parts == 0):
            lost = np.array_split(np.isin(np.arange(filters), gone), parts)
            assert len({part.sum() for part in lost}) > 1
