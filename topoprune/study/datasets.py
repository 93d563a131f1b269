"""Images for training, validation and test, resident on one device.

CIFAR-10 comes through torchvision from `TOPOPRUNE_DATA` (or the cache), checked by its MD5 sums
before it is read and downloaded where it is missing; the digits are embedded in scikit-learn.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import torch

from topoprune.data import Data, Split
from topoprune.study.store import is_locked, locked

VALIDATION = 5_000

CLASSES = {"cifar10": 10, "cifar10-whole": 10, "digits": 10}
"""Number of classes of each data set, for what reads records and loads no image."""


class DataError(RuntimeError):
    """A data set is missing or damaged; the message names the file and the cure."""


def folder() -> Path:
    """Where data sets lie: `TOPOPRUNE_DATA`, or `data` in the user's cache."""
    return Path(os.environ.get("TOPOPRUNE_DATA") or cache() / "data")


def cache() -> Path:
    """Where checkpoints and downloads lie: `TOPOPRUNE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("TOPOPRUNE_CACHE") or platformdirs.user_cache_dir("topoprune"))


def load(dataset: str, device="cpu") -> Data:
    """The data set, ready on `device`.

    Args:
        dataset: "cifar10" (45,000 / 5,000 / 10,000 images), "cifar10-whole" (50,000 / 5,000 / 10,000:
            the validation images are trained on too) or "digits" (scikit-learn's 8x8 digits enlarged
            to 32x32x3: 1,077 / 360 / 360 images).

    Raises:
        ValueError: unknown data set.
        DataError: a file is missing and cannot be downloaded, or is corrupt.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[dataset]().to(device)


def cifar10() -> Data:
    """CIFAR-10 (Krizhevsky, 2009), its last 5,000 shuffled training images held out."""
    return _data("cifar10", *_cifar10(), VALIDATION, classes=CLASSES["cifar10"], flips=True)


def cifar10_whole() -> Data:
    """CIFAR-10, trained on as the literature does: on all images; validation measures the fit then."""
    train, test = _cifar10()
    part = _data("cifar10-whole", train, test, VALIDATION, classes=CLASSES["cifar10-whole"], flips=True)
    return replace(part, train=train, **_channels(train))


def _cifar10() -> tuple[Split, Split]:
    from torchvision.datasets import CIFAR10

    _check_cifar10(CIFAR10)
    train, test = (CIFAR10(str(folder()), train=part) for part in (True, False))
    return _split(train.data, train.targets), _split(test.data, test.targets)


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits, each pixel drawn as 4x4, in three equal channels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = np.clip(source.images * 16, 0, 255).astype(np.uint8)
    images = np.repeat(images.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    parts = train_test_split(images, source.target, test_size=360, random_state=0, stratify=source.target)
    return _data("digits", _split(parts[0], parts[2]), _split(parts[1], parts[3]), 360, classes=CLASSES["digits"], flips=False)


DATASETS = {"cifar10": cifar10, "cifar10-whole": cifar10_whole, "digits": digits}


def _check_cifar10(dataset) -> None:
    """Download what is missing; name any file that is corrupt."""
    base = folder() / dataset.base_folder
    files = [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], dataset.meta["md5"]]]
    cure = (
        "set TOPOPRUNE_DATA to the folder that holds cifar-10-batches-py, or put the official "
        f"python version of CIFAR-10 (cifar-10-python.tar.gz, unpacked) under {folder()}"
    )
    unfit = _unfit(base, files)
    if unfit and is_locked(base):  # another process downloads: what it wrote by now is not corrupt
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
    """Those of `files`, names with MD5 sums, that are not there or not as they should be."""
    from torchvision.datasets.utils import check_integrity

    return [(name, md5) for name, md5 in files if not check_integrity(str(base / name), md5)]


def _split(images, labels) -> Split:
    return Split(torch.as_tensor(np.ascontiguousarray(images)), torch.as_tensor(labels, dtype=torch.int64))


def _data(name: str, train: Split, test: Split, held_out: int, **fields) -> Data:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    keep, hold = order[:-held_out], order[-held_out:]
    validation = Split(train.images[hold], train.labels[hold])
    train = Split(train.images[keep], train.labels[keep])
    return Data(name, train, validation, test, **_channels(train), **fields)


def _channels(split: Split) -> dict[str, tuple[float, ...]]:
    pixels = split.images.reshape(-1, 3).double() / 255
    return {"mean": tuple(pixels.mean(0).tolist()), "std": tuple(pixels.std(0).tolist())}
