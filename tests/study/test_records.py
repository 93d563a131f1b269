"""Specs, their keys, and records as JSON."""

import dataclasses
import json
from pathlib import Path

import pytest

from topoprune import study
from topoprune.files import FileError
from topoprune.study import Dense, Record, Store, Trial, spec_key
from topoprune.study.trial import spec_fields
from topoprune.training import Recipe

COMMITTED = sorted((Path(__file__).parents[2] / "book" / "results").glob("*.jsonl"))
DENSE = Dense("digits", "vgg16", 0.125, 0, Recipe(epochs=2))
TRIAL = Trial(DENSE, "l1", 0.5, 0, Recipe(epochs=1))


def test_there_are_committed_records():
    assert "study.jsonl" in [path.name for path in COMMITTED]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_records_keep_their_keys(path):
    lines = Store(path).load()
    records = [Record.from_json(line) for line in lines.values()]
    assert [spec_key(record.spec) for record in records] == list(lines)
    assert [record.to_json()["spec"] for record in records] == [line["spec"] for line in lines.values()]


def test_records_come_back_as_they_were(tiny_study):
    stored = Store(tiny_study.results / "tiny.jsonl").load()
    assert {record.key: record for record in tiny_study.records} == {
        key: Record.from_json(line) for key, line in stored.items()
    }


def test_a_spec_has_one_key_and_another_spec_another():
    assert spec_key(TRIAL) == spec_key(dataclasses.replace(TRIAL))
    others = [
        dataclasses.replace(TRIAL, seed=7),
        dataclasses.replace(TRIAL, ratio=0.25),
        dataclasses.replace(TRIAL, options={"dimensions": [0]}),
        dataclasses.replace(TRIAL, recovery=Recipe(epochs=2)),
        dataclasses.replace(TRIAL, dense=dataclasses.replace(DENSE, seed=1)),
    ]
    assert len({spec_key(spec) for spec in [DENSE, TRIAL, *others]}) == 7


def with_field(kind: type, name: str, default) -> type:
    """The dataclass as a later version might have it: with one more field."""
    return dataclasses.make_dataclass(
        kind.__name__, [(name, object, dataclasses.field(default=default))], bases=(kind,), frozen=True
    )


@pytest.mark.parametrize("kind, spec", [(Dense, DENSE), (Trial, TRIAL)])
def test_a_new_field_of_a_spec_changes_a_key_only_if_it_is_set(kind, spec):
    later = with_field(kind, "mixup", 0.0)
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    assert spec_key(later(**fields)) == spec_key(spec)
    assert spec_fields(later(**fields, mixup=0.2)) == {**spec_fields(spec), "mixup": 0.2}


def test_a_new_field_of_a_recipe_changes_a_key_only_if_it_is_set():
    later = with_field(Recipe, "mixup", 0.0)
    assert spec_key(dataclasses.replace(DENSE, recipe=later(epochs=2))) == spec_key(DENSE)
    mixed = dataclasses.replace(DENSE, recipe=later(epochs=2, mixup=0.2))
    assert spec_fields(mixed)["recipe"] == {**spec_fields(DENSE)["recipe"], "mixup": 0.2}


def test_settings_that_the_first_records_lack_are_left_out():
    assert set(spec_fields(DENSE)["recipe"]) == {
        *("epochs", "batch", "peak_rate", "warmup", "momentum", "weight_decay", "label_smoothing", "shift")
    }
    with_muon = dataclasses.replace(DENSE, recipe=Recipe(epochs=2, muon_rate=0.05))
    assert spec_fields(with_muon)["recipe"] == {**spec_fields(DENSE)["recipe"], "muon_rate": 0.05}


def test_searches_of_the_first_schema_are_read(tiny_study):
    """It stored one dict a generation, at full precision."""
    record = next(record for record in tiny_study.records if record.result.get("searches"))
    searches = record.result["searches"]
    assert len(searches) == 13
    rows = {
        layer: [dict(zip(columns, step, strict=True)) for step in zip(*columns.values(), strict=True)]
        for layer, columns in searches.items()
    }
    assert all(len(steps) == 3 and steps[2]["generation"] == 2 for steps in rows.values())
    rows["features.0"][0]["best"] += 1e-12
    line = record.to_json()
    assert Record.from_json({**line, "schema": 1, "result": {**line["result"], "searches": rows}}) == record


LINE = json.loads(json.dumps(Record(TRIAL, {}, {}).to_json()))


@pytest.mark.parametrize(
    "line, message",
    [
        ({**LINE, "spec": {**LINE["spec"], "ratio": 0.25}}, "was altered"),
        ({**LINE, "spec": {**LINE["spec"], "colour": "red"}}, "written by another version"),
        ({**LINE, "spec": {**LINE["spec"], "ratio": 1.5}}, "written by another version"),
        ({**LINE, "spec": []}, "written by another version"),
        ({**LINE, "kind": "Novel"}, "written by another version"),
        ({"key": LINE["key"]}, "written by another version"),
    ],
)
def test_altered_and_foreign_records_are_refused(line, message):
    with pytest.raises(FileError, match=message):
        Record.from_json(line)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"method": "magic"}, "unknown method 'magic': choose from random, l1"),
        ({"ratio": 1.0}, r"ratio must lie in \[0, 1\), got 1.0"),
        ({"ratio": -0.1}, r"ratio must lie in \[0, 1\), got -0.1"),
    ],
)
def test_a_wrong_trial_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRIAL, **fields)


def test_a_dense_network_is_trained():
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        dataclasses.replace(DENSE, recipe=Recipe(epochs=0))


def test_public_names_are_listed():
    assert all(hasattr(study, name) for name in study.__all__)
