"""Run tiny trials: what a record holds, and how an interrupted run continues."""

import dataclasses
import json
import shutil

import pytest
import torch

from topoprune import files, study
from topoprune.files import FileError, FileWarning
from topoprune.study import Dense, Portrait, Store, Trial, provenance, run, spec_key
from topoprune.study.execution import deterministic_if_asked, without_times
from topoprune.study.networks import training_provenance
from topoprune.study.run_folder import (
    DENSE,
    FINE_TUNING,
    RECORD,
    SELECTION,
    TRAINING,
    discard_run,
    epochs_in,
    finished_epochs,
    run_folder,
)


def test_a_study_is_complete(tiny_study):
    records = tiny_study.records
    assert [type(record.spec) for record in records] == [Dense] * 2 + [Trial] * 4 + [Portrait]
    for record in records[2:6]:
        result = record.result
        assert len(result["history"]) == 2
        assert len(result["kept"]) == len(result["damage"]["topological"]) == 13
        assert 0 <= result["damage"]["test"] <= 1
        assert all(0 <= share <= 1 for share in result["live"])
        assert result["cost"]["parameters"] < records[0].result["cost"]["parameters"]


def test_the_network_of_a_record_is_the_digest_of_its_weights(tiny_study):
    networks = {}
    for record in tiny_study.records[:2]:
        weights, _ = files.read_tensors(run_folder(record.spec, tiny_study.cache) / DENSE)
        state = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        networks[record.spec] = files.digest(state)
        assert record.result["network"] == networks[record.spec]
    assert len(set(networks.values())) == 2
    for record in tiny_study.records[2:]:
        assert record.result["network"] == networks[record.spec.dense]


def network_on_record(tiny_study, path, **changes) -> None:
    """Store the dense network of the first seed with other results."""
    dense = tiny_study.records[0]
    result = {name: value for name, value in {**dense.result, **changes}.items() if value is not None}
    Store(path).append(dataclasses.replace(dense, result=result).to_json())


@pytest.mark.parametrize("index", [2, 6], ids=["trial", "portrait"])
@pytest.mark.parametrize(
    "changes",
    [{"network": "0123456789abcdef"}, {"network": None, "validation": 0.123}],
    ids=["by the digest", "by the accuracy of a record without digest"],
)
def test_no_dense_network_is_pruned_but_the_one_on_record(tiny_study, trained, index, changes):
    """The cache lost it and another was trained, with other threads: its trials would have no pair."""
    spec = tiny_study.records[index].spec
    network_on_record(tiny_study, trained / "tiny.jsonl", **changes)
    with pytest.raises(FileError, match="is not the one on record .* with --force"):
        run(spec, "cpu", trained / "tiny.jsonl")
    assert not (run_folder(spec) / SELECTION).exists()  # nothing was spent on it


def test_equal_accuracy_makes_no_equal_network(tiny_study, trained):
    """Two trainings can agree in a count of 360 images."""
    spec = tiny_study.records[2].spec
    for path, changes in [("same", {}), ("other", {"network": "0" * 16})]:
        network_on_record(tiny_study, trained / path, **changes)
    with pytest.raises(FileError, match="is not the one on record"):
        run(spec, "cpu", trained / "same", trained / "other")


def test_a_record_that_another_process_stored_meanwhile_is_taken(tiny_study, trained):
    record = dataclasses.replace(tiny_study.records[2], provenance={"seconds": 1234.5})
    store = Store(trained / "tiny.jsonl")
    store.append(record.to_json())
    assert run(record.spec, "cpu", store.path) == record


def test_a_record_that_another_process_finished_and_did_not_store_is_taken(tiny_study, trained):
    record = dataclasses.replace(tiny_study.records[2], provenance={"seconds": 1234.5})
    files.write_json(run_folder(record.spec) / RECORD, record.key, record.to_json())
    assert run(record.spec, "cpu") == record


class PowerCut:
    """Interrupt the process when it writes checkpoint number `at` (from 1); count the checkpoints."""

    def __init__(self, monkeypatch, at: int):
        self.at, self.checkpoints, self.write = at, [], files.write_tensors
        monkeypatch.setattr(files, "write_tensors", self)

    def __call__(self, path, *arguments):
        self.checkpoints.append(path.name)
        if len(self.checkpoints) == self.at:
            raise KeyboardInterrupt
        self.write(path, *arguments)


