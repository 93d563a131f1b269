"""A tiny real study from end to end: resumed, not repeated, forced, drawn."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from topoprune import files, study, training
from topoprune.__main__ import main
from topoprune.data import CALIBRATION
from topoprune.files import FileError, FileWarning, read_tensors, write_json, write_tensors
from topoprune.models import build
from topoprune.network import couplings
from topoprune.report import figures, notebook, tables
from topoprune.study import execution, grid, store
from topoprune.study.damage import live_share, recovery
from topoprune.study.execution import run, run_folder, timeless
from topoprune.study.store import Store, locked
from topoprune.study.trial import Dense, Portrait, Record, Trial, plain, spec_key
from topoprune.topological import points


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The records of the tiny profile, run once."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study.PROFILES, "tiny", TINY)
        patch.setenv("TOPOPRUNE_CACHE", str(folder / "cache"))
        patch.setenv("TOPOPRUNE_RESULTS", str(folder))
        yield folder, by_kind(study.records("tiny", device="cpu"))


def by_kind(records: list[Record]) -> list[Record]:
    """Dense networks, trials, portrait."""
    return sorted(records, key=lambda record: [Dense, Trial, Portrait].index(type(record.spec)))


def test_a_study_is_complete(made):
    _, records = made
    assert [type(r.spec) for r in records] == [Dense] * 2 + [Trial] * 4 + [Portrait]
    for record in records[2:6]:
        result = record.result
        assert len(result["history"]) == 2
        assert len(result["kept"]) == len(result["damage"]["topological"]) == 13
        assert 0 <= result["damage"]["test"] <= 1
        assert all(0 <= share <= 1 for share in result["live"])
        assert result["cost"]["parameters"] < records[0].result["cost"]["parameters"]


def test_records_come_back_as_they_were(made):
    folder, records = made
    stored = Store(folder / "tiny.jsonl").load()
    assert [Record.from_json(stored[r.key]) for r in records] == records


def test_searches_of_the_first_schema_are_read(made):
    """It stored one dict a generation, at full precision."""
    record = next(r for r in made[1] if r.result.get("searches"))
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


def test_a_finished_trial_is_not_run_again(made, monkeypatch):
    _, records = made
    monkeypatch.setattr(grid, "run", None)
    assert by_kind(study.records("tiny")) == records


def test_the_same_seed_gives_the_same_record_and_force_runs_again(made, monkeypatch):
    _, records = made
    calls = []
    monkeypatch.setattr(grid, "run", lambda *a: calls.append(a) or run(*a))
    again = study.records("tiny", [records[3].spec], force=True)
    assert len(calls) == 1
    assert timeless(again[0]) == timeless(records[3])


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


def test_an_interrupted_trial_continues_from_its_last_epoch(made, folders, monkeypatch):
    _, records = made
    spec = records[2].spec
    calls = power_fails_in_fine_tuning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        study.records("tiny", [spec])
    again = study.records("tiny", [spec])
    assert calls == [0, 1, 0, 1, 1]
    assert timeless(again[0]) == timeless(records[2])
    assert not list((folders / "cache" / "runs").glob("trial-*/*"))


def test_what_was_begun_on_another_dense_network_is_set_aside(made, folders, monkeypatch):
    _, records = made
    spec = records[2].spec
    calls = power_fails_in_fine_tuning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(spec)
    checkpoint = execution.run_folder(spec.dense) / execution.DENSE
    tensors, about = read_tensors(checkpoint)
    tensors["model.classifier.bias"] += 1e-3
    write_tensors(checkpoint, tensors, about)
    with pytest.warns(FileWarning, match=r"(selection.json|fine-tuning.safetensors) belongs to another run"):
        run(spec)
    assert calls[4:] == [0, 1]  # all of fine-tuning


@pytest.mark.parametrize("by", ["store", "cache"])
def test_a_record_that_another_process_made_meanwhile_is_taken(made, folders, monkeypatch, by):
    """It had the run's lock before: it has stored the record, or is about to."""
    record = made[1][2]
    kept = study.records_store("tiny")
    if by == "store":
        kept.append(record.to_json())
    else:
        write_json(execution.run_folder(record.spec) / execution.MADE, record.key, record.to_json())
    monkeypatch.setattr(execution, "_run_trial", None)
    assert run(record.spec, None, kept.path) == record


