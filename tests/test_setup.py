"""The set-up files agree with each other, and the book is staged as it should be."""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from topoprune import study
from topoprune.study.trial import spec_key

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def pins() -> list[tuple[Requirement, int]]:
    """Each line of the lock, with the number of its hashes."""
    text = "\n".join(line for line in LOCK.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.split("--hash=sha256:")
        assert all(re.fullmatch(r"[0-9a-f]{64}\s*", h) for h in hashes), requirement
        found.append((Requirement(requirement), len(hashes)))
    return found


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for, the extras and the build backend included."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"], *extras]
    return [Requirement(line) for group in groups for line in group]


def test_every_line_of_the_lock_is_pinned_and_hashed():
    assert len(pins()) > 100
    for pin, hashes in pins():
        assert hashes > 0, pin
        assert [s.operator for s in pin.specifier] == ["=="], pin
        assert not pin.url, pin


def test_the_lock_names_no_host():
    assert "://" not in LOCK
    assert not re.search(r"^\s*-(?!-hash=)", LOCK, re.MULTILINE), "an option of pip that is not a hash"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_lock_serves_both_pythons(python, platform):
    here = {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": platform}
    active = [pin for pin, _ in pins() if pin.marker is None or pin.marker.evaluate(here)]
    locked = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in active}
    assert len(locked) == len(active), "a package is pinned twice"
    for requirement in wanted():
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in the lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: locked {version}"


def test_conda_installs_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python.removeprefix("python="))
    assert (pip, from_pip) == ("pip", {"pip": ["--require-hashes", "-r requirements.lock"]})


def test_the_version_is_said_once():
    import topoprune

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["project"]["version"] == str(cited["version"]) == topoprune.__version__