def test_an_interrupted_dense_network_continues_from_its_last_epoch(tiny_study, folders, monkeypatch):
    record = tiny_study.records[0]
    power_cut = PowerCut(monkeypatch, at=2)
    with pytest.raises(KeyboardInterrupt):
        run(record.spec)
    assert finished_epochs(run_folder(record.spec) / DENSE) == 1
    assert without_times(run(record.spec)) == without_times(record)
    assert power_cut.checkpoints == [DENSE] * 3


def test_a_dense_network_of_the_cache_keeps_the_provenance_of_its_training(tiny_study, trained, monkeypatch):
    dense = tiny_study.records[0]
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")
    assert run(dense.spec, "cpu").provenance == dense.provenance


def test_a_network_that_a_trial_trained_takes_the_seconds_of_its_training_alone(tiny_study, folders):
    trial = run(tiny_study.records[2].spec, "cpu")
    dense = run(trial.spec.dense, "cpu")
    least = sum(epoch["seconds"] for epoch in dense.result["history"])
    assert least <= dense.provenance["seconds"] + 0.01 < trial.provenance["seconds"]


@pytest.fixture
def begun_dense(tiny_study, folders):
    """A spec whose training was interrupted in its second epoch, after 1,000 seconds of work."""
    spec = tiny_study.records[0].spec
    with pytest.MonkeyPatch.context() as patch:
        PowerCut(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            run(spec, "cpu")
    epochs = epochs_in(run_folder(spec) / DENSE)
    noted = training_provenance(spec, epochs)
    assert noted["seconds"] > epochs[0]["seconds"] - 0.01
    files.write_json(run_folder(spec) / TRAINING, files.key(epochs), {**noted, "seconds": 1000.0})
    return spec


def test_the_seconds_of_a_dense_network_are_those_of_all_its_sittings(begun_dense):
    assert 1000 < run(begun_dense, "cpu").provenance["seconds"] < 1600


def test_the_seconds_of_a_training_that_was_set_aside_do_not_count(begun_dense):
    checkpoint = run_folder(begun_dense) / DENSE
    tensors, about = files.read_tensors(checkpoint)
    files.write_tensors(checkpoint, tensors, {**about, "identity": "another"})
    with pytest.warns(FileWarning, match="belongs to another run"):
        assert run(begun_dense, "cpu").provenance["seconds"] < 1000


@pytest.mark.parametrize("noted", [True, False], ids=["noted before the process was killed", "of an older cache"])
def test_without_a_note_of_all_epochs_the_seconds_are_at_least_theirs(tiny_study, trained, noted):
    spec = tiny_study.records[0].spec
    checkpoint = run_folder(spec) / DENSE
    tensors, about = files.read_tensors(checkpoint)
    slow = [{**epoch, "seconds": 1000.0} for epoch in about["history"]]
    files.write_tensors(checkpoint, tensors, {**about, "history": slow})
    if not noted:
        (checkpoint.parent / TRAINING).unlink()
    assert run(spec, "cpu").provenance["seconds"] == 2000


def test_an_interrupted_trial_continues_from_its_last_epoch(tiny_study, trained, monkeypatch):
    record = tiny_study.records[2]
    power_cut = PowerCut(monkeypatch, at=2)
    with pytest.raises(KeyboardInterrupt):
        run(record.spec)
    assert finished_epochs(run_folder(record.spec) / FINE_TUNING) == 1
    assert without_times(run(record.spec)) == without_times(record)
    assert power_cut.checkpoints == [FINE_TUNING] * 3


@pytest.fixture(scope="module")
def begun(tiny_study, tmp_path_factory):
    """A cache in which the trial of L1 is interrupted in its second epoch of fine-tuning."""
    cache, spec = tmp_path_factory.mktemp("begun") / "cache", tiny_study.records[2].spec
    dense = run_folder(spec.dense, tiny_study.cache)
    shutil.copytree(dense, cache / "runs" / dense.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPOPRUNE_CACHE", str(cache))
        PowerCut(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            run(spec)
    return cache


@pytest.fixture
def begun_trial(begun, tiny_study, folders):
    """Record of the trial and folder of its begun run, in a copy of the cache."""
    shutil.copytree(begun, folders / "cache")
    record = tiny_study.records[2]
    return record, run_folder(record.spec)


def test_what_was_begun_on_another_dense_network_is_set_aside(begun_trial, monkeypatch):
    record, _ = begun_trial
    checkpoint = run_folder(record.spec.dense) / DENSE
    tensors, about = files.read_tensors(checkpoint)
    tensors["model.classifier.bias"] += 1e-3
    files.write_tensors(checkpoint, tensors, about)
    power_cut = PowerCut(monkeypatch, at=-1)
    with pytest.warns(FileWarning, match=r"(selection.json|fine-tuning.safetensors) belongs to another run"):
        again = run(record.spec)
    assert power_cut.checkpoints == [FINE_TUNING] * 2  # all of fine-tuning
    assert again.result["network"] != record.result["network"]


def truncated(path):
    path.write_text(path.read_text()[:-9])


def altered(path):
    content = json.loads(path.read_text())
    layer = next(iter(content["value"]["kept"]))
    content["value"]["kept"][layer][0] += 1
    path.write_text(json.dumps(content))


def of_another_trial(path):
    files.write_json(path, "0123", files.read_json(path))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (truncated, "is no file of topoprune, or is truncated"),
        (altered, "was altered"),
        (of_another_trial, "belongs to another run: it is of 0123, not of"),
    ],
)
def test_a_selection_that_is_not_this_trial_s_is_made_again(begun_trial, spoil, reason):
    record, folder = begun_trial
    spoil(folder / SELECTION)
    with pytest.warns(FileWarning, match=f"selection.json {reason}.*set aside as selection.json.refused"):
        again = run(record.spec)
    assert without_times(again) == without_times(record)


def test_a_sound_selection_is_not_made_again(begun_trial):
    record, folder = begun_trial
    identity = json.loads((folder / SELECTION).read_text())["identity"]
    selection = files.read_json(folder / SELECTION, identity)
    files.write_json(folder / SELECTION, identity, {**selection, "selection_seconds": 1234.5})
    again = run(record.spec)
    assert again.result["selection_seconds"] == 1234.5
    assert without_times(again) == without_times(record)


def test_threads_of_one_process_do_not_mix_their_random_numbers(tiny_study, folders):
    from concurrent.futures import ThreadPoolExecutor

    dense = tiny_study.records[:2]
    with ThreadPoolExecutor(2) as pool:
        again = study.records("tiny", [record.spec for record in dense], executor=pool)
    assert list(map(without_times, again)) == list(map(without_times, dense))


def test_the_deterministic_mode_is_left_as_it_was_found(monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_DETERMINISTIC", "1")
    with deterministic_if_asked():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("TOPOPRUNE_DETERMINISTIC")
    with deterministic_if_asked():
        assert not torch.are_deterministic_algorithms_enabled()


def test_the_deterministic_mode_changes_nothing_on_the_cpu(tiny_study, trained, monkeypatch):
    """The records of the tiny study are made in it."""
    monkeypatch.delenv("TOPOPRUNE_DETERMINISTIC")
    record = tiny_study.records[2]
    assert without_times(run(record.spec, "cpu")) == without_times(record)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_an_interrupted_run_continues_bit_for_bit_in_deterministic_mode(tiny_study, folders, monkeypatch):
    spec = tiny_study.records[2].spec
    whole = run(spec, "cuda")
    for done in (spec.dense, spec):
        discard_run(done)
    PowerCut(monkeypatch, at=4)
    with pytest.raises(KeyboardInterrupt):
        run(spec, "cuda")
    assert without_times(run(spec, "cuda")) == without_times(whole)


def test_the_portrait_of_an_unknown_layer_names_the_layers(tiny_study, trained):
    portrait = dataclasses.replace(tiny_study.records[6].spec, layer="features.1")
    with pytest.raises(ValueError, match="unknown layer 'features.1': the prunable layers are features.0, features.3"):
        run(portrait)


def test_searches_may_be_checkpointed_elsewhere(tiny_study, trained):
    spec = tiny_study.records[3].spec
    assert spec.method == "topological"
    elsewhere = dataclasses.replace(spec, options={**spec.options, "checkpoints": str(trained / "searches")})
    result = run(elsewhere).result
    assert result["kept"] == tiny_study.records[3].result["kept"]
    assert len(list((trained / "searches").glob("search-*.json"))) == 13


def test_a_trial_without_fine_tuning_is_recorded(tiny_study, trained):
    """Damage alone: forward passes, no epoch."""
    spec = tiny_study.records[2].spec
    damage_alone = dataclasses.replace(spec, recovery=dataclasses.replace(spec.recovery, epochs=0))
    result = run(damage_alone).result
    assert result["history"] == [] and result["recovery"]["epochs"] == 0
    assert result["damage"] == tiny_study.records[2].result["damage"]
    assert spec_key(damage_alone) != spec_key(spec)
