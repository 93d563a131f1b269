"""The set-up files agree with each other, and the book is staged as it should be."""

import hashlib
import importlib.util
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
from topoprune.study import profiles

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))

spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
sys.modules["build"] = build  # its functions are sent to other processes
spec.loader.exec_module(build)

CHAPTERS = build.chapters()


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
    requirements = [Requirement(line) for group in groups for line in group]
    return [requirement for requirement in requirements if requirement.name != PROJECT["project"]["name"]]


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
        if requirement.marker is not None and not requirement.marker.evaluate(here):
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in the lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: locked {version}"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_environment_is_made_by_the_uv_of_the_lock(python):
    """`make` copies the lines of uv out of the lock; what they say must be installable by itself."""
    script = re.search(r"awk '(.+)' requirements.lock", MAKEFILE)[1]
    lines = subprocess.run(
        ["awk", script, ROOT / "requirements.lock"], capture_output=True, text=True, check=True
    ).stdout
    (pin,) = [pin for pin, _ in pins() if pin.name == "uv"]
    assert lines.startswith(f"{pin} \\\n    --hash=sha256:")
    assert [line for line in lines.splitlines() if line and not line.startswith(" ")] == [f"{pin} \\"]
    assert pin.marker is None or pin.marker.evaluate({"python_version": python})


def test_make_takes_the_pythons_of_the_study():
    """NNI and giotto-tda have no wheels for Python 3.13."""
    taken = SpecifierSet(re.search(r'else "(>=[^"]+)"', MAKEFILE)[1])
    assert [minor for minor in range(9, 20) if taken.contains(f"3.{minor}")] == [11, 12]
    assert "(3, 11) <= sys.version_info < (3, 13)" in MAKEFILE
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert supported.contains("3.11") and supported.contains("3.12")


def test_conda_installs_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python.removeprefix("python="))
    assert (pip, from_pip) == ("pip", {"pip": ["--require-hashes", "-r requirements.lock"]})


def test_the_version_is_said_once():
    import topoprune

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["project"]["version"] == str(cited["version"]) == topoprune.__version__


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", ".ci/run", "book/reexecute.md", ".github/workflows/book.yml"]
)
def test_make_has_the_targets_that_we_name(page):
    named = set(re.findall(r"(?:^|`| )make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named, f"{page} names no target"
    assert named <= TARGETS


def test_ci_runs_the_same_here_and_there():
    def made(path):
        return re.findall(r"^ *(?:- run: )?make ([a-z-]+)$", (ROOT / path).read_text(), re.MULTILINE)

    here, there = made(".ci/run"), made(".github/workflows/book.yml")
    assert set(here) == set(there)
    assert here.index("site") < here.index("site-test") and there.index("site") < there.index("site-test")


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


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_templates_hold_no_results(path):
    notebook = nbformat.read(ROOT / path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        assert cell.execution_count is None
        assert not cell.outputs
    assert "papermill" not in notebook.metadata
    assert "widgets" not in notebook.metadata
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if path.stem == "intro":  # the front page shows the published records, whatever else was run
        assert not parameters
        return
    (parameters,) = parameters
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


def test_every_notebook_is_a_chapter():
    assert sorted(CHAPTERS) == sorted(path.relative_to(ROOT) for path in (ROOT / "book").glob("*.ipynb"))


def test_a_chapter_gets_the_parameters_that_it_declares(project):
    notebooks = build.chapters(project)
    assert notebooks == [Path("book/one.ipynb")]
    given = build.parameters_by_chapter(notebooks, {"profile": "pilot"}, project)
    assert given == {Path("book/one.ipynb"): {"profile": "pilot"}}
    with pytest.raises(SystemExit, match="unknown parameter profil: the chapters have fail, profile"):
        build.parameters_by_chapter(notebooks, {"profil": "pilot"}, project)


@pytest.mark.parametrize("name", ["quick", "pilot", "study"])
def test_whatever_a_chapter_asks_for_is_run_before_it(name):
    """The companions of a profile are run with it, so that chapters only read."""
    wanted = study.with_companions(name)
    assert list(wanted[name]) == study.specs(name)
    named = [getattr(study.profile(name), which) for which in profiles.COMPANIONS]
    assert set(wanted) == {name, *filter(None, named)}
    source = "".join((ROOT / path).read_text() for path in CHAPTERS)
    asked = set(re.findall(r'companion_records\(profile, \\"(\w+)\\"', source))
    assert asked == set(profiles.COMPANIONS)


def staged(*options, **environment):
    """Run book/build.py as `make` does."""
    return subprocess.run(
        [sys.executable, build.ROOT / "book" / "build.py", *options],
        cwd=build.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def test_force_is_refused_where_nothing_may_run(tmp_path):
    records = tmp_path / "quick.jsonl"
    records.write_text("")
    done = staged("--force", TOPOPRUNE_NO_RUN="1", TOPOPRUNE_RESULTS=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        "build.py: --force discards records, which TOPOPRUNE_NO_RUN forbids to run again: drop one\n"
    )
    assert list(tmp_path.iterdir()) == [records]


def test_an_error_of_a_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tmp_path))
    (tmp_path / "quick.jsonl").write_text("no record\n")
    with pytest.raises(SystemExit) as stopped:
        build.run_missing_trials("quick", None, "cpu", force=False, processes=1)
    assert str(stopped.value).startswith(f"build.py: {tmp_path}/quick.jsonl, line 1 is damaged")
    assert "\n" not in str(stopped.value)


def test_seeds_that_cannot_be_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tmp_path))
    with pytest.raises(SystemExit, match="^build.py: .*-1"):
        build.run_missing_trials("quick", [-1], "cpu", force=False, processes=1)


