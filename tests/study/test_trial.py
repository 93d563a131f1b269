"""A tiny real study from end to end: resumed, not repeated, forced, drawn."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from topoprune import files, study, training
from topoprune.__main__ import main
from topoprune.files import FileError, FileWarning, read_tensors, write_json, write_tensors
from topoprune.models import build
from topoprune.report import tables
from topoprune.study import execution, profiles, store
from topoprune.study.damage import live_share, recovery
from topoprune.study.execution import run, without_times
from topoprune.study.locks import locked
from topoprune.study.run_folder import DENSE, RECORD, SELECTION, discard_run, run_folder
from topoprune.study.store import Store
from topoprune.study.trial import Dense, Portrait, Record, Trial, spec_fields, spec_key


def by_kind(records: list[Record]) -> list[Record]:
    """Dense networks, trials, portrait."""
    return sorted(records, key=lambda record: [Dense, Trial, Portrait].index(type(record.spec)))


def test_a_study_is_complete(tiny_study):
    records = tiny_study.records
    assert [type(r.spec) for r in records] == [Dense] * 2 + [Trial] * 4 + [Portrait]
    for record in records[2:6]:
        result = record.result
        assert len(result["history"]) == 2
        assert len(result["kept"]) == len(result["damage"]["topological"]) == 13
        assert 0 <= result["damage"]["test"] <= 1
        assert all(0 <= share <= 1 for share in result["live"])
        assert result["cost"]["parameters"] < records[0].result["cost"]["parameters"]


def test_records_come_back_as_they_were(tiny_study):
    folder, records = tiny_study.results, tiny_study.records
    stored = Store(folder / "tiny.jsonl").load()
    assert [Record.from_json(stored[r.key]) for r in records] == records


def test_searches_of_the_first_schema_are_read(tiny_study):
    """It stored one dict a generation, at full precision."""
    record = next(r for r in tiny_study.records if r.result.get("searches"))
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


def test_a_finished_trial_is_not_run_again(tiny_study, monkeypatch):
    records = tiny_study.records
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tiny_study.results))
    assert by_kind(study.records("tiny")) == records


def test_the_same_seed_gives_the_same_record_and_force_runs_again(tiny_study, monkeypatch):
    records = tiny_study.records
    calls = []
    monkeypatch.setattr(grid, "run", lambda *a: calls.append(a) or run(*a))
    again = study.records("tiny", [records[3].spec], force=True)
    assert len(calls) == 1
    assert without_times(again[0]) == without_times(records[3])


def power_fails_in_fine_tuning(monkeypatch) -> list[int]:
    """Two dense epochs and one of fine-tuning are finished; returns the epochs that are begun."""
    epoch, calls = training._epoch, []

    def interrupted(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(training, "_epoch", interrupted)
    return calls


def test_an_interrupted_trial_continues_from_its_last_epoch(tiny_study, folders, monkeypatch):
    records = tiny_study.records
    spec = records[2].spec
    calls = power_fails_in_fine_tuning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        study.records("tiny", [spec])
    again = study.records("tiny", [spec])
    assert calls == [0, 1, 0, 1, 1]
    assert without_times(again[0]) == without_times(records[2])
    assert not list((folders / "cache" / "runs").glob("trial-*/*"))


def test_what_was_begun_on_another_dense_network_is_set_aside(tiny_study, folders, monkeypatch):
    records = tiny_study.records
    spec = records[2].spec
    calls = power_fails_in_fine_tuning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(spec)
    checkpoint = run_folder(spec.dense) / DENSE
    tensors, about = read_tensors(checkpoint)
    tensors["model.classifier.bias"] += 1e-3
    write_tensors(checkpoint, tensors, about)
    with pytest.warns(FileWarning, match=r"(selection.json|fine-tuning.safetensors) belongs to another run"):
        run(spec)
    assert calls[4:] == [0, 1]  # all of fine-tuning


@pytest.mark.parametrize("by", ["store", "cache"])
def test_a_record_that_another_process_made_meanwhile_is_taken(tiny_study, folders, monkeypatch, by):
    """It had the run's lock before: it has stored the record, or is about to."""
    record = tiny_study.records[2]
    kept = study.records_store("tiny")
    if by == "store":
        kept.append(record.to_json())
    else:
        write_json(run_folder(record.spec) / RECORD, record.key, record.to_json())
    monkeypatch.setattr(execution, "_run_trial", None)
    assert run(record.spec, None, kept.path) == record


