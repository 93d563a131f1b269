"""The study's images: CIFAR-10, and scikit-learn's digits for quick runs.

torchvision reads CIFAR-10 from TOPOPRUNE_DATA (or the cache), after its MD5 sums are checked; what is
missing is downloaded. The digits are part of scikit-learn.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import torch

from topoprune.study.images import Data, Split
from topoprune.study.locks import is_locked, locked

VALIDATION = 5_000
"""Training images of CIFAR-10 that are held out for validation."""

CLASSES = {"cifar10": 10, "cifar10-whole": 10, "digits": 10}
"""Number of classes of each data set; no image is loaded for it."""


class DataError(RuntimeError):
    """A data set is missing or damaged; the message names the file and the cure."""


def folder() -> Path:
    """Folder of the data sets: TOPOPRUNE_DATA, or `data` in the cache."""
    return Path(os.environ.get("TOPOPRUNE_DATA") or cache() / "data")


def cache() -> Path:
    """Folder of checkpoints and downloads: TOPOPRUNE_CACHE, or the user's cache folder."""
    return Path(os.environ.get("TOPOPRUNE_CACHE") or platformdirs.user_cache_dir("topoprune"))


def load(dataset: str, device: str | torch.device = "cpu") -> Data:
    """Load a data set onto a device.

    Args:
        dataset: with the numbers of images for training, validation and test:
            "cifar10" (45,000, 5,000, 10,000);
            "cifar10-whole" (50,000, 5,000, 10,000; the validation images are trained on too);
            "digits" (1,077, 360, 360; scikit-learn's digits, enlarged from 8x8 to 32x32x3).
        device: "cpu", "cuda" or "cuda:1".

    Raises:
        ValueError: unknown data set.
        DataError: a file is corrupt, or missing and cannot be downloaded.

    Example:
        >>> len(load("digits").train)
        1077
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[dataset]().to(device)


def cifar10() -> Data:
    """CIFAR-10 (Krizhevsky, 2009); 5,000 of its training images, drawn at random, are held out."""
    return _data("cifar10", *_cifar10(), VALIDATION, classes=CLASSES["cifar10"], flips=True)


def cifar10_whole() -> Data:
    """CIFAR-10 with all training images, as in the literature: validation then measures the fit."""
    train, test = _cifar10()
    part = _data("cifar10-whole", train, test, VALIDATION, classes=CLASSES["cifar10-whole"], flips=True)
    return _normalized(replace(part, train=train), flips=True)


def _cifar10() -> tuple[Split, Split]:
    from torchvision.datasets import CIFAR10

    _require_cifar10(CIFAR10)
    train, test = (CIFAR10(str(folder()), train=part) for part in (True, False))
    return _split(train.data, train.targets), _split(test.data, test.targets)


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits, each pixel repeated 4x4 and in three equal channels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = np.clip(source.images * 16, 0, 255).astype(np.uint8)
    images = np.repeat(images.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    parts = train_test_split(images, source.target, test_size=360, random_state=0, stratify=source.target)
    return _data(
        "digits", _split(parts[0], parts[2]), _split(parts[1], parts[3]), 360, classes=CLASSES["digits"], flips=False
    )


DATASETS = {"cifar10": cifar10, "cifar10-whole": cifar10_whole, "digits": digits}


def _require_cifar10(dataset) -> None:
    """Download what is missing; name a file that is corrupt."""
    base = folder() / dataset.base_folder
    files = [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], dataset.meta["md5"]]]
    cure = (
        "set TOPOPRUNE_DATA to the folder that holds cifar-10-batches-py, or put the official "
        f"python version of CIFAR-10 (cifar-10-python.tar.gz, unpacked) under {folder()}"
    )
    unfit = _unfit(base, files)
    if unfit and is_locked(base):  # another process downloads: its files are not corrupt, but not finished
        with locked(base):
            unfit = _unfit(base, files)
    for name, md5 in unfit:
        if (base / name).exists():
            raise DataError(
                f"{base / name} is corrupt (its MD5 is not {md5}): delete it and run again to download it, or {cure}"
            )
    if unfit:
        try:
            with locked(base):  # one process downloads, the others find it done
                dataset(str(folder()), download=True)
        except Exception as error:  # network, disk and archive errors differ by platform
            raise DataError(f"{base / unfit[0][0]} is missing and could not be downloaded ({error}): {cure}") from error


def _unfit(base: Path, files: list) -> list:
    """The files, named with their MD5 sums, that are missing or have another sum."""
    from torchvision.datasets.utils import check_integrity

    return [(name, md5) for name, md5 in files if not check_integrity(str(base / name), md5)]


def _split(images, labels) -> Split:
    return Split(torch.as_tensor(np.ascontiguousarray(images)), torch.as_tensor(labels, dtype=torch.int64))


def _data(name: str, train: Split, test: Split, held_out: int, classes: int, flips: bool) -> Data:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    keep, hold = order[:-held_out], order[-held_out:]
    validation = Split(train.images[hold], train.labels[hold])
    train = Split(train.images[keep], train.labels[keep])
    return _normalized(Data(name, train, validation, test, classes), flips)


def _normalized(data: Data, flips: bool) -> Data:
    """The same images, all normalised by the channels of the training images."""
    pixels = data.train.images.reshape(-1, 3).double() / 255
    scale = {"mean": tuple(pixels.mean(0).tolist()), "std": tuple(pixels.std(0).tolist())}
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return replace(data, **{name: replace(split, **scale, flips=flips) for name, split in splits.items()})
