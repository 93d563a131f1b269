"""Files are whole and unaltered, or refused by name."""

import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoprune import files
from topoprune.files import FileError, FileWarning

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "steps": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "across": torch.arange(6).reshape(2, 3).T,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_tensors_come_back_bit_for_bit(tmp_path):
    file = tmp_path / "folder" / "x.safetensors"
    files.write_tensors(file, TENSORS, {"epoch": 3})
    tensors, metadata = files.read_tensors(file)
    assert metadata == {"epoch": 3} and equal(tensors, TENSORS)


def test_tensors_that_share_memory_come_back(tmp_path):
    whole = torch.arange(6.0)
    tied = {"whole": whole, "again": whole, "part": whole[2:4]}
    files.write_tensors(tmp_path / "x.safetensors", tied, {})
    assert equal(files.read_tensors(tmp_path / "x.safetensors")[0], tied)


@settings(max_examples=40, deadline=None)
@given(value=JSON, identity=JSON.filter(lambda value: value is not None))
def test_json_comes_back(tmp_path_factory, value, identity):
    file = tmp_path_factory.mktemp("json") / "x.json"
    files.write_json(file, identity, value)
    assert files.read_json(file) == files.read_json(file, identity) == files.resume(files.read_json, file, identity)
    assert files.read_json(file) == value


def test_json_keeps_the_order_of_its_fields(tmp_path):
    files.write_json(tmp_path / "x.json", 1, {"b": 1, "a": 2})
    assert list(files.read_json(tmp_path / "x.json")) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1e999]])
def test_what_json_cannot_hold_is_refused_before_it_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", 1, value)
    assert not (tmp_path / "x.json").exists()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_a_file_of_tensors_is_noticed(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    files.write_tensors(file, TENSORS, {"epoch": 3})
    alter(file, data)
    try:
        tensors, metadata = files.read_tensors(file)
    except FileError as error:
        assert "x.safetensors" in str(error)
    else:  # white space of the header, say: the content is the same
        assert metadata == {"epoch": 3} and equal(tensors, TENSORS)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_a_file_of_json_is_noticed(tmp_path_factory, data):
    file, value = tmp_path_factory.mktemp("json") / "x.json", {"kept": {"features.0": [0, 2, 5]}, "seconds": 0.25}
    files.write_json(file, "trial", value)
    alter(file, data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = files.resume(files.read_json, file, "trial")
    if caught:
        assert found is None and "set aside as x.json.refused" in str(caught[0].message)
        assert not file.exists() and file.with_name("x.json.refused").exists()
    else:  # white space, or another way to write the same number
        assert found == value


def alter(file, data):
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)


@pytest.mark.parametrize("read", [files.read_json, files.read_tensors])
@settings(max_examples=50, deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.sampled_from([b"[]", b"{}", b'{"sha256": 1}', b'{"value": 1e999}', b"[" * 10**5])
)
def test_any_other_content_is_refused_by_name(read, tmp_path_factory, content):
    file = tmp_path_factory.mktemp("other") / "x"
    file.write_bytes(content)
    with pytest.raises(FileError, match="x is no file of topoprune, or is truncated.*move this one away and run again"):
        read(file)


@pytest.mark.parametrize("read", [files.read_json, files.read_tensors])
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(FileError, match="none does not exist: name a file that topoprune wrote"):
        read(tmp_path / "none")
    assert files.resume(read, tmp_path / "none", 1) is None


def test_a_file_of_another_identity_is_refused_with_the_difference(tmp_path):
    files.write_json(tmp_path / "x.json", {"seed": 1, "k": 3}, 1)
    with pytest.raises(FileError, match="x.json belongs to another run: its k is 3, not 4"):
        files.read_json(tmp_path / "x.json", {"seed": 1, "k": 4})
    with pytest.raises(FileError, match="x.json belongs to another run: its patience is None, not None"):
        files.read_json(tmp_path / "x.json", {"seed": 1, "k": 3, "patience": None})
    files.write_tensors(tmp_path / "x.safetensors", TENSORS, {"identity": "a"})
    with pytest.raises(FileError, match="x.safetensors belongs to another run: it is of a, not of b"):
        files.read_tensors(tmp_path / "x.safetensors", "b")


def test_identities_of_values_ignore_the_order_of_fields():
    assert files.key({"a": 1, "b": [2, 3]}) == files.key({"b": [2, 3], "a": 1}) != files.key({"a": 1, "b": [3, 2]})


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 3.0])},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
    ],
)
def test_identities_of_tensors_are_of_names_types_shapes_and_values(other):
    tensors = {"a": torch.tensor([1.0, 2.0])}
    assert files.digest(tensors) == files.digest({"a": torch.tensor([1.0, 9.0, 2.0])[::2]}) != files.digest(other)


@pytest.mark.parametrize(
    ("broken", "reason"), [("os.fsync", "No space left on device"), ("tempfile.mkstemp", "Read-only file system")]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken, reason):
    file = tmp_path / "x.json"
    files.write_json(file, 1, "old")

    def fails(*_, **__):
        raise OSError({"No": 28, "Read-only": 30}[reason.split()[0]], reason)

    monkeypatch.setattr(broken, fails)
    with pytest.raises(
        FileError, match=f"cannot write .*x.json: {reason}.*free the disk or choose another folder, then"
    ):
        files.write_json(file, 1, "new")
    monkeypatch.undo()
    assert files.read_json(file) == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write .*x.json"):
        files.write_json(tmp_path / "file" / "x.json", 1, 1)


def test_a_file_that_is_set_aside_is_kept_under_another_name(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with pytest.warns(FileWarning, match="of another run; set aside as x.json.refused, starting over"):
        files.set_aside(file, "of another run")
    assert not file.exists() and (tmp_path / "x.json.refused").read_text() == "old"


def test_a_folder_in_the_place_of_a_file_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("")
    for use in (files.check_writable, lambda path: files.resume(files.read_json, path, "x")):
        with pytest.raises(FileError, match="is a folder or a device: name a file"):
            use(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
