"""No record is lost: torn lines, damaged lines, two writers, disks that refuse."""

import json
import multiprocessing
import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoprune import files
from topoprune.files import FileError, FileWarning
from topoprune.study import locks
from topoprune.study.store import Store


def record(key, value=0):
    return {"key": key, "value": value}


def test_records_come_back(tmp_path):
    kept = Store(tmp_path / "new" / "records.jsonl")
    assert kept.load() == {}
    kept.append(record("a", 1))
    kept.append(record("b", [1.5, None]))
    kept.append(record("a", 2))
    assert {k: r["value"] for k, r in kept.load().items()} == {"a": 2, "b": [1.5, None]}
    assert len(kept.path.read_text().splitlines()) == 2


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 400), count=st.integers(1, 4))
def test_a_truncated_file_keeps_every_whole_line(tmp_path_factory, cut, count):
    kept = Store(tmp_path_factory.mktemp("store") / "records.jsonl")
    for i in range(count):
        kept.append(record(f"k{i}", "x" * i))
    content = kept.path.read_bytes()
    content = content[: max(0, len(content) - cut)]
    kept.path.write_bytes(content)
    whole = content.count(b"\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(kept.load()) == [f"k{i}" for i in range(whole)]
    torn = not content.endswith(b"\n") and content != b""
    assert [f"line {whole + 1} is torn" in str(w.message) for w in caught] == [True] * torn


def test_a_torn_line_is_replaced_by_the_next_record(tmp_path):
    kept = Store(tmp_path / "records.jsonl")
    kept.append(record("a"))
    with kept.path.open("a") as file:
        file.write('{"key": "b", "va')
    with pytest.warns(FileWarning, match="records.jsonl, line 2 is torn .* 1 lines before it"):
        kept.append(record("c"))
    assert set(kept.load()) == {"a", "c"}


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
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path, line):
    kept = Store(tmp_path / "records.jsonl")
    kept.append(record("a"))
    kept.path.write_text(line + "\n" + kept.path.read_text())
    before = kept.path.read_bytes()
    for call in (kept.load, lambda: kept.append(record("b"))):
        with pytest.raises(FileError, match="records.jsonl, line 1 is damaged"):
            call()
    assert kept.path.read_bytes() == before


def test_records_of_the_first_schema_are_kept_beside_new_ones(tmp_path):
    kept = Store(tmp_path / "records.jsonl")
    old = {"key": "a", "schema": 1}
    kept.path.write_text(json.dumps(old) + "\n")
    kept.append({"key": "b"})
    assert kept.load() == {"a": old, "b": {"key": "b", "schema": 2}}


def test_an_altered_record_is_refused(tmp_path):
    kept = Store(tmp_path / "records.jsonl")
    kept.append(record("a", 93.41))
    kept.path.write_text(kept.path.read_text().replace("93.41", "94.41"))
    with pytest.raises(FileError, match="line 1 was altered .*git checkout"):
        kept.load()


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
    kept = Store(tmp_path_factory.mktemp("json") / "records.jsonl")
    kept.path.write_text(json.dumps(line) + "\n")
    try:
        found = kept.load()
    except FileError as error:
        assert "records.jsonl, line 1" in str(error)
    else:
        assert list(found) == [line["key"]] and line["schema"] == 1
        kept.append(record("b"))
        assert set(kept.load()) == {line["key"], "b"}


def test_another_schema_is_refused_with_the_reason(tmp_path):
    kept = Store(tmp_path / "records.jsonl")
    kept.path.write_text(json.dumps({"key": "a", "schema": 99}) + "\n")
    with pytest.raises(FileError, match="line 1 has schema 99, this version of topoprune reads 1 to 2"):
        kept.load()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_give_records_or_one_clear_error(tmp_path_factory, content):
    kept = Store(tmp_path_factory.mktemp("fuzz") / "records.jsonl")
    kept.path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileWarning)
        try:
            assert all("key" in r for r in kept.load().values())
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
    kept = Store(tmp_path / "records.jsonl")
    kept.append(record("a"))
    before = kept.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="records.jsonl: No space left on device.*free the disk"):
        kept.append(record("b"))
    assert kept.path.read_bytes() == before
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("what", ["filelock.FileLock.acquire", "tempfile.mkstemp"])
def test_a_read_only_disk_damages_nothing(tmp_path, monkeypatch, what):
    kept = Store(tmp_path / "records.jsonl")
    kept.append(record("a"))
    before = kept.path.read_bytes()

    def read_only(*arguments, **named):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(what, read_only)
    with pytest.raises(FileError, match="records.jsonl: Read-only file system.*choose another folder"):
        kept.append(record("b"))
    assert kept.path.read_bytes() == before
    assert list(kept.load()) == ["a"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(FileError, match="cannot write .*records.jsonl"):
        Store(tmp_path / "results" / "records.jsonl").append(record("a"))


TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "steps": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
}


def test_tensors_come_back_bit_for_bit(tmp_path):
    file = tmp_path / "x.safetensors"
    files.write_tensors(file, TENSORS, {"epoch": 3})
    tensors, metadata = files.read_tensors(file)
    assert metadata == {"epoch": 3}
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_a_checkpoint_is_noticed(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    files.write_tensors(file, TENSORS, {"epoch": 3})
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        tensors, metadata = files.read_tensors(file)
    except FileError as error:
        assert "x.safetensors" in str(error)
    else:  # white space of the header, say: the content is the same
        assert metadata == {"epoch": 3}
        assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileError, match="none.safetensors does not exist"):
        files.read_tensors(tmp_path / "none.safetensors")


def test_keys_ignore_the_order_of_fields():
    assert files.key({"a": 1, "b": [2, 3]}) == files.key({"b": [2, 3], "a": 1})
    assert files.key({"a": 1}) != files.key({"a": 2})


def test_json_comes_back_and_is_refused_by_name(tmp_path):
    file = tmp_path / "x.json"
    value = {"b": [0.1, 1e-300, None], "a": {"deep": 2**70}}
    files.write_json(file, {"seed": 1, "k": 3}, value)
    assert list(files.read_json(file, {"seed": 1, "k": 3})) == ["b", "a"]
    assert files.read_json(file, {"seed": 1, "k": 3}) == value
    with pytest.raises(FileError, match="x.json belongs to another run: its k is 3, not 4"):
        files.read_json(file, {"seed": 1, "k": 4})
    with pytest.raises(FileError, match="y.json does not exist"):
        files.read_json(tmp_path / "y.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(file, 1, float("nan"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_a_json_is_noticed(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("fuzz") / "x.json"
    value = {"kept": {"features.0": [0, 2, 5]}, "seconds": 0.25}
    files.write_json(file, "trial", value)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = files.resume_json(file, "trial")
    if caught:
        assert found is None and "set aside as x.json.refused" in str(caught[0].message)
    else:  # white space, or another way to write the same number
        assert found == value


def test_what_killed_writers_left_goes_with_the_next_lock(tmp_path):
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
