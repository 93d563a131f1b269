"""No record is lost: torn lines, damaged lines, two writers, disks that refuse."""

import fcntl
import itertools
import json
import multiprocessing
import os
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topoprune.files import FileError, FileWarning
from topoprune.study import locks
from topoprune.study.locks import is_locked, locked
from topoprune.study.store import Store


def record(key, value=0):
    return {"key": key, "value": value}


def test_records_come_back(tmp_path):
    store = Store(tmp_path / "new" / "records.jsonl")
    assert store.load() == {}
    store.append(record("a", 1))
    store.append(record("b", [1.5, None]))
    store.append(record("a", 2))
    assert {k: r["value"] for k, r in store.load().items()} == {"a": 2, "b": [1.5, None]}
    assert len(store.path.read_text().splitlines()) == 2


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 400), count=st.integers(1, 4))
def test_a_truncated_file_keeps_every_whole_line(tmp_path_factory, cut, count):
    store = Store(tmp_path_factory.mktemp("store") / "records.jsonl")
    for i in range(count):
        store.append(record(f"k{i}", "x" * i))
    written = store.path.read_bytes()
    content = written[: max(0, len(written) - cut)]
    store.path.write_bytes(content)
    ends = [end - 1 for end in itertools.accumulate(len(line) + 1 for line in written.splitlines())]
    whole = sum(end <= len(content) for end in ends)  # with or without the line end
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(store.load()) == [f"k{i}" for i in range(whole)]
    torn = len(content) not in {0, *ends, *(end + 1 for end in ends)}
    assert [f"line {whole + 1} is torn" in str(w.message) for w in caught] == [True] * torn


def test_a_whole_last_record_without_a_line_end_stays(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    for key in "ab":
        store.append(record(key))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole.removesuffix(b"\n"))
    assert set(store.load()) == {"a", "b"}
    store.append(record("c"))
    assert store.path.read_bytes().startswith(whole) and set(store.load()) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda line: line.replace("93.41", "94.41"), "line 1 was altered"),
        (
            lambda line: line.replace('"schema":2', '"schema":3'),
            "line 1 has schema 3, .* use the version",
        ),
        (lambda line: "my diary", "line 1 is damaged"),
    ],
    ids=["altered", "newer", "foreign"],
)
def test_a_last_line_without_its_end_that_is_not_torn_is_refused_and_kept(tmp_path, change, message):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a", 93.41))
    store.path.write_text(change(store.path.read_text().rstrip()))
    before = store.path.read_bytes()
    with pytest.raises(FileError, match=message):
        store.append(record("b"))
    assert store.path.read_bytes() == before


