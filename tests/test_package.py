"""The package as others install it: a wheel that is in order, and a light install that prunes."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("gtda", "gph", "nni", "torchvision", "sklearn", "pandas", "matplotlib", "seaborn", "statsmodels", "lifelines")
"""Modules of the extras, which the light install lacks."""

LIGHT = """
import sys

for name in {extras}:
    sys.modules[name] = None  # importing it fails, as where it is not installed

import torch
from torch import nn
import topoprune
from topoprune.__main__ import main

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
                      nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
images = torch.randn(8, 3, 8, 8)
for method in ("random", "l1", "l2", "fpgm", "topological", "magnitude", "taylor"):
    options = dict(population=8, generations=2) if method == "topological" else dict()
    result = topoprune.prune(model, images, method, 0.5, **options)
    loader = [(images, torch.arange(8) % 4)] * 2
    topoprune.recalibrate(result.model, loader)
    topoprune.train(result.model, loader, topoprune.Recipe(epochs=1))
    assert 0 <= topoprune.accuracy(result.model, loader) <= 1
for arguments, cure in ((dict(method="topological", engine="reference"), "topoprune[reference]"),
                        (dict(method="l1", engine="nni"), "topoprune[baselines]")):
    try:
        topoprune.select(model, images, **arguments)
    except ValueError as error:
        assert cure in str(error), error
    else:
        raise AssertionError(arguments)
assert main(["prune", "resnet18", "--weights", "none"]) == 2
print("light")
"""


def test_the_light_install_prunes_by_every_method():
    code = LIGHT.format(extras=EXTRAS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "light"
    assert "pip install 'topoprune[vision]'" in done.stderr


def test_no_extra_is_needed_to_import_the_method():
    """What the light install depends on is named in pyproject.toml, and nothing else is imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {line.split(">")[0].split("=")[0] for line in project["dependencies"]}
    assert named == {"deap", "jaxtyping", "numba", "numpy", "safetensors", "scipy", "torch", "tqdm"}


@pytest.mark.slow
def test_the_wheel_is_in_order(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    files = sorted((tmp_path / "dist").iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    names = zipfile.ZipFile(files[0]).namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "topoprune").rglob("*.py")}
    assert modules <= set(names) and "topoprune/py.typed" in names
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"topoprune = topoprune.__main__:main" in zipfile.ZipFile(files[0]).read(entry)