def test_what_runs_elsewhere_is_not_forced(made, folders):
    spec = made[1][2].spec
    with locked(execution.run_folder(spec)), pytest.raises(FileError, match="l1 at .* is running in another"):
        study.records("tiny", [spec], force=True)


def test_threads_of_one_process_do_not_mix_their_random_numbers(made, folders):
    from concurrent.futures import ThreadPoolExecutor

    dense = made[1][:2]
    with ThreadPoolExecutor(2) as pool:
        again = study.records("tiny", [record.spec for record in dense], executor=pool)
    assert list(map(timeless, again)) == list(map(timeless, dense))


def test_the_deterministic_mode_changes_nothing_on_the_cpu(made, folders, monkeypatch):
    """The other records of these tests are made in it."""
    _, records = made
    epoch, modes = training._epoch, []
    monkeypatch.delenv("TOPOPRUNE_DETERMINISTIC")
    monkeypatch.setattr(
        training,
        "_epoch",
        lambda *arguments: modes.append(torch.are_deterministic_algorithms_enabled()) or epoch(*arguments),
    )
    assert timeless(run(records[2].spec, "cpu")) == timeless(records[2])
    monkeypatch.setenv("TOPOPRUNE_DETERMINISTIC", "1")
    execution.forget(records[2].spec)
    run(records[2].spec, "cpu")
    assert modes == [False] * 4 + [True] * 2
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_an_interrupted_run_continues_bit_for_bit_in_deterministic_mode(made, folders, monkeypatch):
    spec = made[1][2].spec
    whole = run(spec, "cuda")
    for made_of in (spec.dense, spec):
        execution.forget(made_of)
    power_fails_in_fine_tuning(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(spec, "cuda")
    assert timeless(run(spec, "cuda")) == timeless(whole)


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
def test_a_selection_that_is_not_this_trial_s_is_made_again(made, folders, monkeypatch, spoil, reason):
    _, records = made
    path = interrupted_when_chosen(records[2].spec, monkeypatch)
    content = json.loads(path.read_text())
    text = spoil(content)
    if text is None:
        files.write_json(path, "0123", content["value"])
    else:
        path.write_text(text)
    with pytest.warns(FileWarning, match=f"selection.json {reason}.*set aside as selection.json.refused"):
        again = study.records("tiny", [records[2].spec])
    assert timeless(again[0]) == timeless(records[2])


def test_a_sound_selection_is_not_made_again(made, folders, monkeypatch):
    _, records = made
    interrupted_when_chosen(records[3].spec, monkeypatch)
    monkeypatch.setattr(execution, "run_selection", None)
    assert timeless(study.records("tiny", [records[3].spec])[0]) == timeless(records[3])


def test_what_lacks_is_not_run_where_that_is_forbidden(made, folders, monkeypatch):
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    with pytest.raises(FileError, match="has none of 7 records .*topoprune run --profile tiny"):
        study.records("tiny")
    some = [made[1][0], made[1][2]]
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
    with pytest.raises(ValueError, match="unknown method of study-whole: l1"):
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
    with pytest.raises(ValueError, match="unknown ratio of study: 0.4; choose from 0.3, 0.5"):
        study.specs("study", ratios=[0.4])
    with pytest.raises(ValueError, match="unknown method of study: luck; choose from random, l1"):
        study.specs("study", methods=["luck"])


def test_a_variant_keeps_its_name_whatever_its_budget():
    for name, (method, options) in study.VARIANTS.items():
        spec = Trial(study.dense_specs("quick")[0], method, 0.5, 0, TINY.recovery, options)
        assert study.variant(spec) == name
        larger = dataclasses.replace(spec, options={**options, "population": 8})
        assert study.variant(larger) == name


def test_status_counts_and_estimates(made, folders, monkeypatch):
    assert study.status("tiny")["seconds_left"] is None
    folder, _ = made
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(folder))
    state = study.status("tiny", seeds=[0, 1, 2])
    assert len(state["done"]) == 7 and len(state["missing"]) == 3
    assert state["seconds_left"] > 0
    assert study.status("tiny")["seconds_left"] == 0