def test_what_a_crashed_disk_leaves_of_a_line_is_torn(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    with store.path.open("ab") as file:
        file.write(bytes(100))
    with pytest.warns(FileWarning, match="line 2 is torn"):
        assert set(store.load()) == {"a"}


def test_a_mark_of_the_byte_order_is_no_damage(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    store.path.write_bytes(b"\xef\xbb\xbf" + store.path.read_bytes())
    assert set(store.load()) == {"a"}


def test_a_link_to_a_records_file_stays_one(tmp_path):
    """Its target grows, and has the lock of both."""
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "records.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(real)
    for key in "ab":
        Store(link).append(record(key))
    assert link.is_symlink() and set(Store(real).load()) == {"a", "b"}
    with locked(link):
        assert is_locked(real) and is_locked(link)


def test_a_torn_line_is_replaced_by_the_next_record(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    with store.path.open("a") as file:
        file.write('{"key": "b", "va')
    with pytest.warns(FileWarning, match="records.jsonl, line 2 is torn .* 1 lines before it"):
        store.append(record("c"))
    assert set(store.load()) == {"a", "c"}


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "{}",
        '{"key": "x"}',
        "[" * 100_000,
        '{"key": [], "schema": 1}',
        '{"key": "x", "schema": [1]}',
        '{"key": "x", "schema": 1, "value": NaN}',
        '{"key": "x", "schema": 2, "value": 1e999}',
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path, line):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    store.path.write_text(line + "\n" + store.path.read_text())
    before = store.path.read_bytes()
    for call in (store.load, lambda: store.append(record("b"))):
        with pytest.raises(FileError, match="records.jsonl, line 1 is damaged"):
            call()
    assert store.path.read_bytes() == before


def test_records_of_the_first_schema_are_kept_beside_new_ones(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    old = {"key": "a", "schema": 1}
    store.path.write_text(json.dumps(old) + "\n")
    store.append({"key": "b"})
    assert store.load() == {"a": old, "b": {"key": "b", "schema": 2}}


def test_an_altered_record_is_refused(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a", 93.41))
    store.path.write_text(store.path.read_text().replace("93.41", "94.41"))
    with pytest.raises(FileError, match="line 1 was altered .*git checkout"):
        store.load()


@settings(max_examples=100, deadline=None)
@given(
    line=st.dictionaries(
        st.sampled_from(["key", "schema", "sha256", "kind", "spec"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        ),
    )
)
def test_any_json_gives_a_record_or_one_clear_error(tmp_path_factory, line):
    store = Store(tmp_path_factory.mktemp("json") / "records.jsonl")
    store.path.write_text(json.dumps(line) + "\n")
    try:
        found = store.load()
    except FileError as error:
        assert "records.jsonl, line 1" in str(error)
    else:
        assert list(found) == [line["key"]] and line["schema"] == 1
        store.append(record("b"))
        assert set(store.load()) == {line["key"], "b"}


def test_another_schema_is_refused_with_the_reason(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    store.path.write_text(json.dumps({"key": "a", "schema": 99}) + "\n")
    with pytest.raises(FileError, match="line 1 has schema 99, this version of topoprune reads 1 to 2"):
        store.load()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_give_records_or_one_clear_error(tmp_path_factory, content):
    store = Store(tmp_path_factory.mktemp("fuzz") / "records.jsonl")
    store.path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileWarning)
        try:
            assert all("key" in r for r in store.load().values())
        except FileError as error:
            assert "records.jsonl" in str(error)


def _write_many(path, name):
    for i in range(15):
        Store(path).append(record(f"{name}{i}"))


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Store(path).load()) == 30


def test_a_full_disk_damages_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    before = store.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="records.jsonl: No space left on device.*free the disk"):
        store.append(record("b"))
    assert store.path.read_bytes() == before
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("what", ["filelock.FileLock.acquire", "tempfile.mkstemp"])
def test_a_read_only_disk_damages_nothing(tmp_path, monkeypatch, what):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    before = store.path.read_bytes()

    def read_only(*arguments, **named):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(what, read_only)
    with pytest.raises(FileError, match="records.jsonl: Read-only file system.*choose another folder"):
        store.append(record("b"))
    assert store.path.read_bytes() == before
    assert list(store.load()) == ["a"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(FileError, match="cannot write .*records.jsonl"):
        Store(tmp_path / "results" / "records.jsonl").append(record("a"))


def test_a_dropped_record_is_kept_in_a_backup_that_is_never_overwritten(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    contents = []
    for value in range(3):
        store.append(record("a", value))
        contents.append(store.path.read_bytes())
        store.drop({"a", "unknown"})
    assert store.load() == {}
    backups = ["records.jsonl.bak", "records.jsonl.bak1", "records.jsonl.bak2"]
    assert [(tmp_path / name).read_bytes() for name in backups] == contents
    assert Store(tmp_path / backups[1]).load()["a"]["value"] == 1


def test_where_nothing_is_dropped_nothing_is_written(tmp_path):
    store = Store(tmp_path / "records.jsonl")
    store.append(record("a"))
    store.drop({"b"})
    assert [path.name for path in tmp_path.glob("*.jsonl*")] == ["records.jsonl", "records.jsonl.lock"]


def test_whoever_looks_at_a_lock_takes_it_from_nobody(tmp_path):
    """Two that look at once, as two `status`, both find a free lock free."""
    path = tmp_path / "run"
    assert not locks.is_locked(path) and not list(tmp_path.iterdir())
    with locks.locked(path):
        assert locks.is_locked(path)
    handle = os.open(f"{path}.lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as another that looks
    assert not locks.is_locked(path)
    os.close(handle)


def test_where_a_file_is_no_folder_nothing_is_locked_and_the_lock_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    assert not locks.is_locked(tmp_path / "file" / "run")
    with pytest.raises(FileError, match="cannot write .*file/run"), locks.locked(tmp_path / "file" / "run"):
        pass


def test_what_killed_writers_left_is_removed_with_the_next_lock(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "records.jsonl"
    folder.mkdir()
    left = [folder / ".x.safetensors.ab_12345", tmp_path / ".records.jsonl.abcdefgh"]
    others = [folder / ".hidden", folder / "x.safetensors", tmp_path / ".other.jsonl.abcdefgh"]
    for path in left + others:
        path.write_text("")
    assert locks.leftovers(folder) == left[:1] and locks.leftovers(file) == left[1:]
    for path in (folder, file):
        assert not locks.is_locked(path)
        with locks.locked(path):
            assert locks.is_locked(path)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
