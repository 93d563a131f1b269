"""Tables, figures and notebook helpers, drawn from the records of a tiny real study."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import TINY

from topoprune import study
from topoprune.data import CALIBRATION
from topoprune.files import FileError
from topoprune.models import build
from topoprune.network import couplings
from topoprune.report import figures, notebook, tables
from topoprune.study.trial import Record, Trial
from topoprune.topological import points


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
def test_every_figure_draws_the_records(tiny_study, name):
    figure = getattr(figures, name)(tiny_study.records)
    assert any(axes.has_data() for axes in figure.axes) and len(figure.data)


@pytest.mark.parametrize("column", ["topological distance", "kept filters", "live channels (%)", "removed norm"])
def test_layers_are_mapped(tiny_study, column):
    figure = figures.layer_map(tiny_study.records, column)
    assert len(figure.data) == 4 * 13 and figure.axes[0].has_data()


def test_layers_stand_as_in_the_network_after_a_round_trip(tiny_study):
    """JSON sorts the names, "features.10" before "features.3"; the widths of VGG-16 never shrink."""
    record = Record.from_json(json.loads(json.dumps(tiny_study.records[2].to_json(), sort_keys=True)))
    assert list(record.result["kept"])[1] == "features.10"
    frame = tables.layer_frame([record])
    assert list(frame["layer"]) == list(range(1, 14))
    assert frame["kept filters"].is_monotonic_increasing and frame["kept filters"].nunique() == 4
    again = Record.from_json(json.loads(json.dumps(tiny_study.records[5].to_json(), sort_keys=True)))
    layers = list(tables.search_by_layer([again])["layer"])
    assert layers[:3] == ["features.0", "features.3", "features.7"] and layers[-1] == "features.40"


def test_the_panels_of_a_map_have_the_same_rows(tiny_study):
    """One method lacks at the second ratio: its row is blank there, and no other takes its name."""
    dense = tiny_study.records[0]
    l1, other = (
        next(r for r in tiny_study.records[2:6] if r.spec.method == name and r.spec.dense == dense.spec)
        for name in ("l1", "topological")
    )
    later = dataclasses.replace(other, spec=dataclasses.replace(other.spec, ratio=0.7))
    figure = figures.layer_map([dense, l1, other, later], "topological distance")
    drawn = [axes.collections[0].get_array().reshape(-1, 13) for axes in figure.axes[:2]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["L1", "topological"]
    assert drawn[0].shape == drawn[1].shape == (2, 13)
    assert drawn[1].mask[0].all() and not drawn[1].mask[1].any()


def test_a_figure_is_shown_with_its_downloads(tiny_study, tmp_path, monkeypatch):
    import pandas as pd

    shown = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    figure = figures.accuracy_by_ratio(tiny_study.records)
    figures.show(figure, "A caption.", "What is seen.", "a-name")
    assert (tmp_path / "downloads/a-name.svg").read_text().count("<svg") == 1
    assert len(pd.read_csv(tmp_path / "downloads/a-name.csv")) == len(figure.data)
    myst = shown[0]["text/markdown"]
    assert ":name: a-name\n:alt: What is seen.\n\nA caption. {download}`SVG <downloads/a-name.svg>`" in myst


def test_the_explorer_holds_every_run_and_no_markup_of_a_record(tiny_study):
    html = figures.explorer(tiny_study.records)
    data = html.split('id="explorer-data">')[1].split("</script>")[0]
    runs = json.loads(data)
    assert len(runs) == 4 and all(len(run["test"]) == 3 for run in runs)
    assert "<" not in data and "//" not in html.replace("</", "")


def test_the_portrait_is_drawn_and_counted(tiny_study):
    portrait = tiny_study.records[-1]
    for draw in (figures.persistence_diagrams, figures.filters_in_the_plane, figures.barcodes):
        assert any(axes.has_data() for axes in draw(portrait).axes)
    shared = tables.shared_choices(portrait).set_index("method")
    assert shared.loc["L1", "L1"] == 100 and shared.loc["L1", "topological"] < 100


def test_tables_hold_the_records_numbers(tiny_study):
    records = tiny_study.records
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


def test_what_a_selection_computes_follows_from_shapes(tiny_study):
    """Torch counts the same pass, and the weights are those of the network."""
    from torch.utils.flop_counter import FlopCounterMode

    records = tiny_study.records
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


def test_the_distances_that_a_search_compares_are_those_of_the_subsets_it_judged(tiny_study):
    record = next(r for r in tiny_study.records if isinstance(r.spec, Trial) and r.spec.method == "topological")
    steps = record.result["searches"]
    by_hand = sum(
        steps[layer]["evaluations"][-1] * math.comb(len(kept), 2) for layer, kept in record.result["kept"].items()
    )
    assert tables._distances(record) == by_hand > 0
    table = tables.selection_table(tiny_study.records).set_index("method")
    assert table.loc["L1", "distances compared (G)"] == 0 < table.loc["topological", "distances compared (G)"]


def test_a_contrast_is_run_and_put_beside(tiny_study, folders, monkeypatch):
    records = tiny_study.records
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


@pytest.mark.parametrize("which", ["whole", "cutout"])
def test_dense_networks_of_another_profile_stand_beside(which, tiny_study, folders, monkeypatch):
    assert study.companion_records("tiny", which) == [] and tables.mean_accuracy([]) == "not part of this profile"
    longer = dataclasses.replace(TINY.dense, epochs=TINY.dense.epochs + 1, cutout=4)
    monkeypatch.setitem(study.PROFILES, "tiny-other", dataclasses.replace(TINY, seeds=(0,), methods=(), dense=longer))
    monkeypatch.setitem(study.PROFILES, "tiny", dataclasses.replace(TINY, **{which: "tiny-other"}))
    (record,) = study.companion_records("tiny", which)
    assert record.spec == study.dense_specs("tiny-other")[0]
    said = f"{100 * record.result['test']:.2f} % on the test images"
    assert tables.mean_accuracy([record]) == f"{said} (one network)"
    assert tables.mean_accuracy([record, record]) == f"{said} (mean of 2 networks)"
    table = tables.dense_table([*tiny_study.records, record])
    assert list(table["epochs"]) == [*[TINY.dense.epochs] * (len(table) - 1), longer.epochs]
    assert list(table["cutout"]) == [*[0] * (len(table) - 1), 4]


def test_a_trial_of_another_dense_network_is_refused(tiny_study):
    records = list(tiny_study.records)
    other = json.loads(json.dumps(records[0].result)) | {"validation": 0.123}
    records[0] = dataclasses.replace(records[0], result=other)
    with pytest.raises(FileError, match="l1 at ratio 0.5, seed 0 pruned another dense network"):
        tables.trials(records)


def test_intervals_are_student_s():
    import numpy as np

    low, high = tables.t_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert np.isnan(tables.t_interval(np.array([1.0]))).all()


def test_an_unknown_notebook_parameter_is_refused():
    known = {"profile": "quick", "device": None, "seeds": None, "force": False, "study": study, "_i": "", "In": []}
    notebook.check_parameters(known)
    with pytest.raises(ValueError, match="unknown notebook parameter n_genn: a chapter takes"):
        notebook.check_parameters({**known, "n_genn": 6})
