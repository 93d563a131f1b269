"""The commit of a record, and which records may be published."""

import subprocess

import pytest

from topoprune.files import FileError
from topoprune.study import provenance
from topoprune.study.provenance import commit_of, must_be_made_again, require_clean


def git(folder, *arguments) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with the folders of this project."""
    for file in ("topoprune/method.py", "book/results/study.jsonl", "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "all")
    return tmp_path


def test_a_clean_checkout_is_named_by_its_commit(checkout):
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD")[:12]


def test_new_records_and_changed_pages_leave_the_code_clean(checkout):
    """A study that was interrupted has stored records that are not committed yet."""
    (checkout / "book/results/study.jsonl").write_text("1\n2\n")
    (checkout / "book/results/recovery.jsonl").write_text("1\n")
    (checkout / "README.md").write_text("2\n")
    assert not commit_of(checkout).endswith("-dirty")


@pytest.mark.parametrize("file", ["topoprune/method.py", "topoprune/another.py"])
def test_changed_code_is_dirty(checkout, file):
    (checkout / file).write_text("2\n")
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD")[:12] + "-dirty"


def test_an_installed_package_has_no_commit(checkout, tmp_path_factory, monkeypatch):
    assert commit_of(tmp_path_factory.mktemp("site-packages")) == "not a git checkout"
    inside = checkout / ".venv" / "site-packages"  # of another project, whose commit says nothing
    inside.mkdir(parents=True)
    assert commit_of(inside) == "not a git checkout"
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout) == "not a git checkout"


def test_published_records_are_of_clean_code(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PUBLISHED", tmp_path / "book" / "results")
    published, own = tmp_path / "book" / "results" / "study.jsonl", tmp_path / "_build" / "study.jsonl"
    with pytest.raises(FileError, match=r"study.jsonl holds published records.*commit 0123: commit the changes"):
        require_clean(published, "0123-dirty")
    require_clean(published, "0123")
    require_clean(own, "0123-dirty")
    monkeypatch.setenv("TOPOPRUNE_ALLOW_DIRTY", "1")
    require_clean(published, "0123-dirty")


def test_a_checkout_that_git_cannot_read_publishes_nothing(tmp_path, monkeypatch):
    """As one of another user, or where git is not installed; a package without a repository is another matter."""
    monkeypatch.setattr(provenance, "PUBLISHED", tmp_path / "book" / "results")
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    published = tmp_path / "book" / "results" / "study.jsonl"
    require_clean(published, provenance.UNKNOWN)
    (tmp_path / ".git").mkdir()
    with pytest.raises(FileError, match=r"git cannot tell whether topoprune/ was changed: install git, or .*safe\.dir"):
        require_clean(published, provenance.UNKNOWN)
    require_clean(tmp_path / "_build" / "study.jsonl", provenance.UNKNOWN)


def test_a_record_of_changed_code_is_made_again_where_that_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PUBLISHED", tmp_path / "book" / "results")
    monkeypatch.setattr(provenance, "commit", lambda: "4567")
    published, own = tmp_path / "book" / "results" / "study.jsonl", tmp_path / "_build" / "study.jsonl"
    assert must_be_made_again("0123-dirty", (own, published))
    assert not must_be_made_again("0123-dirty", (own,)) and not must_be_made_again("0123", (own, published))
    monkeypatch.setattr(provenance, "commit", lambda: "4567-dirty")  # it would be refused again
    assert not must_be_made_again("0123-dirty", (published,))
