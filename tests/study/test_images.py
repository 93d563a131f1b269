"""Batches for training: each image once, shifted, mirrored and cut out, of any size, the same on every device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topoprune import files
from topoprune.study import load_data
from topoprune.study.images import Augmented, Split, painted, shifted
from topoprune.training import Recipe, accuracy, recalibrate, train

SIDES = st.integers(1, 12)


def split(n=24, height=8, width=8, channels=3, seed=0, **fields) -> Split:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, height, width, channels), generator=random, dtype=torch.uint8)
    return Split(images, torch.arange(n), **fields)


def pixels(batches) -> torch.Tensor:
    """(n, h, w, c) bytes of batches that were normalised to [0, 1]."""
    return torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1).mul(255).round().to(torch.uint8)


def numbers(batches) -> torch.Tensor:
    return torch.cat([labels for _, labels in batches])


@given(height=SIDES, width=SIDES, channels=st.integers(1, 4), size=st.integers(1, 30))
def test_batches_for_evaluation_hold_all_images_in_their_order(height, width, channels, size):
    made = split(24, height, width, channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    batches = list(made.batches(size))
    assert len(batches) == len(made.batches(size))
    assert torch.equal(numbers(batches), made.labels)
    expected = (made.images.double() / 255 - 0.5) / 0.25
    images = torch.cat([images for images, _ in batches])
    torch.testing.assert_close(images.permute(0, 2, 3, 1).double(), expected, atol=1e-5, rtol=1e-5)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in batches)


@given(
    height=SIDES,
    width=SIDES,
    shift=st.integers(-11, 11),
    across=st.integers(-11, 11),
    mirror=st.booleans(),
    data=st.data(),
)
def test_a_shifted_image_is_a_part_of_its_reflections(height, width, shift, across, mirror, data):
    """The oracle is PyTorch's reflection padding, which takes no bytes."""
    down, across = max(-height + 1, min(height - 1, shift)), max(-width + 1, min(width - 1, across))
    images = split(3, height, width).images
    found = shifted(images, torch.tensor([2]), torch.tensor([[down, across]]), torch.tensor([mirror]))[0]
    pad = (width - 1, width - 1, height - 1, height - 1)
    wide = nn.functional.pad(images[2:].permute(0, 3, 1, 2).double(), pad, mode="reflect")[0].permute(1, 2, 0)
    part = wide[height - 1 + down :, width - 1 + across :][:height, :width].to(torch.uint8)
    assert torch.equal(found, part.flip(1) if mirror else part)