@pytest.mark.parametrize("page", ["README.md", ".ci/run", "book/reexecute.md", ".github/workflows/book.yml"])
def test_make_has_the_targets_that_we_name(page):
    named = set(re.findall(r"(?:^|`| )make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named, f"{page} names no target"
    assert named <= TARGETS


def test_the_table_of_contents_lists_what_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    pages = [p.relative_to(ROOT) for p in (ROOT / "book").iterdir() if p.suffix in (".md", ".ipynb")]
    assert sorted(listed) == sorted(str(p.with_suffix("")) for p in pages)


def test_the_page_of_the_package_has_every_public_name():
    import topoprune

    page = (ROOT / "book" / "api.md").read_text()
    own = page.split(".. currentmodule:: topoprune\n")[1:]
    named = [name for part in own for name in re.findall(r":: (\w+)$", part, re.MULTILINE)]
    assert set(topoprune.__all__) <= set(named)


def test_there_are_chapters():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_templates_hold_no_results(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        assert cell.execution_count is None
        assert not cell.outputs
    assert "papermill" not in notebook.metadata
    assert "widgets" not in notebook.metadata
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    defaults: dict = {}
    exec(parameters.source, defaults)
    assert {name: defaults[name] for name in ("profile", "device", "seeds", "force")} == {
        "profile": "quick",
        "device": None,
        "seeds": None,
        "force": False,
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one chapter, whose parameters are `profile` and `fail`."""
    (tmp_path / "book").mkdir()
    toc = {"root": "book/intro", "parts": [{"chapters": [{"file": "book/one"}, {"file": "book/page"}]}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    cells = [
        nbformat.v4.new_code_cell("profile = 'quick'\nfail = False", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "assert not fail, 'as asked'\nprint(profile)\nimport sys\nprint('noise', file=sys.stderr)"
        ),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "book" / "one.ipynb")
    stage = tmp_path / "_build" / "stage"
    (stage / "book").mkdir(parents=True)
    for name, value in {"ROOT": tmp_path, "BUILD": tmp_path / "_build", "STAGE": stage}.items():
        monkeypatch.setattr(build, name, value)
    return tmp_path


def test_an_unknown_parameter_is_an_error(project):
    notebooks = build.chapters(project)
    assert notebooks == [Path("book/one.ipynb")]
    with pytest.raises(SystemExit, match="unknown parameter profil: the chapters have fail, profile"):
        build.check(notebooks, {"profil": "pilot"}, project)


def test_every_record_is_forced_once():
    """The chapters that force have, between them, every record; the others read them."""
    given = build.check(build.chapters(), {"profile": "quick", "force": True})
    forcing = [path for path, own in given.items() if "force" in own]
    forced_call = re.compile(
        r"study\.(?:records|companion_records)\(((?:(?!study\.(?:records|companion_records)).)+), force\)"
    )
    calls = [call for path in forcing for call in forced_call.findall((build.ROOT / path).read_text())]
    beside = {
        which: [*study.dense_specs(name), *study.trial_specs(name)] if name else []
        for which in ("ablation", "contrast", "longer", "whole", "cutout")
        for name in [getattr(study.profile("quick"), which)]
    }
    own = {
        "profile, study.dense": study.dense_specs("quick"),
        "portrait": [study.portrait_spec("quick")],
        '[\\"topological': study.trial_specs("quick", None, ["topological"]),
        "profile, trials": study.trial_specs("quick", None, ["random", "l1", "l2", "fpgm"]),
        "others": study.trial_specs("quick", None, ["activations", "pointed", "magnitude", "taylor"]),
        **{f'profile, \\"{which}': made for which, made in beside.items()},
    }
    forced = [spec_key(spec) for call in calls for spec in next(specs for name, specs in own.items() if name in call)]
    wanted = [*study.specs("quick"), *itertools.chain(*beside.values())]
    assert sorted(forced) == sorted(map(spec_key, wanted))


def test_a_chapter_is_published_whole(project):
    build.run(Path("book/one.ipynb"), {"profile": "pilot"})
    notebook = nbformat.read(build.STAGE / "book" / "one.ipynb", as_version=4)
    assert [output.text for output in notebook.cells[-1].outputs] == ["pilot\n"]
    assert notebook.metadata.topoprune.versions.torch
    assert len(notebook.metadata.topoprune.records) == 64
    assert str(project) not in nbformat.writes(notebook)
    assert not (project / "_build" / "partial" / "one.ipynb").exists()


def test_a_chapter_that_fails_is_not_published(project):
    with pytest.raises(SystemExit) as stopped:
        build.run(Path("book/one.ipynb"), {"fail": True})
    assert str(stopped.value) == (
        "build.py: book/one.ipynb stopped at cell 2: AssertionError: as asked; "
        "what ran of it is in _build/partial/one.ipynb"
    )
    assert not (build.STAGE / "book" / "one.ipynb").exists()
    assert (project / "_build" / "partial" / "one.ipynb").exists()


def test_of_chapters_side_by_side_one_that_fails_is_named_and_the_others_are_published(project):
    shutil.copy(ROOT / "book" / "build.py", project / "book")
    chapter = nbformat.read(project / "book" / "one.ipynb", as_version=4)
    chapter.cells[0].source += "\ndevice = None\nseeds = None\nforce = False"
    nbformat.write(chapter, project / "book" / "two.ipynb")
    chapter.cells[1].source = "raise ValueError('no such record')"
    nbformat.write(chapter, project / "book" / "one.ipynb")
    toc = {"root": "book/intro", "parts": [{"chapters": [{"file": "book/one"}, {"file": "book/two"}]}]}
    (project / "_toc.yml").write_text(yaml.safe_dump(toc))
    (project / "_config.yml").write_text("html: {}\nsphinx: {config: {html_theme_options: {}}}\n")
    done = subprocess.run(
        [sys.executable, "book/build.py"],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | {"TOPOPRUNE_NO_RUN": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "build.py: book/one.ipynb stopped at cell 2: ValueError: no such record" in done.stderr
    stage = project / "_build" / "stage" / "book"
    assert (stage / "two.ipynb").exists() and not (stage / "one.ipynb").exists()
