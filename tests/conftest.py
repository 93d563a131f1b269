"""Shapes in signatures are checked, figures open no window, and nothing leaves the tests' own folder."""

import os

os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

install_import_hook("topoprune", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

from topoprune import study  # noqa: E402
from topoprune.study import execution  # noqa: E402
from topoprune.training import Recipe  # noqa: E402

torch.set_num_threads(2)  # the same sums on every machine


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory):
    """Checkpoints and records of the tests lie apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPOPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOPOPRUNE_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.delenv("TOPOPRUNE_NO_RUN", raising=False)
        patch.setenv("TOPOPRUNE_DETERMINISTIC", "1")  # where there is a CUDA device
        patch.setattr(execution, "default_device", lambda: "cpu")  # there too, where a test names no other
        yield


TINY = study.Profile(
    dataset="digits",
    width=1 / 16,
    seeds=(0, 1),
    ratios=(0.5,),
    dense=Recipe(epochs=2, batch=128, peak_rate=0.1),
    recovery=Recipe(epochs=2, batch=128),
    layer="features.24",
    methods=("l1", "topological"),
    search={"population": 8, "generations": 2, "elites": 2},
)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A test's own records and checkpoints, and the profile "tiny"."""
    monkeypatch.setitem(study.PROFILES, "tiny", TINY)
    monkeypatch.setenv("TOPOPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tmp_path / "results"))
    return tmp_path