@given(height=st.integers(2, 12), width=st.integers(2, 12), share=st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_cutout_paints_one_square_of_each_image(height, width, share):
    size = 1 + round(share[4] * (min(height, width) - 2))
    corners = [[round(share[i] * (height - size)), round(share[i + 1] * (width - size))] for i in (0, 2)]
    images = torch.full((2, height, width, 3), 7, dtype=torch.uint8)
    expected = images.clone()
    for image, (row, column) in zip(expected, corners, strict=True):
        image[row : row + size, column : column + size] = torch.tensor([128, 0, 255], dtype=torch.uint8)
    assert torch.equal(painted(images, torch.tensor(corners), size, (0.5, 0.0, 1.0)), expected)


@settings(max_examples=30)
@given(height=st.integers(4, 12), width=st.integers(4, 12), batch=st.integers(1, 24), flips=st.booleans())
def test_an_epoch_shows_each_image_once_at_most_and_whole_batches(height, width, batch, flips):
    made = Augmented(split(24, height, width, flips=flips), batch, shift=3, cutout=2, seed=1)
    batches = list(made)
    assert len(batches) == len(made) == 24 // batch
    assert all(images.shape == (batch, 3, height, width) for images, _ in batches)
    assert len(set(numbers(batches).tolist())) == batch * len(made)


def test_every_place_of_an_oblong_image_is_cut_out_as_often():
    white = Split(torch.full((6000, 3, 5, 1), 255, dtype=torch.uint8), torch.zeros(6000, dtype=torch.int64))
    ((images, _),) = Augmented(white, 6000, cutout=2)
    corners = (images == 0).flatten(1).double().argmax(1)
    counts = torch.bincount(corners, minlength=15).reshape(3, 5)
    assert counts[2].sum() == counts[:, 4].sum() == 0
    assert (counts[:2, :4].double() / 6000 - 1 / 8).abs().max() < 0.02


def test_cutout_leaves_order_and_shifts_as_they_are():
    plain, cut = Augmented(split(), 8, shift=2, seed=3), Augmented(split(), 8, shift=2, cutout=4, seed=3)
    assert torch.equal(numbers(plain), numbers(cut))
    before, after = pixels(plain), pixels(cut)
    changed = (before != after).any(-1)
    assert (after[changed] == 0).all()  # the mean colour of this split
    for image in changed:
        rows, columns = image.nonzero().unbind(1)
        assert max(rows.max() - rows.min(), columns.max() - columns.min()) < 4


def test_two_epochs_show_every_image_both_ways():
    made = Augmented(split(flips=True), 24, seed=5)
    ways = []
    for epoch in (0, 1):
        made.set_epoch(epoch)
        shown = dict(zip(numbers(made).tolist(), pixels(made), strict=True))
        straight = [torch.equal(shown[i], image) for i, image in enumerate(made.split.images)]
        assert all(s or torch.equal(shown[i].flip(1), made.split.images[i]) for i, s in enumerate(straight))
        ways.append(straight)
    assert ways[0] == [not straight for straight in ways[1]] and 4 < sum(ways[0]) < 20


def test_digits_are_not_mirrored():
    made = Augmented(split(), 24, seed=5)
    assert all(torch.equal(image, made.split.images[i]) for i, image in zip(numbers(made), pixels(made), strict=True))


def test_an_epoch_follows_from_its_number_and_the_seed():
    def epoch(number, seed):
        made = Augmented(split(flips=True), 8, shift=2, cutout=2, seed=seed)
        made.set_epoch(number)
        return pixels(made)

    assert torch.equal(epoch(1, 2), epoch(1, 2))
    assert not torch.equal(epoch(1, 2), epoch(2, 2)) and not torch.equal(epoch(1, 2), epoch(1, 3))


def test_the_augmentation_of_the_study_is_that_of_its_records():
    """Pixels of CIFAR-10's size, from the code that trained the networks on record."""
    made = Augmented(split(16, 32, 32, flips=True, mean=(0.4, 0.5, 0.6)), 8, shift=4, cutout=12, seed=7)
    made.set_epoch(3)
    (images, labels), _ = made
    assert labels.tolist() == [5, 7, 11, 13, 2, 0, 1, 15]
    assert files.digest({"images": images}) == "114b04ffcf2be692"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 25}, "batch must be at most 24, got 25: there are 24 images of 8 x 6 pixels"),
        ({"batch": 8, "shift": 6}, "shift must be at most 5, got 6"),
        ({"batch": 8, "cutout": 6}, "cutout must be at most 5, got 6"),
    ],
)
def test_settings_that_do_not_suit_the_images_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmented(split(24, 8, 6), **settings)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 36)])
def test_images_of_other_sizes_are_trained_on_as_a_whole(height, width):
    """The class is in the last columns: upper left corners of 32 x 32 pixels do not show it."""
    images, labels = torch.full((64, height, width, 3), 100, dtype=torch.uint8), torch.arange(64) % 2
    images[labels == 1, :, 34:] = 255
    data = Split(images, labels, mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    recipe = Recipe(epochs=8, batch=16, shift=1, peak_rate=0.2)
    assert train(model, data.augmented(recipe), recipe, data.batches(), fast=True)[-1].validation == 1.0


def test_the_digits_are_learned_and_recalibrated():
    data, recipe = load_data("digits"), Recipe(epochs=5, batch=64, peak_rate=0.1, muon_rate=0.05)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 8, 4, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    history = train(model, data.train.augmented(recipe), recipe, test=data.test.batches(), fast=True)
    assert history[-1].loss < history[0].loss and history[-1].test > 0.6
    recalibrate(model, data.train.batches(256))
    assert accuracy(model, data.test.batches(100)) > 0.6


def test_a_split_goes_to_another_device_as_a_whole():
    made = split(mean=(0.5,) * 3, flips=True).to("meta")
    assert made.images.device == made.labels.device == torch.device("meta")
    assert (made.mean, made.std, made.flips) == ((0.5,) * 3, (1.0,), True)
