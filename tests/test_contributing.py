"""CONTRIBUTING.md and README.md say what is true: their examples run, and what they name exists."""

import ast
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
README = (ROOT / "README.md").read_text()


def test_the_examples_of_contributing_run():
    failed, tried = doctest.testfile(str(ROOT / "CONTRIBUTING.md"), module_relative=False)
    assert (failed, tried) == (0, CONTRIBUTING.count(">>> "))


@pytest.mark.parametrize("text", [CONTRIBUTING, README], ids=["CONTRIBUTING.md", "README.md"])
def test_every_file_that_is_named_exists(text):
    named = set(re.findall(r"`((?:topoprune|tests|book)/[\w/.]*)`", text)) | set(re.findall(r"\]\(([\w/.]+)\)", text))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists() and "*" not in name] == []


def test_the_map_of_the_method_names_each_of_its_files():
    table = CONTRIBUTING.partition("### Inside the method")[2].partition("## ")[0]
    files = {path.name for path in (ROOT / "topoprune").glob("*.py") if not path.name.startswith("__")}
    assert sorted(re.findall(r"`(\w+\.py)`", table)) == sorted(files)


def test_the_test_that_is_named_exists():
    (named,) = re.findall(r"pytest (\S+)::(\w+)", CONTRIBUTING)
    tree = ast.parse((ROOT / named[0]).read_text())
    assert named[1] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_site_is_looked_at_as_the_text_says():
    source = (ROOT / "tests" / "site" / "test_site.py").read_text()
    assert re.findall(r"at (\d+) and (\d+) pixels", CONTRIBUTING.replace("\n", " ")) == re.findall(
        r"^WIDTHS = \((\d+), (\d+)\)", source, re.MULTILINE
    )
    assert "in light or dark, in turn" in CONTRIBUTING.replace("\n", " ")
    assert 'THEMES = ("light", "dark")' in (ROOT / "tests" / "site" / "pages.py").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test-all: test test-slow site-test ", makefile, re.MULTILINE)
    assert {"slow", "site"} == set(
        re.findall(r'^    "(\w+): .*make', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )


def test_what_is_to_be_edited_is_where_the_text_says():
    for name, file in (
        ("LAYER_CRITERIA", "topoprune/selection.py"),
        ("VARIANTS", "topoprune/study/profiles.py"),
        ("PROFILES", "topoprune/study/profiles.py"),
        ("COMPANIONS", "topoprune/study/profiles.py"),
    ):
        assert f"`{name}`" in CONTRIBUTING
        assert re.search(rf"^{name}\b.* = ", (ROOT / file).read_text(), re.MULTILINE), name


def test_the_readme_s_example_runs_on_a_small_network(capsys):
    """As it stands, with a network that prunes in a second."""
    (example,) = re.findall(r"```python\n(import torch\n.+?)```", README, re.DOTALL)
    small = example.replace("torchvision.models.resnet18(weights=None)", 'topoprune.build("vgg16", width=1 / 16)')
    assert small != example
    small = small.replace("torch.randn(2, 3, 224, 224)", "torch.randn(2, 3, 32, 32)")
    names: dict = {}
    exec(small, names)
    printed, shown = capsys.readouterr().out, re.search(r"```text\n(.+?)```", README, re.DOTALL)[1]
    assert printed.splitlines()[0].split() == shown.splitlines()[0].split()
    assert names["result"].after.parameters < names["result"].before.parameters


def test_the_readme_s_figure_shows_the_committed_records(tmp_path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("main_figure", ROOT / "book" / "main_figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw(tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_bytes() == module.FILE.read_bytes(), "make figure"
    assert f"({module.FILE.relative_to(ROOT)})" in README
