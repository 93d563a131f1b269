"""Records as data frames."""

import dataclasses
import json

import numpy as np
import pytest
from planted import COST, PROVENANCE, dense_spec, epoch, networks, only_trials, planted, portrait, record

from topoprune.files import FileError
from topoprune.report import frames
from topoprune.study import Record, Trial


def test_a_trial_s_row_by_hand():
    trial = record("l1", 0.5, 0, test=80, damage=30, distance=0.4, epochs=2, live=0.0)
    trial.result["cost"] = {"parameters": 0.5, "flops": 0.25, "latency_ms": 0.8, "images_per_second": 2.0}
    row = frames.trials([*networks(1), trial]).iloc[0]
    expected = {
        "method": "L1",
        "ratio": 0.5,
        "seed": 0,
        "test": 80,
        "damaged": 60,
        "dense test": 90,
        "damage": 30,
        "parameters": 0.5,
        "flops": 0.25,
        "latency": 0.8,
        "batch time": 0.5,
        "epoch time": 1,
        "recovered": True,
        "recovery epochs": 2,
        "recovery area": 75,
        "topological distance": 0.4,
        "collapsed layers": 1,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_frames_without_records_have_the_columns_and_types_of_others():
    records = planted(seeds=1)
    for make in (frames.trials, frames.recovery_frame, frames.layer_frame):
        empty, full = make([]), make(records)
        assert empty.empty and len(full)
        assert dict(empty.dtypes) == dict(full.dtypes)


@pytest.mark.parametrize("records", [[], networks(2), [*networks(1), portrait()]], ids=["none", "dense", "portrait"])
def test_without_trials_there_are_no_rows(records):
    assert frames.trials(records).empty
    assert np.isnan(frames.dense_accuracy(records))


def test_one_layer_decides_the_mean_distance_and_none_of_the_robust_ones():
    """The diagram of a layer with hardly any loop has next to no persistence to divide by."""
    trial = record("l1", 0.5, 0, 80, 1, 0.5)
    trial.result["damage"]["topological"] = {
        "a": {"0": 0.5, "1": 0.0},
        "b": {"0": 0.5, "1": 0.1},
        "c": {"0": 0.7, "1": 90.0},
    }
    row = frames.trials([*networks(1), trial]).iloc[0]
    assert row["topological distance"] == pytest.approx((0.5 + 0.6 + 90.7) / 3)
    assert row["topological distance, median layer"] == pytest.approx(0.6)
    assert row["topological distance, H0 alone"] == pytest.approx(1.7 / 3)
    assert row["topological distance, capped"] == pytest.approx((0.5 + 0.6 + 1.7) / 3)


def test_a_trial_without_its_dense_network_is_refused():
    with pytest.raises(FileError, match="l1 at ratio 0.5, seed 0 has no record of its dense network: add"):
        frames.trials([record("l1", 0.5, 0, 80, 1, 0.5)])


def network(validation: float, digest: str | None = None) -> Record:
    result = {"cost": COST, "history": [epoch(1, 90.0)], "validation": validation, "test": 0.9}
    return Record(dense_spec(0), result | ({"network": digest} if digest else {}), PROVENANCE)


def pruned(digest: str | None = None) -> Record:
    """A trial of a dense network of 90 % validation accuracy."""
    trial = record("l1", 0.5, 0, 80, 1, 0.5)
    trial.result.update({"network": digest} if digest else {})
    return trial


@pytest.mark.parametrize(
    "dense, trial",
    [
        (network(0.9, "aaaa"), pruned("bbbb")),  # two networks can share a validation accuracy
        (network(0.8), pruned()),
        (network(0.8, "aaaa"), pruned()),  # the trial is older than the digest
        (network(0.8), pruned("aaaa")),
    ],
)
def test_a_trial_of_another_dense_network_is_refused(dense, trial):
    with pytest.raises(FileError, match="l1 at ratio 0.5, seed 0 pruned another dense network .* with force"):
        frames.trials([dense, trial])


@pytest.mark.parametrize(
    "dense, trial",
    [(network(0.9, "aaaa"), pruned("aaaa")), (network(0.9), pruned()), (network(0.9, "aaaa"), pruned())],
)
def test_a_trial_of_the_dense_network_on_record_is_taken(dense, trial):
    assert len(frames.trials([dense, trial])) == 1


def test_layers_stand_as_in_the_network_where_json_sorts_their_names():
    trial = record("l1", 0.5, 0, 80, 1, 0.5)
    read = Record.from_json(json.loads(json.dumps(trial.to_json(), sort_keys=True)))
    assert list(read.result["kept"]) == ["features.10", "features.3"]
    frame = frames.layer_frame([read])
    assert list(frame["layer"]) == [1, 2] and list(frame["kept filters"]) == [2, 4]


def test_the_recovery_curve_starts_with_the_damage():
    frame = frames.recovery_frame([record("l1", 0.5, 0, test=80, damage=30, distance=0.4)])
    assert list(frame["epoch"]) == [0, 1, 2, 3, 4, 5]
    assert list(frame["test accuracy (%)"]) == pytest.approx([60, 80, 80, 80, 80, 80])


def test_a_trial_without_fine_tuning_ends_where_removal_left_it():
    trial = record("l1", 0.5, 0, test=80, damage=30, distance=0.4)
    trial.result["history"] = []
    row = frames.trials([*networks(1), trial]).iloc[0]
    assert row["test"] == pytest.approx(60) and np.isnan(row["epoch seconds"])


def test_each_dense_network_counts_once():
    records = [
        *networks(2),
        *(record(name, 0.5, 0, 80, 1, 0.5) for name in ("l1", "l2")),
        record("l1", 0.5, 1, 80, 1, 0.5),
    ]
    records[1].result["test"] = 0.8
    assert frames.dense_accuracy(records) == pytest.approx(85)


def test_every_variant_has_a_name_in_the_book():
    specs = [one.spec for one in only_trials(planted(1))]
    assert {frames.name_of(spec) for spec in specs} <= set(frames.NAMES.values())
    larger = dataclasses.replace(specs[0], method="topological", options={"population": 8})
    assert isinstance(larger, Trial) and frames.name_of(larger) == "topological"


def test_a_run_in_the_files_of_two_profiles_counts_once():
    first, again = record("l1", 0.5, 0, 80, 30, 0.4), record("l1", 0.5, 0, 80, 30, 0.4)
    later = dataclasses.replace(again, provenance={**PROVENANCE, "date": "2026-11-29"})
    assert frames.each_once([first, later, again]) == [again, later]