def test_what_runs_elsewhere_is_not_forced(tiny_study, folders):
    spec = tiny_study.records[2].spec
    with locked(run_folder(spec)), pytest.raises(FileError, match="l1 at .* runs in another"):
        study.records("tiny", [spec], force=True)


def test_threads_of_one_process_do_not_mix_their_random_numbers(tiny_study, folders):
    from concurrent.futures import ThreadPoolExecutor

    dense = tiny_study.records[:2]
    with ThreadPoolExecutor(2) as pool:
        again = study.records("tiny", [record.spec for record in dense], executor=pool)
    assert list(map(without_times, again)) == list(map(without_times, dense))


def test_the_deterministic_mode_changes_nothing_on_the_cpu(tiny_study, folders, monkeypatch):
    """The other records of these tests are made in it."""
    records = tiny_study.records
    epoch, modes = training._epoch, []
    monkeypatch.delenv("TOPOPRUNE_DETERMINISTIC")
    monkeypatch.setattr(
        training,
        "_epoch",
        lambda *arguments: modes.append(torch.are_deterministic_algorithms_enabled()) or epoch(*arguments),
    )
    assert without_times(run(records[2].spec, "cpu")) == without_times(records[2])
    monkeypatch.setenv("TOPOPRUNE_DETERMINISTIC", "1")
    discard_run(records[2].spec)
    run(records[2].spec, "cpu")
    assert modes == [False] * 4 + [True] * 2
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_an_interrupted_run_continues_bit_for_bit_in_deterministic_mode(tiny_study, folders, monkeypatch):
    spec = tiny_study.records[2].spec
    whole = run(spec, "cuda")
    for made_of in (spec.dense, spec):
        discard_run(made_of)
    power_fails_in_fine_tuning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(spec, "cuda")
    assert without_times(run(spec, "cuda")) == without_times(whole)


def interrupted_when_chosen(spec, monkeypatch, device="cpu") -> Path:
    """The selection that a trial keeps, stopped at its first epoch of fine-tuning."""
    dense_epochs, epoch, calls = spec.dense.recipe.epochs, training._epoch, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > dense_epochs:
            raise KeyboardInterrupt
        return epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            study.records("tiny", [spec], device)
    return run_folder(spec) / "selection.json"


def altered(content: dict) -> str:
    layer = next(iter(content["value"]["kept"]))
    content["value"]["kept"][layer][0] += 1
    return json.dumps(content)


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda content: json.dumps(content)[:-9], "is no file of topoprune, or is truncated"),
        (altered, "was altered"),
        (lambda content: json.dumps(content["value"]), "is no file of topoprune"),
        (lambda content: None, "belongs to another run: it is of 0123, not of"),
    ],
)
def test_a_selection_that_is_not_this_trial_s_is_made_again(tiny_study, folders, monkeypatch, spoil, reason):
    records = tiny_study.records
    path = interrupted_when_chosen(records[2].spec, monkeypatch)
    content = json.loads(path.read_text())
    text = spoil(content)
    if text is None:
        files.write_json(path, "0123", content["value"])
    else:
        path.write_text(text)
    with pytest.warns(FileWarning, match=f"selection.json {reason}.*set aside as selection.json.refused"):
        again = study.records("tiny", [records[2].spec])
    assert without_times(again[0]) == without_times(records[2])


def test_a_sound_selection_is_not_made_again(tiny_study, folders, monkeypatch):
    records = tiny_study.records
    interrupted_when_chosen(records[3].spec, monkeypatch)
    monkeypatch.setattr(execution, "run_selection", None)
    assert without_times(study.records("tiny", [records[3].spec])[0]) == without_times(records[3])