def test_a_chapter_is_published_whole(project, monkeypatch):
    path, parameters = Path("book/one.ipynb"), {"profile": "pilot"}
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(project))
    for name in ("pilot", "pilot-beyond", "quick"):
        (project / f"{name}.jsonl").write_text(f"{name}\n")
    build.publish(path, parameters, build.execute(path, parameters))
    notebook = nbformat.read(build.STAGE / "book" / "one.ipynb", as_version=4)
    assert [output.text for output in notebook.cells[-1].outputs] == ["pilot\n"]
    assert notebook.metadata.topoprune.versions.torch
    of_both = hashlib.sha256(b"pilot-beyond\npilot\n").hexdigest()  # in the order of the files' names
    assert notebook.metadata.topoprune.records == of_both
    assert str(project) not in nbformat.writes(notebook)
    assert not (project / "_build" / "partial" / "one.ipynb").exists()


@pytest.mark.parametrize("parameters", [{"profile": "pilot"}, {}], ids=["nothing on record", "no profile"])
def test_a_chapter_without_records_has_no_digest_of_them(project, monkeypatch, parameters):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(project))
    path = Path("book/one.ipynb")
    notebook = nbformat.read(project / path, as_version=4)
    notebook.metadata["papermill"] = {"input_path": str(project), "output_path": str(project)}
    (project / "_build" / "partial").mkdir()
    nbformat.write(notebook, project / "_build" / "partial" / "one.ipynb")
    build.publish(path, parameters, 1.0)
    published = nbformat.read(build.STAGE / path, as_version=4).metadata.topoprune
    assert "records" not in published and published.versions.torch


def test_training_and_chapters_read_the_folders_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["build.py"])
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    monkeypatch.setenv("TOPOPRUNE_RESULTS", "results")
    monkeypatch.setenv("TOPOPRUNE_CACHE", "../cache")
    monkeypatch.setenv("TOPOPRUNE_DATA", "")  # as if it were not set
    monkeypatch.setattr(build, "stage_pages", lambda pdf: None)
    seen = {}
    monkeypatch.setattr(build, "execute_side_by_side", lambda todo: seen.update(os.environ))
    build.main()
    assert [seen[name] for name in build.FOLDERS] == [
        str(tmp_path / "results"),
        str(tmp_path.parent / "cache"),
        "",
    ]


def test_without_git_the_book_has_no_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build._origin() == ""


def test_a_chapter_that_fails_is_not_published(project):
    with pytest.raises(SystemExit) as stopped:
        build.execute(Path("book/one.ipynb"), {"fail": True})
    assert str(stopped.value) == (
        "build.py: book/one.ipynb stopped at cell 2: AssertionError: as asked; "
        "_build/partial/one.ipynb shows how far it came"
    )
    assert not (build.STAGE / "book" / "one.ipynb").exists()
    assert (project / "_build" / "partial" / "one.ipynb").exists()


@pytest.mark.slow
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
    done = staged(TOPOPRUNE_NO_RUN="1")
    assert done.returncode == 1
    assert "build.py: book/one.ipynb stopped at cell 2: ValueError: no such record" in done.stderr
    stage = project / "_build" / "stage" / "book"
    assert (stage / "two.ipynb").exists() and not (stage / "one.ipynb").exists()
