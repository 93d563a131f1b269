"""Check signatures with shapes, open no window for figures, and keep the tests' files in folders of their own."""

import os
import shutil
from functools import partial
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
WITH_SHAPES = [path for path in sorted(ROOT.glob("topoprune/**/*.py")) if "from jaxtyping" in path.read_text()]
# Of the other modules mypy checks the types; checking every call as well would slow the tests.
install_import_hook([".".join(p.relative_to(ROOT).with_suffix("").parts) for p in WITH_SHAPES], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from tiny import TINY, TINY_BEYOND  # noqa: E402

from topoprune import cost, pruning, study  # noqa: E402
from topoprune.study import execution, removals  # noqa: E402

torch.set_num_threads(1)  # one worker of pytest-xdist a core


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory):
    """Keep the tests' checkpoints, records and data apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TOPOPRUNE_")]:
            patch.delenv(name)
        patch.setenv("TOPOPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOPOPRUNE_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.setenv("TOPOPRUNE_DETERMINISTIC", "1")  # where there is a CUDA device
        patch.setattr(execution, "default_device", lambda: "cpu")  # there too, where a test names no other
        for module in (execution, pruning):  # no test needs exact latencies
            patch.setattr(module, "cost", partial(cost, seconds=0.0))
        for module in (execution, removals):  # a sixteenth of the study's width needs fewer images
            patch.setattr(module, "MENDING_IMAGES", 256)
        patch.setitem(study.PROFILES, "tiny", TINY)
        patch.setitem(study.PROFILES, "tiny-beyond", TINY_BEYOND)
        yield


class TinyStudy:
    """The profile `TINY`, run once for all tests.

    Attributes:
        cache, results: folders that TOPOPRUNE_CACHE and TOPOPRUNE_RESULTS named while it ran; do not write there.
        records: two dense networks, four trials (L1 and topological of each network), one portrait.
    """

    def __init__(self, cache, results):
        self.cache, self.results = cache, results
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOPOPRUNE_CACHE", str(cache))
            patch.setenv("TOPOPRUNE_RESULTS", str(results))
            records = study.records("tiny", device="cpu")
        kinds = [study.Dense, study.Trial, study.Portrait]
        self.records = sorted(records, key=lambda record: kinds.index(type(record.spec)))


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory):
    """A `TinyStudy`: the first worker that asks for it runs it, the others load it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "tiny-study.lock"):
        return TinyStudy(shared / "tiny-study" / "cache", shared / "tiny-study" / "results")


@pytest.fixture(scope="session")
def tiny_beyond(tiny_study):
    """Records of `TINY_BEYOND`: a network of `TinyStudy`, its clouds, four removals (two random draws), two trials."""
    own = tiny_study.cache.parent.parent / "tiny-beyond-cache"  # tests look into that of the tiny study meanwhile
    with FileLock(own.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        if not own.exists():
            shutil.copytree(tiny_study.cache, own)
        patch.setenv("TOPOPRUNE_CACHE", str(own))
        patch.setenv("TOPOPRUNE_RESULTS", str(tiny_study.results))
        return study.records("tiny-beyond", device="cpu")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A test's own folders for records and checkpoints, empty."""
    monkeypatch.setenv("TOPOPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def trained(folders, tiny_study):
    """As `folders`, with the dense networks of the tiny study in the cache."""
    for folder in (tiny_study.cache / "runs").glob("dense-*"):
        if folder.is_dir():
            shutil.copytree(folder, folders / "cache" / "runs" / folder.name)
    return folders
