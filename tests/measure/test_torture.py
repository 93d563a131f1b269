"""A real run, killed some times: nothing is lost, and the check itself can fail."""

import copy
import json
import math
import shutil

import pytest

from topoprune.measure import cluster, saved_state, torture
from topoprune.measure.saved_state import Progress
from topoprune.measure.tortured_run import TorturedRun
from topoprune.report import benchmarks
from topoprune.study import Trial, records_store
from topoprune.study.trial import spec_key

KILLS, EPOCHS = 4, 2


@pytest.mark.parametrize(
    "actual, lines",
    [
        ({"a": [1, 2]}, []),
        ({"a": [1, 3]}, ["a[1]: 3, not 2"]),
        ({"a": [1]}, ["a: [1], not [1,2]"]),
        ({"b": 1}, [': {"b":1}, not {"a":[1,2]}']),
        ({"a": [1, 2.0]}, ["a[1]: 2.0, not 2"]),
    ],
)
def test_the_first_difference_is_named(actual, lines):
    assert saved_state.first_difference({"a": [1, 2]}, actual) == lines


def test_the_last_bit_of_a_float_is_a_difference():
    loss = 0.1 + 0.2
    (line,) = saved_state.first_difference({"loss": [loss]}, {"loss": [math.nextafter(loss, 9.0)]})
    assert line.startswith("loss[0]: 0.3000000000000001, not 0.3000000000000000")


def test_a_damaged_file_is_seen(tiny_study, tmp_path):
    assert saved_state.damaged_files(tiny_study.cache.parent) == []
    whole = next(tiny_study.cache.glob("runs/dense-*/dense.safetensors"))
    copied = tmp_path / "cache" / "runs" / whole.parent.name / whole.name
    copied.parent.mkdir(parents=True)
    copied.write_bytes(whole.read_bytes()[:-1])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "torture.jsonl").write_text('{"key": ')
    assert saved_state.damaged_files(tmp_path) == ["dense.safetensors", "torture.jsonl"]


def test_records_are_compared_without_times(tiny_study, tmp_path):
    expected = saved_state.comparable_records(tiny_study.cache.parent)
    shutil.copytree(tiny_study.results, tmp_path / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPOPRUNE_RESULTS", str(tmp_path / "results"))
        store = records_store("tiny")
    key, record = next((key, r) for key, r in store.load().items() if "damage" in r["result"])
    slower = copy.deepcopy(record)
    slower["result"]["history"][0]["seconds"] += 1
    store.append(slower)
    assert saved_state.first_difference(expected, saved_state.comparable_records(tmp_path)) == []
    record["result"]["history"][0]["loss"] += 1
    store.append(record)
    (line,) = saved_state.first_difference(expected, saved_state.comparable_records(tmp_path))
    assert line.startswith(f"{key}.result.history[0].loss: ")


@pytest.mark.parametrize(
    "after, phase",
    [
        (Progress(0, 1, 0, 0, 0), "dense training"),
        (Progress(0, EPOCHS, 0, 0, 0), "record"),
        (Progress(1, EPOCHS, 0, 3, 0), "selection"),
        (Progress(1, EPOCHS, 1, 6, 1), "fine-tuning"),
        (Progress(1, EPOCHS, 1, 6, EPOCHS), "record"),
        (Progress(2, EPOCHS, 1, 0, EPOCHS), "after the record"),
    ],
)
def test_the_phase_of_a_kill_is_read_from_the_disk(after, phase, tmp_path):
    assert torture.phase_of(after, TorturedRun(tmp_path, EPOCHS)) == phase


def test_progress_grows_with_what_is_on_disk(tiny_study, tmp_path):
    (tmp_path / "cache" / "runs").mkdir(parents=True)
    run = TorturedRun(tmp_path, EPOCHS)
    assert saved_state.progress(tmp_path, run.trial) == Progress(0, 0, 0, 0, 0)
    whole = next(tiny_study.cache.glob("runs/dense-*/dense.safetensors")).parent
    shutil.copytree(whole, tmp_path / "cache" / "runs" / f"dense-{spec_key(run.trial.dense)}")
    assert saved_state.progress(tmp_path, run.trial) == Progress(0, 2, 0, 0, 0)
    stored = next(record for record in tiny_study.records if isinstance(record.spec, Trial))
    assert saved_state.progress(tiny_study.cache.parent, stored.spec).tuning_epochs == 2


SOUND_DISK = {"file": "x", "named": True, "damaged": 0, "kept": True, "continued to the same record": True}
SOUND = {
    "kills": 0,
    "phases": [],
    **dict.fromkeys(torture.COUNTS, 0),
    "differences": [],
    "full disk": [SOUND_DISK],
}


def test_a_report_without_loss_is_sound():
    assert torture.is_sound(SOUND)
    assert torture.report_text(SOUND).endswith("\nsound")


@pytest.mark.parametrize(
    "worse",
    [
        {"lost": 1},
        {"torn": 1},
        {"left over": 1},
        {"differences": ["a: 1, not 2"]},
        *(
            {"full disk": [{**SOUND_DISK, **case}]}
            for case in ({"named": False}, {"damaged": 1}, {"kept": False}, {"continued to the same record": False})
        ),
    ],
)
def test_whatever_is_lost_counts(worse):
    assert not torture.is_sound({**SOUND, **worse})
    assert torture.report_text({**SOUND, **worse}).endswith("\nNOT SOUND")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a small torture."""
    return torture.torture(tmp_path_factory.mktemp("torture"), KILLS, seed=1, epochs=EPOCHS)


@pytest.mark.slow
def test_nothing_is_lost(report):
    assert report["kills"] == sum(row["kills"] for row in report["phases"]) == KILLS
    assert report["processes"] == KILLS + report["finished"]
    assert report["records compared"] == 2 * report["finished"] >= 2
    assert report["differences"] == [] and report["lost"] == report["torn"] == report["left over"] == 0
    assert torture.is_sound(report)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_same_command_goes_on(report):
    assert [case["file"] for case in report["full disk"]] == ["dense.safetensors", "torture.jsonl"]
    for case in report["full disk"]:
        assert case["named"] and case["kept"] and case["continued to the same record"]
        assert case["damaged"] == 0


@pytest.mark.slow
def test_the_page_s_tables_show_the_counts(report, tmp_path):
    path = tmp_path / "torture.json"
    path.write_text(json.dumps(report))
    measured = benchmarks.torture(path)
    assert benchmarks.torture_phases(measured)["kills"].sum() == KILLS
    counts = benchmarks.torture_counts(measured).set_index("what")["count"]
    assert counts["differences"] == 0 and counts["kills that landed"] == KILLS
    assert len(benchmarks.torture_disk(measured)) == 2
    assert benchmarks.torture_numbers(measured)["kills"] == KILLS


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_gives_the_records_of_one(tmp_path):
    part = ["--profile", "quick", "--seeds", "0", "--ratios", "0.5", "--methods", "l1"]
    found = cluster.torture_cluster(tmp_path, part)
    assert found["killed"] == "trial" and found["workers"] == 2
    assert found["records"] == 2 and found["differences"] == []
    assert cluster.agrees(found)
    assert str(tmp_path) not in json.dumps(found)
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(found))
    assert benchmarks.cluster_table(benchmarks.cluster(path))["records"].item() == 2
