"""Shapes in signatures are checked, figures open no window, and nothing leaves the tests' own folder."""

import os

os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

install_import_hook("topoprune", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)  # the same sums on every machine


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory):
    """Checkpoints and records of the tests lie apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPOPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOPOPRUNE_RESULTS", str(tmp_path_factory.mktemp("results")))
        patch.delenv("TOPOPRUNE_NO_RUN", raising=False)
        yield