def test_what_lacks_is_not_run_where_that_is_forbidden(tiny_study, folders, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    with pytest.raises(FileError, match="has none of 7 records .*topoprune run --profile tiny"):
        study.records("tiny")
    some = [tiny_study.records[0], tiny_study.records[2]]
    for record in some:
        study.records_store("tiny").append(record.to_json())
    assert study.records("tiny") == some
    table = tables.coverage("tiny", some).set_index("method")
    assert table["0.5"].to_dict() == {"L1": "1 of 2", "topological": "0 of 2"}


def test_one_process_finishes_a_comparison_before_the_next_dense_network():
    order = study.specs("study", [0, 1])
    first = order.index(study.dense_specs("study", [1])[0])
    assert order[0] == study.dense_specs("study", [0])[0]
    assert {(t.method, t.ratio) for t in order[1:first]} == {
        (study.VARIANTS[name][0], ratio) for name in profiles.METHODS for ratio in (0.5, 0.8, 0.9)
    }
    assert len(order) == 2 + 2 * 9 * 6 + 1 == len({spec_key(spec) for spec in order})


def test_a_profile_without_methods_is_its_dense_networks():
    assert study.specs("study-whole", [1]) == study.dense_specs("study-whole", [1])
    with pytest.raises(ValueError, match="unknown methods of study-whole: l1"):
        study.specs("study-whole", methods=["l1"])


def test_some_methods_and_ratios_of_a_profile():
    some = study.specs("study", [1], ["topological", "l1"], [0.9, 0.3])
    assert some[0] == study.dense_specs("study", [1])[0]
    assert [(spec.method, spec.ratio) for spec in some[1:]] == [
        ("topological", 0.9),
        ("l1", 0.9),
        ("topological", 0.3),
        ("l1", 0.3),
    ]
    assert all(spec in study.specs("study") for spec in some)
    with pytest.raises(ValueError, match="unknown ratios of study: 0.4; choose from 0.3, 0.5"):
        study.specs("study", ratios=[0.4])
    with pytest.raises(ValueError, match="unknown methods of study: luck; choose from random, l1"):
        study.specs("study", methods=["luck"])


def test_a_variant_keeps_its_name_whatever_its_budget():
    for name, (method, options) in study.VARIANTS.items():
        spec = Trial(study.dense_specs("quick")[0], method, 0.5, 0, TINY.recovery, options)
        assert study.variant(spec) == name
        larger = dataclasses.replace(spec, options={**options, "population": 8})
        assert study.variant(larger) == name


def test_status_counts_and_estimates(tiny_study, folders, monkeypatch):
    assert study.status("tiny")["seconds_left"] is None
    folder = tiny_study.results
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(folder))
    state = study.status("tiny", seeds=[0, 1, 2])
    assert len(state["done"]) == 7 and len(state["missing"]) == 3
    assert state["seconds_left"] > 0
    assert study.status("tiny")["seconds_left"] == 0


def test_altered_and_foreign_records_are_refused(tiny_study):
    line = tiny_study.records[2].to_json()
    with pytest.raises(FileError, match="was altered"):
        Record.from_json({**line, "spec": {**line["spec"], "ratio": 0.25}})
    with pytest.raises(FileError, match="written by another version"):
        Record.from_json({**line, "spec": {**line["spec"], "colour": "red"}})
    with pytest.raises(FileError, match="written by another version"):
        Record.from_json({**line, "kind": "Novel"})


def test_specs_have_one_identity(tiny_study):
    spec = tiny_study.records[2].spec
    assert spec_key(spec) == spec_key(dataclasses.replace(spec))
    assert spec_key(spec) != spec_key(dataclasses.replace(spec, seed=7))


def test_recovery_by_hand():
    history = [{"validation": v, "seconds": 10.0} for v in (0.5, 0.8, 0.9)]
    made = recovery(history, {"validation": 0.1}, goal=0.8)
    assert made == {
        "goal": 0.8,
        "reached": True,
        "epochs": 2,
        "seconds": 20.0,
        "area": pytest.approx((0.3 + 0.65 + 0.85) / 3),
    }
    never = recovery(history, {"validation": 0.1}, goal=0.95)
    assert not never["reached"] and never["epochs"] == 3 and never["seconds"] == 30.0
    assert recovery(history, {"validation": 0.96}, goal=0.95)["epochs"] == 0


