"""Splits, checks before reading, and errors that name the file."""

import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from topoprune.study import datasets, locks


def test_digits_are_split_without_overlap():
    data = datasets.load("digits")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1077, 360, 360]
    assert data.train.images.shape[1:] == (32, 32, 3) and data.train.images.dtype == torch.uint8
    assert data.train.labels.unique().tolist() == list(range(10))
    again = datasets.load("digits")
    assert torch.equal(data.validation.images, again.validation.images)


def test_normalized_images_have_zero_mean_and_unit_variance():
    data = datasets.load("digits")
    values = data.train.normalized(data.train.images).double()
    assert values.mean().item() == pytest.approx(0, abs=1e-4)
    assert values.std().item() == pytest.approx(1, abs=1e-3)
    assert data.example(8).shape == (8, 3, 32, 32)
    assert data.example(8).is_contiguous(memory_format=torch.channels_last)


def test_the_classes_of_every_data_set_are_known_without_its_images():
    assert datasets.CLASSES.keys() == datasets.DATASETS.keys()
    assert datasets.load("digits").classes == datasets.CLASSES["digits"]


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="unknown data set 'mnist': choose from cifar10, cifar10-whole"):
        datasets.load("mnist")


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A small CIFAR-10 in the official layout, its MD5 sums put in torchvision's place."""
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    sums = {}

    def write(name, value):
        (base / name).write_bytes(pickle.dumps(value))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()

    random = np.random.default_rng(0)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        write(
            name,
            {
                "data": random.integers(0, 256, (1200, 3072), dtype=np.uint8),
                "labels": random.integers(0, 10, 1200).tolist(),
            },
        )
    write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[n, sums[n]] for n, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    monkeypatch.setenv("TOPOPRUNE_DATA", str(tmp_path))
    return base


def test_cifar10_comes_from_the_named_folder(official):
    data = datasets.load("cifar10")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1000, 5000, 1200]
    first = pickle.loads((official / "test_batch").read_bytes())
    expected = first["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(data.test.images[0].numpy(), expected)


def test_the_whole_of_cifar10_is_trained_on_with_the_same_validation_images(official):
    part, whole = datasets.load("cifar10"), datasets.load("cifar10-whole")
    assert [len(s) for s in (whole.train, whole.validation, whole.test)] == [6000, 5000, 1200]
    assert torch.equal(whole.validation.images, part.validation.images)
    everything = torch.cat([part.train.images, part.validation.images])
    assert torch.equal(everything.flatten(1).sum(1).sort()[0], whole.train.images.flatten(1).sum(1).sort()[0])
    pixels = whole.train.images.double() / 255
    assert whole.validation.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())
    assert whole.validation.std == pytest.approx(pixels.std((0, 1, 2)).tolist())


def test_a_corrupt_batch_is_named_before_it_is_read(official):
    file = official / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(datasets.DataError, match=r"data_batch_3 is corrupt .*delete it.*TOPOPRUNE_DATA"):
        datasets.load("cifar10")


def test_a_batch_that_another_process_is_unpacking_is_waited_for(official, monkeypatch):
    whole = (official / "data_batch_3").read_bytes()
    (official / "data_batch_3").write_bytes(whole[:-1])
    waits = threading.Event()

    def noted(path):
        waits.set()
        return locks.locked(path)

    monkeypatch.setattr(datasets, "locked", noted)
    with ThreadPoolExecutor(1) as other:
        with locks.locked(official):
            loaded = other.submit(datasets.load, "cifar10")
            assert waits.wait(60)  # where it would have been called corrupt
            (official / "data_batch_3").write_bytes(whole)
        assert len(loaded.result(timeout=60).train) == 1000


def test_a_data_folder_that_is_a_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "data").write_text("")
    monkeypatch.setenv("TOPOPRUNE_DATA", str(tmp_path / "data"))
    with pytest.raises(datasets.DataError, match="is missing and could not be downloaded .*: set TOPOPRUNE_DATA"):
        datasets.load("cifar10")


def test_a_missing_batch_is_named_where_there_is_no_network(official, monkeypatch):
    from torchvision.datasets import CIFAR10

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", offline)
    (official / "data_batch_2").unlink()
    with pytest.raises(
        datasets.DataError,
        match="data_batch_2 is missing and could not be downloaded "
        r"\(no network\): set TOPOPRUNE_DATA",
    ):
        datasets.load("cifar10")
