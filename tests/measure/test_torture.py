"""A real run, killed some times: nothing is lost, and the check itself can fail."""

import copy
import json
import math

import pytest

from topoprune.measure import torture
from topoprune.report import benchmarks

KILLS, EPOCHS = 7, 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The report of a small torture, and its folder."""
    folder = tmp_path_factory.mktemp("torture")
    return torture.torture(folder, KILLS, seed=1, epochs=EPOCHS), folder


def test_nothing_is_lost(found):
    report, _ = found
    assert report["kills"] == sum(row["kills"] for row in report["phases"]) == KILLS
    assert report["processes"] == KILLS + report["finished"]
    assert report["records compared"] == 2 * report["finished"] >= 2
    assert report["differences"] == [] and report["lost"] == report["torn"] == report["left over"] == 0
    assert torture.sound(report)


def test_a_full_disk_is_named_and_the_same_command_goes_on(found):
    cases = found[0]["full disk"]
    assert [case["file"] for case in cases] == ["dense.safetensors", "torture.jsonl"]
    for case in cases:
        assert case["named"] and case["kept"] and case["continued to the same record"]
        assert case["damaged"] == 0


def test_a_dask_cluster_that_loses_a_worker_gives_the_records_of_one(tmp_path):
    part = ["--profile", "quick", "--seeds", "0", "--ratios", "0.5", "--methods", "l1", "random"]
    made = torture.cluster(tmp_path, part)
    assert made["killed"] == "trial" and made["workers"] == 2
    assert made["records"] == 3 and made["differences"] == []
    assert torture.agrees(made)
    assert not torture.agrees({**made, "killed": ""})
    assert not torture.agrees({**made, "differences": ["x: 1, not 2"]})
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(made))
    assert benchmarks.cluster_table(benchmarks.cluster(file))["records"].item() == 3


def test_an_altered_result_is_found_and_named(found):
    """One float of one record, by its last bit."""
    report, folder = found
    expected = torture.recorded(folder / "expected")
    altered = copy.deepcopy(expected)
    (key,) = [key for key, record in expected.items() if "damage" in record["result"]]
    epoch = altered[key]["result"]["history"][1]
    epoch["loss"] = math.nextafter(epoch["loss"], 9.0)
    assert torture.difference(expected, expected) == []
    (line,) = torture.difference(expected, altered)
    assert line.startswith(f"{key}.result.history[1].loss: {epoch['loss']!r}, not ")
    assert "NOT SOUND" in torture.report({**report, "differences": [line]})
    assert not torture.sound({**report, "differences": [line]})


DISK = {"file": "x", "named": True, "damaged": 0, "kept": True, "continued to the same record": True}


@pytest.mark.parametrize(
    "worse",
    [
        {"lost": 1},
        {"torn": 1},
        {"left over": 1},
        *(
            {"full disk": [{**DISK, **case}]}
            for case in ({"named": False}, {"damaged": 1}, {"kept": False}, {"continued to the same record": False})
        ),
    ],
)
def test_whatever_is_lost_counts(found, worse):
    assert not torture.sound({**found[0], **worse})


@pytest.mark.parametrize(
    "made, line",
    [
        ({"a": [1, 2]}, []),
        ({"a": [1, 3]}, ["a[1]: 3, not 2"]),
        ({"a": [1]}, ["a: [1], not [1,2]"]),
        ({"b": 1}, [': {"b":1}, not {"a":[1,2]}']),
        ({"a": [1, 2.0]}, ["a[1]: 2.0, not 2"]),
    ],
)
def test_the_first_difference_is_named(made, line):
    assert torture.difference({"a": [1, 2]}, made) == line


def test_a_torn_file_is_seen(found, tmp_path):
    _, folder = found
    (checkpoint,) = (folder / "expected").glob("cache/runs/*/dense.safetensors")
    torn = tmp_path / "cache" / "runs" / checkpoint.parent.name
    torn.mkdir(parents=True)
    (torn / checkpoint.name).write_bytes(checkpoint.read_bytes()[:-1])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "torture.jsonl").write_text('{"key": ')
    assert torture.torn(tmp_path) == ["dense.safetensors", "torture.jsonl"]


def test_the_page_s_tables_show_the_counts(found, tmp_path):
    report, _ = found
    file = tmp_path / "torture.json"
    file.write_text(json.dumps(report))
    measured = benchmarks.torture(file)
    assert benchmarks.torture_phases(measured)["kills"].sum() == KILLS
    counts = benchmarks.torture_counts(measured).set_index("what")["count"]
    assert counts["differences"] == 0 and counts["kills that landed"] == KILLS
    assert len(benchmarks.torture_disk(measured)) == 2
    assert benchmarks.torture_numbers(measured)["kills"] == KILLS
    assert str(tmp_path) not in file.read_text()