def test_altered_and_foreign_records_are_refused(made):
    line = made[1][2].to_json()
    with pytest.raises(FileError, match="was altered"):
        Record.from_json({**line, "spec": {**line["spec"], "ratio": 0.25}})
    with pytest.raises(FileError, match="written by another version"):
        Record.from_json({**line, "spec": {**line["spec"], "colour": "red"}})
    with pytest.raises(FileError, match="written by another version"):
        Record.from_json({**line, "kind": "Novel"})


def test_specs_have_one_identity(made):
    spec = made[1][2].spec
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
    from topoprune.models import build
    from topoprune.study.datasets import load

    torch.manual_seed(0)
    model = build("vgg16", width=1 / 16)
    model.features[1].weight.data.zero_()
    model.features[1].bias.data.fill_(1.0)
    assert live_share(model, load("digits"))[0] == 0


@pytest.mark.parametrize(
    "fields, message", [({"method": "magic"}, "unknown method"), ({"ratio": 1.0}, r"ratio must lie in \[0, 1\)")]
)
def test_a_wrong_trial_is_refused(made, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(made[1][2].spec, **fields)


@pytest.mark.parametrize(
    "name",
    [
        "accuracy_by_ratio",
        "accuracy_by_cost",
        "recovery_curves",
        "damage_against_recovery",
        "convergence",
        "difference_plot",
        "training_curves",
        "survival_curves",
        "partial_effect",
        "selection_cost",
        "searches",
        "search_courses",
        "ablation_plot",
    ],
)
def test_every_figure_draws_the_records(made, name):
    figure = getattr(figures, name)(made[1])
    assert any(axes.has_data() for axes in figure.axes) and len(figure.data)


@pytest.mark.parametrize("column", ["topological distance", "kept filters", "live channels (%)", "removed norm"])
def test_layers_are_mapped(made, column):
    figure = figures.layer_map(made[1], column)
    assert len(figure.data) == 4 * 13 and figure.axes[0].has_data()


def test_no_other_dense_network_than_the_one_on_record_is_pruned(made, tmp_path):
    """It was lost from the cache and trained again, with other threads: its trials would be of no pair."""
    dense, spec = made[1][0], made[1][2].spec
    records = store.Store(tmp_path / "tiny.jsonl")
    other = {**dense.result, "validation": dense.result["validation"] + 0.01}
    records.append(dataclasses.replace(dense, result=other).to_json())
    for pruned in (spec, made[1][6].spec):
        with pytest.raises(files.FileError, match="is not the one on record .* with force"):
            run(pruned, "cpu", records.path)
    assert not (run_folder(spec) / execution.SELECTION).exists()  # nothing was spent on it


def test_layers_stand_as_in_the_network_after_a_round_trip(made):
    """JSON sorts the names, "features.10" before "features.3"; the widths of VGG-16 never shrink."""
    record = Record.from_json(json.loads(json.dumps(made[1][2].to_json(), sort_keys=True)))
    assert list(record.result["kept"])[1] == "features.10"
    frame = tables.layer_frame([record])
    assert list(frame["layer"]) == list(range(1, 14))
    assert frame["kept filters"].is_monotonic_increasing and frame["kept filters"].nunique() == 4
    again = Record.from_json(json.loads(json.dumps(made[1][5].to_json(), sort_keys=True)))
    layers = list(tables.search_by_layer([again])["layer"])
    assert layers[:3] == ["features.0", "features.3", "features.7"] and layers[-1] == "features.40"


def test_the_panels_of_a_map_have_the_same_rows(made):
    """One method lacks at the second ratio: its row is blank there, and no other takes its name."""
    dense = made[1][0]
    l1, other = (
        next(r for r in made[1][2:6] if r.spec.method == name and r.spec.dense == dense.spec)
        for name in ("l1", "topological")
    )
    later = dataclasses.replace(other, spec=dataclasses.replace(other.spec, ratio=0.7))
    figure = figures.layer_map([dense, l1, other, later], "topological distance")
    drawn = [axes.collections[0].get_array().reshape(-1, 13) for axes in figure.axes[:2]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["L1", "topological"]
    assert drawn[0].shape == drawn[1].shape == (2, 13)
    assert drawn[1].mask[0].all() and not drawn[1].mask[1].any()


def test_a_figure_is_shown_with_its_downloads(made, tmp_path, monkeypatch):
    import pandas as pd

    shown = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    figure = figures.accuracy_by_ratio(made[1])
    figures.show(figure, "A caption.", "What is seen.", "a-name")
    assert (tmp_path / "downloads/a-name.svg").read_text().count("<svg") == 1
    assert len(pd.read_csv(tmp_path / "downloads/a-name.csv")) == len(figure.data)
    myst = shown[0]["text/markdown"]
    assert ":name: a-name\n:alt: What is seen.\n\nA caption. {download}`SVG <downloads/a-name.svg>`" in myst


def test_the_explorer_holds_every_run_and_no_markup_of_a_record(made):
    html = figures.explorer(made[1])
    data = html.split('id="explorer-data">')[1].split("</script>")[0]
    runs = json.loads(data)
    assert len(runs) == 4 and all(len(run["test"]) == 3 for run in runs)
    assert "<" not in data and "//" not in html.replace("</", "")


def test_the_portrait_is_drawn_and_counted(made):
    portrait = made[1][-1]
    for draw in (figures.persistence_diagrams, figures.filters_in_the_plane, figures.barcodes):
        assert any(axes.has_data() for axes in draw(portrait).axes)
    shared = tables.shared_choices(portrait).set_index("method")
    assert shared.loc["L1", "L1"] == 100 and shared.loc["L1", "topological"] < 100


def test_tables_hold_the_records_numbers(made):
    records = made[1]
    table = tables.comparison_table(records)
    assert len(table) == 2 and set(table["recovered"].str[-4:]) == {"of 2"}
    row = table[table["method"] == "L1"].iloc[0]
    tests = [100 * r.result["history"][-1]["test"] for r in records[2:6] if r.spec.method == "l1"]
    assert row["test accuracy (%)"].startswith(f"{sum(tests) / 2:.2f} ±")
    networks = [100 * record.result["test"] for record in records[:2]]  # one pruned twice, one once
    assert tables.dense_accuracy(records[:5]) == pytest.approx(sum(networks) / 2)
    by_layer = tables.search_by_layer(records).set_index("layer")
    searches = [r.result["searches"]["features.0"] for r in records[2:6] if r.result["searches"]]
    assert by_layer.loc["features.0", "seconds"] == pytest.approx(sum(sum(steps["seconds"]) for steps in searches) / 2)
    cost = tables.selection_table(records).set_index("method").loc["L1"]
    assert cost["selection (epochs)"] == cost["selection (s)"] / cost["epoch of fine-tuning (s)"]
    for made_table in (
        tables.dense_table(records),
        tables.damage_table(records),
        tables.how_it_was_run(records),
        tables.recipe_table(TINY),
        tables.cost_table(records),
    ):
        assert len(made_table)


def test_what_a_selection_computes_follows_from_shapes(made):
    """Torch counts the same pass, and the weights are those of the network."""
    from torch.utils.flop_counter import FlopCounterMode

    records = made[1]
    network = build("vgg16", width=TINY.width).eval()
    example = torch.zeros(CALIBRATION, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    batch = counter.get_total_flops() // 2
    convolutions = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    weights = sum(w.numel() for w in convolutions)
    pairs = sum(len(w) * w.numel() for w in convolutions)
    forward = records[0].result["cost"]["flops"]
    spec = records[2].spec

    def counted(method, **options):
        return tables._multiply_adds(dataclasses.replace(spec, method=method, options=options), forward)

    assert counted("random") == 0 and counted("l1") == counted("l2") == weights
    assert counted("fpgm") == counted("topological") == pairs
    assert pairs < counted("topological", pointed=True) < 4 * pairs
    assert counted("taylor") == pytest.approx(3 * batch, rel=0.01)
    groups = couplings(network, example)
    with FlopCounterMode(display=False) as counter:
        clouds = points(network, example, groups, "activations")
    assert counted("topological", space="activations") == pytest.approx(
        counter.get_total_flops() // 2 + sum(len(cloud) * cloud.size for cloud in clouds), rel=0.02
    )


def test_the_distances_that_a_search_compares_are_those_of_the_subsets_it_judged(made):
    record = next(r for r in made[1] if isinstance(r.spec, Trial) and r.spec.method == "topological")
    steps = record.result["searches"]
    by_hand = sum(
        steps[layer]["evaluations"][-1] * math.comb(len(kept), 2) for layer, kept in record.result["kept"].items()
    )
    assert tables._distances(record) == by_hand > 0
    table = tables.selection_table(made[1]).set_index("method")
    assert table.loc["L1", "distances compared (G)"] == 0 < table.loc["topological", "distances compared (G)"]


def test_a_contrast_is_run_and_put_beside(made, monkeypatch):
    records = made[1]
    assert study.companion_records("tiny", "contrast") == [] and tables.optimizers_table(records, []).empty
    muon = dataclasses.replace(TINY.dense, muon_rate=0.05)
    monkeypatch.setitem(study.PROFILES, "tiny-muon", dataclasses.replace(TINY, seeds=(0,), dense=muon))
    monkeypatch.setitem(study.PROFILES, "tiny", dataclasses.replace(TINY, contrast="tiny-muon"))
    beside = study.companion_records("tiny", "contrast")
    table = tables.optimizers_table(records, beside).set_index("method")
    assert list(table.index) == ["L1", "topological"]
    pruned = {tables.name_of(r.spec): r.result for r in beside if isinstance(r.spec, Trial)}
    for method, result in pruned.items():
        assert table.loc[method, "Muon: fine-tuned (%)"] == 100 * result["history"][-1]["test"]
    assert table["SGD: dense (%)"].iloc[0] == 100 * records[0].result["test"]  # of the shared seed
    assert set(table["SGD: networks"]) == {1}


def test_dense_networks_with_cutout_are_of_the_same_data_and_recipe():
    (whole,), (cut,) = (study.dense_specs(name, [0]) for name in ("study-whole", "study-cutout"))
    assert cut.recipe.cutout and dataclasses.replace(cut, recipe=dataclasses.replace(cut.recipe, cutout=0)) == whole


@pytest.mark.parametrize("which", ["whole", "cutout"])
def test_dense_networks_of_another_profile_stand_beside(which, made, monkeypatch):
    assert study.companion_records("tiny", which) == [] and tables.mean_accuracy([]) == "not part of this profile"
    longer = dataclasses.replace(TINY.dense, epochs=TINY.dense.epochs + 1, cutout=4)
    monkeypatch.setitem(study.PROFILES, "tiny-other", dataclasses.replace(TINY, seeds=(0,), methods=(), dense=longer))
    monkeypatch.setitem(study.PROFILES, "tiny", dataclasses.replace(TINY, **{which: "tiny-other"}))
    (record,) = study.companion_records("tiny", which)
    assert record.spec == study.dense_specs("tiny-other")[0]
    said = f"{100 * record.result['test']:.2f} % on the test images"
    assert tables.mean_accuracy([record]) == f"{said} (one network)"
    assert tables.mean_accuracy([record, record]) == f"{said} (mean of 2 networks)"
    table = tables.dense_table([*made[1], record])
    assert list(table["epochs"]) == [*[TINY.dense.epochs] * (len(table) - 1), longer.epochs]
    assert list(table["cutout"]) == [*[0] * (len(table) - 1), 4]


def test_younger_settings_leave_old_keys_alone(made):
    dense = made[1][0].spec
    known = set(plain(dense)["recipe"])
    assert not known & {"muon_rate", "muon_decay", "cutout"}
    with_muon = dataclasses.replace(dense, recipe=dataclasses.replace(dense.recipe, muon_rate=0.05))
    assert set(plain(with_muon)["recipe"]) == known | {"muon_rate"}
    assert spec_key(with_muon) != spec_key(dense)


def test_simple_measures_of_a_removal_by_hand(made):
    from topoprune.study.datasets import load

    record = made[1][2]
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


def test_a_trial_of_another_dense_network_is_refused(made):
    records = list(made[1])
    other = json.loads(json.dumps(records[0].result)) | {"validation": 0.123}
    records[0] = dataclasses.replace(records[0], result=other)
    with pytest.raises(FileError, match="l1 at ratio 0.5, seed 0 pruned another dense network"):
        tables.trials(records)


def test_intervals_are_student_s():
    import numpy as np

    low, high = tables.t_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert np.isnan(tables.t_interval(np.array([1.0]))).all()


def test_the_command_line_runs_and_reports(made, folders, monkeypatch, capsys):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(made[0]))
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
        (["prune", "nonsense"], "neither a .safetensors file nor a torchvision model"),
        (["prune", "missing.safetensors"], "missing.safetensors does not exist"),
        (["prune", "resnet18", "--weights", "none", "--ratio", "1"], "ratio must lie in [0, 1)"),
        (["prune", "resnet18", "--weights", "IMAGENET"], "the weights IMAGENET of resnet18 are not to"),
        (["prune", "resnet18", "--weights", "x.safetensors"], "the weights x.safetensors of resnet18"),
    ],
)
def test_the_command_line_answers_a_mistake_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_pruned_file_is_a_smaller_network_that_loads(tmp_path, capsys):
    import topoprune

    output = tmp_path / "small.safetensors"
    assert (
        main(
            [
                "prune",
                "resnet18",
                "--weights",
                "none",
                "--method",
                "l1",
                "--ratio",
                "0.5",
                "--shape",
                "3",
                "64",
                "64",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "small.json").read_text())
    small = topoprune.load(output).eval()
    with torch.no_grad():
        assert small(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert sum(p.numel() for p in small.parameters()) == report["after"]["parameters"]
    assert report["after"]["flops"] < 0.3 * report["before"]["flops"]


def test_a_dense_checkpoint_can_be_pruned(made, tmp_path, capsys):
    folder, records = made
    source = folder / "cache" / "runs" / f"dense-{records[0].key}" / "dense.safetensors"
    assert (
        main(
            [
                "prune",
                str(source),
                "--method",
                "fpgm",
                "--round-to",
                "4",
                "--output",
                str(tmp_path / "small.safetensors"),
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert {len(kept) % 4 for kept in report["kept"].values()} == {0}
    assert report["before"]["parameters"] == records[0].result["cost"]["parameters"]


def test_help_does_not_import_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "topoprune", "--help"], capture_output=True, text=True, check=True
    )
    assert "run" in done.stdout and " torch" not in done.stderr


def test_an_unknown_notebook_parameter_is_refused():
    known = {"profile": "quick", "device": None, "seeds": None, "force": False, "study": study, "_i": "", "In": []}
    notebook.check_parameters(known)
    with pytest.raises(ValueError, match="unknown notebook parameter n_genn: a chapter takes"):
        notebook.check_parameters({**known, "n_genn": 6})


@pytest.mark.parametrize("seeds", [[], [-1]])
def test_wrong_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="seeds must be a list of whole numbers from 0"):
        study.dense_specs("quick", seeds)