def test_a_collapsed_layer_is_seen():
    from topoprune.study.datasets import load

    torch.manual_seed(0)
    model = build("vgg16", width=1 / 16)
    model.features[1].weight.data.zero_()
    model.features[1].bias.data.fill_(1.0)
    assert live_share(model, load("digits"))[0] == 0


@pytest.mark.parametrize(
    "fields, message", [({"method": "magic"}, "unknown method"), ({"ratio": 1.0}, r"ratio must lie in \[0, 1\)")]
)
def test_a_wrong_trial_is_refused(tiny_study, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_study.records[2].spec, **fields)


def test_no_other_dense_network_than_the_one_on_record_is_pruned(tiny_study, tmp_path):
    """It was lost from the cache and trained again, with other threads: its trials would be of no pair."""
    dense, spec = tiny_study.records[0], tiny_study.records[2].spec
    records = store.Store(tmp_path / "tiny.jsonl")
    other = {**dense.result, "validation": dense.result["validation"] + 0.01}
    del other["network"]
    records.append(dataclasses.replace(dense, result=other).to_json())
    for pruned in (spec, tiny_study.records[6].spec):
        with pytest.raises(files.FileError, match="is not the one on record .* with --force"):
            run(pruned, "cpu", records.path)
    assert not (run_folder(spec) / SELECTION).exists()  # nothing was spent on it


def test_dense_networks_with_cutout_are_of_the_same_data_and_recipe():
    (whole,), (cut,) = (study.dense_specs(name, [0]) for name in ("study-whole", "study-cutout"))
    assert cut.recipe.cutout and dataclasses.replace(cut, recipe=dataclasses.replace(cut.recipe, cutout=0)) == whole


def test_younger_settings_leave_old_keys_alone(tiny_study):
    dense = tiny_study.records[0].spec
    known = set(spec_fields(dense)["recipe"])
    assert not known & {"muon_rate", "muon_decay", "cutout"}
    with_muon = dataclasses.replace(dense, recipe=dataclasses.replace(dense.recipe, muon_rate=0.05))
    assert set(spec_fields(with_muon)["recipe"]) == known | {"muon_rate"}
    assert spec_key(with_muon) != spec_key(dense)


def test_simple_measures_of_a_removal_by_hand(tiny_study):
    from topoprune.study.datasets import load

    record = tiny_study.records[2]
    model = execution._trained(record.spec.dense, load("digits"))[0]
    for layer, shares in record.result["damage"]["plain"].items():
        rows = dict(model.named_modules())[layer].weight.detach().flatten(1).double()
        few = rows[record.result["kept"][layer]]
        assert shares["norm"] == pytest.approx(1 - float((few**2).sum() / (rows**2).sum()), abs=1e-5)
        ranks = []
        for part in (few, rows):
            p = torch.linalg.svdvals(part) / torch.linalg.svdvals(part).sum()
            ranks.append(torch.exp(-(p * p.log()).sum()))
        assert shares["rank"] == pytest.approx(float(1 - ranks[0] / ranks[1]), abs=1e-5)


def test_the_command_line_runs_and_reports(tiny_study, folders, monkeypatch, capsys):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tiny_study.results))
    assert main(["run", "--profile", "tiny"]) == 0
    assert "7 records in" in capsys.readouterr().out
    assert main(["status", "--profile", "tiny", "--seeds", "0", "1", "2"]) == 0
    assert "7 done, 3 missing" in capsys.readouterr().out


def test_a_reader_who_has_seen_enough_of_the_status_is_no_error(folders):
    asked = [sys.executable, "-m", "topoprune", "status"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before a line is there
        assert b"Broken pipe" not in process.stderr.read()
        assert process.wait() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--profile", "huge"], "unknown profile 'huge': choose from quick, quick-ablation,"),
    ],
)
def test_the_command_line_answers_a_mistake_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("seeds", [[], [-1]])
def test_wrong_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="seeds must be a list of whole numbers from 0"):
        study.dense_specs("quick", seeds)
